//! Looks into kernels and makes them ready for machinen guests.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use argh::FromArgs;
use machinen::args::prepare;
use machinen::diagnostic::Diagnostic;
use machinen::kernel::{Args, run};

const TOOL: &str = "machinen-kernel";

fn main() -> ExitCode {
    // Wanted even for errors in the arguments, so it is looked for before they are parsed.
    let json = std::env::args_os().any(|arg| arg == "--json");
    let usage = |message: String| {
        Diagnostic::new("KERNEL_USAGE", message).hint("see machinen-kernel --help").usage().report(TOOL, json)
    };
    let words = match prepare(std::env::args_os().skip(1)) {
        Ok(words) => words,
        Err((number, text)) => return usage(format!("argument {number}: {text}: is not UTF-8")),
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let args = match Args::from_args(&[TOOL], &words) {
        Ok(args) => args,
        Err(exit) if exit.status.is_ok() => return print(&exit.output),
        Err(exit) => {
            let text: Vec<&str> = exit.output.split_whitespace().collect();
            let mut text = text.join(" ").replace('\0', "-");
            // argh starts its messages with a capital letter.
            if let Some(first) = text.get_mut(..1) {
                first.make_ascii_lowercase();
            }
            return usage(text);
        }
    };
    if args.version {
        return print(&format!("{TOOL} {}\n", env!("CARGO_PKG_VERSION")));
    }
    match run(args) {
        Ok(code) => code,
        Err(diagnostic) => diagnostic.report(TOOL, json),
    }
}

/// Prints to standard output; that its reader went away is no failure.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Diagnostic::new("KERNEL_OUTPUT", format!("write: standard output: {e}")).report(TOOL, false)
        }
        _ => ExitCode::SUCCESS,
    }
}

//! Gives the virtual machine that a command runs a network.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use argh::FromArgs;
use machinen::args::prepare;
use machinen::net::{Args, run, usage};

const TOOL: &str = "machinen-net";

fn main() -> ExitCode {
    let mut own: Vec<OsString> = std::env::args_os().skip(1).collect();
    let dashes = own.iter().position(|arg| arg == "--");
    let command = dashes.map(|at| own.split_off(at).split_off(1));
    // Wanted even for errors in the arguments, so it is looked for before they are parsed.
    let json = own.iter().any(|arg| arg == "--json");
    let words = match prepare(own) {
        Ok(words) => words,
        Err((number, text)) => return usage(format!("argument {number}: {text}: is not UTF-8")).report(TOOL, json),
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let args = match Args::from_args(&[TOOL], &words) {
        Ok(args) => args,
        // argh knows nothing of what comes after --.
        Err(exit) if exit.status.is_ok() => {
            return print(&exit.output.replacen("[--version]", "[--version] -- COMMAND...", 1));
        }
        Err(exit) => {
            let text = exit.output.split_whitespace().collect::<Vec<_>>().join(" ");
            return usage(format!("{text}; the command comes after --")).report(TOOL, json);
        }
    };
    if args.version {
        return print(&format!("{TOOL} {}\n", env!("CARGO_PKG_VERSION")));
    }
    match command {
        Some(command) => run(&args, &command).report(TOOL, json),
        None => usage("no command: it comes after --").report(TOOL, json),
    }
}

/// Prints to standard output; that its reader went away is no failure.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::from(125),
        _ => ExitCode::SUCCESS,
    }
}

//! `machinen VERB` becomes `machinen-VERB`.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use machinen::diagnostic::Diagnostic;
use machinen::dispatch::{Asked, TOOL, become_verb, parse};

fn main() -> ExitCode {
    let text = match parse(std::env::args_os().skip(1)) {
        Ok(Asked::Print(text)) => text,
        Ok(Asked::Become(verb, arguments)) => return become_verb(&verb, &arguments).report(TOOL, false),
        Err(diagnostic) => return diagnostic.report(TOOL, false),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Diagnostic::new("MACHINEN_OUTPUT", format!("write: standard output: {error}")).report(TOOL, false)
        }
        _ => ExitCode::SUCCESS,
    }
}

//! Prints what machines take of the host's memory.

use std::process::ExitCode;

use machinen::mem::{Args, TOOL, run};

fn main() -> ExitCode {
    TOOL.main(|args: &Args| args.version, run)
}

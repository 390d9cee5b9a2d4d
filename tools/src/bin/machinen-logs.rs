//! Prints the console of a machine.

use std::process::ExitCode;

use machinen::logs::{Args, TOOL, run};

fn main() -> ExitCode {
    TOOL.main(|args: &Args| args.version, run)
}

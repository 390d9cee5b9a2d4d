//! Runs one more command in a virtual machine that runs.

use std::process::ExitCode;

use machinen::exec::{Args, SHORT, TOOL, run};
use machinen::program::main_of_command;

fn main() -> ExitCode {
    main_of_command(TOOL, SHORT, |args: &Args| args.version, run)
}

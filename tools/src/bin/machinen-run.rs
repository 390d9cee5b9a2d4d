//! Runs a command in a virtual machine of its own.

use std::process::ExitCode;

use machinen::program::main_of_command;
use machinen::run::{Args, SHORT, TOOL, run};

fn main() -> ExitCode {
    main_of_command(TOOL, SHORT, |args: &Args| args.version, run)
}

//! Takes part in the main command of a virtual machine that runs.

use std::process::ExitCode;

use machinen::attach::{Args, TOOL, run};
use machinen::program::main_of_command;

fn main() -> ExitCode {
    main_of_command(TOOL, "", |args: &Args| args.version, run)
}

//! Lets the processes of a bundle go on in a machine of their own.

use std::process::ExitCode;

use machinen::program::main_of_command;
use machinen::restore::{Args, SHORT, TOOL, run};

fn main() -> ExitCode {
    main_of_command(TOOL, SHORT, |args: &Args| args.version, |args, _| run(args))
}

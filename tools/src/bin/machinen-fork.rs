//! Copies a machine while it runs.

use std::process::ExitCode;

use machinen::fork::{Args, SHORT, TOOL, run};
use machinen::program::main_of_command;

fn main() -> ExitCode {
    main_of_command(TOOL, SHORT, |args: &Args| args.version, |args, _| run(args))
}

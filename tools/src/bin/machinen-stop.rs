//! Stops machines.

use std::process::ExitCode;

use machinen::stop::{Args, TOOL, run};

fn main() -> ExitCode {
    TOOL.main(|args: &Args| args.version, run)
}

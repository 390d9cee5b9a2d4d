//! Copies files and trees into a virtual machine that runs, or out of it.

use std::process::ExitCode;

use machinen::cp::{Args, TOOL, run};

fn main() -> ExitCode {
    TOOL.main(|args: &Args| args.version, run)
}

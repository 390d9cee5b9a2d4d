//! Removes what machines left that have ended.

use std::process::ExitCode;

use machinen::gc::{Args, TOOL, run};

fn main() -> ExitCode {
    TOOL.main(|args: &Args| args.version, run)
}

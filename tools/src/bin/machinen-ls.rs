//! Lists the machines that run.

use std::process::ExitCode;

use machinen::ls::{Args, TOOL, run};

fn main() -> ExitCode {
    TOOL.main(|args: &Args| args.version, run)
}

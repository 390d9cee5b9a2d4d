//! Freezes a machine's processes into a bundle.

use std::process::ExitCode;

use machinen::snapshot::{Args, TOOL, run};

fn main() -> ExitCode {
    TOOL.main(|args: &Args| args.version, run)
}

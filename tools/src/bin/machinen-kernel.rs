//! Looks into kernels and makes them ready for machinen guests.

use std::process::ExitCode;

use machinen::kernel::{Args, TOOL, run};

fn main() -> ExitCode {
    TOOL.main(|args: &Args| args.version, run)
}

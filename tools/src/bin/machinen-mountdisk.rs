//! Makes disks that mount a host directory in a guest, and prints their paths.

use std::process::ExitCode;

use machinen::mountdisk::{Args, TOOL, run};

fn main() -> ExitCode {
    TOOL.main(|args: &Args| args.version, run)
}

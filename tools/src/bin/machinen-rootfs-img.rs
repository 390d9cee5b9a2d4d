//! Makes an ext4 image of a root file system, once, and prints its path.

use std::process::ExitCode;

use machinen::rootfs_img::{Args, TOOL, run};

fn main() -> ExitCode {
    TOOL.main(|args: &Args| args.version, run)
}

//! Makes an initramfs for a machinen guest.

use std::process::ExitCode;

use machinen::mkinitramfs::{Args, TOOL, run};

fn main() -> ExitCode {
    TOOL.main(|args: &Args| args.version, run)
}

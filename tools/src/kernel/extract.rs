//! `machinen-kernel extract`: from a bzImage to the ELF kernel inside it.

use std::io::{self, Write};

use argh::FromArgs;
use machinen_initramfs::error::reason;

use super::input::{self, Content};
use super::{broken, usage};
use crate::args::plain;
use crate::diagnostic::Diagnostic;
use crate::outfile::Outfile;

/// write the ELF kernel in KERNEL to OUT
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "extract")]
pub struct Args {
    /// report an error as one line of JSON
    #[argh(switch)]
    #[allow(dead_code)]
    pub json: bool,
    /// bzImage (gzip, xz, lz4, zstd) or ELF kernel; - is standard input
    #[argh(positional)]
    pub kernel: String,
    /// file to write (default: -, standard output)
    #[argh(positional)]
    pub out: Option<String>,
}

/// Writes the kernel, whole or not at all.
pub fn run(args: Args) -> Result<(), Diagnostic> {
    let (kernel, out) = (plain(args.kernel), args.out.map_or("-".into(), plain));
    if kernel.is_empty() || out.is_empty() {
        return Err(usage("extract: an argument is empty"));
    }
    let failed = |cause: io::Error| Diagnostic::new("KERNEL_OUTPUT", format!("write: {out}: {}", reason(&cause)));
    let file = Outfile::create(&out).map_err(failed)?;
    if file.is_terminal() {
        return Err(Diagnostic::new("KERNEL_TERMINAL", format!("{out}: is a terminal, and a kernel is binary"))
            .hint("name a file, or pipe it into another program")
            .usage());
    }
    let elf = match input::open(&kernel, input::read(&kernel)?)? {
        Content::Elf(elf) => elf,
        Content::Image(_) => return Err(broken(&kernel, "an arm64 Image holds no ELF kernel; boot it as it is")),
        Content::Config(_) => return Err(broken(&kernel, "a configuration, not a kernel")),
    };
    match file.file().write_all(&elf) {
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        done => done.map_err(failed)?,
    }
    file.commit().map_err(failed)
}

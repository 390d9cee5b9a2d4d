//! The toolkit's library: what the `machinen-*` programs share. Each program is usage, one call here, one diagnostic.
//!
//! - [`diagnostic`]: how a tool reports a failure and with which exit code it ends.
//! - [`args`]: the command line as text, before any parser sees it.
//! - [`outfile`]: an output that is whole or absent, or standard output.
//! - [`assets`]: where the programs that a guest needs are found.
//! - [`outdir`]: the same for a directory.
//! - [`kernel`]: the work of `machinen-kernel`.
//! - [`mkinitramfs`]: the work of `machinen-mkinitramfs`.

#![forbid(unsafe_code)]

pub mod args;
pub mod assets;
pub mod diagnostic;
pub mod kernel;
pub mod mkinitramfs;
pub mod outdir;
pub mod outfile;

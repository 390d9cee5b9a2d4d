//! The work of `machinen-kernel`: what is in a kernel, whether it fits our guests, and what they need beside it.
//!
//! - [`input`]: kernel files and configurations, read and told apart.
//! - [`extract`], [`check`], [`modules`], [`host`]: one verb each.
//! - [`config`], [`features`]: a kernel's configuration, and what our features need of it.
//! - [`identity`]: which kernel a file is.
//! - [`package`], [`modinfo`]: kernel packages, and what a module says about itself.

pub mod check;
pub mod config;
pub mod extract;
pub mod features;
pub mod host;
pub(crate) mod identity;
pub mod input;
pub mod modinfo;
pub mod modules;
pub mod package;

use std::path::Path;

use argh::FromArgs;
use machinen_initramfs::error::{reason, show_path};

use crate::diagnostic::Diagnostic;
use crate::program::{Said, Tool};

/// Name and codes of the program.
pub const TOOL: Tool = Tool { name: "machinen-kernel", usage: "KERNEL_USAGE", output: "KERNEL_OUTPUT" };

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Look into kernels and make them ready for machinen guests.",
    note = "KERNEL is a vmlinux, a bzImage or an Image, also compressed by gzip; - is standard input.",
    note = "Exit codes: 0 done, 1 failed, 2 bad usage. check: 0 all there, 1 something missing, 2 failed.",
    example = "{command_name} extract /boot/vmlinuz-6.12.1 vmlinux",
    example = "{command_name} check /boot/config-6.12.1 >missing.fragment",
    example = "{command_name} modules linux-image-6.12.1.deb --for boot --out modules"
)]
pub struct Args {
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// report an error as one line of JSON
    #[argh(switch)]
    pub json: bool,
    /// what to do
    #[argh(subcommand)]
    pub verb: Option<Verb>,
}

/// What to do.
#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub enum Verb {
    /// `extract`
    Extract(extract::Args),
    /// `check`
    Check(check::Args),
    /// `modules`
    Modules(modules::Args),
    /// `host`
    Host(host::Args),
}

/// Does it.
pub fn run(args: Args) -> Result<Said, Diagnostic> {
    match args.verb {
        Some(Verb::Extract(args)) => extract::run(args).map(Said::from),
        Some(Verb::Check(args)) => check::run(args),
        Some(Verb::Modules(args)) => modules::run(args).map(Said::from),
        Some(Verb::Host(args)) => host::run(args).map(Said::from),
        None => Err(usage("no verb is given: extract, check, modules or host")),
    }
}

/// `KERNEL_USAGE`, exit code 2.
pub fn usage(message: impl Into<String>) -> Diagnostic {
    Diagnostic::new("KERNEL_USAGE", message).hint("see machinen-kernel --help").usage()
}

/// `KERNEL_HOST`: a call on the host failed.
pub(crate) fn failed<'a>(operation: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Diagnostic + 'a {
    move |cause| Diagnostic::new("KERNEL_HOST", format!("{operation}: {}: {}", show_path(path), reason(&cause)))
}

/// `KERNEL_BROKEN`: a file is damaged or of a kind that is not understood.
pub(crate) fn broken(name: &str, why: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::new("KERNEL_BROKEN", format!("{name}: {why}")).hint("was the file copied completely?")
}

//! Why an image was not made: one enum for the image tools, sorted by who can mend it.

use std::io;
use std::path::{Path, PathBuf};

use machinen_initramfs::error::{reason, show_path};

use crate::diagnostic::Diagnostic;

/// Why an image was not made.
#[derive(Debug)]
pub enum Fault {
    /// Arguments that contradict each other or mean nothing; the message says which.
    Usage(String),
    /// No variable says where the cache is.
    NoCache,
    /// A call on the host failed: what was tried, on what, the system's answer.
    Host(&'static str, PathBuf, io::Error),
    /// The source is damaged, incomplete or of an unsupported kind: its name, and why.
    Source(String, String),
    /// A path that the image cannot hold: where it comes from, the path, why.
    Path(String, String, String),
    /// The content does not fit: why.
    Limit(String),
    /// Something changed while it was read: what.
    Changed(String),
    /// A program is nowhere: its name, its Debian package, the flag that gives it, what was tried.
    Missing(&'static str, &'static str, &'static str, Vec<String>),
    /// A program failed: its name, and what it said.
    Program(&'static str, String),
}

/// Result with [`Fault`].
pub type Result<T> = std::result::Result<T, Fault>;

/// The stable codes of one tool.
#[derive(Debug)]
pub struct Codes {
    /// The tool's name, for hints.
    pub tool: &'static str,
    /// [`Fault::Usage`].
    pub usage: &'static str,
    /// [`Fault::NoCache`].
    pub no_cache: &'static str,
    /// [`Fault::Host`].
    pub host: &'static str,
    /// [`Fault::Source`].
    pub source: &'static str,
    /// [`Fault::Path`].
    pub path: &'static str,
    /// [`Fault::Limit`].
    pub limit: &'static str,
    /// [`Fault::Changed`].
    pub changed: &'static str,
    /// [`Fault::Missing`].
    pub missing: &'static str,
    /// [`Fault::Program`].
    pub program: &'static str,
}

impl Fault {
    /// A failed call on a host path.
    pub fn host(operation: &'static str, path: &Path, cause: impl Into<io::Error>) -> Self {
        Fault::Host(operation, path.to_owned(), cause.into())
    }

    /// Ready to print.
    pub fn diagnostic(self, codes: &Codes) -> Diagnostic {
        match self {
            Fault::Usage(message) => {
                Diagnostic::new(codes.usage, message).hint(format!("see {} --help", codes.tool)).usage()
            }
            Fault::NoCache => Diagnostic::new(codes.no_cache, "find the cache: neither HOME nor XDG_CACHE_HOME is set")
                .hint("set MACHINEN_CACHE_DIR to a directory"),
            Fault::Host(operation, path, cause) => {
                let message = format!("{operation}: {}: {}", show_path(&path), reason(&cause));
                let mut diagnostic = Diagnostic::new(codes.host, message);
                diagnostic.retryable = matches!(
                    cause.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::OutOfMemory | io::ErrorKind::ResourceBusy
                );
                diagnostic.hint = hint(cause.kind()).map(str::to_string);
                diagnostic
            }
            Fault::Source(name, why) => Diagnostic::new(codes.source, format!("read: {name}: {why}"))
                .hint("it is to be a tar file: make it again with tar -cf; a failed download or pipe ends early"),
            Fault::Path(name, path, why) => Diagnostic::new(codes.path, format!("bad path: {name}: {path}: {why}"))
                .hint("leave the entry out, or rename it"),
            Fault::Limit(why) => Diagnostic::new(codes.limit, format!("does not fit: {why}"))
                .hint("give a larger --size, or leave it out"),
            Fault::Changed(what) => {
                let mut diagnostic = Diagnostic::new(codes.changed, format!("read: {what}"));
                diagnostic.retryable = true;
                diagnostic.hint("try again when nothing writes there")
            }
            Fault::Missing(name, package, flag, tried) => {
                let message = format!("find {name}: tried {}", tried.join(", "));
                Diagnostic::new(codes.missing, message)
                    .hint(format!("apt-get install {package}, or give the program with {flag} PATH"))
            }
            Fault::Program(name, why) => Diagnostic::new(codes.program, format!("run {name}: {why}")),
        }
    }
}

fn hint(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::PermissionDenied => Some("run as an owner of the files"),
        io::ErrorKind::NotFound => Some("check the name"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free some space there, or set MACHINEN_CACHE_DIR to a directory with more room")
        }
        io::ErrorKind::FileTooLarge => Some("set MACHINEN_CACHE_DIR to a file system that holds files of this size"),
        _ => None,
    }
}

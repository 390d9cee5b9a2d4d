//! Errors of the layouts, sorted by who can mend them, each with its stable code.

use std::borrow::ToOwned;
use std::format;
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::vec::Vec;
use std::{fmt, io};

/// Why no archive was made. `Display` gives one line: what failed, the path, why.
#[derive(Debug)]
pub enum Error {
    /// Arguments that contradict each other or mean nothing; the message says which.
    Usage(String),
    /// A guest configuration that /init would refuse: where it comes from, and why.
    Config(String, String),
    /// A call on the host failed.
    Host {
        /// What was tried, as in "open".
        operation: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The archive could not be written out. A broken pipe lands here.
    Output(io::Error),
    /// A tar file is damaged, incomplete or of an unsupported kind: its name, and why.
    Tar(String, String),
    /// A tar file is compressed: its name, and the command that decompresses it.
    Compressed(String, &'static str),
    /// A path that no root file system can hold: where it comes from, the path, why.
    Path(String, String, &'static str),
    /// The format cannot hold the file: its name, why.
    Limit(String, String),
    /// A file changed between being listed and being read.
    Changed(String, &'static str),
    /// A workspace exceeds its limit.
    TooLarge {
        /// The workspace.
        path: PathBuf,
        /// Size of the archive it would make.
        bytes: u64,
        /// The limit.
        max_mib: u64,
        /// Its largest top entries and their sizes.
        top: Vec<(String, u64)>,
    },
}

/// Result with [`Error`].
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    /// A failed call on a host path.
    pub fn host(operation: &'static str, path: &Path, cause: impl Into<io::Error>) -> Self {
        let path = path.to_owned();
        let cause = cause.into();
        Error::Host { operation, path, cause }
    }

    /// Stable code of this error, for programs and for searching.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Usage(_) => "MKINITRAMFS_USAGE",
            Error::Config(..) => "MKINITRAMFS_CONFIG",
            Error::Host { .. } => "MKINITRAMFS_HOST",
            Error::Output(_) => "MKINITRAMFS_OUTPUT",
            Error::Tar(..) => "MKINITRAMFS_TAR",
            Error::Compressed(..) => "MKINITRAMFS_TAR_COMPRESSED",
            Error::Path(..) => "MKINITRAMFS_PATH",
            Error::Limit(..) => "MKINITRAMFS_LIMIT",
            Error::Changed(..) => "MKINITRAMFS_CHANGED",
            Error::TooLarge { .. } => "MKINITRAMFS_TOO_LARGE",
        }
    }

    /// What to do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Error::Usage(_) => "see machinen-mkinitramfs --help",
            Error::Config(..) => r#"the shape is {"cmd": ["prog", "arg"], "env": {"NAME": "value"}, "cwd": "/dir"}"#,
            Error::Compressed(name, command) => {
                let source = if name == STDIN { "FILE" } else { name };
                return Some(format!("{command} {source} | machinen-mkinitramfs rootfs - OUT"));
            }
            Error::Tar(..) => "make it again with tar -cf; a failed download or pipe ends early",
            Error::Path(..) => "leave the entry out of the tar file, or rename it",
            Error::Limit(..) => "leave it out with --exclude, or put it on a disk image",
            Error::Changed(..) => "try again when nothing writes there",
            Error::TooLarge { .. } => "leave something out with --exclude, or raise --max-mb",
            Error::Host { cause, .. } => match cause.kind() {
                io::ErrorKind::PermissionDenied => "run as an owner of the files, or leave it out with --exclude",
                io::ErrorKind::NotFound => "check the name",
                io::ErrorKind::StorageFull => "set TMPDIR to a directory with more room",
                _ => return None,
            },
            Error::Output(cause) => match cause.kind() {
                io::ErrorKind::StorageFull => "free some space there",
                _ => return None,
            },
        };
        Some(text.to_string())
    }

    /// Whether the same call may succeed when nothing is done but wait.
    pub fn retryable(&self) -> bool {
        match self {
            Error::Changed(..) => true,
            Error::Host { cause, .. } | Error::Output(cause) => matches!(
                cause.kind(),
                io::ErrorKind::Interrupted
                    | io::ErrorKind::OutOfMemory
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::TimedOut
            ),
            _ => false,
        }
    }
}

/// How messages name standard input.
pub(crate) const STDIN: &str = "standard input";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(why) => f.write_str(why),
            Error::Config(source, why) => write!(f, "bad configuration: {source}: {why}"),
            Error::Host { operation, path, cause } => {
                write!(f, "{operation}: {}: {}", show_path(path), reason(cause))
            }
            Error::Output(cause) => write!(f, "write: output: {}", reason(cause)),
            Error::Tar(name, why) => write!(f, "read tar: {name}: {why}"),
            Error::Compressed(name, _) => write!(f, "read tar: {name}: the file is compressed"),
            Error::Path(name, path, why) => write!(f, "bad path: {name}: {path}: {why}"),
            Error::Limit(path, why) => write!(f, "does not fit: {path}: {why}"),
            Error::Changed(path, why) => write!(f, "read: {path}: {why}"),
            Error::TooLarge { path, bytes, max_mib, top } => {
                let path = show_path(path);
                write!(f, "too large: {path}: {} MiB, the limit is {max_mib} MiB", mib(*bytes))?;
                for (i, (name, bytes)) in top.iter().enumerate() {
                    let start = if i == 0 { "; largest: " } else { ", " };
                    write!(f, "{start}{name} {} MiB", mib(*bytes))?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Error {}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Most characters of another library's words in a message; tar quotes what it could not read.
const MOST_CHARACTERS: usize = 80;

/// The system's words for an error in the style of these messages: lower case, one short line, without the number.
pub fn reason(cause: &io::Error) -> String {
    let text = cause.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars().take_while(|c| !c.is_control()).take(MOST_CHARACTERS);
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// A name as messages show it: control characters and bytes that are not UTF-8 escaped.
pub fn show(name: &[u8]) -> String {
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// [`show`] for a host path.
pub fn show_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    show(path.as_os_str().as_bytes())
}

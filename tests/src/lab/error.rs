//! What can go wrong with the lab itself.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a job has no exit code.
#[derive(Debug)]
pub enum Error {
    /// The cache has no lab.
    NotMade {
        /// What is missing.
        path: PathBuf,
        /// Architecture of the lab.
        arch: &'static str,
    },
    /// QEMU is not installed.
    NoQemu {
        /// Its name.
        program: &'static str,
    },
    /// A call on the host failed.
    Host {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The job took longer than it may.
    Limit {
        /// The job's limit.
        limit: Duration,
        /// The console's last lines.
        log: String,
    },
    /// QEMU ended, or the kernel panicked, before the command did.
    Died {
        /// The console's last lines.
        log: String,
    },
    /// The lab could not run the command.
    Refused {
        /// Its reason.
        why: String,
        /// The console's last lines.
        log: String,
    },
}

impl Error {
    /// For `map_err` after a call on the host.
    pub(super) fn host(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Host { operation, path: path.clone(), error }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let log = match self {
            Self::NotMade { path, arch } => {
                return write!(f, "no lab: {} is missing; run: make lab ARCH={arch}", path.display());
            }
            Self::NoQemu { program } => return write!(f, "{program} is not installed; run: make deps"),
            Self::Host { operation, path, error } => {
                return write!(f, "cannot {operation} {}: {error}", path.display());
            }
            Self::Limit { limit, log } => {
                write!(f, "the lab was killed at its limit of {} s", limit.as_secs_f32())?;
                log
            }
            Self::Died { log } => {
                write!(f, "the lab died")?;
                log
            }
            Self::Refused { why, log } => {
                write!(f, "the lab cannot run the command: {why}")?;
                log
            }
        };
        let log = if log.is_empty() { "(nothing)" } else { log };
        write!(f, "; its console ended with:\n{log}")
    }
}

//! The library's error: a stable code, what failed on what, what to do, whether a retry can help, and the cause.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use machinen_initramfs::error::reason;

use crate::diagnostic::Diagnostic;

/// Result of the library's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call of the library failed.
#[derive(Debug)]
pub struct Error {
    code: &'static str,
    message: String,
    hint: Option<String>,
    retryable: bool,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure without cause and hint, not to be retried. `message` says what failed, on what: lower case, no full stop.
    pub fn new(code: &'static str, message: impl Into<String>) -> Error {
        Error { code, message: message.into(), hint: None, retryable: false, cause: None }
    }

    /// A system call that failed; a retry can help where the system says so.
    pub fn host(code: &'static str, message: impl Into<String>, cause: impl Into<io::Error>) -> Error {
        let cause = cause.into();
        let retryable = matches!(
            cause.kind(),
            io::ErrorKind::Interrupted
                | io::ErrorKind::OutOfMemory
                | io::ErrorKind::ResourceBusy
                | io::ErrorKind::WouldBlock
        );
        Error { retryable, ..Error::new(code, message).because(cause) }
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.cause = Some(cause.into());
        self
    }

    /// The same call may succeed later with nothing changed.
    pub fn retry(mut self) -> Error {
        self.retryable = true;
        self
    }

    /// Stable code, as `REGISTRY_VM_NOT_FOUND`.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Whether the same call may succeed later with nothing changed.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// What to do about it.
    pub fn what_to_do(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Ready to print, with the causes behind the message; `exit` is the tool's exit code.
    pub fn diagnostic(&self, exit: u8) -> Diagnostic {
        let mut message = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            match error.downcast_ref::<io::Error>() {
                Some(error) => message.push_str(&format!(": {}", reason(error))),
                None => message.push_str(&format!(": {error}")),
            }
            cause = error.source();
        }
        Diagnostic { code: self.code, message, hint: self.hint.clone(), retryable: self.retryable, exit }
    }
}

impl From<Diagnostic> for Error {
    fn from(diagnostic: Diagnostic) -> Error {
        let Diagnostic { code, message, hint, retryable, exit: _ } = diagnostic;
        Error { code, message, hint, retryable, cause: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_the_message() {
        let inner = Error::host("A", "open /x", io::Error::from_raw_os_error(2));
        let error = Error::new("B", "boot").because(inner).hint("try y");
        let diagnostic = error.diagnostic(125);
        assert_eq!(diagnostic.message, "boot: open /x: no such file or directory");
        assert_eq!((diagnostic.code, diagnostic.exit, diagnostic.retryable), ("B", 125, false));
        assert!(Error::host("A", "x", io::Error::from_raw_os_error(16)).is_retryable());
    }
}

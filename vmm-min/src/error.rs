//! Why the monitor failed, sorted by who is to blame.

use std::fmt;
use std::io;

/// Result of the monitor's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the monitor. Each has a stable code ([`Error::code`]) and exit status 125.
#[derive(Debug)]
pub enum Error {
    /// The command line, the environment or a file given by the user is wrong.
    Usage {
        /// Stable code.
        code: &'static str,
        /// What is wrong, and with what.
        message: String,
        /// What to do about it; empty when the message says it all.
        hint: String,
    },
    /// The host refused something that the monitor needs.
    Host {
        /// Stable code.
        code: &'static str,
        /// The operation and what it was applied to.
        operation: String,
        /// The system's answer.
        cause: io::Error,
        /// What to do about it; may be empty.
        hint: String,
    },
    /// A KVM call failed.
    Kvm {
        /// Name of the call, as in the KVM API documentation.
        call: &'static str,
        /// The system's answer.
        cause: kvm_ioctls::Error,
    },
    /// The guest did something that ends it.
    Guest {
        /// Stable code.
        code: &'static str,
        /// What the guest did, and where.
        message: String,
        /// What to look at; may be empty.
        hint: String,
    },
}

impl Error {
    /// A wrong argument or input file.
    pub fn usage(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Usage { code, message: message.into(), hint: hint.into() }
    }

    /// A failed system call: what was tried, on what, and the answer.
    pub fn host(code: &'static str, operation: impl Into<String>, cause: io::Error) -> Error {
        Error::Host { code, operation: operation.into(), cause, hint: String::new() }
    }

    /// Turns the error of a KVM call into ours; for `map_err`.
    pub fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |cause| Error::Kvm { call, cause }
    }

    /// A fault of the guest.
    pub fn guest(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Guest { code, message: message.into(), hint: hint.into() }
    }

    /// The stable code that scripts may compare.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Usage { code, .. } | Error::Host { code, .. } | Error::Guest { code, .. } => code,
            Error::Kvm { .. } => "KVM_CALL_FAILED",
        }
    }

    /// What the user can do about it; empty when there is nothing to add.
    pub fn hint(&self) -> &str {
        match self {
            Error::Usage { hint, .. } | Error::Host { hint, .. } | Error::Guest { hint, .. } => hint,
            Error::Kvm { .. } => "",
        }
    }

    /// The same call may succeed when the host has more to give.
    pub fn retryable(&self) -> bool {
        matches!(self, Error::Host { cause, .. } if cause.kind() == io::ErrorKind::OutOfMemory)
    }

    /// The same error as one JSON object: `tool`, `code`, `message`, `hint` (or null), `retryable`, as of every tool, and
    /// `blame`.
    pub fn to_json(&self) -> String {
        let blame = match self {
            Error::Usage { .. } => "usage",
            Error::Host { .. } => "host",
            Error::Kvm { .. } => "kvm",
            Error::Guest { .. } => "guest",
        };
        serde_json::json!({
            "tool": "vmm-min",
            "code": self.code(),
            "message": self.to_string(),
            "hint": Some(self.hint()).filter(|hint| !hint.is_empty()),
            "retryable": self.retryable(),
            "blame": blame,
        })
        .to_string()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage { message, .. } | Error::Guest { message, .. } => f.write_str(message),
            Error::Host { operation, cause, .. } => write!(f, "{operation}: {cause}"),
            Error::Kvm { call, cause } => write!(f, "{call}: {}", io::Error::from_raw_os_error(cause.errno())),
        }
    }
}

impl std::error::Error for Error {}

//! What a child tells the agent before, or instead of, its work: bytes on a pipe of their own.
//!
//! A command's pipe is closed by execve(2): its end without a word means that the command runs. A child that works
//! itself says [`BEGUN`] first. A failure is the last word of both.

use alloc::string::String;
use alloc::vec::Vec;

use machinen_abi::body::{Failure, Reason};

/// The work has begun.
pub const BEGUN: u8 = b'b';
/// A failure follows, as [`Failure`] on the wire.
const FAILED: u8 = b'f';
/// A failure is written at once or not at all, so it is no longer than a pipe takes in one piece (pipe(7)).
const MOST_BYTES: usize = 4096;
const MOST_MESSAGE_BYTES: usize = 3000;

/// A failure that owns its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The sort of failure.
    pub reason: Reason,
    /// The system's error number, 0 without one.
    pub errno: i32,
    /// What failed, on what, why: one line.
    pub message: String,
}

impl Failed {
    /// As bytes for the pipe.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::from([FAILED]);
        self.with(|failure| failure.write(&mut bytes));
        bytes
    }

    /// Gives it as the wire has it: with an end where it is too long.
    pub fn with<T>(&self, use_it: impl FnOnce(&Failure<'_>) -> T) -> T {
        let message = &self.message[..self.message.floor_char_boundary(MOST_MESSAGE_BYTES)];
        use_it(&Failure { reason: self.reason, errno: u32::try_from(self.errno).unwrap_or(0), message })
    }
}

/// What has been read of a child's pipe.
#[derive(Clone, Debug, Default)]
pub struct Report(Vec<u8>);

impl Report {
    /// Adds bytes as they come; more than a child says is dropped.
    pub fn add(&mut self, bytes: &[u8]) {
        let room = MOST_BYTES.saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// The child has said that it begins.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.first() == Some(&BEGUN)
    }

    /// The failure that it has told.
    #[must_use]
    pub fn failed(&self) -> Option<Failed> {
        let words = self.0.strip_prefix(&[BEGUN]).unwrap_or(&self.0);
        let failure = Failure::parse(words.strip_prefix(&[FAILED])?)?;
        let Failure { reason, errno, message } = failure;
        Some(Failed { reason, errno: i32::try_from(errno).unwrap_or(0), message: message.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::{BEGUN, Failed, Report};
    use machinen_abi::body::Reason;
    use proptest::prelude::{any, prop, proptest};

    #[test]
    fn what_is_told_is_heard() {
        let failed = Failed { reason: Reason::Escape, errno: 18, message: "a/b: no".into() };
        let mut report = Report::default();
        assert!(report.failed().is_none() && !report.has_begun());
        report.add(&failed.to_bytes());
        assert_eq!((report.failed(), report.has_begun()), (Some(failed.clone()), false));
        let mut report = Report::default();
        report.add(&[BEGUN]);
        assert!(report.failed().is_none() && report.has_begun());
        failed.to_bytes().iter().for_each(|byte| report.add(&[*byte]));
        assert_eq!((report.failed(), report.has_begun()), (Some(failed), true));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let failed = Failed { reason: Reason::System, errno: 1, message: "é".repeat(9000) };
        let bytes = failed.to_bytes();
        assert!(bytes.len() < 4096);
        let mut report = Report::default();
        report.add(&bytes);
        assert_eq!(report.failed().unwrap().message, "é".repeat(1500));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..9)) {
            let mut report = Report::default();
            pieces.iter().for_each(|piece| report.add(piece));
            let _ = (report.has_begun(), report.failed());
            assert!(report.0.len() <= 4096);
        }
    }
}

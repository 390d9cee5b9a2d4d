//! What a child tells the agent before, or instead of, its work: bytes on a pipe of their own.
//!
//! A command's pipe is closed by execve(2): its end without a word means that the command runs. A child that works
//! itself says [`BEGUN`] first, and may tell points that it comes to, and what it restores. A failure is the last word of all.

use alloc::string::String;
use alloc::vec::Vec;

use machinen_abi::body::{Failure, Reason};

/// The work has begun.
pub const BEGUN: u8 = b'b';
/// A failure follows, as [`Failure`] on the wire.
const FAILED: u8 = b'f';
/// A [`Restored`] follows.
const RESTORED: u8 = b'r';
/// A [`mark`] follows.
const MARK: u8 = b'm';
/// A failure is written at once or not at all, so it is no longer than a pipe takes in one piece (pipe(7)).
const MOST_BYTES: usize = 4096;
const MOST_MESSAGE_BYTES: usize = 3000;
const MOST_NAME_BYTES: usize = 250;
/// Points that are kept until they are taken.
const MOST_MARKS: usize = 64;

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

/// The main command that a child is about to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The number of its first process.
    pub pid: i32,
    /// It has a terminal, and no pipes.
    pub terminal: bool,
    /// Which of its stdin, stdout and stderr are pipes of its own.
    pub pipes: [bool; 3],
}

impl Restored {
    /// As bytes for the pipe.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 6] {
        let [p0, p1, p2, p3] = self.pid.to_le_bytes();
        let [input, output, error] = self.pipes.map(u8::from);
        [RESTORED, p0, p1, p2, p3, u8::from(self.terminal) << 3 | input << 2 | output << 1 | error]
    }

    fn parse([p0, p1, p2, p3, bits]: [u8; 5]) -> Restored {
        let bit = |number: u8| bits >> number & 1 == 1;
        let pid = i32::from_le_bytes([p0, p1, p2, p3]);
        Restored { pid, terminal: bit(3), pipes: [bit(2), bit(1), bit(0)] }
    }
}

/// A point that the child has come to, as bytes for the pipe: a time in ns since 1970, and a name, which is cut where it is
/// too long.
#[must_use]
pub fn mark(time_ns: u64, name: &str) -> Vec<u8> {
    let name = &name[..name.floor_char_boundary(MOST_NAME_BYTES)];
    let mut bytes = Vec::from([MARK]);
    bytes.extend(time_ns.to_le_bytes());
    bytes.push(u8::try_from(name.len()).unwrap_or(0));
    bytes.extend(name.bytes());
    bytes
}

/// What has been read of a child's pipe.
#[derive(Clone, Debug, Default)]
pub struct Report {
    begun: bool,
    restored: Option<Restored>,
    marks: Vec<(u64, String)>,
    /// What is not understood yet: a part of a word, or a failure.
    rest: Vec<u8>,
}

impl Report {
    /// Adds bytes as they come; more than a child says is dropped.
    pub fn add(&mut self, bytes: &[u8]) {
        let room = MOST_BYTES.saturating_sub(self.rest.len());
        self.rest.extend_from_slice(&bytes[..bytes.len().min(room)]);
        while let Some(count) = self.word() {
            self.rest.drain(..count);
        }
    }

    /// Takes a word in; returns its length.
    fn word(&mut self) -> Option<usize> {
        let (first, rest) = self.rest.split_first()?;
        match *first {
            BEGUN => {
                self.begun = true;
                Some(1)
            }
            RESTORED => {
                self.restored = Some(Restored::parse(*rest.first_chunk()?));
                Some(6)
            }
            MARK => {
                let (time, rest) = rest.split_first_chunk()?;
                let (length, rest) = rest.split_first()?;
                let name = String::from_utf8_lossy(rest.get(..usize::from(*length))?).into_owned();
                if self.marks.len() < MOST_MARKS {
                    self.marks.push((u64::from_le_bytes(*time), name));
                }
                Some(10 + usize::from(*length))
            }
            _ => None,
        }
    }

    /// The child has said that it begins.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// What the child restores.
    #[must_use]
    pub fn restored(&self) -> Option<Restored> {
        self.restored
    }

    /// It has told a point that nobody has taken.
    #[must_use]
    pub fn has_marks(&self) -> bool {
        !self.marks.is_empty()
    }

    /// The points that it has told since this was called last: time and name.
    pub fn take_marks(&mut self) -> Vec<(u64, String)> {
        core::mem::take(&mut self.marks)
    }

    /// The failure that it has told.
    #[must_use]
    pub fn failed(&self) -> Option<Failed> {
        let failure = Failure::parse(self.rest.strip_prefix(&[FAILED])?)?;
        let Failure { reason, errno, message } = failure;
        Some(Failed { reason, errno: i32::try_from(errno).unwrap_or(0), message: message.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::{BEGUN, Failed, Report, Restored, mark};
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

    #[test]
    fn points_and_what_is_restored_come_in_any_pieces() {
        let restored = Restored { pid: 1000, terminal: false, pipes: [true, false, true] };
        let terminal = Restored { pid: 1 << 20, terminal: true, pipes: [false; 3] };
        let failed = Failed { reason: Reason::System, errno: 0, message: "no".into() };
        let all =
            [&mark(7, "criu")[..], &restored.to_bytes(), &[BEGUN], &mark(8, &"é".repeat(200)), &failed.to_bytes()];
        let mut report = Report::default();
        all.concat().iter().for_each(|byte| report.add(&[*byte]));
        let marks = [(7, "criu".to_owned()), (8, "é".repeat(125))];
        assert!(report.has_marks());
        assert_eq!((report.restored(), report.take_marks()), (Some(restored), marks.to_vec()));
        assert!(
            !report.has_marks()
                && report.has_begun()
                && report.take_marks().is_empty()
                && report.failed() == Some(failed)
        );
        report = Report::default();
        report.add(&terminal.to_bytes());
        assert_eq!(report.restored(), Some(terminal));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..9)) {
            let mut report = Report::default();
            pieces.iter().for_each(|piece| report.add(piece));
            let _ = (report.has_begun(), report.failed());
            assert!(report.rest.len() <= 4096 && report.take_marks().len() <= 64);
        }
    }
}

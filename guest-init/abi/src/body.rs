//! The payloads of the frames after the first.

/// [`Kind::Signal`](crate::frame::Kind::Signal): a signal as Linux numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(pub u32);

/// [`Kind::Resize`](crate::frame::Kind::Resize) and [`Tag::Size`](crate::open::Tag::Size): characters of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// [`Kind::Started`](crate::frame::Kind::Started): the command's process in the guest, 0 when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started(pub u32);

/// A data stream within a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Stream {
    /// [`Kind::Input`](crate::frame::Kind::Input).
    Input = 0,
    /// [`Kind::Output`](crate::frame::Kind::Output).
    Output = 1,
    /// [`Kind::Error`](crate::frame::Kind::Error).
    Error = 2,
}

/// [`Kind::Credit`](crate::frame::Kind::Credit): bytes that may be sent beyond what was allowed so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Which stream.
    pub stream: Stream,
    /// Bytes.
    pub bytes: u32,
}

/// [`Kind::Exit`](crate::frame::Kind::Exit): how a command ended. Operations without a command end with `Code(0)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl Exit {
    /// As a shell says it: the code, or 128 and the signal.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// The name of the [`Mark`] of a dump that is held ([`Tag::Hold`](crate::open::Tag::Hold)).
pub const HELD: &str = "held";
/// The byte of input that says that it is taken; anything else, and the end of the input or the stream, says that it is not.
pub const TAKEN: u8 = b'c';

/// A point of the guest's start, or of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark<'a> {
    /// Nanoseconds since 1970 by the guest's clock, which is the host's.
    pub time_ns: u64,
    /// Its name.
    pub name: &'a str,
}

/// Why an operation did not happen, or did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Reason {
    /// The peer speaks another version; `errno` is the sender's version.
    Version = 1,
    /// A frame that breaks the protocol.
    Protocol = 2,
    /// The operation is not known or not served.
    Unsupported = 3,
    /// A field that is missing or makes no sense.
    Invalid = 4,
    /// A system call failed with `errno`.
    System = 5,
    /// No such program.
    NotFound = 6,
    /// The program cannot be executed, because of `errno`.
    CannotExecute = 7,
    /// Too much at once: try again later.
    Busy = 8,
    /// A name in the archive that leads out of the destination.
    Escape = 9,
    /// The machine has no main command, or it has ended.
    NoCommand = 10,
    /// The main command was dumped: it goes on where it is restored.
    Dumped = 11,
}

impl Reason {
    const ALL: [Reason; 11] = [
        Reason::Version,
        Reason::Protocol,
        Reason::Unsupported,
        Reason::Invalid,
        Reason::System,
        Reason::NotFound,
        Reason::CannotExecute,
        Reason::Busy,
        Reason::Escape,
        Reason::NoCommand,
        Reason::Dumped,
    ];

    /// The reason of this number.
    #[must_use]
    pub fn of(number: u16) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| *reason as u16 == number)
    }
}

/// [`Kind::Failed`](crate::frame::Kind::Failed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<'a> {
    /// The sort of failure.
    pub reason: Reason,
    /// The system's error number, 0 without one.
    pub errno: u32,
    /// What failed, on what, why: one line.
    pub message: &'a str,
}

impl Signal {
    /// As on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }

    /// From the wire; `None` when it is no signal of Linux (1 to 64).
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Signal> {
        let number = u32::from_le_bytes(payload.try_into().ok()?);
        (1..=64).contains(&number).then_some(Signal(number))
    }
}

impl Size {
    /// As on the wire: rows, columns.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 4] {
        let ([r0, r1], [c0, c1]) = (self.rows.to_le_bytes(), self.columns.to_le_bytes());
        [r0, r1, c0, c1]
    }

    /// From the wire.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Size> {
        let [r0, r1, c0, c1] = payload.try_into().ok()?;
        Some(Size { rows: u16::from_le_bytes([r0, r1]), columns: u16::from_le_bytes([c0, c1]) })
    }
}

impl Started {
    /// As on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }

    /// From the wire.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Started> {
        payload.try_into().ok().map(u32::from_le_bytes).map(Started)
    }
}

impl Credit {
    /// As on the wire: stream, 16 bits of zero, bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let ([s0, s1], [b0, b1, b2, b3]) = ((self.stream as u16).to_le_bytes(), self.bytes.to_le_bytes());
        [s0, s1, 0, 0, b0, b1, b2, b3]
    }

    /// From the wire; `None` when there is no such stream.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Credit> {
        let [s0, s1, r0, r1, b0, b1, b2, b3] = payload.try_into().ok()?;
        let stream = match u16::from_le_bytes([s0, s1]) {
            0 => Stream::Input,
            1 => Stream::Output,
            2 => Stream::Error,
            _ => return None,
        };
        ((r0, r1) == (0, 0)).then_some(Credit { stream, bytes: u32::from_le_bytes([b0, b1, b2, b3]) })
    }
}

impl Exit {
    /// As on the wire: 0 for a code, 1 for a signal, and its number.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 2] {
        match self {
            Exit::Code(code) => [0, code],
            Exit::Signal(signal) => [1, signal],
        }
    }

    /// From the wire.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Exit> {
        match *payload {
            [0, code] => Some(Exit::Code(code)),
            [1, signal] => Some(Exit::Signal(signal)),
            _ => None,
        }
    }
}

impl<'a> Mark<'a> {
    /// Writes it: 64 bits of time, then the name.
    pub fn write(&self, payload: &mut impl Extend<u8>) {
        payload.extend(self.time_ns.to_le_bytes());
        payload.extend(self.name.bytes());
    }

    /// From the wire; `None` when the name is not UTF-8.
    #[must_use]
    pub fn parse(payload: &'a [u8]) -> Option<Mark<'a>> {
        let (time, name) = payload.split_first_chunk()?;
        Some(Mark { time_ns: u64::from_le_bytes(*time), name: core::str::from_utf8(name).ok()? })
    }
}

impl<'a> Failure<'a> {
    /// Writes it: reason, 16 bits of zero, errno, message.
    pub fn write(&self, payload: &mut impl Extend<u8>) {
        payload.extend((self.reason as u16).to_le_bytes());
        payload.extend([0, 0]);
        payload.extend(self.errno.to_le_bytes());
        payload.extend(self.message.bytes());
    }

    /// From the wire. A number that is not known is [`Reason::System`]; a message that is not UTF-8 counts up to there.
    #[must_use]
    pub fn parse(payload: &'a [u8]) -> Option<Failure<'a>> {
        let ([r0, r1, _, _, e0, e1, e2, e3], message) = payload.split_first_chunk()?;
        let reason = Reason::of(u16::from_le_bytes([*r0, *r1])).unwrap_or(Reason::System);
        let message = match core::str::from_utf8(message) {
            Ok(message) => message,
            Err(error) => core::str::from_utf8(&message[..error.valid_up_to()]).unwrap_or_default(),
        };
        Some(Failure { reason, errno: u32::from_le_bytes([*e0, *e1, *e2, *e3]), message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        assert_eq!(Signal(15).to_bytes(), [15, 0, 0, 0]);
        assert_eq!(Size { rows: 24, columns: 0x150 }.to_bytes(), [24, 0, 0x50, 1]);
        assert_eq!(Credit { stream: Stream::Error, bytes: 0x10203 }.to_bytes(), [2, 0, 0, 0, 3, 2, 1, 0]);
        assert_eq!((Exit::Code(7).to_bytes(), Exit::Signal(9).to_bytes()), ([0, 7], [1, 9]));
        let mut bytes = Vec::new();
        Failure { reason: Reason::NotFound, errno: 2, message: "x: no" }.write(&mut bytes);
        assert_eq!(bytes, *b"\x06\0\0\0\x02\0\0\0x: no");
        let mut bytes = Vec::new();
        Mark { time_ns: 0x102, name: "init" }.write(&mut bytes);
        assert_eq!(bytes, *b"\x02\x01\0\0\0\0\0\0init");
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Signal::parse(&Signal(64).to_bytes()), Some(Signal(64)));
        let size = Size { rows: 1, columns: u16::MAX };
        assert_eq!(Size::parse(&size.to_bytes()), Some(size));
        assert_eq!(Started::parse(&Started(77).to_bytes()), Some(Started(77)));
        for stream in [Stream::Input, Stream::Output, Stream::Error] {
            let credit = Credit { stream, bytes: 9 };
            assert_eq!(Credit::parse(&credit.to_bytes()), Some(credit));
        }
        for exit in [Exit::Code(255), Exit::Signal(9)] {
            assert_eq!(Exit::parse(&exit.to_bytes()), Some(exit));
        }
        for reason in Reason::ALL {
            let mut bytes = Vec::new();
            let failure = Failure { reason, errno: 13, message: "é" };
            failure.write(&mut bytes);
            assert_eq!(Failure::parse(&bytes), Some(failure));
            bytes.pop();
            assert_eq!(Failure::parse(&bytes), Some(Failure { message: "", ..failure }));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!((Signal::parse(&[0; 4]), Signal::parse(&[65, 0, 0, 0]), Signal::parse(&[9])), (None, None, None));
        assert_eq!((Credit::parse(&[3, 0, 0, 0, 1, 0, 0, 0]), Credit::parse(&[0, 0, 1, 0, 1, 0, 0, 0])), (None, None));
        assert_eq!((Exit::parse(&[2, 0]), Exit::parse(&[0])), (None, None));
        assert_eq!((Size::parse(&[]), Started::parse(&[0; 5]), Failure::parse(&[0; 7])), (None, None, None));
        assert_eq!((Mark::parse(&[0; 7]), Mark::parse(b"\0\0\0\0\0\0\0\0\xff")), (None, None));
    }

    #[test]
    fn a_status_is_as_a_shell_says_it() {
        assert_eq!((Exit::Code(3).status(), Exit::Signal(9).status(), Exit::Signal(200).status()), (3, 137, 255));
    }
}

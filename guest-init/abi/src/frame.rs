//! A frame: kind, length, payload.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 8;

/// Most bytes of a payload, for every kind but [`Kind::Open`].
pub const MOST_PAYLOAD_BYTES: usize = 64 << 10;

/// Most bytes of the payload of [`Kind::Open`]: room for the argument list and environment that Linux takes.
pub const MOST_OPEN_BYTES: usize = 8 << 20;

/// What a frame is. Numbers below 16 go to the guest, from 16 to 31 to the host, from 32 both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// The first frame of a stream: [`crate::open`].
    Open = 1,
    /// Bytes for the operation: standard input, an archive, a file's content.
    Input = 2,
    /// No more [`Kind::Input`]; no payload.
    InputEnd = 3,
    /// [`crate::body::Signal`] for the command's process group.
    Signal = 4,
    /// [`crate::body::Size`] of the terminal.
    Resize = 5,
    /// The first frame on a stream that the guest opened; payload: its version, 16 bits. [`Kind::Open`] answers it.
    Ready = 16,
    /// The operation has begun: [`crate::body::Started`].
    Started = 17,
    /// Bytes of the operation: standard output, a terminal's output, an archive.
    Output = 18,
    /// No more [`Kind::Output`]; no payload.
    OutputEnd = 19,
    /// Bytes of the command's standard error.
    Error = 20,
    /// No more [`Kind::Error`]; no payload.
    ErrorEnd = 21,
    /// The last frame: how the operation ended, [`crate::body::Exit`].
    Exit = 22,
    /// The last frame: it was refused, or failed: [`crate::body::Failure`].
    Failed = 23,
    /// [`crate::body::Mark`]: when the guest reached a point of its start.
    Mark = 24,
    /// [`crate::body::Credit`]: the receiver of a data stream has room for more.
    Credit = 32,
}

impl Kind {
    const ALL: [Kind; 15] = [
        Kind::Open,
        Kind::Input,
        Kind::InputEnd,
        Kind::Signal,
        Kind::Resize,
        Kind::Ready,
        Kind::Started,
        Kind::Output,
        Kind::OutputEnd,
        Kind::Error,
        Kind::ErrorEnd,
        Kind::Exit,
        Kind::Failed,
        Kind::Mark,
        Kind::Credit,
    ];

    /// The kind of this number.
    #[must_use]
    pub fn of(number: u16) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u16 == number)
    }

    /// Most bytes of its payload.
    #[must_use]
    pub fn most_bytes(self) -> usize {
        if self == Kind::Open { MOST_OPEN_BYTES } else { MOST_PAYLOAD_BYTES }
    }
}

/// Why eight bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// No kind has this number.
    Kind(u16),
    /// The reserved bytes are not zero.
    Reserved(u16),
    /// A payload of this many bytes is more than its kind may have.
    Length(u32),
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Malformed::Kind(number) => write!(f, "no kind of frame has the number {number}"),
            Malformed::Reserved(bits) => write!(f, "reserved bits are set: {bits:#x}"),
            Malformed::Length(bytes) => write!(f, "a payload of {bytes} bytes is too long"),
        }
    }
}

/// A header: what follows, and how many bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// Bytes of the payload.
    pub length: u32,
}

impl Header {
    /// A header for `length` bytes. `None` when that is more than the kind may have.
    #[must_use]
    pub fn new(kind: Kind, length: usize) -> Option<Header> {
        let fits = length <= kind.most_bytes();
        u32::try_from(length).ok().filter(|_| fits).map(|length| Header { kind, length })
    }

    /// As on the wire: kind, 16 bits of zero, length.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let [k0, k1] = (self.kind as u16).to_le_bytes();
        let [l0, l1, l2, l3] = self.length.to_le_bytes();
        [k0, k1, 0, 0, l0, l1, l2, l3]
    }

    /// Reads a header.
    ///
    /// # Errors
    /// An unknown kind, reserved bits that are set, a length that its kind may not have.
    pub fn from_bytes([k0, k1, r0, r1, l0, l1, l2, l3]: [u8; HEADER_BYTES]) -> Result<Header, Malformed> {
        let number = u16::from_le_bytes([k0, k1]);
        let kind = Kind::of(number).ok_or(Malformed::Kind(number))?;
        let reserved = u16::from_le_bytes([r0, r1]);
        if reserved != 0 {
            return Err(Malformed::Reserved(reserved));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        match usize::try_from(length) {
            Ok(bytes) if bytes <= kind.most_bytes() => Ok(Header { kind, length }),
            _ => Err(Malformed::Length(length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back() {
        for kind in Kind::ALL {
            let header = Header::new(kind, 5).unwrap();
            assert_eq!(Header::from_bytes(header.to_bytes()), Ok(header));
        }
        assert_eq!(Header::new(Kind::Output, 0x1234).unwrap().to_bytes(), [18, 0, 0, 0, 0x34, 0x12, 0, 0]);
    }

    #[test]
    fn what_is_no_header_is_named() {
        assert_eq!(Header::from_bytes([99, 0, 0, 0, 0, 0, 0, 0]), Err(Malformed::Kind(99)));
        assert_eq!(Header::from_bytes([2, 0, 1, 0, 0, 0, 0, 0]), Err(Malformed::Reserved(1)));
        assert_eq!(Header::from_bytes([2, 0, 0, 0, 1, 0, 1, 0]), Err(Malformed::Length(65537)));
        assert_eq!(Header::from_bytes([1, 0, 0, 0, 1, 0, 128, 0]), Err(Malformed::Length((8 << 20) + 1)));
        assert!(Header::new(Kind::Input, MOST_PAYLOAD_BYTES + 1).is_none());
    }
}

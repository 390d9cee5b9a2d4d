//! The first frame: version, operation, and fields that say how.
//!
//! 16 bits of version, 16 bits of operation, then fields: 16 bits of tag, 16 bits of zero, 32 bits of length, that many bytes.
//! A receiver refuses a tag that it does not know, unless [`IGNORABLE`] is set in it.

/// In a tag: a receiver that does not know it may act as if it were not there.
pub const IGNORABLE: u16 = 0x8000;

/// Bytes before a field's value.
const FIELD_HEADER_BYTES: usize = 8;
/// Bytes before the first field.
const PREFIX_BYTES: usize = 4;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Operation {
    /// A command with pipes for its standard input, output and error.
    Exec = 1,
    /// A command with a terminal of its own, in a session of its own.
    Pty = 2,
    /// Unpacks the archive that comes as input (tar; ustar, pax or GNU) below [`Tag::Path`].
    TarIn = 3,
    /// Packs [`Tag::Path`] as output (tar, pax).
    TarOut = 4,
    /// Writes the input to the file [`Tag::Path`].
    WriteFile = 5,
    /// Sends the signal in [`Tag::Signal`] to the machine's main command.
    Signal = 6,
    /// Sets the size of the main command's terminal, [`Tag::Size`].
    Resize = 7,
    /// Writes out what file systems hold.
    Sync = 8,
    /// Ends the main command and then the machine; the exit code is that command's.
    PowerOff = 9,
    /// Takes part in the main command: its input, its output from now on, its end.
    Attach = 10,
    /// Dumps the main command's processes into the bundle, with CRIU.
    Dump = 11,
    /// The main command is what a bundle holds; only where [`Operation::Exec`] could be, on the main command's stream.
    Restore = 12,
    /// How much of a lazy restore is still to come, as text.
    Stats = 13,
    /// Name and value pairs for a directory in memory; not served yet.
    Secrets = 32,
    /// The guest is a copy of another from now on; not served yet.
    Cloned = 33,
}

impl Operation {
    const ALL: [Operation; 15] = [
        Operation::Exec,
        Operation::Pty,
        Operation::TarIn,
        Operation::TarOut,
        Operation::WriteFile,
        Operation::Signal,
        Operation::Resize,
        Operation::Sync,
        Operation::PowerOff,
        Operation::Attach,
        Operation::Dump,
        Operation::Restore,
        Operation::Stats,
        Operation::Secrets,
        Operation::Cloned,
    ];

    /// The operation of this number.
    #[must_use]
    pub fn of(number: u16) -> Option<Operation> {
        Operation::ALL.into_iter().find(|operation| *operation as u16 == number)
    }
}

/// What a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Tag {
    /// One word of the command, the program first; as often as there are words. None: the image's command.
    Argument = 1,
    /// `NAME=value`, over the image's variables; `NAME` alone takes one away.
    Environment = 2,
    /// Working directory, absolute; without it the image's. Of a dump or restore: a directory that is the bundle, instead
    /// of the share.
    Directory = 3,
    /// [`crate::body::Size`] of the terminal.
    Size = 4,
    /// A path in the guest, absolute.
    Path = 5,
    /// Permission bits of a file, 32 bits.
    Mode = 6,
    /// Empty: append to the file.
    Append = 7,
    /// Empty: make the directories above, where they are missing.
    Parents = 8,
    /// A pattern (glob(7), `*` crosses no `/`) of paths that an archive leaves out; as often as needed.
    Exclude = 9,
    /// A signal, 32 bits, as Linux numbers them.
    Signal = 10,
    /// Empty: the command's output goes to the console, its input is empty, and it outlives this stream.
    Detached = 11,
    /// Empty: what is unpacked belongs to root, not to the archive's owners.
    NoOwner = 12,
    /// The name of the top of what is packed or unpacked, instead of the last part of the path or the archive's own.
    Name = 13,
    /// Empty: what is dumped runs on.
    LeaveRunning = 14,
    /// Empty: TCP connections are closed where it is restored.
    TcpClose = 15,
    /// Empty: TCP connections are dumped with their state.
    TcpKeep = 16,
    /// Seconds, 32 bits.
    Timeout = 17,
    /// Empty: memory comes when it is needed. Of [`Operation::Stats`]: what was waited for is told instead of how much there is.
    Lazy = 18,
    /// Empty: what is dumped stands still until the host has said what becomes of it.
    Hold = 19,
}

impl Tag {
    const ALL: [Tag; 19] = [
        Tag::Argument,
        Tag::Environment,
        Tag::Directory,
        Tag::Size,
        Tag::Path,
        Tag::Mode,
        Tag::Append,
        Tag::Parents,
        Tag::Exclude,
        Tag::Signal,
        Tag::Detached,
        Tag::NoOwner,
        Tag::Name,
        Tag::LeaveRunning,
        Tag::TcpClose,
        Tag::TcpKeep,
        Tag::Timeout,
        Tag::Lazy,
        Tag::Hold,
    ];

    /// The tag of this number.
    #[must_use]
    pub fn of(number: u16) -> Option<Tag> {
        Tag::ALL.into_iter().find(|tag| *tag as u16 == number)
    }
}

/// Writes the start of a payload.
pub fn begin(version: u16, operation: Operation, payload: &mut impl Extend<u8>) {
    payload.extend(version.to_le_bytes());
    payload.extend((operation as u16).to_le_bytes());
}

/// Adds a field. `None`, and nothing added, when `value` has more than 32 bits can count.
pub fn add(payload: &mut impl Extend<u8>, tag: Tag, value: &[u8]) -> Option<()> {
    let length = u32::try_from(value.len()).ok()?;
    payload.extend((tag as u16).to_le_bytes());
    payload.extend([0, 0]);
    payload.extend(length.to_le_bytes());
    payload.extend(value.iter().copied());
    Some(())
}

/// Why a payload is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It ends within a field, or has reserved bits that are set.
    Layout,
    /// A field that is not known and may not be ignored.
    Tag(u16),
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Malformed::Layout => f.write_str("the first frame ends within a field"),
            Malformed::Tag(number) => write!(f, "no field has the number {number}"),
        }
    }
}

/// The first frame, as it came: its version and the number of its operation are read, its fields are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open<'a> {
    /// Version of the sender.
    pub version: u16,
    /// Number of the operation; see [`Operation::of`].
    pub operation: u16,
    fields: &'a [u8],
}

impl<'a> Open<'a> {
    /// Reads the start of a payload; `None` when it is shorter.
    #[must_use]
    pub fn parse(payload: &'a [u8]) -> Option<Open<'a>> {
        let (prefix, fields) = payload.split_first_chunk::<PREFIX_BYTES>()?;
        let [v0, v1, o0, o1] = *prefix;
        Some(Open { version: u16::from_le_bytes([v0, v1]), operation: u16::from_le_bytes([o0, o1]), fields })
    }

    /// Its fields, in order. After an error there is none.
    #[must_use]
    pub fn fields(&self) -> Fields<'a> {
        Fields { rest: self.fields }
    }
}

/// The fields of a first frame.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn one(&mut self) -> Result<Option<(Tag, &'a [u8])>, Malformed> {
        let header = self.rest.split_first_chunk::<FIELD_HEADER_BYTES>().ok_or(Malformed::Layout)?;
        let ([t0, t1, r0, r1, l0, l1, l2, l3], rest) = (*header.0, header.1);
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).map_err(|_| Malformed::Layout)?;
        if (r0, r1) != (0, 0) || length > rest.len() {
            return Err(Malformed::Layout);
        }
        let (value, rest) = rest.split_at(length);
        self.rest = rest;
        let number = u16::from_le_bytes([t0, t1]);
        match Tag::of(number) {
            Some(tag) => Ok(Some((tag, value))),
            None if number & IGNORABLE != 0 => Ok(None),
            None => Err(Malformed::Tag(number)),
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(Tag, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            match self.one() {
                Ok(Some(field)) => return Some(Ok(field)),
                Ok(None) => {}
                Err(malformed) => {
                    self.rest = &[];
                    return Some(Err(malformed));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut payload = Vec::new();
        begin(1, Operation::Exec, &mut payload);
        add(&mut payload, Tag::Argument, b"ls").unwrap();
        add(&mut payload, Tag::Directory, b"/").unwrap();
        let golden = [1, 0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, b'l', b's', 3, 0, 0, 0, 1, 0, 0, 0, b'/'];
        assert_eq!(payload, golden);
        let open = Open::parse(&payload).unwrap();
        assert_eq!((open.version, Operation::of(open.operation)), (1, Some(Operation::Exec)));
        let fields: Result<Vec<_>, _> = open.fields().collect();
        assert_eq!(fields.unwrap(), [(Tag::Argument, &b"ls"[..]), (Tag::Directory, b"/")]);
        let mut payload = Vec::new();
        begin(1, Operation::Dump, &mut payload);
        add(&mut payload, Tag::LeaveRunning, b"").unwrap();
        add(&mut payload, Tag::TcpClose, b"").unwrap();
        add(&mut payload, Tag::Timeout, &7_u32.to_le_bytes()).unwrap();
        add(&mut payload, Tag::Hold, b"").unwrap();
        let flags = [1, 0, 11, 0, 14, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0];
        let rest = [17, 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(payload, [&flags[..], &rest].concat());
        let mut payload = Vec::new();
        begin(1, Operation::Restore, &mut payload);
        add(&mut payload, Tag::Lazy, b"").unwrap();
        add(&mut payload, Tag::TcpKeep, b"").unwrap();
        assert_eq!(payload, [1, 0, 12, 0, 18, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn unknown_fields_are_refused_unless_they_may_be_ignored() {
        let fields = |tag: u16| {
            let [low, high] = tag.to_le_bytes();
            let payload = [1, 0, 1, 0, low, high, 0, 0, 1, 0, 0, 0, 7, 7, 0, 0, 0, 0, 0, 0, 0];
            Open::parse(&payload).unwrap().fields().map(|field| field.map(|(tag, _)| tag)).collect::<Vec<_>>()
        };
        assert_eq!(fields(IGNORABLE | 99), [Ok(Tag::Append)]);
        assert_eq!(fields(99), [Err(Malformed::Tag(99))]);
    }

    #[test]
    fn a_payload_may_end_anywhere() {
        let mut payload = Vec::new();
        begin(1, Operation::Exec, &mut payload);
        add(&mut payload, Tag::Argument, b"ls").unwrap();
        for end in 0..payload.len() {
            match Open::parse(&payload[..end]) {
                None => assert!(end < PREFIX_BYTES),
                Some(open) => {
                    let errors: Vec<_> = open.fields().filter_map(Result::err).collect();
                    assert_eq!(errors.len(), usize::from(end > PREFIX_BYTES), "{end}");
                }
            }
        }
    }

    #[test]
    fn every_number_comes_back() {
        assert!(Operation::ALL.iter().all(|operation| Operation::of(*operation as u16) == Some(*operation)));
        assert!(Tag::ALL.iter().all(|tag| Tag::of(*tag as u16) == Some(*tag)));
    }
}

//! What the first frame of a stream asks for.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use machinen_abi::VERSION;
use machinen_abi::body::{Reason, Signal, Size};
use machinen_abi::open::{Malformed, Open, Operation, Tag};

use super::report::Failed;
use crate::config::Changes;

/// An operation, with what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A command.
    Command {
        /// Over the configured command.
        changes: Changes<'a>,
        /// It has a terminal of this size.
        terminal: Option<Size>,
        /// It outlives the stream.
        detached: bool,
    },
    /// Unpack an archive.
    TarIn {
        /// Below this directory.
        path: CString,
        /// Everything belongs to root.
        no_owner: bool,
        /// Another name for the top.
        name: Option<&'a [u8]>,
    },
    /// Pack a file or directory.
    TarOut {
        /// Which one.
        path: CString,
        /// Patterns of what is left out.
        exclude: Vec<&'a [u8]>,
        /// Another name for the top.
        name: Option<&'a [u8]>,
    },
    /// Write a file.
    WriteFile {
        /// Which one.
        path: CString,
        /// Permission bits, when it does not exist or shall have these.
        mode: Option<u32>,
        /// At its end.
        append: bool,
        /// Make the directories above.
        parents: bool,
    },
    /// A signal for the main command.
    Signal(Signal),
    /// A size for the main command's terminal.
    Resize(Size),
    /// Write out what file systems hold.
    Sync,
    /// End the main command, then the machine.
    PowerOff,
    /// Take part in the main command.
    Attach,
    /// Dump the main command's processes.
    Dump(Dump<'a>),
    /// The main command is restored.
    Restore(Restore),
    /// What a lazy restore still has to bring.
    Stats {
        /// What was waited for, instead.
        faults: bool,
    },
}

/// How to dump.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump<'a> {
    /// The processes run on.
    pub leave_running: bool,
    /// What becomes of TCP connections.
    pub tcp: Tcp,
    /// Seconds until it is given up.
    pub timeout_s: Option<u32>,
    /// It waits for the host's word when all is written.
    pub hold: bool,
    /// A command that dumps instead of CRIU; no words for none.
    pub words: Vec<&'a [u8]>,
    /// The bundle, when it is not on its share.
    pub directory: Option<CString>,
}

/// How to restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Memory comes when it is needed.
    pub lazy: bool,
    /// What becomes of TCP connections, beyond what was asked for at the dump.
    pub tcp: Tcp,
    /// The bundle, when it is not on its share.
    pub directory: Option<CString>,
    /// Of the terminal, if it has one.
    pub size: Size,
    /// It outlives the stream.
    pub detached: bool,
}

/// What becomes of TCP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tcp {
    /// With one that is established nothing is dumped.
    #[default]
    Refuse,
    /// They are closed in what is restored.
    Close,
    /// They are dumped with their state.
    Keep,
}

/// A terminal whose size nobody has said.
const USUAL_SIZE: Size = Size { rows: 24, columns: 80 };

/// The fields of a first frame, sorted.
#[derive(Default)]
struct Fields<'a> {
    changes: Changes<'a>,
    size: Option<Size>,
    path: Option<&'a [u8]>,
    mode: Option<u32>,
    append: bool,
    parents: bool,
    exclude: Vec<&'a [u8]>,
    signal: Option<Signal>,
    detached: bool,
    no_owner: bool,
    name: Option<&'a [u8]>,
    leave_running: bool,
    tcp: Tcp,
    timeout_s: Option<u32>,
    hold: bool,
    lazy: bool,
}

/// Reads the payload of the first frame.
///
/// # Errors
/// What to answer instead.
pub fn parse(payload: &[u8]) -> Result<Request<'_>, Failed> {
    let open = Open::parse(payload).ok_or_else(|| refusal(Reason::Protocol, Malformed::Layout.to_string()))?;
    if open.version != VERSION {
        let message = format!("this agent speaks version {VERSION}, not {}", open.version);
        return Err(Failed { reason: Reason::Version, errno: VERSION.into(), message });
    }
    let operation = Operation::of(open.operation);
    let served = operation.filter(|operation| ![Operation::Secrets, Operation::Cloned].contains(operation));
    let operation = served
        .ok_or_else(|| refusal(Reason::Unsupported, format!("the operation {} is not served", open.operation)))?;
    let mut fields = Fields::default();
    for field in open.fields() {
        let (tag, value) = field.map_err(|malformed| match malformed {
            Malformed::Layout => refusal(Reason::Protocol, malformed.to_string()),
            Malformed::Tag(_) => refusal(Reason::Invalid, malformed.to_string()),
        })?;
        if !belongs(operation, tag) {
            let message = format!("the operation {} has no field {}", operation as u16, tag as u16);
            return Err(refusal(Reason::Invalid, message));
        }
        fields.add(tag, value).ok_or_else(|| invalid(tag))?;
    }
    fields.request(operation)
}

/// Which fields an operation has.
fn belongs(operation: Operation, tag: Tag) -> bool {
    match tag {
        Tag::Argument => matches!(operation, Operation::Exec | Operation::Pty | Operation::Dump),
        Tag::Environment => matches!(operation, Operation::Exec | Operation::Pty),
        Tag::Directory => {
            matches!(operation, Operation::Exec | Operation::Pty | Operation::Dump | Operation::Restore)
        }
        Tag::Detached => matches!(operation, Operation::Exec | Operation::Pty | Operation::Restore),
        Tag::Size => matches!(operation, Operation::Pty | Operation::Resize | Operation::Restore),
        Tag::Path => matches!(operation, Operation::TarIn | Operation::TarOut | Operation::WriteFile),
        Tag::Mode | Tag::Append | Tag::Parents => operation == Operation::WriteFile,
        Tag::Exclude => operation == Operation::TarOut,
        Tag::Signal => operation == Operation::Signal,
        Tag::NoOwner => operation == Operation::TarIn,
        Tag::Name => matches!(operation, Operation::TarIn | Operation::TarOut),
        Tag::LeaveRunning | Tag::Timeout | Tag::Hold => operation == Operation::Dump,
        Tag::TcpClose | Tag::TcpKeep => matches!(operation, Operation::Dump | Operation::Restore),
        Tag::Lazy => matches!(operation, Operation::Restore | Operation::Stats),
    }
}

fn refusal(reason: Reason, message: String) -> Failed {
    Failed { reason, errno: 0, message }
}

fn invalid(tag: Tag) -> Failed {
    refusal(Reason::Invalid, format!("the field {} makes no sense, or is missing", tag as u16))
}

impl<'a> Fields<'a> {
    fn add(&mut self, tag: Tag, value: &'a [u8]) -> Option<()> {
        let flag = value.is_empty().then_some(true);
        match tag {
            Tag::Argument => self.changes.words.push(value),
            Tag::Environment => self.changes.variables.push(value),
            Tag::Directory => self.changes.directory = Some(value),
            Tag::Size => self.size = Some(Size::parse(value)?),
            Tag::Path => self.path = Some(value),
            Tag::Mode => {
                let mode = u32::from_le_bytes(value.try_into().ok()?);
                self.mode = Some(Some(mode).filter(|mode| *mode <= 0o7777)?);
            }
            Tag::Append => self.append = flag?,
            Tag::Parents => self.parents = flag?,
            Tag::Exclude => self.exclude.push(value),
            Tag::Signal => self.signal = Some(Signal::parse(value)?),
            Tag::Detached => self.detached = flag?,
            Tag::NoOwner => self.no_owner = flag?,
            Tag::Name => self.name = Some(value).filter(|name| is_name(name)),
            Tag::LeaveRunning => self.leave_running = flag?,
            Tag::TcpClose => self.tcp = flag.map(|_| Tcp::Close)?,
            Tag::TcpKeep => self.tcp = flag.map(|_| Tcp::Keep)?,
            Tag::Timeout => self.timeout_s = Some(u32::from_le_bytes(value.try_into().ok()?)),
            Tag::Lazy => self.lazy = flag?,
            Tag::Hold => self.hold = flag?,
        }
        (tag != Tag::Name || self.name.is_some()).then_some(())
    }

    fn request(self, operation: Operation) -> Result<Request<'a>, Failed> {
        let absolute = |path: &[u8]| CString::new(path).ok().filter(|path| path.to_bytes().starts_with(b"/"));
        let path = |path: Option<&[u8]>| path.and_then(absolute).ok_or_else(|| invalid(Tag::Path));
        let bundle = |path: Option<&[u8]>| match path {
            Some(path) => absolute(path).map(Some).ok_or_else(|| invalid(Tag::Directory)),
            None => Ok(None),
        };
        Ok(match operation {
            Operation::Exec => Request::Command { changes: self.changes, terminal: None, detached: self.detached },
            Operation::Pty if self.detached => {
                return Err(refusal(Reason::Invalid, "a command with a terminal cannot be detached".to_string()));
            }
            Operation::Pty => {
                let terminal = Some(self.size.unwrap_or(USUAL_SIZE));
                Request::Command { changes: self.changes, terminal, detached: false }
            }
            Operation::TarIn => Request::TarIn { path: path(self.path)?, no_owner: self.no_owner, name: self.name },
            Operation::TarOut => Request::TarOut { path: path(self.path)?, exclude: self.exclude, name: self.name },
            Operation::WriteFile => Request::WriteFile {
                path: path(self.path)?,
                mode: self.mode,
                append: self.append,
                parents: self.parents,
            },
            Operation::Signal => Request::Signal(self.signal.ok_or_else(|| invalid(Tag::Signal))?),
            Operation::Resize => Request::Resize(self.size.ok_or_else(|| invalid(Tag::Size))?),
            Operation::Sync => Request::Sync,
            Operation::PowerOff => Request::PowerOff,
            Operation::Attach => Request::Attach,
            Operation::Dump => Request::Dump(Dump {
                leave_running: self.leave_running,
                tcp: self.tcp,
                timeout_s: self.timeout_s,
                hold: self.hold,
                directory: bundle(self.changes.directory)?,
                words: self.changes.words,
            }),
            Operation::Restore => Request::Restore(Restore {
                lazy: self.lazy,
                tcp: self.tcp,
                directory: bundle(self.changes.directory)?,
                size: self.size.unwrap_or(USUAL_SIZE),
                detached: self.detached,
            }),
            Operation::Stats => Request::Stats { faults: self.lazy },
            Operation::Secrets | Operation::Cloned => {
                return Err(refusal(Reason::Unsupported, "the operation is not served".to_string()));
            }
        })
    }
}

/// One part of a path that stays where it is.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.iter().any(|byte| [b'/', 0].contains(byte)) && ![&b"."[..], b".."].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::{Dump, Request, Restore, Tcp, parse};
    use crate::config::Changes;
    use machinen_abi::body::{Reason, Signal, Size};
    use machinen_abi::open::{Operation, Tag, add, begin};
    use proptest::prelude::{any, prop, proptest};

    fn open(operation: Operation, fields: &[(Tag, &[u8])]) -> Vec<u8> {
        let mut payload = Vec::new();
        begin(1, operation, &mut payload);
        fields.iter().for_each(|(tag, value)| add(&mut payload, *tag, value).unwrap());
        payload
    }

    fn reason(payload: &[u8]) -> Reason {
        parse(payload).unwrap_err().reason
    }

    #[test]
    fn commands_take_what_a_shell_would() {
        let fields: [(Tag, &[u8]); 5] = [
            (Tag::Argument, b"sh"),
            (Tag::Argument, b""),
            (Tag::Environment, b"A=\xff"),
            (Tag::Directory, b"/w"),
            (Tag::Detached, b""),
        ];
        let changes = Changes { words: vec![b"sh", b""], variables: vec![b"A=\xff"], directory: Some(b"/w") };
        let command = Request::Command { changes, terminal: None, detached: true };
        assert_eq!(parse(&open(Operation::Exec, &fields)), Ok(command));
        let terminal = |fields: &[(Tag, &[u8])]| match parse(&open(Operation::Pty, fields)) {
            Ok(Request::Command { terminal, .. }) => terminal,
            other => panic!("{other:?}"),
        };
        assert_eq!(terminal(&[]), Some(Size { rows: 24, columns: 80 }));
        assert_eq!(terminal(&[(Tag::Size, &[1, 0, 2, 0])]), Some(Size { rows: 1, columns: 2 }));
        assert_eq!(reason(&open(Operation::Pty, &[(Tag::Detached, b"")])), Reason::Invalid);
    }

    #[test]
    fn a_dump_and_a_restore_have_their_own_fields() {
        let fields: [(Tag, &[u8]); 6] = [
            (Tag::Argument, b"my-dump"),
            (Tag::LeaveRunning, b""),
            (Tag::TcpKeep, b""),
            (Tag::Timeout, &[60, 0, 0, 0]),
            (Tag::Hold, b""),
            (Tag::Directory, b"/b"),
        ];
        let dump = Dump {
            leave_running: true,
            tcp: Tcp::Keep,
            timeout_s: Some(60),
            hold: true,
            words: vec![b"my-dump"],
            directory: Some(c"/b".into()),
        };
        assert_eq!(parse(&open(Operation::Dump, &fields)), Ok(Request::Dump(dump)));
        assert_eq!(parse(&open(Operation::Dump, &[])), Ok(Request::Dump(Dump::default())));
        let size = Size { rows: 24, columns: 80 };
        let restore = Restore { lazy: true, tcp: Tcp::Close, directory: None, size, detached: false };
        let fields: [(Tag, &[u8]); 2] = [(Tag::Lazy, b""), (Tag::TcpClose, b"")];
        assert_eq!(parse(&open(Operation::Restore, &fields)), Ok(Request::Restore(restore)));
        assert_eq!(reason(&open(Operation::Dump, &[(Tag::Directory, b"b")])), Reason::Invalid);
        assert_eq!(reason(&open(Operation::Dump, &[(Tag::Timeout, b"1")])), Reason::Invalid);
        assert_eq!(reason(&open(Operation::Dump, &[(Tag::Lazy, b"")])), Reason::Invalid);
        assert_eq!(reason(&open(Operation::Dump, &[(Tag::Hold, b"1")])), Reason::Invalid);
        assert_eq!(reason(&open(Operation::Restore, &[(Tag::Hold, b"")])), Reason::Invalid);
        assert_eq!(reason(&open(Operation::Restore, &[(Tag::LeaveRunning, b"")])), Reason::Invalid);
        assert_eq!(reason(&open(Operation::Exec, &[(Tag::TcpClose, b"")])), Reason::Invalid);
    }

    #[test]
    fn fields_that_are_missing_or_wrong_are_named() {
        assert_eq!(parse(&open(Operation::Signal, &[(Tag::Signal, &[9, 0, 0, 0])])), Ok(Request::Signal(Signal(9))));
        let invalid: [(Operation, &[(Tag, &[u8])]); 12] = [
            (Operation::Signal, &[]),
            (Operation::Resize, &[]),
            (Operation::WriteFile, &[]),
            (Operation::TarIn, &[(Tag::Path, b"relative")]),
            (Operation::TarOut, &[(Tag::Path, b"/a\0")]),
            (Operation::TarOut, &[(Tag::Path, b"/a"), (Tag::Name, b"a/b")]),
            (Operation::TarOut, &[(Tag::Path, b"/a"), (Tag::Name, b"..")]),
            (Operation::WriteFile, &[(Tag::Path, b"/a"), (Tag::Mode, &[0, 0, 1, 0])]),
            (Operation::WriteFile, &[(Tag::Path, b"/a"), (Tag::Append, b"x")]),
            (Operation::WriteFile, &[(Tag::Path, b"/a"), (Tag::Exclude, b"x")]),
            (Operation::Signal, &[(Tag::Signal, &[0; 4])]),
            (Operation::Sync, &[(Tag::Path, b"/")]),
        ];
        for (operation, fields) in invalid {
            assert_eq!(reason(&open(operation, fields)), Reason::Invalid, "{operation:?} {fields:?}");
        }
    }

    #[test]
    fn versions_operations_and_tags_from_elsewhere_are_refused() {
        let failed = parse(&[2, 0, 1, 0, 0xff]).unwrap_err();
        assert_eq!((failed.reason, failed.errno), (Reason::Version, 1));
        assert_eq!(reason(&[1, 0, 1]), Reason::Protocol);
        assert_eq!(reason(&[1, 0, 1, 0, 9]), Reason::Protocol);
        assert_eq!(reason(&[1, 0, 99, 0]), Reason::Unsupported);
        assert_eq!(reason(&open(Operation::Secrets, &[])), Reason::Unsupported);
        assert_eq!(reason(&open(Operation::Cloned, &[])), Reason::Unsupported);
        assert_eq!(reason(&[1, 0, 1, 0, 99, 0, 0, 0, 0, 0, 0, 0]), Reason::Invalid);
    }

    proptest! {
        #[test]
        fn any_payload_is_read_or_refused(
            head in 0..40_u16, fields in prop::collection::vec((0..20_u16, prop::collection::vec(any::<u8>(), 0..6)), 0..6),
            rest in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut payload = vec![1, 0];
            payload.extend(head.to_le_bytes());
            for (tag, value) in fields {
                payload.extend(tag.to_le_bytes());
                payload.extend([0, 0, u8::try_from(value.len()).unwrap(), 0, 0, 0]);
                payload.extend(value);
            }
            payload.extend(rest);
            let _ = parse(&payload);
        }
    }
}

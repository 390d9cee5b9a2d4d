//! From bytes of the guest's to a request: lengths, names and flags checked, once.
//!
//! Pure: nothing here touches the host. What a guest appends to a request (newer kernels do) is ignored.

use std::ffi::CStr;

use rustix::io::Errno;

use crate::wire::{
    FSYNC_DATA, IN_HEADER_BYTES, MOST_LINK_BYTES, MOST_NAME_BYTES, MOST_REQUEST_BYTES, MOST_XATTR_BYTES,
    WRITE_IN_BYTES, opcode, set,
};

/// `struct fuse_in_header`, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the whole request, as the guest says.
    pub bytes: u32,
    /// What to do.
    pub opcode: u32,
    /// The guest's number for it, which the answer repeats.
    pub unique: u64,
    /// The node that it is about.
    pub node: u64,
    /// Who does it, in the guest.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: &[u8; IN_HEADER_BYTES]) -> Header {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | (u64::from(word(at + 4)) << 32);
        Header { bytes: word(0), opcode: word(4), unique: long(8), node: long(16), uid: word(24), gid: word(28) }
    }

    /// How many bytes of a request of `length` bytes are to be copied for [`Request::parse`], header included: the data of a
    /// write is not. `None`: it is longer than any request.
    pub fn copied_bytes(&self, length: u64) -> Option<usize> {
        let length = usize::try_from(length).ok()?;
        match self.opcode {
            opcode::WRITE => Some(length.min(IN_HEADER_BYTES + WRITE_IN_BYTES)),
            _ => Some(length).filter(|length| *length <= MOST_REQUEST_BYTES),
        }
    }

    /// Nobody waits for an answer.
    pub fn is_silent(&self) -> bool {
        matches!(self.opcode, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT)
    }
}

/// What to set of a node's attributes: `struct fuse_setattr_in`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAttr {
    /// `FATTR_*`.
    pub valid: u32,
    /// An open file of it, with [`set::HANDLE`].
    pub handle: u64,
    /// With [`set::SIZE`].
    pub size: u64,
    /// Seconds since 1970, and nanoseconds.
    pub atime: (u64, u32),
    /// The same.
    pub mtime: (u64, u32),
    /// Permission bits, with [`set::MODE`].
    pub mode: u32,
    /// With [`set::UID`].
    pub uid: u32,
    /// With [`set::GID`].
    pub gid: u32,
}

impl SetAttr {
    /// Whether it sets this.
    pub fn has(&self, flag: u32) -> bool {
        self.valid & flag != 0
    }
}

/// A part of a file from which, or to which, something is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its node.
    pub node: u64,
    /// An open file of that.
    pub handle: u64,
    /// First byte.
    pub offset: u64,
}

/// A request. Names are one component, neither `.` nor `..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are named as in linux/fuse.h")]
pub enum Request<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
    },
    Destroy,
    /// Nothing to do and nothing to say.
    Interrupt,
    Lookup(&'a CStr),
    Forget(u64),
    /// Pairs of 64 bits: node, count.
    BatchForget(&'a [u8]),
    GetAttr,
    SetAttr(SetAttr),
    ReadLink,
    Symlink {
        name: &'a CStr,
        target: &'a CStr,
    },
    MkNod {
        name: &'a CStr,
        mode: u32,
        rdev: u32,
    },
    MkDir {
        name: &'a CStr,
        mode: u32,
    },
    Unlink(&'a CStr),
    RmDir(&'a CStr),
    Rename {
        name: &'a CStr,
        to: u64,
        to_name: &'a CStr,
        flags: u32,
    },
    Link {
        from: u64,
        name: &'a CStr,
    },
    Open {
        flags: u32,
        open_flags: u32,
    },
    OpenDir,
    Create {
        name: &'a CStr,
        flags: u32,
        mode: u32,
        open_flags: u32,
    },
    TmpFile {
        flags: u32,
        mode: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        size: u32,
        write_flags: u32,
        flags: u32,
    },
    StatFs,
    Release {
        handle: u64,
    },
    Fsync {
        handle: u64,
        data_only: bool,
    },
    SetXattr {
        name: &'a CStr,
        value: &'a [u8],
        flags: u32,
    },
    GetXattr {
        name: &'a CStr,
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr(&'a CStr),
    ReadDir {
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    },
    Lseek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    Fallocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    CopyFileRange {
        from: Place,
        to: Place,
        length: u64,
    },
}

impl Request<'_> {
    /// It would change something in the directory. Opening is not told apart here.
    pub fn modifies(&self) -> bool {
        matches!(
            self,
            Request::SetAttr(_)
                | Request::Symlink { .. }
                | Request::MkNod { .. }
                | Request::MkDir { .. }
                | Request::Unlink(_)
                | Request::RmDir(_)
                | Request::Rename { .. }
                | Request::Link { .. }
                | Request::Create { .. }
                | Request::TmpFile { .. }
                | Request::Write { .. }
                | Request::SetXattr { .. }
                | Request::RemoveXattr(_)
                | Request::Fallocate { .. }
                | Request::CopyFileRange { .. }
        )
    }
}

impl<'a> Request<'a> {
    /// Reads what follows the header.
    ///
    /// Errors: ENOSYS for what this server does not do, EINVAL for what is cut short or no name, ENAMETOOLONG, E2BIG.
    pub fn parse(header: &Header, body: &'a [u8]) -> Result<Request<'a>, Errno> {
        let mut rest = Reader(body);
        Ok(match header.opcode {
            opcode::INIT => {
                let [major, minor, max_readahead, flags] = rest.words()?;
                Request::Init { major, minor, max_readahead, flags }
            }
            opcode::DESTROY => Request::Destroy,
            opcode::INTERRUPT => Request::Interrupt,
            opcode::LOOKUP => Request::Lookup(rest.name()?),
            opcode::FORGET => Request::Forget(rest.long()?),
            opcode::BATCH_FORGET => {
                let [count, _] = rest.words()?;
                let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(16));
                Request::BatchForget(rest.bytes(bytes.ok_or(Errno::INVAL)?)?)
            }
            // Of a handle, perhaps, whose node says the same.
            opcode::GETATTR => Request::GetAttr,
            opcode::SETATTR => Request::SetAttr(set_attr(&mut rest)?),
            opcode::READLINK => Request::ReadLink,
            opcode::SYMLINK => Request::Symlink { name: rest.name()?, target: rest.text(MOST_LINK_BYTES)? },
            opcode::MKNOD => {
                let [mode, rdev, _, _] = rest.words()?;
                Request::MkNod { name: rest.name()?, mode, rdev }
            }
            opcode::MKDIR => {
                let [mode, _] = rest.words()?;
                Request::MkDir { name: rest.name()?, mode }
            }
            opcode::UNLINK => Request::Unlink(rest.name()?),
            opcode::RMDIR => Request::RmDir(rest.name()?),
            opcode::RENAME => {
                let to = rest.long()?;
                Request::Rename { name: rest.name()?, to, to_name: rest.name()?, flags: 0 }
            }
            opcode::RENAME2 => {
                let to = rest.long()?;
                let [flags, _] = rest.words()?;
                Request::Rename { name: rest.name()?, to, to_name: rest.name()?, flags }
            }
            opcode::LINK => Request::Link { from: rest.long()?, name: rest.name()? },
            opcode::OPEN => {
                let [flags, open_flags] = rest.words()?;
                Request::Open { flags, open_flags }
            }
            opcode::OPENDIR => Request::OpenDir,
            opcode::CREATE => {
                let [flags, mode, _, open_flags] = rest.words()?;
                Request::Create { name: rest.name()?, flags, mode, open_flags }
            }
            opcode::TMPFILE => {
                let [flags, mode, _, _] = rest.words()?;
                Request::TmpFile { flags, mode }
            }
            opcode::READ => {
                let (handle, offset) = (rest.long()?, rest.long()?);
                let [size, _] = rest.words()?;
                Request::Read { handle, offset, size }
            }
            opcode::READDIR | opcode::READDIRPLUS => {
                let (handle, offset) = (rest.long()?, rest.long()?);
                let [size, _] = rest.words()?;
                Request::ReadDir { handle, offset, size, plus: header.opcode == opcode::READDIRPLUS }
            }
            opcode::WRITE => {
                let (handle, offset) = (rest.long()?, rest.long()?);
                let [size, write_flags, _, _, flags, _] = rest.words()?;
                Request::Write { handle, offset, size, write_flags, flags }
            }
            opcode::STATFS => Request::StatFs,
            opcode::RELEASE | opcode::RELEASEDIR => Request::Release { handle: rest.long()? },
            opcode::FSYNC | opcode::FSYNCDIR => {
                let handle = rest.long()?;
                let [flags, _] = rest.words()?;
                Request::Fsync { handle, data_only: flags & FSYNC_DATA != 0 }
            }
            opcode::SETXATTR => {
                let [size, flags] = rest.words()?;
                let name = rest.text(MOST_NAME_BYTES)?;
                let size = usize::try_from(size).ok().filter(|size| *size <= MOST_XATTR_BYTES);
                Request::SetXattr { name, value: rest.bytes(size.ok_or(Errno::TOOBIG)?)?, flags }
            }
            opcode::GETXATTR => {
                let [size, _] = rest.words()?;
                Request::GetXattr { name: rest.text(MOST_NAME_BYTES)?, size }
            }
            opcode::LISTXATTR => {
                let [size, _] = rest.words()?;
                Request::ListXattr { size }
            }
            opcode::REMOVEXATTR => Request::RemoveXattr(rest.text(MOST_NAME_BYTES)?),
            opcode::LSEEK => {
                let (handle, offset) = (rest.long()?, rest.long()?);
                let [whence, _] = rest.words()?;
                Request::Lseek { handle, offset, whence }
            }
            opcode::FALLOCATE => {
                let (handle, offset, length) = (rest.long()?, rest.long()?, rest.long()?);
                let [mode, _] = rest.words()?;
                Request::Fallocate { handle, offset, length, mode }
            }
            opcode::COPY_FILE_RANGE => {
                let from = Place { node: header.node, handle: rest.long()?, offset: rest.long()? };
                let to = Place { node: rest.long()?, handle: rest.long()?, offset: rest.long()? };
                Request::CopyFileRange { from, to, length: rest.long()? }
            }
            _ => return Err(Errno::NOSYS),
        })
    }
}

fn set_attr(rest: &mut Reader<'_>) -> Result<SetAttr, Errno> {
    let [valid, _] = rest.words()?;
    let (handle, size, _lock_owner) = (rest.long()?, rest.long()?, rest.long()?);
    let (atime, mtime, _ctime) = (rest.long()?, rest.long()?, rest.long()?);
    let [atime_ns, mtime_ns, _ctime_ns, mode, _, uid, gid, _] = rest.words()?;
    // All ones is «leave it» for chown(2).
    let wrong = |flag, id| valid & flag != 0 && id == u32::MAX;
    if wrong(set::UID, uid) || wrong(set::GID, gid) {
        return Err(Errno::INVAL);
    }
    Ok(SetAttr { valid, handle, size, atime: (atime, atime_ns), mtime: (mtime, mtime_ns), mode, uid, gid })
}

/// Bytes taken from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (now, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(now)
    }

    fn words<const N: usize>(&mut self) -> Result<[u32; N], Errno> {
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(self.bytes(4 * N)?.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(words)
    }

    fn long(&mut self) -> Result<u64, Errno> {
        let [low, high] = self.words()?;
        Ok(u64::from(low) | (u64::from(high) << 32))
    }

    /// A text that is not empty, and its end.
    fn text(&mut self, most_bytes: usize) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = &self.0[text.count_bytes() + 1..];
        match text.count_bytes() {
            0 => Err(Errno::INVAL),
            count if count > most_bytes => Err(Errno::NAMETOOLONG),
            _ => Ok(text),
        }
    }

    /// The name of a directory's entry.
    fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text(MOST_NAME_BYTES)?;
        match name.to_bytes() {
            b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            _ => Ok(name),
        }
    }
}

//! Strict reader of newc archives in memory; any bytes in, never a panic.

use core::fmt;

use super::{
    Device, Entry, HEADER_BYTES, Kind, MAGIC, MAX_PATH_BYTES, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT,
    S_IFREG, S_IFSOCK, TRAILER,
};

/// What is wrong with an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The archive ends inside an entry, or without a trailer.
    Truncated,
    /// An entry does not start with "070701".
    Magic,
    /// A header field has something else than hexadecimal digits.
    Digit,
    /// A name is empty, too long, not ended by NUL, or has a NUL inside; or a symlink's target is one of these.
    Name,
    /// The mode has no known type, or bits beyond 16.
    Mode,
    /// An entry that is neither file nor symlink has a body.
    Body,
    /// Padding is not zero.
    Padding,
    /// Something other than zeros follows the trailer.
    AfterTrailer,
}

/// An archive that cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadError {
    /// Where the entry concerned starts, in bytes from the start of the archive.
    pub offset_bytes: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.fault {
            Fault::Truncated => "ends too early",
            Fault::Magic => "has no newc magic",
            Fault::Digit => "has a header field that is not hexadecimal",
            Fault::Name => "has a bad name",
            Fault::Mode => "has a bad mode",
            Fault::Body => "has a body, but is neither file nor symlink",
            Fault::Padding => "has padding that is not zero",
            Fault::AfterTrailer => "is followed by bytes that are not zero",
        };
        write!(f, "cpio entry at byte {} {why}", self.offset_bytes)
    }
}

impl core::error::Error for ReadError {}

/// One entry with its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// The entry.
    pub entry: Entry<'a>,
    /// Device that `entry.ino` belongs to.
    pub device: Device,
    /// Body of a file; empty for all others.
    pub data: &'a [u8],
}

/// Iterates over the entries of one archive, to its trailer; nothing but zeros may follow that. Ends after an error.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    archive: &'a [u8],
    offset_bytes: usize,
    done: bool,
}

impl<'a> Reader<'a> {
    /// Reads `archive`.
    pub fn new(archive: &'a [u8]) -> Self {
        Reader { archive, offset_bytes: 0, done: false }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        let rest = self.archive.get(self.offset_bytes..).unwrap_or_default();
        let bytes = rest.get(..n).ok_or(Fault::Truncated)?;
        self.offset_bytes += n;
        Ok(bytes)
    }

    fn align(&mut self) -> Result<(), Fault> {
        let n = self.offset_bytes.wrapping_neg() & 3;
        if self.take(n)?.iter().any(|&b| b != 0) {
            return Err(Fault::Padding);
        }
        Ok(())
    }

    fn item(&mut self) -> Result<Option<Item<'a>>, Fault> {
        let header = self.take(HEADER_BYTES)?;
        let digits = header.strip_prefix(MAGIC).ok_or(Fault::Magic)?;
        let mut fields = [0_u32; 13];
        for (field, text) in fields.iter_mut().zip(digits.chunks_exact(8)) {
            *field = hexadecimal(text)?;
        }
        let [
            ino,
            mode,
            uid,
            gid,
            nlink,
            mtime,
            filesize,
            dev_major,
            dev_minor,
            rdev_major,
            rdev_minor,
            namesize,
            _check,
        ] = fields;
        let name = self.take(usize::try_from(namesize).map_err(|_| Fault::Truncated)?)?;
        let path = name.strip_suffix(&[0]).ok_or(Fault::Name)?;
        check(path)?;
        self.align()?;
        if path == TRAILER {
            let rest = self.archive.get(self.offset_bytes..).unwrap_or_default();
            return match (filesize, rest.iter().all(|&b| b == 0)) {
                (0, true) => Ok(None),
                (0, false) => Err(Fault::AfterTrailer),
                _ => Err(Fault::Body),
            };
        }
        let body = self.take(usize::try_from(filesize).map_err(|_| Fault::Truncated)?)?;
        self.align()?;
        let rdev = Device { major: rdev_major, minor: rdev_minor };
        let kind = match mode & !0o7777 {
            S_IFREG => Kind::File { len_bytes: u64::from(filesize) },
            S_IFLNK => Kind::Symlink(body),
            S_IFDIR => Kind::Directory,
            S_IFCHR => Kind::Char(rdev),
            S_IFBLK => Kind::Block(rdev),
            S_IFIFO => Kind::Fifo,
            S_IFSOCK => Kind::Socket,
            _ => return Err(Fault::Mode),
        };
        let data = match kind {
            Kind::File { .. } => body,
            Kind::Symlink(target) => {
                check(target)?;
                &[]
            }
            _ if body.is_empty() => body,
            _ => return Err(Fault::Body),
        };
        let mode = u16::try_from(mode & !S_IFMT).map_err(|_| Fault::Mode)?;
        let entry = Entry { path, kind, mode, uid, gid, mtime, ino, nlink };
        let device = Device { major: dev_major, minor: dev_minor };
        Ok(Some(Item { entry, device, data }))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Item<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let offset_bytes = self.offset_bytes;
        let item = self.item().map_err(|fault| ReadError { offset_bytes, fault });
        self.done = !matches!(item, Ok(Some(_)));
        item.transpose()
    }
}

fn check(name: &[u8]) -> Result<(), Fault> {
    if name.is_empty() || name.len() > MAX_PATH_BYTES || name.contains(&0) {
        return Err(Fault::Name);
    }
    Ok(())
}

fn hexadecimal(text: &[u8]) -> Result<u32, Fault> {
    text.iter().try_fold(0, |value, &c| {
        let digit = char::from(c).to_digit(16).ok_or(Fault::Digit)?;
        Ok(value << 4 | digit)
    })
}

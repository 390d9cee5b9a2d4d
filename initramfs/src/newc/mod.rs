//! The newc cpio format ("070701"): its entries and limits, shared by the writer and the reader.
//!
//! Source: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`; the limits are those of `init/initramfs.c`.

mod read;
#[cfg(all(test, feature = "std"))]
mod tests;
mod write;

pub use read::{Fault, Item, ReadError, Reader};
#[cfg(feature = "std")]
pub use write::IoSink;
pub use write::{Error, NameFault, Sink, Writer};

/// Largest body of one file: the size field has 32 bits.
pub const MAX_FILE_BYTES: u64 = u32::MAX as u64;

/// Longest path and longest symlink target: the kernel's `PATH_MAX` less the closing NUL. It skips what is longer.
pub const MAX_PATH_BYTES: usize = 4095;

/// Name of the entry that ends an archive.
pub const TRAILER: &[u8] = b"TRAILER!!!";

const MAGIC: &[u8; 6] = b"070701";
const HEADER_BYTES: usize = 110;

const S_IFMT: u32 = 0o170_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFSOCK: u32 = 0o140_000;

/// Number of a character or block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// What an entry is, with what only that kind has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A directory.
    Directory,
    /// A regular file whose body of `len_bytes` bytes follows. Of a group of hard links only one entry has the body,
    /// the others have length 0.
    File {
        /// Length of the body.
        len_bytes: u64,
    },
    /// A symbolic link to these bytes.
    Symlink(&'a [u8]),
    /// A character device.
    Char(Device),
    /// A block device.
    Block(Device),
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
}

/// One entry, apart from a file's body.
///
/// Entries with `nlink` ≥ 2 and the same `ino` and kind are names of one file. The writer puts every entry on device 0:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Path, relative to the root by custom; any bytes but NUL.
    pub path: &'a [u8],
    /// Kind of file.
    pub kind: Kind<'a>,
    /// Permission bits (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change in seconds since 1970.
    pub mtime: u32,
    /// Inode number.
    pub ino: u32,
    /// Number of names of the inode.
    pub nlink: u32,
}

impl Kind<'_> {
    fn type_bits(&self) -> u32 {
        match self {
            Kind::Directory => S_IFDIR,
            Kind::File { .. } => S_IFREG,
            Kind::Symlink(_) => S_IFLNK,
            Kind::Char(_) => S_IFCHR,
            Kind::Block(_) => S_IFBLK,
            Kind::Fifo => S_IFIFO,
            Kind::Socket => S_IFSOCK,
        }
    }
}

/// Bytes that an entry takes in an archive: header, name, body and padding.
pub fn entry_bytes(path_bytes: usize, body_bytes: u64) -> u64 {
    let head = (HEADER_BYTES + path_bytes + 1).next_multiple_of(4) as u64;
    head + body_bytes.next_multiple_of(4)
}

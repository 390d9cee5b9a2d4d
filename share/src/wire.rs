//! The FUSE protocol as Linux speaks it: numbers and lengths.
//!
//! Source: include/uapi/linux/fuse.h of Linux 6.12, version 7.41; everything is little-endian on both architectures.

/// Major version, which has never changed.
pub const MAJOR: u32 = 7;
/// Version that is spoken here: the one with `FUSE_TMPFILE`.
pub const MINOR: u32 = 37;
/// Oldest version of a guest: Linux 5.4, the first with virtio-fs.
pub const OLDEST_MINOR: u32 = 31;

/// Number of the root.
pub const ROOT_ID: u64 = 1;

/// `struct fuse_in_header`.
pub const IN_HEADER_BYTES: usize = 40;
/// `struct fuse_out_header`.
pub const OUT_HEADER_BYTES: usize = 16;
/// `struct fuse_write_in`.
pub const WRITE_IN_BYTES: usize = 40;
/// `struct fuse_entry_out`.
pub const ENTRY_BYTES: usize = 128;
/// `struct fuse_dirent` without its name.
pub const DIRENT_BYTES: usize = 24;

/// Longest name of a directory's entry.
pub const MOST_NAME_BYTES: usize = 255;
/// Longest content of a symbolic link.
pub const MOST_LINK_BYTES: usize = 4095;
/// Longest value of an extended attribute, and longest list of names.
pub const MOST_XATTR_BYTES: usize = 64 << 10;
/// Most bytes of a read or write.
pub const MOST_DATA_BYTES: u32 = 1 << 20;
/// The same in pages.
pub const MOST_DATA_PAGES: u16 = 256;
/// Most bytes of a request without the data of a write.
pub const MOST_REQUEST_BYTES: usize = MOST_XATTR_BYTES + 4096;

/// `enum fuse_opcode`.
pub mod opcode {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
}

/// Flags of `FUSE_INIT` that are used here.
pub mod init {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;

    /// All of them. No write-back cache: the guest would not see what the host does to a file that it has written to. No emptying
    /// by open alone (`ATOMIC_O_TRUNC`): Linux would refuse to empty a program that runs only when it is empty already.
    pub const WANTED: u32 = ASYNC_READ
        | BIG_WRITES
        | AUTO_INVAL_DATA
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | ASYNC_DIO
        | PARALLEL_DIROPS
        | MAX_PAGES
        | HANDLE_KILLPRIV_V2;
}

/// `FATTR_*`: what `FUSE_SETATTR` sets.
pub mod set {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const HANDLE: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `FUSE_OPEN_KILL_SUIDGID`.
pub const OPEN_KILL_SUIDGID: u32 = 1;
/// `FUSE_WRITE_CACHE`: from the guest's page cache, to its place whatever the file was opened with.
pub const WRITE_CACHE: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_FSYNC_FDATASYNC`.
pub const FSYNC_DATA: u32 = 1;

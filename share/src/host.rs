//! The host's files: every call that goes by a name, confined to one component of one directory.
//!
//! A node's own descriptor is opened with O_PATH, which reads and writes nothing, whatever is there. To read or write, the very
//! same inode is opened again through /proc/self/fd, so nothing that happens to names in between can lead to another one.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// No way out: neither up, nor by a link, nor by one of /proc's, nor into what is mounted there.
const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Flags of a descriptor that is only a place.
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What a guest may choose when it opens a file. Not O_APPEND, which each write says for itself, and not O_DIRECT, whose rules
/// for buffers the guest does not know.
const CHOSEN: OFlags = OFlags::RWMODE.union(OFlags::TRUNC).union(OFlags::SYNC);

/// Always: a FIFO, a device or a lease must not stop the only thread there is.
const ALWAYS: OFlags = OFlags::CLOEXEC.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// The path of a descriptor of this process, without an allocation.
pub struct FdPath([u8; 32]);

impl FdPath {
    /// That of `fd`.
    pub fn new(fd: impl AsRawFd) -> FdPath {
        const PREFIX: &[u8] = b"/proc/self/fd/";
        let mut path = [0; 32];
        path[..PREFIX.len()].copy_from_slice(PREFIX);
        let mut number = fd.as_raw_fd().unsigned_abs();
        let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
        for place in (PREFIX.len()..PREFIX.len() + digits).rev() {
            path[place] = b'0' + (number % 10).to_le_bytes()[0];
            number /= 10;
        }
        FdPath(path)
    }

    /// As the calls want it.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// Opens `name` in `directory` as a place. A link is the place itself.
///
/// Errors: of openat2(2); EXDEV for what is mounted there.
pub fn look_up(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    retried(|| fs::openat2(directory, name, PLACE, Mode::empty(), CONFINED))
}

/// The same with a path of several components below `directory`, as [`crate::state`] keeps them.
pub fn find(directory: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { &b"."[..] } else { path };
    retried(|| fs::openat2(directory, path, PLACE, Mode::empty(), CONFINED))
}

/// Attributes of what `fd` is.
pub fn stat(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    fs::fstat(fd)
}

/// What kind of file that is.
pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Opens the regular file `place` to read or write, as the guest's `flags` say.
pub fn open(place: BorrowedFd<'_>, flags: u32) -> Result<OwnedFd, Errno> {
    let flags = (OFlags::from_bits_retain(flags) & CHOSEN) | ALWAYS;
    retried(|| fs::open(FdPath::new(place).as_c_str(), flags, Mode::empty()))
}

/// Opens the directory `place` to list it.
pub fn open_directory(place: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fs::openat(place, c".", OFlags::RDONLY | OFlags::DIRECTORY | ALWAYS, Mode::empty())
}

/// The place of what is open, in whatever way.
pub fn place_of(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fs::open(FdPath::new(file).as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Makes the regular file `name` and opens it. It is one that was not there, or the answer is EEXIST.
pub fn create(directory: BorrowedFd<'_>, name: &CStr, flags: u32, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = (OFlags::from_bits_retain(flags) & CHOSEN) | ALWAYS | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    unmasked(|| retried(|| fs::openat(directory, name, flags, permissions(mode))))
}

/// Makes a regular file without a name and opens it.
pub fn create_nameless(directory: BorrowedFd<'_>, flags: u32, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = (OFlags::from_bits_retain(flags) & CHOSEN) | ALWAYS | OFlags::TMPFILE;
    unmasked(|| retried(|| fs::openat(directory, c".", flags, permissions(mode))))
}

/// Runs `make` while this process' own mask takes no permissions away: the guest's has been taken away by its kernel.
pub fn unmasked<T>(make: impl FnOnce() -> T) -> T {
    let mask = rustix::process::umask(Mode::empty());
    let made = make();
    rustix::process::umask(mask);
    made
}

/// Permission bits, with those of set-id and the sticky one.
pub fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// Changes the permissions of `place`. Not those of a link, which has none.
pub fn set_permissions(place: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    fs::chmod(FdPath::new(place).as_c_str(), permissions(mode))
}

/// Changes the owner and group of `place`.
pub fn set_owner(place: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let (uid, gid) = (uid.map(fs::Uid::from_raw), gid.map(fs::Gid::from_raw));
    fs::chownat(place, c"", uid, gid, AtFlags::EMPTY_PATH)
}

/// Gives the inode `place` another name.
pub fn link(place: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    fs::linkat(CWD, FdPath::new(place).as_c_str(), directory, name, AtFlags::SYMLINK_FOLLOW)
}

/// Once more when a signal came first.
pub fn retried<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// `fd` borrowed, or ESTALE for a node that is gone.
pub fn alive(fd: Option<&OwnedFd>) -> Result<BorrowedFd<'_>, Errno> {
    fd.map(AsFd::as_fd).ok_or(Errno::STALE)
}

//! The system calls about files in a directory that is open: no path is looked up twice, and no link is followed.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::{CStr, c_int, c_long};
use core::mem::{MaybeUninit, size_of};

use guest_init::tar::Time;

use super::{Errno, Fd, Result, check, check_size};

/// openat2(2), linux/openat2.h.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}
const RESOLVE_NO_MAGICLINKS: u64 = 2;
const RESOLVE_NO_SYMLINKS: u64 = 4;
const RESOLVE_BENEATH: u64 = 8;

/// What a name leads to.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// `S_IFMT` of its mode.
    pub kind: libc::mode_t,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub bytes: u64,
    pub mtime: Time,
    /// Of a device: major, minor.
    pub device: (u32, u32),
    /// The file itself: the device that it is on, and its number there.
    pub file: (u64, u64),
    pub links: u64,
}

/// A directory below `top`, through no link and no `..`: ELOOP for a link, EXDEV for a way out.
pub fn directory_below(top: &Fd, path: &CStr) -> Result<Fd> {
    let flags = (libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC).cast_unsigned().into();
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
    let how = OpenHow { flags, mode: 0, resolve };
    // SAFETY: the path is terminated, and the structure is live and as long as it is said to be.
    let fd = unsafe { libc::syscall(libc::SYS_openat2, top.0, path.as_ptr(), &raw const how, size_of::<OpenHow>()) };
    c_int::try_from(fd).ok().filter(|fd| *fd >= 0).map(Fd).ok_or_else(Errno::last)
}

/// openat(2), which follows no link in the name itself.
pub fn open(directory: &Fd, name: &CStr, flags: c_int) -> Result<Fd> {
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: the name is terminated, and the mode is there in case of O_CREAT.
    check(unsafe { libc::openat(directory.0, name.as_ptr(), flags, 0o600) }).map(Fd)
}

/// mkdirat(2).
pub fn make_directory(directory: &Fd, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the name is terminated.
    check(unsafe { libc::mkdirat(directory.0, name.as_ptr(), mode) }).map(drop)
}

/// mknodat(2): `kind` is of `S_IFMT`.
pub fn make_node(directory: &Fd, name: &CStr, kind: libc::mode_t, mode: u32, device: (u32, u32)) -> Result<()> {
    let device = libc::makedev(device.0, device.1);
    // SAFETY: the name is terminated.
    check(unsafe { libc::mknodat(directory.0, name.as_ptr(), kind | mode, device) }).map(drop)
}

/// symlinkat(2).
pub fn make_symbolic_link(target: &CStr, directory: &Fd, name: &CStr) -> Result<()> {
    // SAFETY: both are terminated.
    check(unsafe { libc::symlinkat(target.as_ptr(), directory.0, name.as_ptr()) }).map(drop)
}

/// linkat(2): another name for a file, which may be a link itself.
pub fn make_link(from: (&Fd, &CStr), to: (&Fd, &CStr)) -> Result<()> {
    // SAFETY: both names are terminated.
    check(unsafe { libc::linkat(from.0.0, from.1.as_ptr(), to.0.0, to.1.as_ptr(), 0) }).map(drop)
}

/// unlinkat(2) of whatever it is; a directory has to be empty.
pub fn remove(directory: &Fd, name: &CStr) -> Result<()> {
    // SAFETY: the name is terminated.
    unsafe {
        match check(libc::unlinkat(directory.0, name.as_ptr(), 0)) {
            Err(Errno(libc::EISDIR)) => check(libc::unlinkat(directory.0, name.as_ptr(), libc::AT_REMOVEDIR)).map(drop),
            result => result.map(drop),
        }
    }
}

/// Gives what the name leads to, if a link then the link itself, to a user and a group.
pub fn set_owner(directory: &Fd, name: &CStr, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: the name is terminated.
    check(unsafe { libc::fchownat(directory.0, name.as_ptr(), uid, gid, libc::AT_SYMLINK_NOFOLLOW) }).map(drop)
}

/// Sets permission bits.
pub fn set_mode(file: &Fd, mode: u32) -> Result<()> {
    // SAFETY: integers in.
    check(unsafe { libc::fchmod(file.0, mode) }).map(drop)
}

/// Sets the time of modification of what the name leads to, if a link then of the link itself.
pub fn set_time(directory: &Fd, name: &CStr, time: Time) -> Result<()> {
    let omit = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    let time = libc::timespec { tv_sec: time.seconds, tv_nsec: c_long::from(time.nanoseconds.cast_signed()) };
    let times = [omit, time];
    // SAFETY: the name is terminated, and there are two times.
    check(unsafe { libc::utimensat(directory.0, name.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) }).map(drop)
}

/// fstatat(2) of the name itself, should it be a link; of the directory when the name is empty.
pub fn status(directory: &Fd, name: &CStr) -> Result<Status> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: the name is terminated; the call fills the structure when it succeeds, and only then is it used.
    let status = unsafe {
        check(libc::fstatat(directory.0, name.as_ptr(), status.as_mut_ptr(), flags))?;
        status.assume_init()
    };
    let nanoseconds = u32::try_from(status.st_mtime_nsec).unwrap_or(0);
    Ok(Status {
        kind: status.st_mode & libc::S_IFMT,
        mode: status.st_mode & 0o7777,
        uid: status.st_uid,
        gid: status.st_gid,
        bytes: u64::try_from(status.st_size).unwrap_or(0),
        mtime: Time { seconds: status.st_mtime, nanoseconds },
        device: (libc::major(status.st_rdev), libc::minor(status.st_rdev)),
        file: (status.st_dev, status.st_ino),
        // The type is not the same on all processors.
        #[allow(clippy::useless_conversion)]
        links: status.st_nlink.into(),
    })
}

/// What a symbolic link says.
pub fn read_link(directory: &Fd, name: &CStr) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 4097];
    // SAFETY: the name is terminated; pointer and length describe the live buffer.
    let count = unsafe { libc::readlinkat(directory.0, name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(check_size(count)?);
    Ok(buffer)
}

/// The names in a directory, sorted, without `.` and `..`.
pub fn names(directory: &Fd) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    // SAFETY: the stream owns the copy of the descriptor and is closed at the end; an entry is valid until the next call,
    // and its name is copied before. The location of the error number is this thread's own.
    unsafe {
        let copy = directory.copy()?;
        let stream = libc::fdopendir(copy.0);
        if stream.is_null() {
            return Err(Errno::last());
        }
        core::mem::forget(copy);
        let result = loop {
            *libc::__errno_location() = 0;
            let entry = libc::readdir(stream);
            if entry.is_null() {
                break Errno::last();
            }
            names.push(CStr::from_ptr((*entry).d_name.as_ptr()).to_owned());
        };
        libc::closedir(stream);
        if result != Errno(0) {
            return Err(result);
        }
    }
    names.retain(|name| ![c".", c".."].contains(&name.as_c_str()));
    names.sort_unstable();
    Ok(names)
}

/// New files have the modes that they are made with.
pub fn clear_umask() {
    // SAFETY: an integer in.
    unsafe { libc::umask(0) };
}

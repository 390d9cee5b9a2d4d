//! The system calls about file systems.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use core::ffi::{CStr, c_int, c_ulong};
use core::mem::MaybeUninit;
use core::ptr::null;

use super::{Errno, Fd, Result, check};

/// statfs(2).
const RAMFS_MAGIC: c_ulong = 0x8584_58f6;
const TMPFS_MAGIC: c_ulong = 0x0102_1994;

/// linux/fs.h: the size of a block device in bytes.
const BLKGETSIZE64: u32 = 0x8008_1272;
/// fs/ext4/ext4.h: grow to so many blocks, while mounted.
const EXT4_IOC_RESIZE_FS: u32 = 0x4008_6610;

/// Who may do what with a file.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    mode: libc::mode_t,
    user: libc::uid_t,
    group: libc::gid_t,
}

/// mount(2) of a device, or of a type that ignores `source`.
pub fn mount(source: &CStr, fstype: &CStr, target: &CStr, flags: c_ulong, options: &CStr) -> Result<()> {
    let (source, target, fstype) = (source.as_ptr(), target.as_ptr(), fstype.as_ptr());
    // SAFETY: all strings are terminated.
    check(unsafe { libc::mount(source, target, fstype, flags, options.as_ptr().cast()) }).map(drop)
}

/// A file appears in the place of another one.
pub fn bind(source: &CStr, target: &CStr) -> Result<()> {
    mount(source, c"", target, libc::MS_BIND, c"")
}

/// No more writing to what is mounted at `target`.
pub fn remount_read_only(target: &CStr) -> Result<()> {
    mount(c"", c"", target, libc::MS_REMOUNT | libc::MS_RDONLY, c"")
}

/// umount2(2), which a symbolic link does not lead elsewhere.
pub fn unmount(target: &CStr, flags: c_int) -> Result<()> {
    // SAFETY: the path is terminated.
    check(unsafe { libc::umount2(target.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) }).map(drop)
}

/// swapoff(2). What is not swapped to is as good.
pub fn swap_off(path: &CStr) {
    // SAFETY: the path is terminated.
    unsafe { libc::swapoff(path.as_ptr()) };
}

/// What is mounted at `target` becomes the root of all that this process sees.
pub fn switch_root(target: &CStr) -> Result<()> {
    // SAFETY: all strings are terminated, and a null pointer stands for no type and no options.
    unsafe {
        check(libc::chdir(target.as_ptr()))?;
        check(libc::mount(c".".as_ptr(), c"/".as_ptr(), null(), libc::MS_MOVE, null()))?;
        check(libc::chroot(c".".as_ptr()))?;
        check(libc::chdir(c"/".as_ptr())).map(drop)
    }
}

/// The files of a directory are in memory: it is the initramfs, or another one of its kind.
pub fn is_in_memory(directory: &Fd) -> bool {
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: fstatfs fills the structure when it succeeds, and only then is it used.
    unsafe {
        libc::fstatfs(directory.0, found.as_mut_ptr()) == 0
            && [RAMFS_MAGIC, TMPFS_MAGIC].contains(&found.assume_init().f_type)
    }
}

/// Removes everything in a directory, but not in what is mounted there. What cannot be removed stays.
pub fn empty_directory(directory: Fd) {
    let Ok(device) = status(&directory).map(|status| status.st_dev) else { return };
    empty(directory, device);
}

fn empty(directory: Fd, device: libc::dev_t) {
    // SAFETY: the stream owns the descriptor from now on, and is closed at the end.
    let (number, stream) = unsafe {
        let number = directory.0;
        let stream = libc::fdopendir(number);
        if stream.is_null() {
            return;
        }
        core::mem::forget(directory);
        (number, stream)
    };
    loop {
        // SAFETY: the stream is open; an entry is valid until the next call, and its name is copied before.
        let name: CString = unsafe {
            let entry = libc::readdir(stream);
            if entry.is_null() {
                break;
            }
            CStr::from_ptr((*entry).d_name.as_ptr()).to_owned()
        };
        if [c".", c".."].contains(&name.as_c_str()) {
            continue;
        }
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: the name is terminated.
        let inner = check(unsafe { libc::openat(number, name.as_ptr(), flags) }).map(Fd);
        let flags = if let Ok(inner) = inner {
            if !status(&inner).is_ok_and(|status| status.st_dev == device) {
                continue;
            }
            empty(inner, device);
            libc::AT_REMOVEDIR
        } else {
            0
        };
        // SAFETY: the name is terminated. What is busy stays.
        unsafe { libc::unlinkat(number, name.as_ptr(), flags) };
    }
    // SAFETY: the stream is open and not used again.
    unsafe { libc::closedir(stream) };
}

/// The size of a block device in bytes.
pub fn device_bytes(device: &Fd) -> Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: the call writes one u64.
    check(unsafe { libc::ioctl(device.0, BLKGETSIZE64 as _, &raw mut bytes) })?;
    Ok(bytes)
}

/// Grows the mounted ext4 file system in which `directory` is.
pub fn grow_ext4(directory: &CStr, blocks: u64) -> Result<()> {
    let directory = Fd::open(directory, libc::O_RDONLY | libc::O_DIRECTORY)?;
    // SAFETY: the call reads one u64.
    check(unsafe { libc::ioctl(directory.0, EXT4_IOC_RESIZE_FS as _, &raw const blocks) }).map(drop)
}

/// Who may do what with the file of this path.
pub fn access(path: &CStr) -> Result<Access> {
    let status = status(&Fd::open(path, libc::O_PATH)?)?;
    Ok(Access { mode: status.st_mode & 0o7777, user: status.st_uid, group: status.st_gid })
}

/// Looks at the file of this path, which takes its file system to answer.
pub fn look(path: &CStr) -> Result<()> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the path is terminated, and stat writes no more than the structure.
    check(unsafe { libc::stat(path.as_ptr(), status.as_mut_ptr()) }).map(drop)
}

/// Makes a directory with this access; one that exists stays as it is.
pub fn make_directory_with(path: &CStr, access: Access) -> Result<()> {
    // SAFETY: the path is terminated.
    unsafe {
        match check(libc::mkdir(path.as_ptr(), 0o700)) {
            Ok(_) => {}
            Err(Errno(libc::EEXIST)) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        check(libc::chown(path.as_ptr(), access.user, access.group))?;
        check(libc::chmod(path.as_ptr(), access.mode)).map(drop)
    }
}

/// Removes an empty directory, or a name of a file.
pub fn remove(path: &CStr) {
    // SAFETY: the path is terminated. What is not there is removed, and what is busy stays.
    unsafe { libc::remove(path.as_ptr()) };
}

/// The path leads to a regular file.
pub fn is_regular(path: &CStr) -> bool {
    let file = Fd::open(path, libc::O_PATH).and_then(|file| status(&file));
    file.is_ok_and(|status| status.st_mode & libc::S_IFMT == libc::S_IFREG)
}

/// Makes a file that did not exist, not even as a link.
pub fn create(path: &CStr) -> Result<Fd> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the path is terminated, and the mode is there as O_CREAT wants it.
    check(unsafe { libc::open(path.as_ptr(), flags, 0o644) }).map(Fd)
}

/// open(2) of a file that is made with this mode where it is missing.
pub fn open_or_create(path: &CStr, flags: c_int, mode: u32) -> Result<Fd> {
    // SAFETY: the path is terminated, and the mode is there as O_CREAT wants it.
    check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CREAT | libc::O_CLOEXEC, mode) }).map(Fd)
}

/// Which file a descriptor is of: number of its file system, of its inode, and of the device that it is.
pub fn identity(file: &Fd) -> Result<(u64, u64, u64)> {
    status(file).map(|status| (status.st_dev, status.st_ino, status.st_rdev))
}

fn status(file: &Fd) -> Result<libc::stat> {
    let mut status = MaybeUninit::uninit();
    // SAFETY: fstat fills the structure when it succeeds, and only then is it used.
    unsafe {
        check(libc::fstat(file.0, status.as_mut_ptr()))?;
        Ok(status.assume_init())
    }
}

//! File systems on disks: waiting for the device, mounting, growing.

use alloc::format;
use alloc::string::String;
use core::ffi::CStr;

use guest_init::ext4::{START_BYTES, Size};

use crate::prepare::show;
use crate::sys::{self, Errno, Fd, files};
use crate::{Refused, say, shutdown};

/// Drivers that are loaded have found their disks by then.
const LIMIT_MS: i64 = 10_000;

/// Mounts the ext4 file system of `device` at `target` and lets it fill the disk, if it may be written.
pub fn mount_ext4(device: &CStr, target: &CStr, read_only: bool) -> Result<(), Refused> {
    let disk = wait(device)?;
    let flags = if read_only { libc::MS_RDONLY } else { 0 };
    let larger = if read_only { None } else { room(&disk) };
    mount(device, c"ext4", target, flags)?;
    if let Some(blocks) = larger
        && let Err(errno) = files::grow_ext4(target, blocks)
    {
        say(format_args!("{}: the file system stays smaller than the disk: {errno}", show(device)));
    }
    Ok(())
}

/// Mounts the squashfs of `device` at `target`.
pub fn mount_squashfs(device: &CStr, target: &CStr) -> Result<(), Refused> {
    wait(device)?;
    mount(device, c"squashfs", target, libc::MS_RDONLY)
}

/// Opens a device once it is there.
fn wait(device: &CStr) -> Result<Fd, Refused> {
    let opened = sys::within(LIMIT_MS, || match Fd::open(device, libc::O_RDONLY) {
        Err(Errno(libc::ENOENT | libc::ENXIO | libc::ENODEV)) => None,
        result => Some(result),
    });
    match opened {
        Some(result) => result.map_err(|errno| format!("{}: {errno}", show(device))),
        None => Err(format!(
            "{}: no such disk after {} s: it is not attached, or its driver is not loaded",
            show(device),
            LIMIT_MS / 1000
        )),
    }
}

/// Blocks that the disk has for its file system, if that is smaller.
fn room(disk: &Fd) -> Option<u64> {
    let mut start = [0; START_BYTES];
    let count = disk.read(&mut start).ok()?;
    Size::parse(&start[..count])?.larger(files::device_bytes(disk).ok()?)
}

fn mount(device: &CStr, fstype: &CStr, target: &CStr, flags: libc::c_ulong) -> Result<(), Refused> {
    sys::make_directory(target, 0o755).map_err(|errno| format!("mkdir {}: {errno}", show(target)))?;
    let result = files::mount(device, fstype, target, flags, c"");
    result.map_err(|errno| format!("mount {}: {}", show(device), why(errno, &show(fstype))))?;
    shutdown::disks_are_mounted();
    Ok(())
}

/// What mount(2) means where its errno alone would mislead.
fn why(errno: Errno, fstype: &str) -> String {
    match errno {
        Errno(libc::ENODEV) => format!("the kernel has no {fstype}, or its module is not loaded"),
        Errno(libc::EINVAL) => format!("it has no {fstype}, or a damaged one"),
        Errno(libc::EUCLEAN | libc::EBADMSG) => format!("its {fstype} is damaged: e2fsck may help"),
        Errno(libc::EACCES) => format!("the disk is read-only and the {fstype} is to be written"),
        Errno(libc::EROFS) => format!("the disk is read-only and its {fstype} needs e2fsck after an unclean end"),
        errno => format!("{errno}"),
    }
}

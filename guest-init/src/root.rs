//! From the initramfs to the root disk.

use alloc::format;
use core::ffi::CStr;

use guest_init::config::Config;
use guest_init::disks::Root;

use crate::prepare::{self, show};
use crate::sys::{Errno, Fd, files};
use crate::{Refused, disk, read_config};

/// Where the disk is mounted until it is the root.
const TARGET: &CStr = c"/machinen-root";

/// Mounts the disk, makes it the root, and gives the memory of the initramfs back. Returns the image's configuration,
/// an empty one if it has none.
pub fn switch(root: &Root) -> Result<Config, Refused> {
    let failed = |errno: Errno| format!("root {}: {errno}", show(&root.device));
    disk::mount_ext4(&root.device, TARGET, root.read_only)?;
    let initramfs = Fd::open(c"/", libc::O_RDONLY | libc::O_DIRECTORY).map_err(failed)?;
    // They are mounted anew inside the new root, so that no link of the image leads such a mount out of it.
    for target in [c"/sys", c"/proc", c"/dev"] {
        files::unmount(target, libc::MNT_DETACH).map_err(failed)?;
    }
    files::switch_root(TARGET).map_err(failed)?;
    if files::is_in_memory(&initramfs) {
        files::empty_directory(initramfs);
    }
    prepare::devices()?;
    prepare::kernel()?;
    if root.read_only {
        prepare::memory_tmp()?;
    }
    match read_config() {
        Err((Errno(libc::ENOENT), _)) => Ok(Config::default()),
        Err((_, why)) => Err(format!("root disk: {why}")),
        Ok(config) => Ok(config),
    }
}

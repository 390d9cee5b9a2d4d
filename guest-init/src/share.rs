//! Directories of the host, mounted by virtio-fs.

use alloc::format;
use core::ffi::CStr;

use guest_init::shares::Share;

use crate::overlay::make_path;
use crate::prepare::show;
use crate::sys::{Errno, files};
use crate::{Refused, shutdown};

const TYPE: &CStr = c"virtiofs";

/// Mounts a directory of the host.
pub fn mount(share: &Share) -> Result<(), Refused> {
    let failed = |what: &str, why: &dyn core::fmt::Display| Err(format!("share at {}: {what}{why}", show(&share.path)));
    if let Err(errno) = make_path(&share.path) {
        return failed("mkdir: ", &errno);
    }
    let flags = if share.read_only { libc::MS_RDONLY } else { 0 };
    // Devices are found while their drivers are loaded, so there is nothing to wait for.
    match files::mount(&share.tag, TYPE, &share.path, flags, c"") {
        Ok(()) => {}
        Err(Errno(libc::ENODEV)) => return failed("the kernel has no virtiofs, or its module is not loaded", &""),
        Err(Errno(libc::EINVAL)) => return failed("the machine has no share with the tag ", &show(&share.tag)),
        Err(errno) => return failed("mount: ", &errno),
    }
    // The mount itself asks for nothing: whether there is a directory comes out with the first question.
    if let Err(errno) = files::look(&share.path) {
        // It is of no use, and a later one may be.
        let _ = files::unmount(&share.path, libc::MNT_DETACH);
        return match errno {
            Errno(libc::ECONNREFUSED) => failed("the host has no directory for the tag ", &show(&share.tag)),
            errno => failed("", &errno),
        };
    }
    shutdown::disks_are_mounted();
    Ok(())
}

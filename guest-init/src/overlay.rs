//! Directories that a squashfs and an ext4 disk make together.

use alloc::ffi::CString;
use alloc::format;
use alloc::vec::Vec;
use core::ffi::CStr;

use guest_init::disks::Overlay;

use crate::prepare::show;
use crate::sys::{self, Errno, files};
use crate::{Refused, disk};

const BASE: &CStr = c"/run/machinen";
const LOWER: &CStr = c"/run/machinen/lower";
const UPPER: &CStr = c"/run/machinen/upper";
const WRITTEN: &CStr = c"/run/machinen/upper/upper";
const WORK: &CStr = c"/run/machinen/upper/work";
/// overlayfs(5): the paths above.
const OPTIONS: &CStr =
    c"lowerdir=/run/machinen/lower,upperdir=/run/machinen/upper/upper,workdir=/run/machinen/upper/work";

/// Mounts an overlay. The two disks are not to be seen by themselves afterwards, so that nothing can write under it;
/// they go when it is unmounted.
pub fn mount(overlay: &Overlay) -> Result<(), Refused> {
    let failed = |what: &str, errno: Errno| format!("mount at {}: {what}: {errno}", show(&overlay.at));
    sys::make_directory(BASE, 0o755).map_err(|errno| failed("mkdir /run/machinen", errno))?;
    disk::mount_squashfs(&overlay.lower, LOWER)?;
    disk::mount_ext4(&overlay.upper, UPPER, false)?;
    // The directory itself is the upper one: it belongs to whom the lower one belongs to.
    files::access(LOWER)
        .and_then(|access| files::make_directory_with(WRITTEN, access))
        .and_then(|()| sys::make_directory(WORK, 0o700))
        .map_err(|errno| failed("mkdir in the upper disk", errno))?;
    make_path(&overlay.at).map_err(|errno| failed("mkdir", errno))?;
    files::mount(c"overlay", c"overlay", &overlay.at, 0, OPTIONS).map_err(|errno| match errno {
        Errno(libc::ENODEV) => {
            format!("mount at {}: the kernel has no overlay, or its module is not loaded", show(&overlay.at))
        }
        errno => failed("overlay", errno),
    })?;
    for target in [UPPER, LOWER] {
        files::unmount(target, libc::MNT_DETACH).map_err(|errno| failed("umount", errno))?;
        files::remove(target);
    }
    Ok(())
}

/// Makes a directory and those above it.
pub fn make_path(path: &CStr) -> sys::Result<()> {
    let path = path.to_bytes();
    let ends = path.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
    let parents: Vec<CString> = ends.chain([path.len()]).filter_map(|end| CString::new(&path[..end]).ok()).collect();
    // One that exists need not be writable around it.
    parents.iter().filter(|path| !sys::exists(path)).try_for_each(|path| sys::make_directory(path, 0o755))
}

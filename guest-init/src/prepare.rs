//! The system around the command: file systems, clock, loopback, modules.

use alloc::format;
use core::ffi::CStr;
use core::fmt::Display;

use guest_init::cmdline::{self, Words};
use guest_init::modules;
use guest_init::mounts::{self, Mount};

use crate::Refused;
use crate::sys::{self, Errno, Fd};

/// `MODULE_INIT_COMPRESSED_FILE` of finit_module(2).
const COMPRESSED_FILE: i32 = 4;

/// Mounts /dev.
pub fn devices() -> Result<(), Refused> {
    mount(&mounts::DEV)
}

/// Mounts the rest and makes the links that programs expect.
pub fn file_systems() -> Result<(), Refused> {
    mounts::TABLE.iter().try_for_each(mount)?;
    for (target, name) in mounts::LINKS {
        sys::symlink(target, name);
    }
    sys::make_directory(c"/tmp", 0o1777).map_err(|errno| format!("mkdir /tmp: {errno}"))
}

fn mount(mount: &Mount) -> Result<(), Refused> {
    let failed = |call: &str, errno| Err(format!("{call} {}: {errno}", show(mount.target)));
    match sys::make_directory(mount.target, 0o755) {
        Err(errno) if mount.required => return failed("mkdir", errno),
        Err(_) => return Ok(()),
        Ok(()) => {}
    }
    match sys::mount(mount.fstype, mount.target, mount.flags, mount.options) {
        // The kernel mounts /dev itself when it is built to.
        Ok(()) | Err(Errno(libc::EBUSY)) => Ok(()),
        Err(errno) if mount.required => failed("mount", errno),
        Err(_) => Ok(()),
    }
}

/// Our words on the kernel's command line.
pub fn command_line() -> Result<Words, Refused> {
    let line = sys::read_file(c"/proc/cmdline").map_err(|errno| format!("/proc/cmdline: {errno}"))?;
    cmdline::parse(&line).map_err(|bad| format!("machinen.epoch: {bad}"))
}

/// Sets the wall clock when it is behind the time that the monitor gave; a paravirtual clock is right already.
pub fn clock(words: &Words) -> Result<(), Refused> {
    let Some(epoch) = words.epoch else { return Ok(()) };
    let failed = |errno| format!("clock: {errno}");
    let since_boot = sys::clock(libc::CLOCK_BOOTTIME).map_err(failed)?;
    let now = sys::clock(libc::CLOCK_REALTIME).map_err(failed)?;
    match epoch.checked_add(since_boot) {
        Some(time) if now < time => sys::set_clock(time).map_err(failed),
        _ => Ok(()),
    }
}

/// Switches `lo` on, where the kernel has a network.
pub fn loopback() -> Result<(), Refused> {
    match sys::loopback_up() {
        Ok(()) | Err(Errno(libc::EAFNOSUPPORT | libc::ENOSYS | libc::ENODEV)) => Ok(()),
        Err(errno) => Err(format!("lo: {errno}")),
    }
}

/// Loads the modules that the initramfs lists, in order.
pub fn modules() -> Result<(), Refused> {
    let list = match sys::read_file(c"/machinen-modules") {
        Ok(list) => list,
        Err(Errno(libc::ENOENT)) => return Ok(()),
        Err(errno) => return Err(format!("/machinen-modules: {errno}")),
    };
    for module in modules::parse(&list).map_err(|bad| format!("/machinen-modules: {bad}"))? {
        let flags = if module.is_compressed() { COMPRESSED_FILE } else { 0 };
        let refused = |why: &dyn Display| format!("module {}: {why}", show(&module.path));
        let file = Fd::open(&module.path, libc::O_RDONLY).map_err(|errno| refused(&errno))?;
        match file.load_module(&module.parameters, flags) {
            Ok(()) | Err(Errno(libc::EEXIST)) => {}
            // The text of this errno would be that the file does not exist.
            Err(Errno(libc::ENOENT)) => return Err(refused(&"needs a symbol of a module that is not loaded")),
            Err(errno) => return Err(refused(&errno)),
        }
    }
    Ok(())
}

/// A path for a message.
pub fn show(path: &CStr) -> alloc::borrow::Cow<'_, str> {
    path.to_string_lossy()
}

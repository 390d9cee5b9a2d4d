//! The system around the command: file systems, clock, loopback, modules.

use alloc::format;
use core::ffi::CStr;
use core::fmt::Display;

use guest_init::cmdline::{self, Words};
use guest_init::modules;
use guest_init::mounts::{self, Mount};

use crate::Refused;
use crate::sys::{self, Errno, Fd, files};

/// `MODULE_INIT_COMPRESSED_FILE` of finit_module(2).
const COMPRESSED_FILE: i32 = 4;

/// Mounts /dev.
pub fn devices() -> Result<(), Refused> {
    mount(&mounts::DEV)
}

/// Mounts /proc and /sys.
pub fn kernel() -> Result<(), Refused> {
    mounts::KERNEL.iter().try_for_each(mount)
}

/// Mounts /tmp in memory.
pub fn memory_tmp() -> Result<(), Refused> {
    mount(&mounts::TMP)
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
    match files::mount(mount.fstype, mount.fstype, mount.target, mount.flags, mount.options) {
        // The kernel mounts /dev itself when it is built to.
        Ok(()) | Err(Errno(libc::EBUSY)) => Ok(()),
        Err(errno) if mount.required => failed("mount", errno),
        Err(_) => Ok(()),
    }
}

/// Our words on the kernel's command line.
pub fn command_line() -> Result<Words, Refused> {
    let line = sys::read_file(c"/proc/cmdline").map_err(|errno| format!("/proc/cmdline: {errno}"))?;
    Ok(cmdline::parse(&line))
}

/// The wall clock may differ by so much from the time that the monitor gave. What the kernel's own clock misses of a boot is less.
const CLOCK_TOLERANCE_S: i64 = 1;

/// Sets the wall clock by the time that the monitor gave, when it is behind it or far ahead. A paravirtual clock is right already,
/// but for emulated processors that count from another start.
pub fn clock(words: &Words) -> Result<(), Refused> {
    let epoch = words.epoch.as_ref().map_err(|bad| format!("machinen.epoch: {bad}"))?;
    let Some(epoch) = *epoch else { return Ok(()) };
    let failed = |errno| format!("clock: {errno}");
    let since_boot = sys::clock(libc::CLOCK_BOOTTIME).map_err(failed)?;
    let now = sys::clock(libc::CLOCK_REALTIME).map_err(failed)?;
    match epoch.checked_add(since_boot) {
        Some(time) if now < time || now.seconds - time.seconds > CLOCK_TOLERANCE_S => {
            sys::set_clock(time).map_err(failed)
        }
        _ => Ok(()),
    }
}

/// Switches `lo` on, where the kernel has a network.
pub fn loopback() -> Result<(), Refused> {
    sys::net::loopback_up().map_err(|errno| format!("lo: {errno}"))
}

/// The machine is called what the root's /etc/hostname says (hostname(5)), if it says something.
pub fn host_name() {
    let text = sys::read_file(c"/etc/hostname").unwrap_or_default();
    let mut lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    if let Some(name) = lines.find(|line| !line.is_empty() && !line.starts_with(b"#")) {
        sys::set_host_name(name);
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

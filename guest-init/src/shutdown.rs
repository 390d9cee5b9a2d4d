//! The end of a guest with disks: nothing runs any more, and the disks are as after a clean unmount.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use guest_init::mounts;

use crate::prepare::show;
use crate::say;
use crate::sys::{self, Errno, Fd, files};

/// For processes that want to end in order; the command itself has ended.
const TERM_MS: i64 = 500;
/// For processes that have been killed, and for what the kernel does after their end.
const SETTLE_MS: i64 = 2000;

static DISKS: AtomicBool = AtomicBool::new(false);

/// From now on [`finish`] has something to do.
pub fn disks_are_mounted() {
    DISKS.store(true, Ordering::Relaxed);
}

/// Ends the processes that are left and unmounts, or says what stays mounted. Nothing without disks: then everything
/// ends with the machine.
pub fn finish() {
    if !DISKS.load(Ordering::Relaxed) {
        return;
    }
    end_processes();
    mounts::parse_swaps(&sys::read_file(c"/proc/swaps").unwrap_or_default()).for_each(|path| files::swap_off(&path));
    // Whoever held a file system has ended, but the kernel may let go a little later.
    let mut left = Vec::new();
    sys::within(SETTLE_MS, || {
        left = release();
        left.is_empty().then_some(())
    });
    for (target, errno) in left {
        say(format_args!("{}: not unmounted cleanly: {errno}", show(&target)));
    }
}

fn end_processes() {
    for (signal, limit_ms) in [(libc::SIGTERM, TERM_MS), (libc::SIGKILL, SETTLE_MS)] {
        if sys::reap_all() {
            return;
        }
        // All but PID 1. A stopped process gets to see the signal too.
        for signal in [signal, libc::SIGCONT] {
            match sys::kill(-1, signal) {
                Ok(()) | Err(_) => {}
            }
        }
        sys::within(limit_ms, || sys::reap_all().then_some(()));
    }
}

/// Unmounts what is on disks and in them, last first, and makes a root on a disk read-only. Returns what does not work yet.
fn release() -> Vec<(CString, Errno)> {
    let mut left = Vec::new();
    let text = sys::read_file(c"/proc/self/mounts").unwrap_or_default();
    for target in mounts::to_unmount(&text) {
        left.extend(files::unmount(&target, 0).err().map(|errno| (target, errno)));
    }
    let root = Fd::open(c"/", libc::O_RDONLY | libc::O_DIRECTORY);
    if !root.is_ok_and(|root| files::is_in_memory(&root)) {
        left.extend(files::remount_read_only(c"/").err().map(|errno| (c"/".into(), errno)));
    }
    left
}

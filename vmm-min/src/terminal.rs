//! The user's terminal: raw while a guest owns it, as it was afterwards, also when the monitor crashes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::sys;

/// Signals of a fault of our own: the handler gives the terminal back, then the signal takes its default course.
const CRASHES: [libc::c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS, libc::SIGTRAP];

static RAW: AtomicBool = AtomicBool::new(false);
/// Valid while `RAW` is set; written before it is set, by the only thread.
static mut SAVED: MaybeUninit<(libc::c_int, libc::termios)> = MaybeUninit::uninit();

/// A terminal that is raw while this process is in its foreground; dropping it restores the mode it had.
pub struct Terminal {
    fd: OwnedFd,
}

impl Terminal {
    /// Takes the terminal `fd`: raw from now on, or from the first [`Terminal::enter`] in the foreground.
    pub fn new(fd: BorrowedFd<'_>) -> Result<Terminal> {
        let fd = fd.try_clone_to_owned().map_err(|cause| Error::host("HOST_TERMINAL", "dup of the terminal", cause))?;
        let terminal = Terminal { fd };
        terminal.enter()?;
        for signal in CRASHES {
            // SAFETY: the handler only calls functions that signal-safety(7) lists; it runs on the alternate stack
            // that std has set up, so that a stack overflow gets there too.
            unsafe {
                let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                action.sa_sigaction = on_crash as *const () as usize;
                action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
        Ok(terminal)
    }

    /// Gives the terminal back for a while.
    pub fn leave(&self) {
        restore();
    }

    /// Makes the terminal raw, unless others are using it. To be called again when this process is continued: whoever
    /// had the terminal meanwhile may have changed its mode.
    pub fn enter(&self) -> Result<()> {
        if !sys::in_foreground(self.fd.as_fd()) {
            return Ok(());
        }
        let fd = self.fd.as_raw_fd();
        let failed = |call| Err(Error::host("HOST_TERMINAL", call, io::Error::last_os_error()));
        // SAFETY: tcgetattr fills the mode before it is read; SAVED is written while RAW is clear and read while it is
        // set, and only this thread exists.
        unsafe {
            if !RAW.load(Ordering::SeqCst) {
                let mut mode = MaybeUninit::<libc::termios>::uninit();
                if libc::tcgetattr(fd, mode.as_mut_ptr()) != 0 {
                    return failed("tcgetattr of the terminal");
                }
                (&raw mut SAVED).write(MaybeUninit::new((fd, mode.assume_init())));
                RAW.store(true, Ordering::SeqCst);
            }
            let (_, mut mode) = (&raw const SAVED).read().assume_init();
            libc::cfmakeraw(&raw mut mode);
            // Not after draining: a serial terminal that was stopped would make us wait with signals blocked.
            if libc::tcsetattr(fd, libc::TCSANOW, &raw const mode) != 0 {
                return failed("tcsetattr of the terminal");
            }
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if RAW.swap(false, Ordering::SeqCst) {
        // SAFETY: RAW was set, so SAVED holds a descriptor and its mode; tcsetattr is signal-safe.
        unsafe {
            let (fd, mode) = (&raw const SAVED).read().assume_init();
            libc::tcsetattr(fd, libc::TCSANOW, &raw const mode);
        }
    }
}

extern "C" fn on_crash(signal: libc::c_int) {
    restore();
    // SAFETY: raise is signal-safe; SA_RESETHAND has put the default action back.
    unsafe { libc::raise(signal) };
}

//! The user's terminal: raw while a guest owns it, as it was afterwards, also when the monitor crashes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Signals of a crash: the handler gives the terminal back, then the signal takes its default course.
const CRASHES: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS];

static RAW: AtomicBool = AtomicBool::new(false);
/// Valid while `RAW` is set; written before it is set, by the only thread.
static mut SAVED: MaybeUninit<(libc::c_int, libc::termios)> = MaybeUninit::uninit();

/// A terminal in raw mode; dropping it restores the mode it had.
pub struct Terminal {
    fd: libc::c_int,
}

impl Terminal {
    /// Puts the terminal `fd` in raw mode.
    pub fn raw(fd: BorrowedFd<'_>) -> Result<Terminal> {
        let terminal = Terminal { fd: fd.as_raw_fd() };
        terminal.enter()?;
        for signal in CRASHES {
            // SAFETY: the handler only calls functions that signal-safety(7) lists.
            unsafe {
                let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                action.sa_sigaction = on_crash as *const () as usize;
                action.sa_flags = libc::SA_RESETHAND;
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
        Ok(terminal)
    }

    /// Gives the terminal back for a while; [`Terminal::enter`] takes it again.
    pub fn leave(&self) {
        restore();
    }

    /// Takes the terminal again after [`Terminal::leave`].
    pub fn enter(&self) -> Result<()> {
        let mut mode = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr fills `mode` before it is read; SAVED is written while RAW is clear, and only this
        // thread exists.
        let result = unsafe {
            if libc::tcgetattr(self.fd, mode.as_mut_ptr()) != 0 {
                return Err(Error::host("HOST_TERMINAL", "tcgetattr of the terminal", io::Error::last_os_error()));
            }
            let mut mode = mode.assume_init();
            (&raw mut SAVED).write(MaybeUninit::new((self.fd, mode)));
            RAW.store(true, Ordering::SeqCst);
            libc::cfmakeraw(&raw mut mode);
            libc::tcsetattr(self.fd, libc::TCSADRAIN, &raw const mode)
        };
        if result != 0 {
            return Err(Error::host("HOST_TERMINAL", "tcsetattr of the terminal", io::Error::last_os_error()));
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

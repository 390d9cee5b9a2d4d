//! The user's terminal while a guest's terminal is on it: raw, and given back at every end.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use machinen_abi::body::Size;
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};

use crate::error::{Error, Result};

/// The terminal that is to be given back, and its modes: one for the process, as there is one user.
static TAKEN: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// A terminal in raw mode, until this is dropped.
#[derive(Debug)]
pub struct Raw {
    fd: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Switches the terminal `fd` to raw mode; a panic gives it back, too.
    ///
    /// # Errors
    /// `RUN_TERMINAL` when the terminal refuses.
    pub fn enter(fd: impl AsFd) -> Result<Raw> {
        let failed = |cause: std::io::Error| Error::host("RUN_TERMINAL", "switch the terminal to raw mode", cause);
        let fd = fd.as_fd().try_clone_to_owned().map_err(failed)?;
        let kept = fd.try_clone().map_err(failed)?;
        let before = tcgetattr(&fd).map_err(|error| failed(error.into()))?;
        give_back_at_panic();
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = Some((kept, before.clone()));
        let raw = Raw { fd, before };
        raw.again()?;
        Ok(raw)
    }

    /// Gives the terminal back for a while.
    pub fn leave(&self) {
        restore(&self.fd, &self.before);
    }

    /// Takes it again.
    ///
    /// # Errors
    /// `RUN_TERMINAL` when the terminal refuses.
    pub fn again(&self) -> Result<()> {
        let mut modes = self.before.clone();
        modes.make_raw();
        tcsetattr(&self.fd, OptionalActions::Drain, &modes)
            .map_err(|error| Error::host("RUN_TERMINAL", "switch the terminal to raw mode", error))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.leave();
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// In the background this would stop the process, and the modes are the foreground's then.
fn restore(fd: &OwnedFd, modes: &Termios) {
    if in_foreground(fd) {
        // A terminal that is gone has no modes to restore.
        let _ = tcsetattr(fd, OptionalActions::Drain, modes);
    }
}

fn give_back_at_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if let Some((fd, modes)) = TAKEN.lock().unwrap_or_else(PoisonError::into_inner).take() {
                restore(&fd, &modes);
            }
            next(info);
        }));
    });
}

/// Whether this process may read from and write to the terminal `fd` without being stopped.
pub fn in_foreground(fd: impl AsFd) -> bool {
    // Of a terminal that is not this session's it is not known; nobody stops it there.
    tcgetpgrp(fd).map_or(true, |group| group == getpgrp())
}

/// Rows and columns of a terminal; 24 and 80 where it does not say.
pub fn size(fd: impl AsFd) -> Size {
    match tcgetwinsize(fd) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => Size { rows: size.ws_row, columns: size.ws_col },
        _ => Size { rows: 24, columns: 80 },
    }
}

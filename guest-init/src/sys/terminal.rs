//! Pseudo-terminals (pty(7)).

use core::ffi::c_int;

use machinen_abi::body::Size;

use super::{Fd, Result, check};

/// A terminal of this size: the side of whoever shows it, which never waits, and the side of its session.
pub fn open(size: Size) -> Result<(Fd, Fd)> {
    let master = Fd::open(c"/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK)?;
    let unlocked: c_int = 0;
    // SAFETY: the first call reads one int, the second takes an integer and gives a descriptor.
    let slave = unsafe {
        check(libc::ioctl(master.0, libc::TIOCSPTLCK as _, &raw const unlocked))?;
        check(libc::ioctl(master.0, libc::TIOCGPTPEER as _, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC)).map(Fd)?
    };
    resize(&master, size)?;
    Ok((master, slave))
}

/// Gives the terminal this size; the programs in its foreground get SIGWINCH when it is another one.
pub fn resize(terminal: &Fd, size: Size) -> Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call reads one winsize.
    check(unsafe { libc::ioctl(terminal.0, libc::TIOCSWINSZ as _, &raw const size) }).map(drop)
}

/// The size that a terminal has.
pub fn size(terminal: &Fd) -> Result<Size> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call writes one winsize.
    check(unsafe { libc::ioctl(terminal.0, libc::TIOCGWINSZ as _, &raw mut size) })?;
    Ok(Size { rows: size.ws_row, columns: size.ws_col })
}

//! The console: a line of plain bytes, or the command's terminal.

use alloc::ffi::CString;
use alloc::format;

use crate::Refused;
use crate::sys::{self, Fd};

/// Modem output 1 of termios(3) (asm/termios.h); libc does not name it.
const TIOCM_OUT1: i32 = 0x2000;

/// Descriptors 0, 1 and 2, which the kernel leaves closed when the initramfs has no /dev/console.
pub fn open_stdio() -> Result<(), Refused> {
    let failed = |errno| format!("/dev/console: {errno}");
    let console = Fd::open(c"/dev/console", libc::O_RDWR | libc::O_NOCTTY).map_err(failed)?;
    let result = sys::set_stdio(console.number(), console.number(), console.number()).map_err(failed);
    if console.number() <= 2 {
        // One of the three was closed and became this one: it must stay open.
        core::mem::forget(console);
    }
    result
}

/// Bytes pass as they are; a break arrives marked (docs/rootfs-contract.md).
pub fn set_raw() -> Result<(), Refused> {
    let console = Fd::open(c"/dev/console", libc::O_RDWR | libc::O_NOCTTY).map_err(|e| format!("/dev/console: {e}"))?;
    console
        .change_terminal(|mode| {
            mode.c_iflag = libc::PARMRK;
            mode.c_oflag = 0;
            mode.c_lflag = 0;
            mode.c_cflag = (mode.c_cflag & !(libc::CSIZE | libc::PARENB)) | libc::CS8 | libc::CREAD | libc::CLOCAL;
            mode.c_cc[libc::VMIN] = 1;
            mode.c_cc[libc::VTIME] = 0;
        })
        .map_err(|errno| format!("/dev/console: {errno}"))
}

/// The console for the relay: a description of its own that never waits.
pub fn line() -> Result<Fd, Refused> {
    Fd::open(c"/dev/console", libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK)
        .map_err(|errno| format!("/dev/console: {errno}"))
}

/// Asks the monitor for input: OUT1 rises. It is given once the line is set up, and each time as much as any buffer on
/// the way holds, so nothing is lost however long the command takes to read. A line without that output does not wait
/// for it.
pub fn request(line: &Fd) {
    match line.set_line(TIOCM_OUT1, false).and_then(|()| line.set_line(TIOCM_OUT1, true)) {
        Ok(()) | Err(_) => {}
    }
}

/// The device behind /dev/console, which itself cannot be a controlling terminal.
pub fn terminal() -> Result<Fd, sys::Errno> {
    let active = sys::read_file(c"/sys/class/tty/console/active").unwrap_or_default();
    let name = active.split(u8::is_ascii_whitespace).rfind(|word| !word.is_empty()).unwrap_or(b"console");
    let path = CString::new([b"/dev/", name].concat()).unwrap_or_else(|_| c"/dev/console".into());
    Fd::open(&path, libc::O_RDWR | libc::O_NOCTTY)
}

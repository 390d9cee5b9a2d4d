//! Pseudo-terminals: what a user has in front of them.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::{null, null_mut};

/// NCCS of the kernel (asm-generic/termbits.h). musl's array is longer, and what lies beyond is left as it was.
const KERNEL_CHARACTERS: usize = 19;

/// A pseudo-terminal: the user's side and the programs' side.
#[derive(Debug)]
pub struct Pty {
    /// What is written here is typed; what is read from here is shown.
    pub user: File,
    /// Held open, so that the terminal and its modes outlive the programs on it.
    terminal: OwnedFd,
}

/// The modes of a terminal (termios(3)), to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modes {
    flags: [u32; 4],
    characters: Vec<u8>,
}

impl Modes {
    /// Lines are edited and echoed, and control characters make signals.
    #[must_use]
    pub fn is_cooked(&self) -> bool {
        let wanted = libc::ICANON | libc::ECHO | libc::ISIG;
        self.flags[3] & wanted == wanted
    }
}

impl Pty {
    /// A new terminal of 24 lines and 80 columns, in the modes that the kernel gives it.
    ///
    /// # Errors
    /// Those of openpty(3).
    pub fn open() -> io::Result<Self> {
        let (mut user, mut terminal) = (-1, -1);
        let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: both integers are written, the size is read; no name and no modes are given.
        let result = unsafe { libc::openpty(&raw mut user, &raw mut terminal, null_mut(), null(), &raw const size) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: two new descriptors that nobody else owns.
        let (user, terminal) = unsafe { (OwnedFd::from_raw_fd(user), OwnedFd::from_raw_fd(terminal)) };
        for fd in [&user, &terminal] {
            // SAFETY: integers in.
            if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self { user: user.into(), terminal })
    }

    /// One more descriptor of the programs' side.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn terminal(&self) -> io::Result<OwnedFd> {
        self.terminal.try_clone()
    }

    /// The terminal's modes now.
    ///
    /// # Errors
    /// Those of tcgetattr(3).
    pub fn modes(&self) -> io::Result<Modes> {
        let mut modes = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr fills the structure when it succeeds, and only then is it read.
        let modes = unsafe {
            if libc::tcgetattr(self.terminal.as_raw_fd(), modes.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            modes.assume_init()
        };
        let flags = [modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag];
        Ok(Modes { flags, characters: modes.c_cc[..KERNEL_CHARACTERS].to_vec() })
    }

    /// The user changes the size of the window.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the size is a live structure, which is read.
        match unsafe { libc::ioctl(self.user.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Makes the command the leader of a session on this terminal, with it as stdin, stdout and stderr. It dies with
    /// the thread that spawns it.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn attach(&self, command: &mut Command) -> io::Result<()> {
        command.stdin(self.terminal.try_clone()?).stdout(self.terminal.try_clone()?).stderr(self.terminal.try_clone()?);
        // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(|| {
                let done = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
                    && libc::setsid() >= 0
                    && libc::ioctl(0, libc::TIOCSCTTY as _, 0) == 0;
                if done { Ok(()) } else { Err(io::Error::last_os_error()) }
            });
        }
        Ok(())
    }
}

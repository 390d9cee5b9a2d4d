//! A standard stream of this process, read and written without ever waiting for it.
//!
//! Flags of an open file description belong to whoever else holds it, as the shell; so pipes and terminals are opened anew.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode as FileMode, OFlags, fstat, open};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::termios::isatty;

use super::terminal::in_foreground;

/// A pipe that polls writable takes this many without waiting (pipe(7), `PIPE_BUF`).
const SAFE_BYTES: usize = 4096;

/// How it is used without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A description of our own with O_NONBLOCK.
    Own,
    /// A regular file: never waits.
    Plain,
    /// A socket: each call says that it must not wait.
    Socket,
    /// Cannot be opened again: asked by poll(2) before each call.
    Polled,
}

/// One standard stream.
#[derive(Debug)]
pub struct Channel {
    file: File,
    mode: Mode,
    terminal: bool,
}

impl Channel {
    /// For reading.
    ///
    /// # Errors
    /// Those of dup(2) and fstat(2).
    pub fn input(fd: BorrowedFd<'_>) -> io::Result<Channel> {
        Channel::open(fd, OFlags::RDONLY)
    }

    /// For writing.
    ///
    /// # Errors
    /// Those of dup(2) and fstat(2).
    pub fn output(fd: BorrowedFd<'_>) -> io::Result<Channel> {
        Channel::open(fd, OFlags::WRONLY)
    }

    fn open(fd: BorrowedFd<'_>, direction: OFlags) -> io::Result<Channel> {
        let terminal = isatty(fd);
        let own = || fd.try_clone_to_owned();
        let (owned, mode): (OwnedFd, Mode) = match FileType::from_raw_mode(fstat(fd)?.st_mode) {
            FileType::RegularFile | FileType::BlockDevice => (own()?, Mode::Plain),
            FileType::Socket => (own()?, Mode::Socket),
            _ => {
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                let flags = direction | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                // The user's end of a pseudo-terminal would become another one: it has no name of a terminal's.
                let is_master = terminal && rustix::termios::ttyname(fd, Vec::new()).is_err();
                match open(path, flags, FileMode::empty()) {
                    Ok(owned) if !is_master => (owned, Mode::Own),
                    _ => (own()?, Mode::Polled),
                }
            }
        };
        Ok(Channel { file: File::from(owned), mode, terminal })
    }

    /// Whether a read or write would not stop this process: it may be in the background of its terminal.
    pub fn is_ours(&self) -> bool {
        !self.terminal || in_foreground(&self.file)
    }

    /// Whether it is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Reads without waiting (`WouldBlock`).
    ///
    /// # Errors
    /// Those of read(2).
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.mode {
            Mode::Own | Mode::Plain => self.file.read(buffer),
            Mode::Socket => Ok(recv(&self.file, buffer, RecvFlags::DONTWAIT)?.0),
            Mode::Polled => {
                self.ready(PollFlags::IN)?;
                self.file.read(buffer)
            }
        }
    }

    /// Writes without waiting (`WouldBlock`).
    ///
    /// # Errors
    /// Those of write(2).
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.mode {
            Mode::Own | Mode::Plain => self.file.write(bytes),
            Mode::Socket => Ok(send(&self.file, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?),
            Mode::Polled => {
                self.ready(PollFlags::OUT)?;
                self.file.write(&bytes[..bytes.len().min(SAFE_BYTES)])
            }
        }
    }

    fn ready(&self, direction: PollFlags) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.file, direction)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
            0 => Err(ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::fcntl_getfl;

    #[test]
    fn the_callers_description_keeps_its_flags() {
        let (reader, writer) = io::pipe().unwrap();
        let mut output = Channel::output(writer.as_fd()).unwrap();
        let mut input = Channel::input(reader.as_fd()).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(input.read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(output.write(b"abc").unwrap(), 3);
        assert_eq!(input.read(&mut buffer).unwrap(), 3);
        while output.write(&[0; 4096]).is_ok() {}
        assert_eq!(output.write(b"x").unwrap_err().kind(), ErrorKind::WouldBlock);
        for fd in [reader.as_fd(), writer.as_fd()] {
            assert!(!fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK));
        }
        drop((reader, input));
        assert_eq!(output.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}

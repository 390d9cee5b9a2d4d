//! The host's side of the console: stdin and stdout, without ever waiting for them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::device::log::LogLimit;
use crate::device::uart::{Received, Uart};
use crate::error::{Error, Result};
use crate::sys::{self, Ready};

/// Most bytes moved by one read or write. A pipe that polls writable takes this many without waiting.
const CHUNK_BYTES: usize = 4096;

/// Bytes and breaks that a guest asks for by one rise of OUT1. Less than any buffer on their way in the guest holds.
const WINDOW_ITEMS: usize = 2048;

/// Ctrl-D: what a terminal's user would type.
const END_OF_TRANSMISSION: u8 = 0x04;

/// How a descriptor is used without waiting.
enum Mode {
    /// A description of our own with O_NONBLOCK.
    Own,
    /// A regular file: never waits, has no notice.
    File,
    /// A socket: every call says that it must not wait.
    Socket,
    /// Cannot be opened again: asked by poll(2) before each call.
    Polled,
}

/// One end of the host's stdio.
struct Channel {
    file: File,
    mode: Mode,
    /// Cleared by "would block", set by the next signal.
    ready: bool,
    /// SIGIO is asked for. Only while there is something to wait for: the other side of a pipe would send one for
    /// each of its reads.
    notified: bool,
    is_terminal: bool,
}

impl Channel {
    fn open(fd: BorrowedFd<'_>, direction: Ready) -> Result<Channel> {
        let failed = |operation: &'static str| move |cause| Error::host("HOST_STDIO", operation, cause);
        let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(failed("dup of a standard stream"));
        let (owned, mode): (OwnedFd, Mode) = match sys::file_type(fd).map_err(failed("fstat of a standard stream"))? {
            libc::S_IFREG | libc::S_IFBLK => (own(fd)?, Mode::File),
            libc::S_IFSOCK => (own(fd)?, Mode::Socket),
            libc::S_IFCHR if sys::is_pty_master(fd) => (own(fd)?, Mode::Polled),
            _ => match sys::reopen_nonblocking(fd, direction == Ready::Write) {
                Ok(owned) => (owned, Mode::Own),
                Err(_) => (own(fd)?, Mode::Polled),
            },
        };
        let file = File::from(owned);
        let is_terminal = file.is_terminal();
        Ok(Channel { file, mode, ready: true, notified: false, is_terminal })
    }

    /// The last call would have waited: asks for a signal and stays ready for one more try, or is not ready any more.
    fn blocked(&mut self) -> Result<()> {
        if self.notified {
            self.ready = false;
        }
        self.notify(true)
    }

    /// Switches SIGIO on or off. A file that can make its user wait and gives no notice is refused.
    fn notify(&mut self, on: bool) -> Result<()> {
        if self.notified != on {
            let is_on = sys::notify_by_signal(self.file.as_fd(), on)
                .map_err(|cause| Error::host("HOST_STDIO", "F_SETFL of a standard stream", cause))?;
            if on && !is_on {
                let cause = io::Error::from(io::ErrorKind::Unsupported);
                return Err(Error::host("HOST_STDIO", "notice of a standard stream (O_ASYNC)", cause));
            }
            self.notified = on;
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // In the background a read would stop this process, and with its signals blocked nothing could end it then.
        // SIGCONT comes when it is in the foreground again.
        if self.is_terminal && !sys::in_foreground(self.file.as_fd()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match self.mode {
            Mode::Own | Mode::File => (&self.file).read(buffer),
            Mode::Socket => sys::receive(self.file.as_fd(), buffer),
            Mode::Polled => {
                self.poll(Ready::Read)?;
                (&self.file).read(buffer)
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.mode {
            Mode::Own | Mode::File => (&self.file).write(bytes),
            Mode::Socket => sys::send(self.file.as_fd(), bytes),
            Mode::Polled => {
                self.poll(Ready::Write)?;
                (&self.file).write(bytes)
            }
        }
    }

    fn poll(&self, direction: Ready) -> io::Result<()> {
        match sys::poll([(self.file.as_raw_fd(), direction)], 0)? {
            [true] => Ok(()),
            [false] => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Drop for Channel {
    /// A socket's description is the caller's too: it gets its flags back.
    fn drop(&mut self) {
        // This is the end, and whoever shares the description can live with a signal that is ignored.
        let _: Result<()> = self.notify(false);
    }
}

/// What became of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Everything that could be written was.
    Open,
    /// The reader is gone (EPIPE).
    Closed,
}

/// Where input comes from.
enum Input {
    /// stdin, when the guest first has room for it.
    Unopened,
    Open(Channel),
    /// At its end.
    Closed,
}

/// stdin and stdout of the monitor.
pub struct Console {
    input: Input,
    output: Channel,
    /// Read from the host, not yet on the line.
    pending: VecDeque<Received>,
    /// How much the guest may still be sent; `None`: as much as the UART takes, it is a terminal session. Each rise of
    /// OUT1 opens the window anew (docs/rootfs-contract.md).
    window: Option<usize>,
    /// For an output that is a file.
    limit: Option<LogLimit>,
}

impl Console {
    /// Takes the process' stdin and stdout. `terminal`: the line carries a terminal session, not plain bytes. Of a stdout that is a
    /// file the first and the last `log_mib` MiB are kept; without a number all.
    pub fn new(terminal: bool, log_mib: Option<u64>) -> Result<Console> {
        let input = Input::Unopened;
        let output = Channel::open(io::stdout().as_fd(), Ready::Write)?;
        let limit = log_mib.filter(|_| matches!(output.mode, Mode::File)).map(LogLimit::new);
        Ok(Console { input, output, pending: VecDeque::new(), window: (!terminal).then_some(0), limit })
    }

    /// A signal came: any descriptor may be ready again.
    pub fn woken(&mut self) {
        self.output.ready = true;
        if let Input::Open(input) = &mut self.input {
            input.ready = true;
        }
    }

    /// Moves input to the UART as far as the guest has room and the host has data.
    pub fn pump_input(&mut self, uart: &mut Uart) -> Result<()> {
        if uart.take_request() {
            self.window = self.window.map(|_| WINDOW_ITEMS);
        }
        while uart.receive_room() > 0 && self.window != Some(0) {
            if let Some(item) = self.pending.pop_front() {
                uart.receive(item);
                self.window = self.window.map(|left| left - 1);
            } else if !self.read_more()? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Moves the UART's output to the host as far as it takes it.
    pub fn pump_output(&mut self, uart: &mut Uart) -> Result<Output> {
        while self.output.ready && !uart.transmitted().is_empty() {
            let (bytes, _) = uart.transmitted().as_slices();
            match self.output.write(&bytes[..bytes.len().min(CHUNK_BYTES)]) {
                Ok(count) => {
                    uart.take_transmitted(count);
                    if let Some(limit) = &mut self.limit {
                        let cut = limit.wrote(&self.output.file, count);
                        cut.map_err(|cause| Error::host("HOST_STDOUT", "hole in stdout, for --log-limit", cause))?;
                    }
                    self.output.notify(false)?;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.output.blocked()?,
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::BrokenPipe => return Ok(Output::Closed),
                    _ => return Err(Error::host("HOST_STDOUT", "write to stdout", error)),
                },
            }
        }
        Ok(Output::Open)
    }

    /// The descriptor to wait on for room in the output.
    pub fn output_fd(&self) -> BorrowedFd<'_> {
        self.output.file.as_fd()
    }

    /// Reads once; `false` when there is nothing to read now or ever again.
    fn read_more(&mut self) -> Result<bool> {
        if let Input::Unopened = self.input {
            self.input = Input::Open(Channel::open(io::stdin().as_fd(), Ready::Read)?);
        }
        let input = match &mut self.input {
            Input::Open(input) if input.ready => input,
            _ => return Ok(false),
        };
        let mut buffer = [0; CHUNK_BYTES];
        match input.read(&mut buffer) {
            Ok(0) => self.end_input(),
            Ok(count) => self.pending.extend(buffer[..count].iter().map(|&byte| Received::Byte(byte))),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => input.blocked()?,
                io::ErrorKind::Interrupted => {}
                // The terminal hung up: no more input, and SIGHUP comes to those whom it concerns.
                _ if error.raw_os_error() == Some(libc::EIO) => self.end_input(),
                _ => return Err(Error::host("HOST_STDIN", "read of stdin", error)),
            },
        }
        Ok(true)
    }
    fn end_input(&mut self) {
        self.input = Input::Closed;
        match self.window {
            // Twice: a kernel with SysRq on the serial line takes the first for itself.
            Some(_) => self.pending.extend([Received::Break, Received::Break]),
            None => self.pending.push_back(Received::Byte(END_OF_TRANSMISSION)),
        }
    }
}

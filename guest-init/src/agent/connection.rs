//! A connection: a stream and the socket that carries it.

use guest_init::wire::copies::Copies;
use guest_init::wire::stream::Stream;
use libc::{POLLIN, POLLOUT};

use crate::sys::{Errno, Fd, vsock};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nobody knows yet: its first frame has not come.
    New,
    /// The job of this number.
    Job(usize),
    /// It gets what the main command prints.
    Attached,
    /// It is told when the machine ends.
    PowerOff,
    /// Only what is still to be sent.
    Done,
}

/// The state of a connection.
pub struct Connection {
    socket: Fd,
    pub stream: Stream,
    pub role: Role,
    /// Of one that is attached.
    pub copies: Copies,
    /// After the last frame the host closes it first: then it has read everything.
    pub lingers: bool,
    gone: bool,
    blocked: bool,
    shut: bool,
}

impl Connection {
    pub fn new(socket: Fd) -> Self {
        let stream = Stream::default();
        let copies = Copies::default();
        Self { socket, stream, role: Role::New, copies, lingers: false, gone: false, blocked: false, shut: false }
    }

    /// What to wait for: descriptor and events.
    pub fn wanted(&self) -> (i32, i16) {
        (self.socket.number(), POLLIN | if self.stream.pending().is_empty() { 0 } else { POLLOUT })
    }

    /// The socket can be written to again.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }

    /// The host has closed it, or it does not work any more.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Nothing more happens on it.
    pub fn is_finished(&self) -> bool {
        self.gone || (self.stream.is_over() && self.stream.pending().is_empty() && !self.lingers)
    }

    /// Reads once.
    pub fn read(&mut self, buffer: &mut [u8]) {
        match self.socket.read(buffer) {
            Ok(count @ 1..) => self.stream.add(&buffer[..count]),
            Err(Errno(libc::EAGAIN | libc::EINTR)) => {}
            Ok(0) | Err(_) => self.gone = true,
        }
    }

    /// Writes what there is, as far as the socket takes it.
    pub fn flush(&mut self) {
        if self.role == Role::Attached {
            self.copies.advance(&mut self.stream);
        }
        while !self.gone && !self.blocked && !self.stream.pending().is_empty() {
            match self.socket.write(self.stream.pending()) {
                Ok(count) => self.stream.sent(count),
                Err(Errno(libc::EINTR)) => {}
                Err(Errno(libc::EAGAIN)) => self.blocked = true,
                Err(_) => self.gone = true,
            }
        }
        if self.lingers && !self.shut && self.stream.is_over() && self.stream.pending().is_empty() {
            self.shut = true;
            vsock::end_writing(&self.socket);
        }
    }
}

//! The other end of the cable: a stream socket, used without ever waiting.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use crate::ram::Ram;
use crate::sys;
use crate::virtio::queue::Buffer;

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes went through; at least one.
    Bytes(u32),
    /// None can now.
    Blocked,
    /// None will any more.
    Down,
}

/// A connection to what carries the frames. Down for good when its peer goes or talks nonsense.
#[derive(Debug)]
pub struct Link {
    socket: Option<UnixStream>,
    /// Cleared by "would block", set by the next signal.
    readable: bool,
    writable: bool,
    /// SIGIO is asked for.
    notified: bool,
}

impl Link {
    /// A link over a connected socket.
    pub fn new(socket: UnixStream) -> Link {
        Link { socket: Some(socket), readable: true, writable: true, notified: false }
    }

    /// There is a peer.
    pub fn is_up(&self) -> bool {
        self.socket.is_some()
    }

    /// A signal came: the socket may be ready again.
    pub fn woken(&mut self) {
        (self.readable, self.writable) = (true, true);
    }

    /// Asks for a signal when something arrives, and when there is room again. Not before signals are blocked: this one
    /// would end the process.
    pub fn watch(&mut self) {
        if let Some(socket) = self.socket.as_ref().filter(|_| !self.notified) {
            self.notified = true;
            if !sys::notify_by_signal(socket.as_fd(), true).unwrap_or(false) {
                self.take_down();
            }
        }
    }

    /// The peer is gone, or cannot be understood any more.
    pub fn take_down(&mut self) {
        self.socket = None;
    }

    /// Receives into `pieces`, then into `after`.
    pub fn receive(&mut self, ram: &Ram, pieces: impl Iterator<Item = Buffer>, after: &mut [u8]) -> Moved {
        let Some(socket) = &self.socket else { return Moved::Down };
        if !self.readable {
            return Moved::Blocked;
        }
        let result = ram.receive_and(socket.as_fd(), pieces, after);
        self.readable = !would_block(&result);
        self.outcome(result)
    }

    /// Sends `before`, then `pieces`.
    pub fn send(&mut self, ram: &Ram, before: &[u8], pieces: impl Iterator<Item = Buffer>) -> Moved {
        let Some(socket) = &self.socket else { return Moved::Down };
        if !self.writable {
            return Moved::Blocked;
        }
        let result = ram.send_and(socket.as_fd(), before, pieces);
        self.writable = !would_block(&result);
        self.outcome(result)
    }

    fn outcome(&mut self, result: io::Result<u64>) -> Moved {
        match result {
            Ok(1..) => Moved::Bytes(result.map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Moved::Blocked,
            // Its end, a reset, or a broken pipe.
            Ok(0) | Err(_) => {
                self.take_down();
                Moved::Down
            }
        }
    }
}

fn would_block(result: &io::Result<u64>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

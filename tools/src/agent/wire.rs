//! Frames over a stream to the agent, without waiting unless asked to.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use machinen_abi::body::{Credit, Stream};
use machinen_abi::frame::{HEADER_BYTES, Header, Kind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Error, Result};

/// Read at once, when there is so much.
const CHUNK_BYTES: usize = 128 << 10;

/// A frame: its kind and payload.
pub type Frame = (Kind, Vec<u8>);

/// One stream to the agent.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    /// What has come; frames are taken from `taken` on.
    came: Vec<u8>,
    taken: usize,
    /// What is to be sent.
    leaving: VecDeque<u8>,
    /// The agent sends nothing more.
    ended: bool,
}

impl Wire {
    /// Frames over `stream`.
    ///
    /// # Errors
    /// `EXEC_VSOCK_UNAVAILABLE` when the system refuses to make it non-blocking.
    pub fn new(stream: UnixStream) -> Result<Wire> {
        stream.set_nonblocking(true).map_err(lost)?;
        Ok(Wire { stream, came: Vec::new(), taken: 0, leaving: VecDeque::new(), ended: false })
    }

    /// To be sent when there is room.
    pub fn send(&mut self, kind: Kind, payload: &[u8]) {
        // A payload that is too long is a defect of ours; the peer would refuse the frame just the same.
        if let Some(header) = Header::new(kind, payload.len()) {
            self.leaving.extend(header.to_bytes());
            self.leaving.extend(payload);
        }
    }

    /// The receiver of `stream` has room for so many bytes more.
    pub fn credit(&mut self, stream: Stream, bytes: u32) {
        self.send(Kind::Credit, &Credit { stream, bytes }.to_bytes());
    }

    /// Bytes that wait to be sent.
    pub fn waiting_bytes(&self) -> usize {
        self.leaving.len()
    }

    /// Whether the agent has ended the stream, and all frames were taken.
    pub fn is_over(&self) -> bool {
        self.ended
    }

    /// Sends what can be sent without waiting. What the agent no longer takes is forgotten: it may have said why.
    pub fn flush(&mut self) {
        while !self.leaving.is_empty() {
            let (first, _) = self.leaving.as_slices();
            match (&self.stream).write(first) {
                Ok(count) => drop(self.leaving.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.leaving.clear(),
            }
        }
    }

    /// Reads what has come, without waiting.
    pub fn fill(&mut self) {
        if self.taken > 0 {
            self.came.drain(..self.taken);
            self.taken = 0;
        }
        let had = self.came.len();
        self.came.resize(had + CHUNK_BYTES, 0);
        let count = loop {
            match (&self.stream).read(&mut self.came[had..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.came.truncate(had + *count.as_ref().unwrap_or(&0));
        self.ended |= match count {
            Ok(count) => count == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
    }

    /// Takes the next frame that is whole.
    ///
    /// # Errors
    /// `EXEC_PROTOCOL` for what is no frame.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        let rest = &self.came[self.taken..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = Header::from_bytes(*header).map_err(|why| protocol(&why.to_string()))?;
        if (header.kind as u16) < Kind::Ready as u16 {
            return Err(protocol("a frame that only hosts send"));
        }
        let length = header.length as usize;
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = (header.kind, payload.to_vec());
        self.taken += HEADER_BYTES + length;
        Ok(Some(frame))
    }

    /// Waits for the next frame, sending what is to be sent. `None`: the stream has ended, or `limit` has come.
    ///
    /// # Errors
    /// `EXEC_PROTOCOL` for what is no frame, `EXEC_VSOCK_UNAVAILABLE` when the system cannot wait.
    pub fn receive(&mut self, limit: Option<Instant>) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(Some(frame));
            }
            if self.ended {
                return Ok(None);
            }
            self.flush();
            let left = limit.map(|limit| limit.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::from_borrowed_fd(self.stream.as_fd(), self.wanted())], left.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => self.fill(),
                Err(error) => return Err(lost(error.into())),
            }
        }
    }

    /// What to wait for.
    pub fn wanted(&self) -> PollFlags {
        if self.leaving.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The agent cannot be reached.
pub fn lost(cause: io::Error) -> Error {
    Error::host("EXEC_VSOCK_UNAVAILABLE", "the machine's agent cannot be reached", cause)
}

/// The agent broke the protocol.
pub fn protocol(why: &str) -> Error {
    Error::new("EXEC_PROTOCOL", format!("the machine's agent broke the protocol: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Wire, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Wire::new(ours).unwrap(), theirs)
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let (mut wire, mut theirs) = pair();
        let mut bytes = Header::new(Kind::Output, 3).unwrap().to_bytes().to_vec();
        bytes.extend(b"abc");
        for byte in &bytes[..10] {
            theirs.write_all(&[*byte]).unwrap();
            wire.fill();
            assert_eq!(wire.next_frame().unwrap(), None);
        }
        theirs.write_all(&bytes[10..]).unwrap();
        theirs.write_all(&bytes).unwrap();
        for _ in 0..2 {
            assert_eq!(wire.receive(None).unwrap(), Some((Kind::Output, b"abc".to_vec())));
        }
        drop(theirs);
        assert_eq!(wire.receive(None).unwrap(), None);
        assert!(wire.is_over());
    }

    #[test]
    fn garbage_is_an_error_and_silence_has_a_limit() {
        let (mut wire, mut theirs) = pair();
        assert_eq!(wire.receive(Some(Instant::now())).unwrap(), None);
        assert!(!wire.is_over());
        theirs.write_all(&[0xff; 8]).unwrap();
        assert_eq!(wire.receive(None).unwrap_err().code(), "EXEC_PROTOCOL");
        // Before its payload is there, which may be large.
        let (mut wire, mut theirs) = pair();
        theirs.write_all(&Header::new(Kind::Open, 8 << 20).unwrap().to_bytes()).unwrap();
        assert_eq!(wire.receive(None).unwrap_err().code(), "EXEC_PROTOCOL");
    }

    #[test]
    fn what_is_sent_arrives_and_a_peer_that_is_gone_is_no_failure() {
        let (mut wire, mut theirs) = pair();
        wire.credit(Stream::Error, 7);
        wire.flush();
        let mut bytes = [0; 16];
        theirs.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [32, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0]);
        drop(theirs);
        wire.send(Kind::InputEnd, &[]);
        wire.flush();
        assert_eq!(wire.waiting_bytes(), 0);
    }
}

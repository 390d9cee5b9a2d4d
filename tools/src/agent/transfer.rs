//! Files as the input or output of an operation of the agent's, in the windows of the protocol.

use std::io::{self, Read, Write};
use std::time::Instant;

use machinen_abi::body::{Credit, Exit, Stream};
use machinen_abi::frame::{Kind, MOST_PAYLOAD_BYTES};
use machinen_abi::window::{Allowance, Receipt, WINDOW_BYTES};

use super::wire::{Frame, Wire, protocol};
use super::{Refusal, wire};
use crate::error::{Error, Result};

/// An operation under way: what is written to it is its input, what is read from it its output.
///
/// A failure of the operation is an [`io::Error`] here, and [`Transfer::finish`] tells which it was.
#[derive(Debug)]
pub struct Transfer {
    wire: Wire,
    allowance: Allowance,
    receipt: Receipt,
    started: bool,
    /// It is not waited for longer.
    limit: Option<Instant>,
    /// Output that nobody has read yet.
    output: Vec<u8>,
    read: usize,
    output_ended: bool,
    /// What the agent said at the end.
    error: Vec<u8>,
    end: Option<Result<Exit>>,
}

impl Transfer {
    /// An operation that `first` answers.
    pub fn new(wire: Wire, first: Frame) -> Transfer {
        let mut transfer = Transfer {
            wire,
            allowance: Allowance::default(),
            receipt: Receipt::default(),
            started: false,
            limit: None,
            output: Vec::new(),
            read: 0,
            output_ended: false,
            error: Vec::new(),
            end: None,
        };
        transfer.apply(first);
        transfer
    }

    /// Ends at this time.
    pub fn limit(mut self, limit: Option<Instant>) -> Transfer {
        self.limit = limit;
        self
    }

    fn apply(&mut self, (kind, payload): Frame) {
        let malformed = || Err(protocol("a payload that makes no sense"));
        match kind {
            Kind::Started if !std::mem::replace(&mut self.started, true) => {}
            Kind::ErrorEnd => {}
            Kind::Credit => match Credit::parse(&payload) {
                Some(Credit { stream: Stream::Input, bytes }) if self.allowance.grant(bytes) => {}
                _ => self.end = Some(malformed()),
            },
            Kind::Output if self.receipt.take(payload.len()) => {
                if self.read == self.output.len() {
                    self.output = payload;
                    self.read = 0;
                } else {
                    self.output.extend_from_slice(&payload);
                }
            }
            Kind::OutputEnd => self.output_ended = true,
            // A line for the user; bounded, as nothing is given back for it.
            Kind::Error if self.error.len() + payload.len() <= MOST_PAYLOAD_BYTES => {
                self.error.extend_from_slice(&payload);
            }
            Kind::Exit => self.end = Some(Exit::parse(&payload).map_or_else(malformed, Ok)),
            Kind::Failed => {
                self.end = Some(Err(Refusal::parse(&payload).map_or_else(|error| error, |refusal| refusal.error())));
            }
            _ => self.end = Some(Err(protocol("a frame that has no place here"))),
        }
    }

    /// Waits for a frame.
    fn step(&mut self) {
        match self.wire.receive(self.limit) {
            Ok(Some(frame)) => self.apply(frame),
            Ok(None) if !self.wire.is_over() => self.end = Some(Err(wire::lost(io::ErrorKind::TimedOut.into()))),
            Ok(None) => self.end = Some(Err(wire::lost(io::ErrorKind::UnexpectedEof.into()))),
            Err(error) => self.end = Some(Err(error)),
        }
    }

    /// Ends the input and waits for the operation's end. What output is left is thrown away, a window at most.
    ///
    /// # Errors
    /// What the agent says (`EXEC_…`, `COPY_ESCAPE`), or that it is gone; `EXEC_PROTOCOL` when it does not come to its end.
    pub fn finish(mut self) -> Result<()> {
        self.wire.send(Kind::InputEnd, &[]);
        let mut thrown_away = 0;
        while self.end.is_none() {
            self.step();
            let count = self.output.len() - self.read;
            self.consume(count);
            thrown_away += count;
            if thrown_away > WINDOW_BYTES as usize {
                return Err(protocol("more output than there was to be"));
            }
        }
        match self.end {
            Some(Ok(Exit::Code(0))) => Ok(()),
            Some(Ok(exit)) => {
                let said = String::from_utf8_lossy(&self.error).trim().replace(char::is_control, " ");
                Err(Error::new("EXEC_SYSTEM", format!("the agent ended with {}: {said}", exit.status())))
            }
            Some(Err(error)) => Err(error),
            None => Err(protocol("no end")),
        }
    }

    fn consume(&mut self, count: usize) {
        self.read += count;
        if let Some(credit) = self.receipt.consume(count) {
            self.wire.credit(Stream::Output, credit);
            self.wire.flush();
        }
    }
}

/// For the reader or writer of an archive; the true reason is told by [`Transfer::finish`].
fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the operation in the guest has ended")
}

impl Write for Transfer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            if self.end.is_some() {
                return Err(ended());
            }
            let count = self.allowance.left().min(bytes.len()).min(MOST_PAYLOAD_BYTES);
            if count == 0 && !bytes.is_empty() {
                self.step();
            } else if self.allowance.spend(count) {
                self.wire.send(Kind::Input, &bytes[..count]);
                self.wire.flush();
                return Ok(count);
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Transfer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let rest = &self.output[self.read..];
            if !rest.is_empty() {
                let count = rest.len().min(buffer.len());
                buffer[..count].copy_from_slice(&rest[..count]);
                self.consume(count);
                return Ok(count);
            }
            match &self.end {
                _ if self.output_ended => return Ok(0),
                Some(Ok(_)) => return Ok(0),
                Some(Err(_)) => return Err(ended()),
                None => self.step(),
            }
        }
    }
}

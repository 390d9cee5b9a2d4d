//! One stream of a command's output, on its way to who reads it.

use std::io::ErrorKind;

use machinen_abi::body::Stream;
use machinen_abi::frame::MOST_PAYLOAD_BYTES;
use machinen_abi::window::Receipt;

use super::channel::Channel;

/// No answer of the agent's is longer.
pub const LAST_BYTES: usize = 256 << 10;

/// Where a stream of output goes.
#[derive(Debug)]
pub enum Out {
    /// To a stream of this process.
    To(Channel),
    /// It is kept.
    Keep(Vec<u8>),
    /// Its end is kept, at least [`LAST_BYTES`] of it: whoever talks without end takes no more.
    Last(Vec<u8>),
    /// Nowhere.
    Nowhere,
}

impl Out {
    /// Whether an error of a write says that the reader has gone.
    pub(super) fn is_gone(&self, error: &std::io::Error) -> bool {
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => true,
            // What a terminal says that has been hung up; of a file it is a failure.
            _ => {
                error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
                    && matches!(self, Out::To(channel) if channel.is_terminal())
            }
        }
    }
}

/// One stream of output.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) stream: Stream,
    pub(super) out: Out,
    pub(super) receipt: Receipt,
    pub(super) pending: Vec<u8>,
    pub(super) written: usize,
    /// Nothing more comes.
    pub(super) ended: bool,
}

impl Output {
    pub(super) fn new(stream: Stream, out: Out) -> Output {
        Output { stream, out, receipt: Receipt::default(), pending: Vec::new(), written: 0, ended: false }
    }

    /// Closes it when all has been handed on: its reader sees the end when the command's would.
    pub(super) fn close(&mut self) {
        if self.ended && !self.is_waiting() && matches!(self.out, Out::To(_)) {
            self.out = Out::Nowhere;
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.written < self.pending.len()
    }

    /// Hands on what can be handed on now; the number of bytes. An error is of the reader.
    pub(super) fn pump(&mut self) -> std::io::Result<usize> {
        let mut done = 0;
        while self.is_waiting() {
            let rest = &self.pending[self.written..];
            let count = match &mut self.out {
                Out::Nowhere => rest.len(),
                Out::Keep(kept) => {
                    kept.extend_from_slice(rest);
                    rest.len()
                }
                Out::Last(kept) => {
                    kept.extend_from_slice(rest);
                    if kept.len() > 2 * LAST_BYTES {
                        kept.drain(..kept.len() - LAST_BYTES);
                    }
                    rest.len()
                }
                Out::To(channel) => match channel.write(rest) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    written => written?,
                },
            };
            self.written += count;
            done += count;
        }
        if !self.is_waiting() {
            self.pending.clear();
            self.written = 0;
            self.close();
        } else if self.written > MOST_PAYLOAD_BYTES {
            // A reader that is never quite done must not make this grow.
            self.pending.drain(..self.written);
            self.written = 0;
        }
        Ok(done)
    }
}

//! From the driver to the peer: each frame goes to the socket straight from the driver's buffers, after its length.
//!
//! A frame that the socket takes only in part stays the next request of the ring and is gone on with when there is room.
//! The peer gets as many bytes as it was told, whatever the driver does meanwhile.

use super::link::{Link, Moved};
use super::{HEADER, HEADER_BYTES, LEAST_FRAME_BYTES, MOST_FRAME_BYTES, checksum};
use crate::ram::Ram;
use crate::virtio::Fault;
use crate::virtio::queue::{Chain, Queue};

const PREFIX: u32 = 4;
const PREFIX_BYTES: usize = PREFIX as usize;
/// Most bytes from a frame's start to the end of its checksum; headers of TCP over IPv6 are 74.
const MOST_HEAD_BYTES: usize = 252;
/// Sent in place of what the driver took back.
const ZEROS: [u8; 4096] = [0; 4096];

const NEEDS_CSUM: u8 = 1;

/// The sending half.
#[derive(Debug)]
pub struct Transmit {
    chain: Chain,
    /// The frame that is the next request of the ring, when part of it is sent.
    under_way: Option<Frame>,
    /// Zeros that the peer gets before the next frame.
    owed: u32,
}

/// A frame as it goes over the socket: `head` (length, and the frame's start where a checksum was filled in), then the rest of
/// the request.
#[derive(Clone, Copy, Debug)]
struct Frame {
    request: u16,
    request_bytes: u64,
    head: [u8; PREFIX_BYTES + MOST_HEAD_BYTES],
    head_bytes: usize,
    bytes: u32,
    sent: u32,
}

impl Frame {
    /// Where the part that is not in the head starts in the request.
    fn rest(&self) -> u64 {
        HEADER_BYTES + (self.head_bytes - PREFIX_BYTES) as u64
    }

    /// All that goes over the socket.
    fn total(&self) -> u32 {
        self.bytes + PREFIX
    }
}

impl Default for Transmit {
    fn default() -> Transmit {
        Transmit { chain: Chain::new(), under_way: None, owed: 0 }
    }
}

impl Transmit {
    /// Sends all frames that the socket has room for; drops them when nobody is there.
    pub fn serve(&mut self, link: &mut Link, queue: &mut Queue, ram: &Ram) -> Result<(), Fault> {
        loop {
            while self.owed > 0 {
                match link.send(ram, &ZEROS[..ZEROS.len().min(self.owed as usize)], std::iter::empty()) {
                    Moved::Bytes(count) => self.owed -= count,
                    Moved::Blocked => return Ok(()),
                    Moved::Down => self.owed = 0,
                }
            }
            if !queue.pop(ram, &mut self.chain)? {
                if queue.ask(ram)? {
                    continue;
                }
                return Ok(());
            }
            let frame = match self.under_way.take() {
                Some(frame) if (frame.request, frame.request_bytes) != self.identity() => {
                    self.owe(&frame);
                    return Err(Fault("a frame changes while it is sent"));
                }
                Some(frame) => Some(frame),
                None => self.prepare(ram),
            };
            if let Some(frame) = frame
                && self.send(link, ram, frame) == Moved::Blocked
            {
                queue.unpop();
                return Ok(());
            }
            queue.push(ram, &self.chain, 0)?;
        }
    }

    /// The driver is gone; what the peer was promised is still due.
    pub fn reset(&mut self) {
        if let Some(frame) = self.under_way.take() {
            self.owe(&frame);
        }
    }

    fn owe(&mut self, frame: &Frame) {
        // Of the length itself nothing may be wrong: it is in the head, and goes first.
        self.owed = frame.total() - frame.sent;
    }

    fn identity(&self) -> (u16, u64) {
        (self.chain.head(), self.chain.readable().bytes())
    }

    /// Makes a frame of the request. `None`: it is none that could be sent.
    fn prepare(&self, ram: &Ram) -> Option<Frame> {
        let request = self.chain.readable();
        let (head, request_bytes) = self.identity();
        let bytes = u32::try_from(request_bytes.checked_sub(HEADER_BYTES)?).ok()?;
        let mut header = [0; HEADER];
        if !(LEAST_FRAME_BYTES..=MOST_FRAME_BYTES).contains(&bytes) || !request.read(ram, 0, &mut header) {
            return None;
        }
        let [flags, gso_type, _, _, _, _, start, start_high, offset, offset_high, ..] = header;
        if gso_type != 0 {
            // Segmentation was not offered.
            return None;
        }
        let mut frame = Frame {
            request: head,
            request_bytes,
            head: [0; PREFIX_BYTES + MOST_HEAD_BYTES],
            head_bytes: PREFIX_BYTES,
            bytes,
            sent: 0,
        };
        frame.head[..PREFIX_BYTES].copy_from_slice(&bytes.to_be_bytes());
        if flags & NEEDS_CSUM != 0 {
            let start = u16::from_le_bytes([start, start_high]);
            let field = usize::from(start) + usize::from(u16::from_le_bytes([offset, offset_high]));
            let end = field + 2;
            if end > MOST_HEAD_BYTES {
                return None;
            }
            frame.head_bytes += end;
            let copy = &mut frame.head[PREFIX_BYTES..][..end];
            // Fails where the frame ends before the field.
            if !request.read(ram, HEADER_BYTES, copy) {
                return None;
            }
            let checksum = checksum::complete(request, ram, HEADER_BYTES + u64::from(start))?;
            copy[field..].copy_from_slice(&checksum);
        }
        Some(frame)
    }

    /// Sends the rest of `frame`. What the socket does not take is under way.
    fn send(&mut self, link: &mut Link, ram: &Ram, mut frame: Frame) -> Moved {
        while frame.sent < frame.total() {
            let sent = frame.sent as usize;
            let head = &frame.head[sent.min(frame.head_bytes)..frame.head_bytes];
            let done = sent.saturating_sub(frame.head_bytes) as u64;
            let rest = self.chain.readable().range(frame.rest() + done, u64::MAX);
            match link.send(ram, head, rest) {
                Moved::Bytes(count) => frame.sent += count,
                Moved::Blocked => {
                    self.under_way = Some(frame).filter(|frame| frame.sent > 0);
                    return Moved::Blocked;
                }
                Moved::Down => return Moved::Down,
            }
        }
        Moved::Bytes(frame.total())
    }
}

//! From the peer to the driver: each frame goes from the socket straight into the driver's buffers.
//!
//! One call reads a frame and the length of the next one, so nothing is read that has no place yet. A frame in pieces is
//! gone on with when more arrives; the buffers go back to the ring meanwhile, so that between two calls the only state is
//! two numbers.

use super::link::{Link, Moved};
use super::{HEADER, HEADER_BYTES, LEAST_FRAME_BYTES, MOST_FRAME_BYTES};
use crate::ram::Ram;
use crate::sys;
use crate::virtio::Fault;
use crate::virtio::queue::{Buffer, Buffers, Chain, Queue};

const PREFIX_BYTES: usize = 4;
/// Thrown away at a time.
const SCRATCH_BYTES: usize = 16 << 10;
/// Most frames and parts that are thrown away before other work gets its turn: a peer may send them without end.
const MOST_DROPS: u32 = 256;
/// Where the number of buffers stands in the header (virtio 1.2, 5.1.6).
const NUM_BUFFERS: usize = 10;

/// The receiving half.
#[derive(Debug, Default)]
pub struct Receive {
    /// Length of the frame under way, as far as it has arrived.
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// Bytes of the frame that are in the driver's buffers.
    done: u32,
    /// Bytes that are to be thrown away before the next length.
    skip: u32,
    /// What the driver's buffers are, in a row.
    room: Room,
}

impl Receive {
    /// Moves all frames for which there are buffers.
    pub fn serve(&mut self, link: &mut Link, queue: &mut Queue, ram: &Ram, mergeable: bool) -> Result<(), Fault> {
        let mut drops = 0;
        while link.is_up() {
            let moved = if self.skip > 0 {
                drops += 1;
                self.throw_away(link, ram)
            } else if self.prefix_bytes < PREFIX_BYTES {
                self.read_prefix(link, ram)
            } else {
                let bytes = u32::from_be_bytes(self.prefix);
                if bytes > MOST_FRAME_BYTES {
                    // Where the next frame starts is not known any more.
                    link.take_down();
                    return Ok(());
                }
                let wanted = HEADER_BYTES + u64::from(bytes);
                let fits = match bytes {
                    LEAST_FRAME_BYTES.. => self.room.make(queue, ram, wanted, mergeable)?,
                    _ => Fits::Never,
                };
                match fits {
                    Fits::Yes => self.frame(link, queue, ram, bytes)?,
                    Fits::NotYet => Moved::Blocked,
                    Fits::Never => {
                        drops += 1;
                        self.drop_frame();
                        Moved::Bytes(0)
                    }
                }
            };
            if drops > MOST_DROPS {
                sys::wake_self();
                return Ok(());
            }
            if !matches!(moved, Moved::Bytes(_)) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The driver is gone: the frame under way is nobody's.
    pub fn reset(&mut self) {
        if self.done > 0 {
            self.drop_frame();
        }
    }

    fn drop_frame(&mut self) {
        self.skip = u32::from_be_bytes(self.prefix) - self.done;
        (self.done, self.prefix_bytes) = (0, 0);
    }

    fn throw_away(&mut self, link: &mut Link, ram: &Ram) -> Moved {
        let mut scratch = [0; SCRATCH_BYTES];
        let bytes = usize::try_from(self.skip).map_or(SCRATCH_BYTES, |skip| skip.min(SCRATCH_BYTES));
        let moved = link.receive(ram, std::iter::empty(), &mut scratch[..bytes]);
        if let Moved::Bytes(count) = moved {
            self.skip -= count;
        }
        moved
    }

    fn read_prefix(&mut self, link: &mut Link, ram: &Ram) -> Moved {
        let moved = link.receive(ram, std::iter::empty(), &mut self.prefix[self.prefix_bytes..]);
        if let Moved::Bytes(count) = moved {
            self.prefix_bytes += count as usize;
        }
        moved
    }

    /// Reads the rest of the frame of `bytes` bytes into the room made for it, and the next length.
    fn frame(&mut self, link: &mut Link, queue: &mut Queue, ram: &Ram, bytes: u32) -> Result<Moved, Fault> {
        let mut next = [0; PREFIX_BYTES];
        while self.done < bytes {
            let left = bytes - self.done;
            let pieces = self.room.buffers().range(HEADER_BYTES + u64::from(self.done), left.into());
            match link.receive(ram, pieces, &mut next) {
                Moved::Bytes(count) => {
                    self.done += count.min(left);
                    self.prefix_bytes = count.saturating_sub(left) as usize;
                }
                stopped => {
                    self.prefix_bytes = PREFIX_BYTES;
                    self.room.give_back(queue);
                    return Ok(stopped);
                }
            }
        }
        (self.prefix, self.done) = (next, 0);
        self.room.push(queue, ram, HEADER_BYTES + u64::from(bytes))?;
        Ok(Moved::Bytes(bytes))
    }
}

/// Whether a frame fits into what the driver offers.
enum Fits {
    Yes,
    /// When the driver adds buffers, of which it will tell.
    NotYet,
    /// The driver can add nothing, or all has to be in one request and that is too small.
    Never,
}

/// Requests taken from the ring for one frame.
#[derive(Debug, Default)]
struct Room {
    /// Of each: its number, and how many of the bytes are its.
    requests: Vec<(u16, u64)>,
    buffers: Vec<Buffer>,
    bytes: u64,
    chain: Chain,
}

impl Room {
    fn buffers(&self) -> Buffers<'_> {
        Buffers::new(&self.buffers)
    }

    /// Takes requests until they have room for `wanted` bytes; only one without `mergeable`. Anything but `Yes` gives them
    /// back.
    fn make(&mut self, queue: &mut Queue, ram: &Ram, wanted: u64, mergeable: bool) -> Result<Fits, Fault> {
        self.requests.clear();
        self.buffers.clear();
        self.bytes = 0;
        while self.bytes < wanted {
            let all = if mergeable { queue.size().into() } else { 1 };
            if self.requests.len() == all {
                self.give_back(queue);
                return Ok(Fits::Never);
            }
            if !queue.pop(ram, &mut self.chain)? {
                if queue.ask(ram)? {
                    continue;
                }
                self.give_back(queue);
                return Ok(Fits::NotYet);
            }
            let bytes = self.chain.writable().bytes();
            self.requests.push((self.chain.head(), bytes));
            self.buffers.extend(self.chain.writable().iter());
            self.bytes += bytes;
        }
        Ok(Fits::Yes)
    }

    fn give_back(&mut self, queue: &mut Queue) {
        self.requests.drain(..).for_each(|_| queue.unpop());
    }

    /// Writes the header before the frame and hands all over, `bytes` bytes with the header.
    fn push(&mut self, queue: &mut Queue, ram: &Ram, bytes: u64) -> Result<(), Fault> {
        let mut header = [0; HEADER];
        let count = u16::try_from(self.requests.len()).unwrap_or(u16::MAX);
        header[NUM_BUFFERS..].copy_from_slice(&count.to_le_bytes());
        if !self.buffers().write(ram, 0, &header) {
            return Err(Fault("network buffers change"));
        }
        let mut left = bytes;
        for (head, room) in self.requests.drain(..) {
            let written = left.min(room);
            left -= written;
            queue.push_head(ram, head, u32::try_from(written).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }
}

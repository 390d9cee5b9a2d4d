//! A split virtqueue: chains of descriptors in, used elements out, every value of the guest's checked once.
//!
//! The ring itself is virtio-queue's. It ends a chain silently where the guest's descriptors make no sense; here that is
//! a [`Fault`], because a device that went on would guess. Source: virtio 1.2, 2.7.

use virtio_queue::{QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address, GuestAddress};

use super::Fault;
use crate::ram::Ram;

/// Most descriptors of one chain, and the largest queue that any device has.
pub const MOST_BUFFERS: usize = 256;

/// A part of guest RAM that the driver handed over. All of it is RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where it starts.
    pub at: GuestAddress,
    /// Its length; may be 0.
    pub bytes: u32,
}

/// One request of the driver's: what the device reads, then what it writes.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    buffers: Vec<Buffer>,
    /// How many of them the device reads; it writes to the rest.
    readable: usize,
}

impl Chain {
    /// A chain to be filled by [`Queue::pop`].
    pub fn new() -> Chain {
        Chain { head: 0, buffers: Vec::with_capacity(MOST_BUFFERS), readable: 0 }
    }

    /// Its number in the ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device reads.
    pub fn readable(&self) -> Buffers<'_> {
        Buffers(&self.buffers[..self.readable])
    }

    /// What the device writes.
    pub fn writable(&self) -> Buffers<'_> {
        Buffers(&self.buffers[self.readable..])
    }
}

/// Buffers in a row, used as if they were one: the driver may cut a request wherever it likes (2.7.4.2).
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a>(&'a [Buffer]);

impl<'a> Buffers<'a> {
    /// Buffers that no chain holds.
    pub fn new(buffers: &'a [Buffer]) -> Buffers<'a> {
        Buffers(buffers)
    }

    /// Length of all.
    pub fn bytes(self) -> u64 {
        self.0.iter().map(|buffer| u64::from(buffer.bytes)).sum()
    }

    /// One by one.
    pub fn iter(self) -> impl Iterator<Item = Buffer> + 'a {
        self.0.iter().copied()
    }

    /// The pieces that cover `bytes` bytes from `offset`, or what there is of them.
    pub fn range(self, offset: u64, bytes: u64) -> impl Iterator<Item = Buffer> + 'a {
        let (mut skip, mut left) = (offset, bytes);
        self.iter().filter_map(move |buffer| {
            let length = u64::from(buffer.bytes);
            let from = skip.min(length);
            skip -= from;
            let taken = (length - from).min(left);
            left -= taken;
            let bytes = u32::try_from(taken).unwrap_or(u32::MAX);
            (taken > 0).then(|| Buffer { at: buffer.at.unchecked_add(from), bytes })
        })
    }

    /// Fills `target` from `offset` on. `false`: the buffers end before.
    #[must_use]
    pub fn read(self, ram: &Ram, offset: u64, target: &mut [u8]) -> bool {
        let mut rest = target;
        for piece in self.range(offset, rest.len() as u64) {
            let (now, later) = rest.split_at_mut(piece.bytes as usize);
            if !ram.read(piece.at, now) {
                return false;
            }
            rest = later;
        }
        rest.is_empty()
    }

    /// Writes `source` from `offset` on. `false`: the buffers end before.
    #[must_use]
    pub fn write(self, ram: &Ram, offset: u64, source: &[u8]) -> bool {
        let mut rest = source;
        for piece in self.range(offset, rest.len() as u64) {
            let (now, later) = rest.split_at(piece.bytes as usize);
            if !ram.write(piece.at, now) {
                return false;
            }
            rest = later;
        }
        rest.is_empty()
    }
}

/// A queue, live or not yet.
#[derive(Debug)]
pub struct Queue {
    ring: virtio_queue::Queue,
    /// The device has used buffers that the driver may want to hear of.
    used: bool,
}

impl Queue {
    /// A queue that the driver has not set up.
    ///
    /// `most` is a power of two, at most [`MOST_BUFFERS`].
    pub fn new(most: u16) -> Queue {
        assert!(usize::from(most) <= MOST_BUFFERS, "a larger queue than any device has");
        Queue { ring: virtio_queue::Queue::new(most).expect("a power of two"), used: false }
    }

    /// Requests that the driver's ring has room for.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The state as plain data; between two calls of a device nothing else is left.
    pub fn save(&self) -> QueueState {
        self.ring.state()
    }

    /// Takes a state back, of ours or from the driver's set-up. Its rings are in RAM when it is ready.
    ///
    /// Errors: sizes, alignments or places that the specification forbids.
    pub fn load(&mut self, ram: &Ram, state: QueueState) -> Result<(), Fault> {
        if state.max_size != self.ring.max_size() {
            return Err(Fault("queue of another size"));
        }
        let ring = virtio_queue::Queue::try_from(state).map_err(|_| Fault("queue size or alignment"))?;
        if state.ready && (!ring.is_valid(ram.memory()) || state.avail_ring == 0) {
            return Err(Fault("queue outside RAM"));
        }
        self.ring = ring;
        self.used = false;
        Ok(())
    }

    /// Takes the next request into `chain`. `false`: there is none.
    ///
    /// Errors: everything that a driver must not do; see the tests.
    pub fn pop(&mut self, ram: &Ram, chain: &mut Chain) -> Result<bool, Fault> {
        if !self.ring.ready() {
            return Ok(false);
        }
        let mut heads = self.ring.iter(ram.memory()).map_err(|_| Fault("available index jumps"))?;
        let Some(descriptors) = heads.next() else { return Ok(false) };
        chain.head = descriptors.head_index();
        chain.buffers.clear();
        chain.readable = 0;
        let mut goes_on = true;
        for descriptor in descriptors {
            if chain.buffers.len() == MOST_BUFFERS {
                return Err(Fault("chain longer than the queue"));
            }
            let buffer = Buffer { at: descriptor.addr(), bytes: descriptor.len() };
            if !ram.contains(buffer.at, buffer.bytes.into()) {
                return Err(Fault("buffer outside RAM"));
            }
            match (descriptor.is_write_only(), chain.readable == chain.buffers.len()) {
                (true, _) => {}
                (false, true) => chain.readable += 1,
                (false, false) => return Err(Fault("readable buffer after a writable one")),
            }
            chain.buffers.push(buffer);
            goes_on = descriptor.has_next();
        }
        // A loop, a link out of the table, a table in no RAM or in a table, or more than 4 GiB.
        if goes_on { Err(Fault("chain without end")) } else { Ok(true) }
    }

    /// Gives the request that [`Queue::pop`] took back to the ring, to be taken again.
    pub fn unpop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Hands `chain` back to the driver; the device has written its first `written` writable bytes.
    pub fn push(&mut self, ram: &Ram, chain: &Chain, written: u32) -> Result<(), Fault> {
        self.push_head(ram, chain.head, written)
    }

    /// The same by [`Chain::head`], for a device that takes several requests before it is done with the first.
    pub fn push_head(&mut self, ram: &Ram, head: u16, written: u32) -> Result<(), Fault> {
        self.used = true;
        self.ring.add_used(ram.memory(), head, written).map_err(|_| Fault("descriptor outside its table"))
    }

    /// Asks the driver to notify the device of the next request. `true`: there is one already.
    pub fn ask(&mut self, ram: &Ram) -> Result<bool, Fault> {
        if !self.ring.ready() {
            return Ok(false);
        }
        self.ring.enable_notification(ram.memory()).map_err(|_| Fault("queue outside RAM"))
    }

    /// Tells the driver, where it can be told, that notifications would be for nothing.
    pub fn hush(&mut self, ram: &Ram) -> Result<(), Fault> {
        if !self.ring.ready() {
            return Ok(());
        }
        self.ring.disable_notification(ram.memory()).map_err(|_| Fault("queue outside RAM"))
    }

    /// The driver wants an interrupt for what was used since the last call.
    pub fn take_interrupt(&mut self, ram: &Ram) -> Result<bool, Fault> {
        if !std::mem::take(&mut self.used) {
            return Ok(false);
        }
        self.ring.needs_notification(ram.memory()).map_err(|_| Fault("queue outside RAM"))
    }
}

//! A driver for tests and fuzzing: rings in a RAM of its own, requests in, answers out.

use std::panic::RefUnwindSafe;

use vm_memory::GuestAddress;

use super::Backend;
use super::mmio::{Mmio, Status};
use crate::ram::{Ram, Range};

/// Size of the RAM.
pub const RAM_BYTES: u64 = 4 << 20;
/// Requests of each ring.
pub const RING_ENTRIES: u16 = 16;
/// Bytes from one queue's rings to the next one's.
pub const RING_STEP: u64 = 0x1000;
/// Offsets of the available and the used ring after the descriptors.
pub const AVAIL: u64 = 0x400;
/// See [`AVAIL`].
pub const USED: u64 = 0x800;
/// First address for requests.
const BUFFERS: u64 = 0x10_0000;

/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_EVENT_IDX`.
pub const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_INDIRECT_DESC`.
pub const INDIRECT: u64 = 1 << 28;

/// Descriptor flags (virtio 1.2, 2.7.5): the chain goes on, the device writes, a table.
pub const NEXT: u16 = 1;
/// See [`NEXT`].
pub const WRITE: u16 = 2;
/// See [`NEXT`].
pub const TABLE: u16 = 4;

/// A device and the driver's side of it.
pub struct Driver<B> {
    /// The device.
    pub device: Mmio<B>,
    /// What both share.
    pub ram: Ram,
    /// Next free descriptor and next used element, of each queue.
    cursors: Vec<(u16, u16)>,
    free: u64,
}

impl<B: RefUnwindSafe> RefUnwindSafe for Driver<B> {}

/// A RAM for a driver. It stays mapped for the life of the process.
pub fn ram() -> Ram {
    Ram::new(&[Range { start: GuestAddress(0), bytes: RAM_BYTES }]).expect("address space")
}

impl<B: Backend> Driver<B> {
    /// A device that has accepted `features` and VERSION_1, with all queues ready.
    pub fn new(backend: B, features: u64) -> Driver<B> {
        Driver::with_ram(backend, features, ram())
    }

    /// The same with a RAM that was used before.
    pub fn with_ram(backend: B, features: u64, ram: Ram) -> Driver<B> {
        let queues = backend.queues().len();
        let mut driver = Driver { device: Mmio::new(backend), ram, cursors: vec![(0, 0); queues], free: BUFFERS };
        driver.start(features | VERSION_1);
        driver
    }

    /// Reset, negotiation and set-up (virtio 1.2, 3.1.1).
    pub fn start(&mut self, features: u64) {
        self.write(0x70, 0);
        self.write(0x70, (Status::ACKNOWLEDGE | Status::DRIVER).bits());
        for (page, word) in [(0, features), (1, features >> 32)] {
            self.write(0x24, page);
            self.write(0x20, (word & 0xffff_ffff) as u32);
        }
        self.write(0x70, (Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK).bits());
        for index in 0..self.cursors.len() {
            self.write(0x30, u32::try_from(index).expect("few queues"));
            let entries = RING_ENTRIES.min(u16::try_from(self.read(0x34)).expect("a size"));
            self.write(0x38, entries.into());
            let rings = self.rings(index);
            for (register, address) in [(0x80, rings), (0x90, rings + AVAIL), (0xa0, rings + USED)] {
                self.write(register, (address & 0xffff_ffff) as u32);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
            self.cursors[index] = (0, 0);
        }
        self.write(0x70, 0xf);
        self.device.settle(&self.ram);
    }

    /// Where the rings of a queue are.
    pub fn rings(&self, queue: usize) -> u64 {
        RING_STEP * (queue as u64 + 1)
    }

    /// Reads a register.
    pub fn read(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a register.
    pub fn write(&mut self, register: u64, value: u32) {
        self.device.write(&self.ram, register, &value.to_le_bytes());
    }

    /// Device status.
    pub fn status(&self) -> Status {
        Status::from_bits_truncate(self.read(0x70))
    }

    /// Writes to RAM.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        assert!(self.ram.write(GuestAddress(at), bytes), "{at:#x} is RAM");
    }

    /// Reads RAM.
    pub fn get(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        assert!(self.ram.read(GuestAddress(at), &mut content), "{at:#x} is RAM");
        content
    }

    fn half(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.get(at, 2).try_into().expect("2 bytes"))
    }

    /// Writes a descriptor of a queue's table.
    pub fn descriptor(&self, queue: usize, index: u16, at: u64, bytes: u32, flags: u16, next: u16) {
        self.put(self.rings(queue) + u64::from(index) * 16, &descriptor(at, bytes, flags, next));
    }

    /// Makes the chain that starts at `head` available, without notifying.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let avail = self.rings(queue) + AVAIL;
        let index = self.half(avail + 2);
        self.put(avail + 4 + u64::from(index % RING_ENTRIES) * 2, &head.to_le_bytes());
        self.put(avail + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// Offers a request of these readable buffers and writable lengths; returns where the latter are.
    pub fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Vec<u64> {
        let count = u16::try_from(readable.len() + writable.len()).expect("few buffers");
        let head = self.cursors[queue].0;
        let mut places = Vec::new();
        let lengths = readable.iter().map(|bytes| u32::try_from(bytes.len()).expect("short"));
        for (number, (bytes, is_write)) in
            (0..).zip(lengths.map(|bytes| (bytes, false)).chain(writable.iter().map(|bytes| (*bytes, true))))
        {
            let at = self.free;
            self.free = if at + u64::from(bytes) + 0x1000 > RAM_BYTES / 2 { BUFFERS } else { at + u64::from(bytes) };
            let index = (head + number) % RING_ENTRIES;
            let flags = if is_write { WRITE } else { 0 } | if number + 1 < count { NEXT } else { 0 };
            self.descriptor(queue, index, at, bytes, flags, (index + 1) % RING_ENTRIES);
            if is_write {
                places.push(at);
            } else {
                self.put(at, readable[usize::from(number)]);
            }
        }
        self.cursors[queue].0 = (head + count) % RING_ENTRIES;
        self.offer(queue, head);
        places
    }

    /// Notifies the device, as the guest's access does: with a look at the host's side after it.
    pub fn notify(&mut self, queue: usize) {
        self.write(0x50, u32::try_from(queue).expect("few queues"));
        self.device.settle(&self.ram);
    }

    /// The next used element: head, and bytes that the device has written.
    pub fn used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let used = self.rings(queue) + USED;
        let next = self.cursors[queue].1;
        if self.half(used + 2) == next {
            return None;
        }
        self.cursors[queue].1 = next.wrapping_add(1);
        let element = self.get(used + 4 + u64::from(next % RING_ENTRIES) * 8, 8);
        let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().expect("4 bytes"));
        Some((word(0), word(4)))
    }
}

/// A descriptor as it lies in memory.
pub fn descriptor(at: u64, bytes: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&at.to_le_bytes());
    descriptor[8..12].copy_from_slice(&bytes.to_le_bytes());
    descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
    descriptor[14..].copy_from_slice(&next.to_le_bytes());
    descriptor
}

/// The inputs that the tree keeps for a fuzz target.
///
/// # Panics
/// When there are none.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&path).expect("the corpus");
    let inputs = entries.map(|entry| std::fs::read(entry.expect("an entry").path()).expect("an input"));
    let inputs: Vec<_> = inputs.collect();
    assert!(!inputs.is_empty(), "{} is empty", path.display());
    inputs
}

/// Drives a device by `data`, which is a hostile guest: a list of operations, each a byte and its arguments. The guest
/// that a fuzzer found runs again as a unit test ([`crate::virtio`]'s tests replay the corpus).
///
/// Panics, hangs and accesses outside RAM are what to look for; there is nothing to return.
pub fn run_hostile_guest<B: Backend>(backend: B, data: &[u8]) {
    thread_local! {
        // A RAM cannot be unmapped, so all guests of a thread have the same.
        static RAM: std::cell::RefCell<Option<Ram>> = const { std::cell::RefCell::new(None) };
    }
    let ram = RAM.take().unwrap_or_else(ram);
    assert!(ram.give_back(GuestAddress(0), RAM_BYTES).is_ok(), "pages of zeros");
    let mut driver = Driver::with_ram(backend, EVENT_IDX | INDIRECT, ram);
    let offered = u64::from(driver.read(0x10));
    driver.start(VERSION_1 | offered);
    let mut input = Input(data);
    while let Some(operation) = input.byte() {
        hostile_step(&mut driver, operation, &mut input);
    }
    RAM.set(Some(driver.ram));
}

fn hostile_step<B: Backend>(driver: &mut Driver<B>, operation: u8, input: &mut Input<'_>) {
    let queues = driver.cursors.len();
    match operation % 10 {
        0 => driver.notify(usize::from(input.arg()) % (queues + 1)),
        1 => {
            let (register, value) = (u64::from(input.arg()) * 4, input.word());
            driver.write(register, value);
        }
        2 => {
            let (at, count) = (u64::from(input.half()), usize::from(input.arg()));
            let bytes = input.bytes(count).to_vec();
            driver.put(at, &bytes);
        }
        3 => {
            driver.read(u64::from(input.arg()) * 4);
        }
        4 => {
            let offered = u64::from(driver.read(0x10));
            let refused = u64::from(input.word());
            driver.start(VERSION_1 | (offered & !refused));
        }
        5 => {
            driver.device.woken();
            driver.device.settle(&driver.ram);
        }
        6 => {
            let (queue, head) = (usize::from(input.arg()) % queues, input.arg().into());
            driver.offer(queue, head);
        }
        7 => {
            let (queue, index) = (usize::from(input.arg()) % queues, u16::from(input.arg()) % RING_ENTRIES);
            let (at, bytes) = (u64::from(input.word()), input.word());
            let (flags, next) = (input.half(), input.half());
            driver.descriptor(queue, index, at, bytes, flags, next);
        }
        8 => {
            let (offset, count) = (u64::from(input.half()), usize::from(input.arg()) % 9);
            let mut bytes = vec![0; count];
            driver.device.read(offset, &mut bytes);
            driver.device.write(&driver.ram, offset, &bytes);
        }
        _ => {
            // A request as a driver would make it: a header of the fuzzer's, and some room.
            let queue = usize::from(input.arg()) % queues;
            let (count, room) = (usize::from(input.arg()), u32::from(input.half()));
            let header = input.bytes(count).to_vec();
            driver.request(queue, &[&header], &[room, 1]);
            driver.notify(queue);
        }
    }
}

/// Bytes taken from the front; zeros after their end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn arg(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.arg(), self.arg()])
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.arg(), self.arg(), self.arg(), self.arg()])
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        now
    }
}

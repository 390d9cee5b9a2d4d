//! A guest for tests and fuzzing: packets in, packets out, by a driver of rings in RAM.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::GuestAddress;

use super::bridge::Bridge;
use super::packet::{GUEST_CID, HEADER_BYTES, HEADER_WRITTEN, HOST_CID, Header, Operation, STREAM};
use super::stream::Key;
use super::{EVENTS, FROM_GUEST, TO_GUEST, Vsock};
use crate::ram::Ram;
use crate::sys;
use crate::virtio::testing::{Driver, EVENT_IDX, RAM_BYTES, RING_ENTRIES, WRITE};

/// Where the buffers for packets to the guest are, beyond those of [`Driver::request`].
const BUFFERS: u64 = 0x20_0000;
/// Length of each, as Linux has them.
const BUFFER_BYTES: u32 = 4096 + HEADER_WRITTEN;

/// A guest, and a directory for its sockets.
pub struct Guest {
    /// Device and driver.
    pub driver: Driver<Vsock>,
    /// Buffers are given back to the device when they have been read.
    pub reposts: bool,
    directory: Directory,
}

/// A directory that is removed when dropped.
#[derive(Debug)]
pub struct Directory(pub PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // Nobody is left to tell, and the directory is temporary.
        let _: std::io::Result<()> = std::fs::remove_dir_all(&self.0);
    }
}

/// A new directory.
pub fn directory() -> Directory {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("machinen-vsock-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a writable temporary directory");
    Directory(path)
}

/// A device with these bridges, their sockets in `directory`.
pub fn device(directory: &Path, bridges: &[&str]) -> Vsock {
    sys::ignore_sigio();
    let in_directory = |text: &&str| {
        let (head, name) = text.rsplit_once(':').expect("a bridge");
        Bridge::parse(&format!("{head}:{}", directory.join(name).display())).expect("a bridge")
    };
    let bridges: Vec<Bridge> = bridges.iter().map(in_directory).collect();
    Vsock::open(&bridges).expect("a device")
}

/// A packet between these ports, with much room for data.
pub fn packet(guest_port: u32, host_port: u32, operation: Operation) -> Header {
    Header {
        source_cid: GUEST_CID,
        target_cid: HOST_CID,
        source_port: guest_port,
        target_port: host_port,
        kind: STREAM,
        operation: operation.number(),
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

impl Guest {
    /// A guest with these bridges; their sockets are in its directory.
    pub fn new(bridges: &[&str]) -> Guest {
        Guest::with_ram(bridges, crate::virtio::testing::ram())
    }

    /// The same with RAM from before.
    pub fn with_ram(bridges: &[&str], ram: Ram) -> Guest {
        let directory = directory();
        let device = device(&directory.0, bridges);
        Guest::with(device, directory, ram)
    }

    /// A guest with a device from before, too.
    pub fn with(device: Vsock, directory: Directory, ram: Ram) -> Guest {
        let mut guest = Guest { driver: Driver::with_ram(device, EVENT_IDX, ram), reposts: true, directory };
        for head in 0..RING_ENTRIES {
            guest.post(head);
        }
        guest.driver.notify(TO_GUEST);
        guest
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.0.join(name)
    }

    /// Listens at a name in its directory.
    pub fn listen(&self, name: &str) -> UnixListener {
        UnixListener::bind(self.path(name)).expect("a socket")
    }

    /// Connects to a name in its directory, and lets the device see it. `None`: too many wait already.
    pub fn try_connect(&mut self, name: &str) -> Option<UnixStream> {
        let stream = crate::socket::connect(&self.path(name)).ok()?;
        stream.set_nonblocking(false).expect("a socket");
        self.wake();
        Some(stream)
    }

    /// The same where nobody waits.
    pub fn connect(&mut self, name: &str) -> UnixStream {
        self.try_connect(name).expect("a connection")
    }

    /// Gives the device a buffer for a packet.
    pub fn post(&mut self, head: u16) {
        self.driver.descriptor(TO_GUEST, head, Guest::place(head), BUFFER_BYTES, WRITE, 0);
        self.driver.offer(TO_GUEST, head);
    }

    fn place(head: u16) -> u64 {
        BUFFERS + u64::from(head) * 0x2000
    }

    /// A signal came.
    pub fn wake(&mut self) {
        self.driver.device.woken();
        self.driver.device.settle(&self.driver.ram);
    }

    /// Sends these bytes as a packet, whatever they are.
    pub fn send_raw(&mut self, header: &[u8], data: &[u8]) {
        let parts: &[&[u8]] = if data.is_empty() { &[header] } else { &[header, data] };
        self.driver.request(FROM_GUEST, parts, &[]);
        self.driver.notify(FROM_GUEST);
        while self.driver.used(FROM_GUEST).is_some() {}
    }

    /// Sends a packet.
    pub fn send(&mut self, header: Header, data: &[u8]) {
        let bytes = u32::try_from(data.len()).expect("short");
        self.send_raw(&Header { bytes, ..header }.to_bytes(), data);
    }

    /// The next packet from the device.
    pub fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, written) = self.driver.used(TO_GUEST)?;
        let head = u16::try_from(head).expect("a head");
        let mut bytes = self.driver.get(Guest::place(head), written as usize);
        let data = bytes.split_off(HEADER_BYTES);
        let header = Header::parse(&bytes.try_into().expect("a header"));
        assert_eq!(header.bytes as usize, data.len(), "{header:?}");
        if self.reposts {
            self.post(head);
            self.driver.notify(TO_GUEST);
        }
        Some((header, data))
    }

    /// The next packet, which is this operation on that stream.
    pub fn expect(&mut self, key: Key, operation: Operation) -> (Header, Vec<u8>) {
        let (header, data) = self.receive().unwrap_or_else(|| panic!("{operation:?} expected, and nothing came"));
        let expected = Header {
            bytes: header.bytes,
            flags: header.flags,
            buf_alloc: header.buf_alloc,
            fwd_cnt: header.fwd_cnt,
            ..key.header(operation)
        };
        assert_eq!(header, expected, "{operation:?} expected");
        (header, data)
    }

    /// A word of the event queue's first buffer, when it was used.
    pub fn event(&mut self) -> Option<u32> {
        self.driver.used(EVENTS).map(|(_, written)| written)
    }
}

/// Does what `bytes` say to a device: packets of any content, buffers given and withheld, clients that come, write and go.
/// For fuzzing; panics where the device breaks a promise.
pub fn fuzz(bytes: &[u8]) {
    thread_local! {
        // A RAM cannot be unmapped, so all guests of a thread have the same.
        static RAM: std::cell::RefCell<Option<Ram>> = const { std::cell::RefCell::new(None) };
    }
    let ram = RAM.take().unwrap_or_else(crate::virtio::testing::ram);
    assert!(ram.give_back(GuestAddress(0), RAM_BYTES).is_ok(), "pages of zeros");
    let guest = fuzz_guest(Guest::with_ram(&["in:7:in", "out:1:out", "hybrid:any"], ram), bytes);
    RAM.set(Some(guest.driver.ram));
}

fn fuzz_guest(mut guest: Guest, bytes: &[u8]) -> Guest {
    let host = guest.listen("out");
    host.set_nonblocking(true).expect("a listener");
    let mut clients: Vec<UnixStream> = Vec::new();
    let mut last = packet(0, 0, Operation::Request);
    let mut rest = bytes;
    while let Some((&action, more)) = rest.split_first() {
        let count = more.len().min(usize::from(action >> 4) * 4);
        let (argument, more) = more.split_at(count);
        rest = more;
        match action & 0xf {
            0 => guest.send_raw(argument, &[]),
            // A good header, with one part of it changed.
            1..=4 => {
                let mut header = last.to_bytes();
                for pair in argument.chunks_exact(2) {
                    header[usize::from(pair[0]) % HEADER_BYTES] = pair[1];
                }
                guest.send_raw(&header, argument);
            }
            5 => {
                let port = u32::from(argument.first().copied().unwrap_or(0));
                guest.send(packet(port, 1, Operation::Request), &[]);
            }
            6 => {
                if let Some((header, _)) = guest.receive() {
                    last = packet(header.target_port, header.source_port, Operation::Response);
                }
            }
            7 => guest.send(Header { operation: Operation::Data.number(), ..last }, argument),
            8 => clients.extend(guest.try_connect("in")),
            9 => clients.extend(guest.try_connect("any")),
            10 => clients.iter_mut().for_each(|client| {
                client.set_nonblocking(true).expect("a socket");
                // It may be gone.
                let _: std::io::Result<usize> = client.write(argument);
            }),
            11 => clients.iter_mut().for_each(|client| {
                client.set_nonblocking(true).expect("a socket");
                let _: std::io::Result<usize> = client.read(&mut [0; 512]);
            }),
            12 => drop(clients.pop()),
            13 => clients.extend(host.accept().map(|(client, _)| client)),
            14 => guest.reposts = !guest.reposts,
            _ => {
                let state = guest.driver.device.save();
                // The rings may be broken by then.
                let _: Result<(), crate::virtio::Fault> = guest.driver.device.load(&guest.driver.ram, state);
            }
        }
        guest.wake();
        let (streams, held) = guest.driver.device.backend().load_figures();
        assert!(streams <= super::table::MOST_STREAMS, "{streams} streams");
        assert!(held <= streams * super::credit::BUF_ALLOC as usize, "{held} bytes held by {streams} streams");
    }
    guest
}

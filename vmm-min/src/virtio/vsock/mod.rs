//! The socket device: streams between ports of the guest and Unix sockets of the host.
//!
//! Data goes straight between guest RAM and sockets. A stream keeps only what its host does not take, and the guest may not
//! send more than that ([`credit::BUF_ALLOC`]), so one that stands still holds up nobody and memory has a bound. In the other
//! direction data stays in the socket until the guest has room for it. Source: virtio 1.2, 5.10.

pub mod bridge;
mod credit;
mod packet;
mod stream;
mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use self::bridge::Bridge;
use self::packet::{GUEST_CID, HEADER_BYTES, HEADER_WRITTEN, HOST_CID, Header, Operation, STREAM};
use self::stream::{Broken, Fill, Key, State as Life, Stream};
use self::table::Table;
use super::queue::{Buffers, Chain};
use super::{Backend, Event, Fault, Io, read_config};
use crate::error::Result as HostResult;
use crate::listener::{Listener, VSOCK};
use crate::ram::Ram;
use crate::{socket, sys};

/// To the guest, from the guest, events.
const QUEUES: &[u16] = &[256, 256, 16];
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const EVENTS: usize = 2;
const F_STREAM: u64 = 1;
const EVENT_TRANSPORT_RESET: [u8; 4] = [0; 4];
const EVENT_BYTES: u32 = 4;

/// Clients that have not named their port. One more, and the one that has waited longest goes.
const MOST_LINES: usize = 64;
/// Answers that wait for a buffer of the guest's, before its packets have to wait too.
const MOST_RESETS: usize = 256;
/// Packets up to this size are handed back together with the next that the guest gets, most of which are answers: that
/// saves an interrupt, which is two exits.
const MOST_HELD_BYTES: u32 = 4096;
const MOST_HELD: u16 = 64;
/// More than [`crate::listener::BACKLOG`]: see there.
const MOST_ACCEPTS: usize = 256;
/// Ports of the host's end of streams that the host asks for. The guest's programs choose theirs below that.
const FIRST_PORT: u32 = 1 << 30;

/// What can be saved of the device. Sockets cannot, so the streams are over when it is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Every stream that the guest knows.
    streams: Vec<Key>,
    /// Heads of chains that the driver has not got back yet.
    held: Vec<u16>,
}

/// What becomes of a client of a listener's.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// A stream to this port of the guest's.
    Port(u32),
    /// It names the port itself.
    Line,
}

/// The device.
#[derive(Debug)]
pub struct Vsock {
    bridges: Vec<Bridge>,
    listeners: Vec<(Listener, Target)>,
    streams: Table,
    /// Clients that have not named their port, in the order in which they came.
    lines: VecDeque<usize>,
    /// Streams that want to send to the guest, in turn.
    turns: VecDeque<usize>,
    /// Packets of no stream.
    resets: VecDeque<Header>,
    /// Chains of the guest's that wait to be handed back.
    held: Vec<u16>,
    next_port: u32,
    /// The guest is to be told that all its streams are over.
    transport_reset: bool,
    /// For poll(2), and which stream each is of.
    polled: (Vec<libc::pollfd>, Vec<usize>),
    chain: Chain,
}

impl Vsock {
    /// The device with these bridges, which have been checked ([`Bridge::check`]).
    ///
    /// Errors: of [`Listener::open`].
    pub fn open(bridges: &[Bridge]) -> HostResult<Vsock> {
        let mut listeners = Vec::new();
        for bridge in bridges {
            match bridge {
                Bridge::In { port, socket } => listeners.push((Listener::open(&VSOCK, socket)?, Target::Port(*port))),
                Bridge::Hybrid { socket } => listeners.push((Listener::open(&VSOCK, socket)?, Target::Line)),
                Bridge::Out { .. } => {}
            }
        }
        Ok(Vsock {
            bridges: bridges.to_vec(),
            listeners,
            streams: Table::default(),
            lines: VecDeque::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            held: Vec::new(),
            next_port: FIRST_PORT,
            transport_reset: false,
            polled: (Vec::new(), Vec::new()),
            chain: Chain::new(),
        })
    }

    /// Streams, and bytes that they hold for their hosts.
    #[cfg(any(test, feature = "testing"))]
    pub fn load_figures(&self) -> (usize, usize) {
        (self.streams.len(), self.streams.iter().map(|(_, stream)| stream.held()).sum())
    }

    /// Asks the host about everything that waits for it.
    fn look(&mut self) {
        let (mut set, mut owners) = std::mem::take(&mut self.polled);
        set.clear();
        owners.clear();
        let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
        set.extend(self.listeners.iter().map(|(listener, _)| entry(listener.as_fd().as_raw_fd(), libc::POLLIN)));
        for (index, stream) in self.streams.iter() {
            if let Some((fd, events)) = stream.poll() {
                set.push(entry(fd, events));
                owners.push(index);
            }
        }
        // It can only be out of memory, and the next signal is another chance.
        if sys::poll_now(&mut set).is_ok() {
            let (first, rest) = set.split_at(self.listeners.len());
            for ((listener, _), entry) in self.listeners.iter_mut().zip(first) {
                listener.ready |= entry.revents != 0;
            }
            for (index, entry) in owners.iter().zip(rest).filter(|(_, entry)| entry.revents != 0) {
                self.looked(*index, entry.revents);
            }
        }
        self.polled = (set, owners);
    }

    /// poll(2) said this of a stream.
    fn looked(&mut self, index: usize, events: i16) {
        let Some(stream) = self.streams.get_mut(index) else { return };
        if stream.state() == Life::Line {
            self.read_line(index);
        } else {
            let looked = stream.looked(events);
            self.after(index, looked);
        }
    }

    /// What has changed about a stream has consequences.
    fn after(&mut self, index: usize, result: Result<(), Broken>) {
        let Some(stream) = self.streams.get_mut(index) else { return };
        if result.is_err() {
            self.give_up(index);
        } else if stream.is_drained() {
            self.remove(index);
        } else if stream.wants() && !stream.queued {
            stream.queued = true;
            self.turns.push_back(index);
        }
    }

    /// Ends a stream on both sides.
    fn give_up(&mut self, index: usize) {
        let Some(stream) = self.remove(index) else { return };
        if matches!(stream.state(), Life::Asked { .. } | Life::Open) {
            self.resets.push_back(stream.key.header(Operation::Reset));
        }
    }

    fn remove(&mut self, index: usize) -> Option<Stream> {
        let stream = self.streams.remove(index)?;
        match stream.state() {
            Life::Line => self.lines.retain(|line| *line != index),
            _ if stream.queued => self.turns.retain(|turn| *turn != index),
            _ => {}
        }
        Some(stream)
    }

    /// Takes the clients that wait, as far as there is room for them.
    fn accept(&mut self) {
        for number in 0..self.listeners.len() {
            for _ in 0..MOST_ACCEPTS {
                let (listener, target) = &mut self.listeners[number];
                if !listener.ready || self.streams.is_full() {
                    break;
                }
                match (listener.accept(), *target) {
                    (Ok(socket), target) => self.join(socket, target),
                    (Err(error), _) if error.kind() == ErrorKind::WouldBlock => listener.ready = false,
                    // It went away, or there are no descriptors: when there are, it is tried again.
                    (Err(_), _) => break,
                }
            }
        }
    }

    /// A new client.
    fn join(&mut self, socket: UnixStream, target: Target) {
        let (state, key) = match target {
            Target::Port(guest_port) => (Life::Asked { answer: false }, self.new_key(guest_port)),
            Target::Line => (Life::Line, Key::default()),
        };
        let Ok(stream) = Stream::new(socket, state, key) else { return };
        let Some(index) = self.streams.insert(stream) else { return };
        if state != Life::Line {
            return self.after(index, Ok(()));
        }
        self.lines.push_back(index);
        self.read_line(index);
        if self.lines.len() > MOST_LINES
            && let Some(oldest) = self.lines.front()
        {
            self.remove(*oldest);
        }
    }

    /// A client may have named its port.
    fn read_line(&mut self, index: usize) {
        let Some(stream) = self.streams.get_mut(index) else { return };
        match stream.read_line() {
            Ok(None) => {}
            Ok(Some(guest_port)) => {
                self.lines.retain(|line| *line != index);
                let key = self.new_key(guest_port);
                self.streams.ask(index, key);
                self.after(index, Ok(()));
            }
            Err(Broken) => self.give_up(index),
        }
    }

    /// A port of the host's that no stream has.
    fn new_key(&mut self, guest_port: u32) -> Key {
        loop {
            let key = Key { guest_port, host_port: self.next_port };
            self.next_port = if self.next_port == u32::MAX - 1 { FIRST_PORT } else { self.next_port + 1 };
            // A guest that uses all numbers up is far beyond the limit of streams.
            if self.streams.find(key).is_none() {
                return key;
            }
        }
    }

    /// The host's end for a connection to one of its ports.
    fn connect(&self, port: u32) -> Option<UnixStream> {
        let out = self.bridges.iter().find_map(|bridge| match bridge {
            Bridge::Out { port: own, socket } if *own == port => Some(socket.clone()),
            _ => None,
        });
        let hybrid = || {
            self.bridges.iter().find_map(|bridge| match bridge {
                Bridge::Hybrid { socket } => Some(format!("{socket}_{port}")),
                _ => None,
            })
        };
        socket::connect(Path::new(&out.or_else(hybrid)?)).ok()
    }

    /// Takes the packets of the guest's.
    fn transmit(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        let mut chain = std::mem::take(&mut self.chain);
        let done = self.transmit_with(&mut chain, io);
        self.chain = chain;
        done
    }

    fn transmit_with(&mut self, chain: &mut Chain, io: &mut Io<'_>) -> Result<(), Fault> {
        let queue = &mut io.queues[FROM_GUEST];
        loop {
            loop {
                if self.resets.len() >= MOST_RESETS {
                    return queue.hush(io.ram);
                }
                if !queue.pop(io.ram, chain)? {
                    break;
                }
                if self.packet(io.ram, chain.readable())? > MOST_HELD_BYTES {
                    queue.push(io.ram, chain, 0)?;
                } else {
                    self.held.push(chain.head());
                }
            }
            if !queue.ask(io.ram)? {
                return Ok(());
            }
        }
    }

    /// One packet of the guest's. Returns how many bytes of data it has.
    fn packet(&mut self, ram: &Ram, packet: Buffers<'_>) -> Result<u32, Fault> {
        let mut header = [0; HEADER_BYTES];
        if !packet.read(ram, 0, &mut header) {
            return Err(Fault("vsock packet without a header"));
        }
        let header = Header::parse(&header);
        if u64::from(header.bytes) > packet.bytes() - HEADER_BYTES as u64 {
            return Err(Fault("vsock packet longer than its buffers"));
        }
        if header.source_cid != GUEST_CID {
            // Nobody is there to be answered.
            return Ok(header.bytes);
        }
        let operation = Operation::from_number(header.operation);
        let key = Key { guest_port: header.source_port, host_port: header.target_port };
        let ours = header.kind == STREAM && header.target_cid == HOST_CID;
        match (self.streams.find(key).filter(|_| ours), operation) {
            (Some(index), Some(Operation::Reset)) => {
                self.remove(index);
            }
            (Some(index), _) => self.packet_of(index, ram, &header, packet),
            (None, Some(Operation::Request)) if ours => self.request(key, &header),
            (None, Some(Operation::Reset)) => {}
            (None, _) => self.resets.push_back(header.reset_of()),
        }
        Ok(header.bytes)
    }

    /// A packet of a stream's.
    fn packet_of(&mut self, index: usize, ram: &Ram, header: &Header, packet: Buffers<'_>) {
        let Some(stream) = self.streams.get_mut(index) else { return };
        let result = stream.packet(ram, header, packet);
        if result == Ok(false) {
            // The guest may use the port again at once; what it sent goes on to the host all the same.
            self.resets.push_back(header.reset_of());
            self.streams.forget_key(index);
        }
        self.after(index, result.map(|_| ()));
    }

    /// The guest asks for a connection.
    fn request(&mut self, key: Key, header: &Header) {
        let stream = if self.streams.is_full() { None } else { self.connect(key.host_port) };
        let stream = stream.and_then(|socket| Stream::new(socket, Life::Open, key).ok());
        match stream.and_then(|stream| self.streams.insert(stream)) {
            Some(index) => {
                if let Some(stream) = self.streams.get_mut(index) {
                    stream.credit_of(header);
                }
                self.after(index, Ok(()));
            }
            None => self.resets.push_back(header.reset_of()),
        }
    }

    /// Fills the guest's buffers. Returns whether it got any.
    fn deliver(&mut self, io: &mut Io<'_>) -> Result<bool, Fault> {
        let mut chain = std::mem::take(&mut self.chain);
        let done = self.deliver_with(&mut chain, io);
        self.chain = chain;
        done
    }

    fn deliver_with(&mut self, chain: &mut Chain, io: &mut Io<'_>) -> Result<bool, Fault> {
        let queue = &mut io.queues[TO_GUEST];
        let mut any = false;
        while !(self.resets.is_empty() && self.turns.is_empty()) {
            if !queue.pop(io.ram, chain)? {
                if queue.ask(io.ram)? {
                    continue;
                }
                return Ok(any);
            }
            if chain.writable().bytes() <= HEADER_BYTES as u64 {
                return Err(Fault("vsock buffer without room for data"));
            }
            let Some(written) = self.fill(io.ram, chain.writable())? else {
                queue.unpop();
                break;
            };
            queue.push(io.ram, chain, written)?;
            any = true;
        }
        // Only where the driver has run out of buffers is it to tell of new ones.
        queue.hush(io.ram)?;
        Ok(any)
    }

    /// Writes the next packet for the guest, of whose turn it is.
    fn fill(&mut self, ram: &Ram, target: Buffers<'_>) -> Result<Option<u32>, Fault> {
        loop {
            if let Some(reset) = self.resets.pop_front() {
                let written = target.write(ram, 0, &reset.to_bytes());
                return if written { Ok(Some(HEADER_WRITTEN)) } else { Err(Fault("vsock buffers change")) };
            }
            let Some(index) = self.turns.pop_front() else { return Ok(None) };
            let Some(stream) = self.streams.get_mut(index) else { continue };
            stream.queued = false;
            let fill = stream.fill(ram, target);
            self.after(index, fill.map(|_| ()));
            if let Ok(Fill::Written(bytes)) = fill {
                return Ok(Some(bytes));
            }
        }
    }

    /// Tells the guest of events.
    fn events(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        let queue = &mut io.queues[EVENTS];
        while self.transport_reset {
            if queue.pop(io.ram, &mut self.chain)? {
                if !self.chain.writable().write(io.ram, 0, &EVENT_TRANSPORT_RESET) {
                    return Err(Fault("vsock event buffer too small"));
                }
                queue.push(io.ram, &self.chain, EVENT_BYTES)?;
                self.transport_reset = false;
            } else if !queue.ask(io.ram)? {
                break;
            }
        }
        Ok(())
    }
}

impl Backend for Vsock {
    type State = State;

    fn kind(&self) -> u32 {
        19
    }

    fn queues(&self) -> &'static [u16] {
        QUEUES
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn config(&self, offset: usize, bytes: &mut [u8]) {
        read_config(&GUEST_CID.to_le_bytes(), offset, bytes);
    }

    fn reset(&mut self) {
        self.streams = Table::default();
        self.lines.clear();
        self.turns.clear();
        self.resets.clear();
        self.held.clear();
        self.transport_reset = false;
    }

    fn serve(&mut self, event: Event, io: &mut Io<'_>) -> Result<(), Fault> {
        if event == Event::Host {
            self.look();
        }
        self.events(io)?;
        let mut delivered = false;
        loop {
            let before = self.streams.removed();
            self.accept();
            self.transmit(io)?;
            let stopped = self.resets.len() >= MOST_RESETS;
            delivered |= self.deliver(io)?;
            // What made others wait may be gone: the answers, or a stream too many.
            let goes_on = stopped && self.resets.len() < MOST_RESETS;
            let room = self.streams.removed() != before && self.listeners.iter().any(|(listener, _)| listener.ready);
            if !(goes_on || room) {
                break;
            }
        }
        let queue = &mut io.queues[FROM_GUEST];
        if delivered || self.held.len() >= usize::from(MOST_HELD.min(queue.size() / 2)) {
            for head in self.held.drain(..) {
                queue.push_head(io.ram, head, 0)?;
            }
        }
        Ok(())
    }

    fn save(&self) -> State {
        let known = |stream: &Stream| matches!(stream.state(), Life::Asked { .. } | Life::Open);
        let streams = self.streams.iter().filter(|(_, stream)| known(stream)).map(|(_, stream)| stream.key);
        State { streams: streams.collect(), held: self.held.clone() }
    }

    fn load(&mut self, state: State) {
        self.reset();
        // The event ends the streams that were open, the packets also those that were about to be.
        self.transport_reset = true;
        self.resets.extend(state.streams.iter().map(|key| key.header(Operation::Reset)));
        self.held = state.held;
    }
}

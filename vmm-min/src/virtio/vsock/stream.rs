//! One stream: the guest's end by packets, the host's end by a socket, and what is between them.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use bitflags::bitflags;

use super::bridge;
use super::credit::Credit;
use super::packet::{GUEST_CID, HEADER_BYTES, HEADER_WRITTEN, HOST_CID, Header, Operation, STREAM, Shut};
use crate::ram::Ram;
use crate::sys;
use crate::virtio::queue::Buffers;

/// Most bytes of data in a packet to the guest, whatever buffers it gives.
const MOST_PACKET_BYTES: u64 = 64 << 10;
/// `CONNECT 4294967294`, a line end of two bytes, and some more to be sure that a longer line is none.
const MOST_LINE_BYTES: usize = 32;

/// What tells the guest's streams apart; its other halves are always the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key {
    /// Port at the guest's end.
    pub guest_port: u32,
    /// Port at the host's end.
    pub host_port: u32,
}

impl Key {
    /// A packet to the guest, without data and credit.
    pub fn header(self, operation: Operation) -> Header {
        Header {
            source_cid: HOST_CID,
            target_cid: GUEST_CID,
            source_port: self.host_port,
            target_port: self.guest_port,
            kind: STREAM,
            operation: operation.number(),
            ..Header::default()
        }
    }
}

/// Where a stream is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host's client has to name the guest's port.
    Line,
    /// The guest has to answer to a request.
    Asked {
        /// The client then wants to read a line.
        answer: bool,
    },
    /// Data may flow.
    Open,
    /// The guest has closed; what it sent goes on to the host.
    Draining,
}

bitflags! {
    /// Packets without data that the guest has to get.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Owed: u8 {
        const REQUEST = 1;
        const RESPONSE = 2;
        const CREDIT = 4;
    }
}

/// The stream cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The answer to a buffer of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// So many bytes were written to it.
    Written(u32),
    /// There is nothing to send.
    Nothing,
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    /// The ports, when they are known: not in [`State::Line`].
    pub key: Key,
    /// It waits in line for a buffer of the guest's.
    pub queued: bool,
    state: State,
    socket: UnixStream,
    credit: Credit,
    owed: Owed,
    /// What the guest will not do any more.
    guest_shut: Shut,
    /// What the host will not do any more, and of that what the guest was told.
    host_shut: Shut,
    told_shut: Shut,
    /// From the guest, not yet taken by the host. At most [`super::credit::BUF_ALLOC`] bytes.
    unsent: VecDeque<u8>,
    /// The socket may have something to read, or room to write: no call has said otherwise since the last look.
    readable: bool,
    writable: bool,
    /// No signals: the guest takes nothing, so nothing can be done about what they tell.
    muted: bool,
}

impl Stream {
    /// A stream at `socket`, whose signals are switched on.
    pub fn new(socket: UnixStream, state: State, key: Key) -> io::Result<Stream> {
        if !sys::notify_by_signal(socket.as_fd(), true)? {
            return Err(ErrorKind::Unsupported.into());
        }
        let owed = match state {
            State::Asked { .. } => Owed::REQUEST,
            State::Open => Owed::RESPONSE,
            State::Line | State::Draining => Owed::empty(),
        };
        Ok(Stream {
            key,
            queued: false,
            state,
            socket,
            credit: Credit::default(),
            owed,
            guest_shut: Shut::empty(),
            host_shut: Shut::empty(),
            told_shut: Shut::empty(),
            unsent: VecDeque::new(),
            readable: true,
            writable: true,
            muted: false,
        })
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.state
    }

    /// Bytes held for the host.
    #[cfg(any(test, feature = "testing"))]
    pub fn held(&self) -> usize {
        self.unsent.len()
    }

    /// The socket, and what to ask poll(2) about it; `None`: nothing that it can tell is of use.
    pub fn poll(&self) -> Option<(RawFd, i16)> {
        let mut events = 0;
        let waits = match self.state {
            State::Line => {
                events |= libc::POLLIN;
                true
            }
            State::Asked { .. } => true,
            State::Open => {
                if !self.readable && self.reads() {
                    events |= libc::POLLIN;
                }
                // Its end is of use as long as the guest has not been told that there is nobody.
                !self.host_shut.is_all()
            }
            State::Draining => true,
        };
        if !self.unsent.is_empty() && !self.writable {
            events |= libc::POLLOUT;
        }
        waits.then_some((self.socket.as_raw_fd(), events))
    }

    /// poll(2) said this.
    pub fn looked(&mut self, events: i16) -> Result<(), Broken> {
        let ended = events & (libc::POLLHUP | libc::POLLERR) != 0;
        if ended && matches!(self.state, State::Asked { .. }) {
            return Err(Broken);
        }
        if self.state == State::Open && ended && !self.reads() {
            // Otherwise there may be data before the end, and reading tells.
            self.host_shut = Shut::all();
        }
        self.readable |= ended || events & libc::POLLIN != 0;
        if ended || events & libc::POLLOUT != 0 {
            self.writable = true;
            self.flush()?;
        }
        if self.is_stalled() {
            self.mute(true)?;
        }
        Ok(())
    }

    /// Data of the host's can be of use to the guest.
    fn reads(&self) -> bool {
        !self.host_shut.contains(Shut::SEND) && !self.guest_shut.contains(Shut::RECEIVE)
    }

    fn is_stalled(&self) -> bool {
        self.state == State::Open && self.readable && self.credit.room() == 0 && self.unsent.is_empty()
    }

    fn mute(&mut self, on: bool) -> Result<(), Broken> {
        if self.muted != on {
            sys::notify_by_signal(self.socket.as_fd(), !on).map_err(|_| Broken)?;
            self.muted = on;
        }
        Ok(())
    }

    /// A call would have waited. `true`: signals were off, and it is to be tried again now that they are on.
    fn blocked(&mut self) -> Result<bool, Broken> {
        let again = self.muted;
        self.mute(false)?;
        Ok(again)
    }

    /// Reads the first line of the host's client, and not more. `None`: it is not complete yet.
    pub fn read_line(&mut self) -> Result<Option<u32>, Broken> {
        let mut line = [0; MOST_LINE_BYTES];
        let count = match sys::peek(self.socket.as_fd(), &mut line) {
            Ok(0) => return Err(Broken),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(_) => return Err(Broken),
        };
        let Some(end) = line[..count].iter().position(|byte| *byte == b'\n') else {
            return if count == line.len() { Err(Broken) } else { Ok(None) };
        };
        let taken = sys::receive(self.socket.as_fd(), &mut line[..=end]);
        let text = std::str::from_utf8(&line[..end]).map_err(|_| Broken)?;
        let (word, port) = text.strip_suffix('\r').unwrap_or(text).split_once(' ').ok_or(Broken)?;
        let port = bridge::port(port).filter(|_| word.eq_ignore_ascii_case("connect")).ok_or(Broken)?;
        if taken.is_ok_and(|taken| taken == end + 1) { Ok(Some(port)) } else { Err(Broken) }
    }

    /// Asks the guest for a connection between these ports, for a client that wants an answer.
    pub fn ask(&mut self, key: Key) {
        self.key = key;
        self.state = State::Asked { answer: true };
        self.owed = Owed::REQUEST;
    }

    /// The packet that asked for the stream says how much the guest holds for it.
    pub fn credit_of(&mut self, header: &Header) {
        self.credit.told_by_peer(header.buf_alloc, header.fwd_cnt);
    }

    /// A packet of the guest's, with the buffers of its data. `Ok(false)`: it was the stream's last.
    pub fn packet(&mut self, ram: &Ram, header: &Header, data: Buffers<'_>) -> Result<bool, Broken> {
        self.credit.told_by_peer(header.buf_alloc, header.fwd_cnt);
        match (self.state, Operation::from_number(header.operation).ok_or(Broken)?) {
            (State::Asked { answer }, Operation::Response) => {
                self.state = State::Open;
                let line = format!("OK {}\n", self.key.host_port);
                // It is the first that the client gets, so there is room.
                if answer && sys::send(self.socket.as_fd(), line.as_bytes()).ok() != Some(line.len()) {
                    return Err(Broken);
                }
            }
            (State::Open, Operation::Data) => self.receive(ram, header.bytes, data)?,
            (State::Open, Operation::CreditUpdate) => {}
            (State::Open, Operation::CreditRequest) => self.owed |= Owed::CREDIT,
            (State::Open, Operation::Shutdown) => {
                self.guest_shut |= Shut::from_bits_truncate(header.flags);
                if self.guest_shut.contains(Shut::RECEIVE) {
                    // Its writers are to know; one that is gone needs not.
                    let _: io::Result<()> = self.socket.shutdown(Shutdown::Read);
                }
                if self.guest_shut.is_all() {
                    self.state = State::Draining;
                }
                self.flush()?;
            }
            _ => return Err(Broken),
        }
        Ok(self.state != State::Draining)
    }

    /// Data of the guest's: to the socket what it takes now, the rest is kept.
    fn receive(&mut self, ram: &Ram, bytes: u32, data: Buffers<'_>) -> Result<(), Broken> {
        if self.guest_shut.contains(Shut::SEND) || !self.credit.receive(bytes) {
            return Err(Broken);
        }
        let (mut done, bytes) = (0, u64::from(bytes));
        while done < bytes && self.unsent.is_empty() && self.writable && self.hears() {
            let pieces = data.range(HEADER_BYTES as u64 + done, bytes - done);
            let sent = ram.send(self.socket.as_fd(), pieces);
            done += self.sent(sent)?;
        }
        if done < bytes && self.hears() {
            let start = self.unsent.len();
            let rest = usize::try_from(bytes - done).map_err(|_| Broken)?;
            self.unsent.resize(start + rest, 0);
            let target = &mut self.unsent.make_contiguous()[start..];
            if !data.read(ram, HEADER_BYTES as u64 + done, target) {
                return Err(Broken);
            }
        }
        if !self.hears() {
            self.credit.take_all();
        }
        Ok(())
    }

    /// The host still reads.
    fn hears(&self) -> bool {
        !self.host_shut.contains(Shut::RECEIVE)
    }

    /// Counts what a call has sent, or takes its error.
    fn sent(&mut self, sent: io::Result<u64>) -> Result<u64, Broken> {
        match sent {
            Ok(count) => {
                self.credit.take(u32::try_from(count).map_err(|_| Broken)?);
                Ok(count)
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => {
                    self.writable = self.blocked()?;
                    Ok(0)
                }
                ErrorKind::Interrupted => Ok(0),
                ErrorKind::BrokenPipe => {
                    // Whether it also writes no more, the next read tells.
                    self.host_shut |= Shut::RECEIVE;
                    self.readable = true;
                    self.unsent = VecDeque::new();
                    self.credit.take_all();
                    Ok(0)
                }
                _ => Err(Broken),
            },
        }
    }

    /// Sends what is kept, as far as the socket takes it, and then the end.
    pub fn flush(&mut self) -> Result<(), Broken> {
        while self.writable && !self.unsent.is_empty() {
            let (first, _) = self.unsent.as_slices();
            let sent = sys::send(self.socket.as_fd(), first).map(|count| count as u64);
            let count = self.sent(sent)?;
            self.unsent.drain(..usize::try_from(count).map_err(|_| Broken)?);
        }
        if self.unsent.is_empty() {
            self.unsent = VecDeque::new();
            if self.guest_shut.contains(Shut::SEND) {
                // Whoever is gone needs not be told.
                let _: io::Result<()> = self.socket.shutdown(Shutdown::Write);
            }
        }
        Ok(())
    }

    /// Nothing is left to be done for a guest that has closed.
    pub fn is_drained(&self) -> bool {
        self.state == State::Draining && self.unsent.is_empty()
    }

    /// The guest is to get a packet, or may.
    pub fn wants(&self) -> bool {
        let told = self.told_shut == self.host_shut && self.owed.is_empty() && !self.credit.is_due();
        let data = self.readable && self.reads() && (self.credit.room() > 0 || !self.credit.asked);
        match self.state {
            State::Asked { .. } => !self.owed.is_empty(),
            State::Open => !told || data,
            State::Line | State::Draining => false,
        }
    }

    /// Writes the next packet for the guest to `target`, which has room for more than a header.
    pub fn fill(&mut self, ram: &Ram, target: Buffers<'_>) -> Result<Fill, Broken> {
        if !self.wants() {
            return Ok(Fill::Nothing);
        }
        let (operation, flags) = if self.owed.contains(Owed::REQUEST) {
            (Operation::Request, 0)
        } else if self.owed.contains(Owed::RESPONSE) {
            (Operation::Response, 0)
        } else if self.host_shut != self.told_shut {
            self.told_shut = self.host_shut;
            (Operation::Shutdown, self.host_shut.bits())
        } else if self.readable && self.reads() && self.credit.room() > 0 {
            match self.read(ram, target)? {
                0 if self.wants() => return self.fill(ram, target),
                0 => return Ok(Fill::Nothing),
                bytes => return self.header(ram, target, Operation::Data, bytes, 0),
            }
        } else if self.owed.contains(Owed::CREDIT) || self.credit.is_due() {
            (Operation::CreditUpdate, 0)
        } else {
            self.credit.asked = true;
            (Operation::CreditRequest, 0)
        };
        self.header(ram, target, operation, 0, flags)
    }

    fn header(
        &mut self,
        ram: &Ram,
        target: Buffers<'_>,
        operation: Operation,
        bytes: u32,
        flags: u32,
    ) -> Result<Fill, Broken> {
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        self.owed = Owed::empty();
        let header = Header { bytes, flags, buf_alloc, fwd_cnt, ..self.key.header(operation) };
        if !target.write(ram, 0, &header.to_bytes()) {
            return Err(Broken);
        }
        self.credit.send(bytes);
        Ok(Fill::Written(bytes + HEADER_WRITTEN))
    }

    /// Reads from the socket to the place for data. Returns how many bytes; 0 when there are none now, or when its end
    /// was met.
    fn read(&mut self, ram: &Ram, target: Buffers<'_>) -> Result<u32, Broken> {
        let most = u64::from(self.credit.room()).min(MOST_PACKET_BYTES);
        loop {
            match ram.receive(self.socket.as_fd(), target.range(HEADER_BYTES as u64, most)) {
                Ok(0) => {
                    self.host_shut |= if self.has_hung_up()? { Shut::all() } else { Shut::SEND };
                    return Ok(0);
                }
                Ok(count) => return u32::try_from(count).map_err(|_| Broken),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !self.blocked()? {
                        self.readable = false;
                        return Ok(0);
                    }
                }
                Err(_) => return Err(Broken),
            }
        }
    }

    /// The host's end is closed, not just its direction to us.
    fn has_hung_up(&self) -> Result<bool, Broken> {
        let mut set = [libc::pollfd { fd: self.socket.as_raw_fd(), events: 0, revents: 0 }];
        sys::poll_now(&mut set).map_err(|_| Broken)?;
        Ok(set[0].revents & (libc::POLLHUP | libc::POLLERR) != 0)
    }
}

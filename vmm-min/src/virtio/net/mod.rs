//! The network device: Ethernet frames over a stream socket, each after its length as a 32-bit big-endian number, as passt,
//! gvproxy and QEMU's stream sockets have them.
//!
//! The stream carries frames and nothing about them, which decides what can be offered. Checksums of what the driver sends are
//! left to us and filled in before the peer sees the frame, so no peer has to be trusted with that. Those of what it receives
//! it verifies itself: that they were seen to be right cannot be said here. Segmentation is not offered; where the peer
//! takes large frames the MTU says so, and the driver's segments are as large as they get.
//!
//! Source: virtio 1.2, 5.1.

mod checksum;
mod link;
mod receive;
#[cfg(any(test, feature = "testing"))]
pub mod script;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use virtio_bindings::virtio_net as spec;

use self::link::Link;
use self::receive::Receive;
use self::transmit::Transmit;
use super::{Backend, Event, Fault, Io, read_config};
use crate::config::{NetConfig, NetSocket};
use crate::error::{Error, Result};
use crate::{socket, sys};

const QUEUES: &[u16] = &[256, 256];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Of what precedes a frame in a queue: `struct virtio_net_hdr` with `num_buffers`.
const HEADER: usize = 12;
/// The same, for offsets in a request.
const HEADER_BYTES: u64 = HEADER as u64;
/// An Ethernet header.
const LEAST_FRAME_BYTES: u32 = 14;
/// An Ethernet header with a VLAN tag, and the longest IP packet.
pub const MOST_FRAME_BYTES: u32 = 18 + 65535;

/// A hardware address.
pub type Mac = [u8; 6];

/// The device.
#[derive(Debug)]
pub struct Net {
    mac: Mac,
    mtu: Option<u16>,
    link: Link,
    /// What the driver knows of the link.
    known_up: bool,
    mergeable: bool,
    receive: Receive,
    transmit: Transmit,
}

/// All that another process needs to go on, with another peer: frames under way are lost to the driver, as on any cable, and
/// sent again to the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    mac: Mac,
    mtu: Option<u16>,
    known_up: bool,
    mergeable: bool,
}

impl Net {
    /// Connects to the peer that `config` names.
    ///
    /// Errors: `NET_SOCKET_MISSING`, `NET_SOCKET_REFUSED`, `NET_SOCKET_INVALID`, `NET_SOCKET_FAILED`.
    pub fn open(config: &NetConfig) -> Result<Net> {
        let socket = match &config.socket {
            NetSocket::Path(path) => socket::connect(Path::new(path)).map_err(|cause| path_error(path, cause))?,
            NetSocket::Inherited(number) => {
                sys::inherited_stream(*number).map_err(|cause| inherited_error(*number, cause))?
            }
        };
        Ok(Net::new(socket, config.mac.unwrap_or_else(random_mac), config.mtu))
    }

    /// The device over a connected socket. `mtu`: the largest packet that the peer takes, where it is not 1500.
    pub fn new(socket: UnixStream, mac: Mac, mtu: Option<u16>) -> Net {
        let link = Link::new(socket);
        Net {
            mac,
            mtu,
            link,
            known_up: true,
            mergeable: false,
            receive: Receive::default(),
            transmit: Transmit::default(),
        }
    }

    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&u16::from(self.link.is_up()).to_le_bytes());
        // At 8 the number of queue pairs, which is there with a feature that is not.
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }
}

/// A locally administered address (IEEE 802, 8.4), so that two guests on one network do not have the same.
fn random_mac() -> Mac {
    let mut mac = [0; 6];
    // Where there is nothing random, all guests have the same address; most have their network for themselves.
    let _: io::Result<usize> = sys::random(&mut mac);
    mac[0] = mac[0] & !1 | 2;
    mac
}

fn path_error(path: &str, cause: io::Error) -> Error {
    let is_socket = || {
        use std::os::unix::fs::FileTypeExt;
        std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
    };
    let (code, hint) = match cause.kind() {
        io::ErrorKind::NotFound => {
            ("NET_SOCKET_MISSING", "start what listens there first; machinen-net does it with passt")
        }
        io::ErrorKind::ConnectionRefused if is_socket() => ("NET_SOCKET_REFUSED", "nobody listens there any more"),
        io::ErrorKind::ConnectionRefused => ("NET_SOCKET_INVALID", "it is no socket"),
        _ if cause.raw_os_error() == Some(libc::EPROTOTYPE) => ("NET_SOCKET_INVALID", "it is no stream socket"),
        _ => ("NET_SOCKET_FAILED", ""),
    };
    Error::Host { code, operation: format!("connect to network socket {path}"), cause, hint: hint.into() }
}

fn inherited_error(number: i32, cause: io::Error) -> Error {
    let hint = match cause.raw_os_error() {
        Some(libc::EBADF) => "whoever starts vmm-min has to leave it open",
        _ => "it has to be a connected Unix stream socket",
    };
    let operation = format!("network on inherited descriptor {number}");
    Error::Host { code: "NET_SOCKET_INVALID", operation, cause, hint: hint.into() }
}

impl Backend for Net {
    type State = State;

    fn kind(&self) -> u32 {
        1
    }

    fn queues(&self) -> &'static [u16] {
        QUEUES
    }

    fn features(&self) -> u64 {
        let always =
            [spec::VIRTIO_NET_F_CSUM, spec::VIRTIO_NET_F_MAC, spec::VIRTIO_NET_F_MRG_RXBUF, spec::VIRTIO_NET_F_STATUS];
        let mtu = self.mtu.map(|_| spec::VIRTIO_NET_F_MTU);
        always.into_iter().chain(mtu).fold(0, |bits, bit| bits | 1 << bit)
    }

    fn config(&self, offset: usize, bytes: &mut [u8]) {
        read_config(&self.config(), offset, bytes);
    }

    fn activate(&mut self, features: u64) {
        self.mergeable = features & (1 << spec::VIRTIO_NET_F_MRG_RXBUF) != 0;
    }

    fn reset(&mut self) {
        self.mergeable = false;
        self.receive.reset();
        self.transmit.reset();
    }

    fn serve(&mut self, event: Event, io: &mut Io<'_>) -> std::result::Result<(), Fault> {
        self.link.watch();
        if event != Event::Queue(TRANSMIT) {
            self.receive.serve(&mut self.link, &mut io.queues[RECEIVE], io.ram, self.mergeable)?;
        }
        let changed = self.link.is_up() != self.known_up;
        if event != Event::Queue(RECEIVE) || changed {
            self.transmit.serve(&mut self.link, &mut io.queues[TRANSMIT], io.ram)?;
        }
        if self.link.is_up() != self.known_up {
            self.known_up = self.link.is_up();
            io.config_changed = true;
        }
        Ok(())
    }

    fn woken(&mut self) {
        self.link.woken();
    }

    fn save(&self) -> State {
        State { mac: self.mac, mtu: self.mtu, known_up: self.known_up, mergeable: self.mergeable }
    }

    fn load(&mut self, state: State) {
        self.receive.reset();
        self.transmit.reset();
        (self.mac, self.mtu) = (state.mac, state.mtu);
        (self.known_up, self.mergeable) = (state.known_up, state.mergeable);
    }
}

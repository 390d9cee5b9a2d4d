//! The file system device: a directory of the host under a tag, served by [`machinen_share`].
//!
//! A request is copied once up to the data of a write; data goes straight between files and guest RAM. Each is done when the
//! guest runs again, so a slow disk of the host's is a slow device of the guest's. Source: virtio 1.2, 5.11.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use machinen_share::owner::Owners;
use machinen_share::request::Header;
use machinen_share::server::Refused;
use machinen_share::state::State;
use machinen_share::wire::{IN_HEADER_BYTES, OUT_HEADER_BYTES, WRITE_IN_BYTES};
use machinen_share::{Data, Reply, Server};

use super::queue::{Buffers, Chain};
use super::{Backend, Event, Fault, Io, read_config};
use crate::config::ShareConfig;
use crate::error::{Error, Result as HostResult};
use crate::ram::Ram;
use crate::sys;

/// Requests that must not wait (a guest forgets by them), and all others.
const QUEUES: &[u16] = &[64, 256];
const REQUEST_QUEUES: u32 = 1;
const TAG_BYTES: usize = 36;
/// Descriptors that the rest of the monitor may need: streams, disks and their layers.
const KEPT_DESCRIPTORS: u64 = 2048;
/// For all of it, where the system sets no limit that deserves the name: a guest can have each of them used.
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// A share as the guest sees it.
pub struct Fs {
    tag: String,
    config: [u8; TAG_BYTES + 4],
    server: Server,
    chain: Chain,
    /// The bytes of a request.
    request: Vec<u8>,
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Fs {
    /// The device for `share`, one of `shares` of this machine.
    ///
    /// Errors: `SHARE_UNREADABLE` for what is no directory or cannot be opened.
    pub fn open(share: &ShareConfig, shares: usize) -> HostResult<Fs> {
        let mut fs = Fs::new(&share.tag, Owners::of_process(), most_descriptors(shares));
        let Some(path) = &share.directory else { return Ok(fs) };
        let failed = |cause| Error::host("SHARE_UNREADABLE", format!("open of shared directory {path}"), cause);
        let root = sys::open_place(path.as_ref()).map_err(failed)?;
        fs.attach(root, share.read_only).map_err(|refused| match refused {
            Refused::Host(errno) => failed(errno.into()),
            Refused::Busy => failed(io::ErrorKind::ResourceBusy.into()),
        })?;
        Ok(fs)
    }

    /// A device without a directory, whose server may have `most` descriptors.
    pub fn new(tag: &str, owners: Owners, most: usize) -> Fs {
        let mut config = [0; TAG_BYTES + 4];
        let bytes = tag.len().min(TAG_BYTES);
        config[..bytes].copy_from_slice(&tag.as_bytes()[..bytes]);
        config[TAG_BYTES..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        let server = Server::new(owners, most);
        Fs { tag: tag.into(), config, server, chain: Chain::new(), request: Vec::new() }
    }

    /// Its name in the guest.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The guest has it mounted.
    pub fn is_mounted(&self) -> bool {
        self.server.is_mounted()
    }

    /// Makes the directory `root`, opened in any way, what the guest's next mount shows.
    ///
    /// Errors: while it is mounted ([`Refused::Busy`]), and for what is no directory.
    pub fn attach(&mut self, root: OwnedFd, read_only: bool) -> Result<(), Refused> {
        use std::os::fd::AsFd;
        self.server.attach(root.as_fd(), read_only)
    }

    /// Takes the directory away: the guest's mounts fail from now on.
    ///
    /// Errors: while it is mounted.
    pub fn detach(&mut self) -> Result<(), Refused> {
        self.server.detach()
    }

    /// Does the request in `self.chain`; returns how many bytes of the answer were written.
    fn serve_one(&mut self, ram: &Ram) -> Result<u32, Fault> {
        let (readable, writable) = (self.chain.readable(), self.chain.writable());
        let mut header = [0; IN_HEADER_BYTES];
        if !readable.read(ram, 0, &mut header) {
            return Err(Fault("file system request without a header"));
        }
        let header = Header::parse(&header);
        let length = u64::from(header.bytes);
        if length < IN_HEADER_BYTES as u64 || length > readable.bytes() {
            return Err(Fault("file system request of another length than it says"));
        }
        let room = match writable.bytes().checked_sub(OUT_HEADER_BYTES as u64) {
            Some(room) => room,
            None if header.is_silent() => 0,
            None => return Err(Fault("file system request without room for its answer")),
        };
        let reply = match header.copied_bytes(length) {
            Some(bytes) => {
                self.request.resize(bytes - IN_HEADER_BYTES, 0);
                if !readable.read(ram, IN_HEADER_BYTES as u64, &mut self.request) {
                    return Err(Fault("file system request without a body"));
                }
                let mut data = Guest { ram, readable, writable, length };
                self.server.serve(&header, &self.request, room, &mut data)
            }
            None if header.is_silent() => Reply::Silence,
            None => Reply::Error(machinen_share::Errno::TOOBIG),
        };
        let (error, payload, bytes) = match reply {
            Reply::Silence => return Ok(0),
            Reply::Error(errno) => (-errno.raw_os_error(), &[][..], 0),
            Reply::Payload => (0, self.server.payload(), self.server.payload().len() as u64),
            Reply::Data(bytes) => (0, &[][..], bytes),
        };
        let bytes = u32::try_from(OUT_HEADER_BYTES as u64 + bytes).unwrap_or(u32::MAX);
        let mut answer = [0; OUT_HEADER_BYTES];
        answer[..4].copy_from_slice(&bytes.to_le_bytes());
        answer[4..8].copy_from_slice(&error.to_le_bytes());
        answer[8..].copy_from_slice(&header.unique.to_le_bytes());
        if !writable.write(ram, 0, &answer) || !writable.write(ram, OUT_HEADER_BYTES as u64, payload) {
            return Err(Fault("file system buffers change"));
        }
        Ok(bytes)
    }
}

/// Descriptors of one of `shares`: what the system allows this process, which is asked for here, less what others need.
fn most_descriptors(shares: usize) -> usize {
    let all = sys::raise_descriptor_limit(MOST_DESCRIPTORS);
    let left = all.saturating_sub(KEPT_DESCRIPTORS).max(all / 2);
    usize::try_from(left).unwrap_or(usize::MAX) / shares.max(1)
}

/// The guest's side of a request's data.
struct Guest<'a> {
    ram: &'a Ram,
    readable: Buffers<'a>,
    writable: Buffers<'a>,
    /// Of the request.
    length: u64,
}

impl Data for Guest<'_> {
    fn read(&mut self, file: &File, offset: u64, bytes: u64) -> io::Result<u64> {
        let mut done = 0;
        while done < bytes {
            let target = self.writable.range(OUT_HEADER_BYTES as u64 + done, bytes - done);
            match self.ram.read_file(file, offset.saturating_add(done), target)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    fn write(&mut self, file: &File, offset: u64, bytes: u64, append: bool) -> io::Result<u64> {
        const START: u64 = (IN_HEADER_BYTES + WRITE_IN_BYTES) as u64;
        let bytes = bytes.min(self.length.saturating_sub(START));
        let mut done = 0;
        while done < bytes {
            let source = self.readable.range(START + done, bytes - done);
            let result = match append {
                false => self.ram.write_file(file, offset.saturating_add(done), source),
                true => self.ram.append_file(file, source),
            };
            match result {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}

impl Backend for Fs {
    type State = State;

    fn kind(&self) -> u32 {
        26
    }

    fn queues(&self) -> &'static [u16] {
        QUEUES
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self, offset: usize, bytes: &mut [u8]) {
        read_config(&self.config, offset, bytes);
    }

    fn reset(&mut self) {
        self.server.end_session();
    }

    fn serve(&mut self, event: Event, io: &mut Io<'_>) -> Result<(), Fault> {
        // Nothing of the host's wakes it.
        let queues = match event {
            Event::Queue(index) if index < QUEUES.len() => index..index + 1,
            Event::Queue(_) => return Ok(()),
            Event::Host => 0..QUEUES.len(),
        };
        for index in queues {
            loop {
                while io.queues[index].pop(io.ram, &mut self.chain)? {
                    let written = self.serve_one(io.ram)?;
                    io.queues[index].push(io.ram, &self.chain, written)?;
                }
                if !io.queues[index].ask(io.ram)? {
                    break;
                }
            }
        }
        Ok(())
    }

    fn save(&self) -> State {
        self.server.save()
    }

    fn load(&mut self, state: State) {
        self.server.load(state);
    }
}

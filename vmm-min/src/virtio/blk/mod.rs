//! The block device: requests to and from a [`Disk`], done at once.
//!
//! Source: virtio 1.2, 5.2.

use virtio_bindings::virtio_blk as spec;

#[cfg(test)]
mod tests;

use super::queue::{Buffers, Chain};
use super::{Backend, Event, Fault, Io, read_config};
use crate::disk::{Access, Disk, SECTOR_BYTES};
use crate::ram::Ram;

const HEADER_BYTES: u64 = 16;
const SEGMENT_BYTES: usize = 16;
const QUEUE: &[u16] = &[256];
/// Buffers of data in a request: a chain less header and status.
const MOST_DATA_BUFFERS: u32 = 254;
/// Most sectors of one range to discard or zero, and most ranges of a request.
const MOST_RANGE_SECTORS: u32 = 1 << 22;
const MOST_RANGES: u32 = 16;
const ID_BYTES: usize = 20;
/// The guest's file systems lay out by blocks of 4096 bytes: a layer's cluster.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// How a request ended, apart from how many bytes it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A disk as the guest sees it.
#[derive(Debug)]
pub struct Blk {
    disk: Disk,
    config: [u8; 60],
    chain: Chain,
}

impl Blk {
    /// The device for `disk`.
    pub fn new(disk: Disk) -> Blk {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &disk.sectors().to_le_bytes());
        put(12, &MOST_DATA_BUFFERS.to_le_bytes());
        put(20, &512u32.to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXPONENT]);
        // Discard and write-zeroes: sectors, ranges; discard in units of a cluster.
        put(36, &MOST_RANGE_SECTORS.to_le_bytes());
        put(40, &MOST_RANGES.to_le_bytes());
        put(44, &8u32.to_le_bytes());
        put(48, &MOST_RANGE_SECTORS.to_le_bytes());
        put(52, &MOST_RANGES.to_le_bytes());
        put(56, &[1]);
        Blk { disk, config, chain: Chain::new() }
    }

    /// The disk behind it.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The same, to be changed by the host.
    pub fn disk_mut(&mut self) -> &mut Disk {
        &mut self.disk
    }

    /// Does the request in `self.chain`; returns how many writable bytes were written.
    fn request(&mut self, ram: &Ram) -> Result<u32, Fault> {
        let (readable, writable) = (self.chain.readable(), self.chain.writable());
        let mut header = [0; 16];
        if !readable.read(ram, 0, &mut header) {
            return Err(Fault("block request without a header"));
        }
        let Some(room) = writable.bytes().checked_sub(1) else {
            return Err(Fault("block request without room for its status"));
        };
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(*header.last_chunk().expect("8 of 16 bytes"));
        let (status, written) = match kind {
            spec::VIRTIO_BLK_T_IN => match range(&self.disk, sector, room) {
                Some(offset) => (self.disk.read(ram, writable, offset, room).into(), room),
                None => (Status::IoError, 0),
            },
            spec::VIRTIO_BLK_T_OUT => {
                let bytes = readable.bytes() - HEADER_BYTES;
                (write(&mut self.disk, ram, readable, sector, bytes), 0)
            }
            spec::VIRTIO_BLK_T_FLUSH => (self.disk.flush().into(), 0),
            spec::VIRTIO_BLK_T_DISCARD | spec::VIRTIO_BLK_T_WRITE_ZEROES => {
                (ranges(&mut self.disk, ram, readable, kind == spec::VIRTIO_BLK_T_WRITE_ZEROES)?, 0)
            }
            spec::VIRTIO_BLK_T_GET_ID => {
                let mut id = [0; ID_BYTES];
                id[..self.disk.id().len()].copy_from_slice(self.disk.id());
                let count = usize::try_from(room).map_or(ID_BYTES, |room| room.min(ID_BYTES));
                let done = writable.write(ram, 0, &id[..count]);
                (if done { Status::Ok } else { Status::IoError }, count as u64)
            }
            _ => (Status::Unsupported, 0),
        };
        if !writable.write(ram, room, &[status as u8]) {
            return Err(Fault("block request without room for its status"));
        }
        // Bytes count only up to the first that is not written: all of them, or none and then the status.
        let written = if status == Status::Ok && written == room { room + 1 } else { written.min(room) };
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }
}

impl From<std::io::Result<()>> for Status {
    fn from(result: std::io::Result<()>) -> Status {
        if result.is_ok() { Status::Ok } else { Status::IoError }
    }
}

/// The byte offset of a range of whole sectors that lies within the disk.
fn range(disk: &Disk, sector: u64, bytes: u64) -> Option<u64> {
    let end = sector.checked_add(bytes / SECTOR_BYTES)?;
    (bytes.is_multiple_of(SECTOR_BYTES) && end <= disk.sectors()).then(|| sector * SECTOR_BYTES)
}

fn write(disk: &mut Disk, ram: &Ram, request: Buffers<'_>, sector: u64, bytes: u64) -> Status {
    match range(disk, sector, bytes) {
        Some(offset) if disk.access() != Access::ReadOnly => {
            disk.write(ram, request, HEADER_BYTES, offset, bytes).into()
        }
        _ => Status::IoError,
    }
}

/// Discards or zeroes the ranges that follow the header.
fn ranges(disk: &mut Disk, ram: &Ram, request: Buffers<'_>, zero: bool) -> Result<Status, Fault> {
    let bytes = request.bytes() - HEADER_BYTES;
    if bytes == 0 || !bytes.is_multiple_of(SEGMENT_BYTES as u64) {
        return Err(Fault("block request with a part of a range"));
    }
    if bytes / SEGMENT_BYTES as u64 > MOST_RANGES.into() || disk.access() == Access::ReadOnly {
        return Ok(Status::IoError);
    }
    let mut at = HEADER_BYTES;
    while at < HEADER_BYTES + bytes {
        let mut segment = [0; SEGMENT_BYTES];
        if !request.read(ram, at, &mut segment) {
            return Err(Fault("block request with a part of a range"));
        }
        at += SEGMENT_BYTES as u64;
        let sector = u64::from_le_bytes(*segment.first_chunk().expect("8 of 16 bytes"));
        let [sectors, flags] =
            [8, 12].map(|at| u32::from_le_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]));
        // Bit 0 is «unmap», which only zeroing knows.
        if flags & !1 != 0 || (flags != 0 && !zero) {
            return Ok(Status::Unsupported);
        }
        let bytes = u64::from(sectors) * SECTOR_BYTES;
        let done = match range(disk, sector, bytes).filter(|_| sectors <= MOST_RANGE_SECTORS) {
            Some(offset) if zero => disk.zero(offset, bytes),
            Some(offset) => disk.discard(offset, bytes),
            None => return Ok(Status::IoError),
        };
        if done.is_err() {
            return Ok(Status::IoError);
        }
    }
    Ok(Status::Ok)
}

impl Backend for Blk {
    /// Every request is done when the guest runs again.
    type State = ();

    fn kind(&self) -> u32 {
        2
    }

    fn queues(&self) -> &'static [u16] {
        QUEUE
    }

    fn features(&self) -> u64 {
        let always = [spec::VIRTIO_BLK_F_SEG_MAX, spec::VIRTIO_BLK_F_BLK_SIZE, spec::VIRTIO_BLK_F_TOPOLOGY];
        let own: &[u32] = match self.disk.access() {
            Access::ReadOnly => &[spec::VIRTIO_BLK_F_RO],
            // What a layer holds need not survive the host: without the flush the guest saves an exit for each.
            Access::CopyOnWrite => &[spec::VIRTIO_BLK_F_DISCARD, spec::VIRTIO_BLK_F_WRITE_ZEROES],
            Access::InPlace => &[spec::VIRTIO_BLK_F_FLUSH, spec::VIRTIO_BLK_F_DISCARD, spec::VIRTIO_BLK_F_WRITE_ZEROES],
        };
        always.iter().chain(own).fold(0, |bits, bit| bits | 1 << bit)
    }

    fn config(&self, offset: usize, bytes: &mut [u8]) {
        read_config(&self.config, offset, bytes);
    }

    fn reset(&mut self) {}

    fn serve(&mut self, _event: Event, io: &mut Io<'_>) -> Result<(), Fault> {
        loop {
            while io.queues[0].pop(io.ram, &mut self.chain)? {
                let written = self.request(io.ram)?;
                io.queues[0].push(io.ram, &self.chain, written)?;
            }
            if !io.queues[0].ask(io.ram)? {
                return Ok(());
            }
        }
    }

    fn save(&self) {}

    fn load(&mut self, _state: ()) {}
}

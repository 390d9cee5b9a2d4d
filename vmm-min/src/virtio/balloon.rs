//! The balloon device, for free-page reporting only: it never asks the guest for memory, and gives the host back what the
//! guest reports as free.
//!
//! Source: virtio 1.2, 5.5. Queues that belong to features that were not agreed on do not exist, so the reporting queue
//! comes third, as drivers count them.

use super::queue::{Buffer, Buffers, Chain};
use super::{Backend, Event, Fault, Io};
use crate::ram::Ram;
use crate::stats::Stats;

/// Inflate, deflate, reporting.
const QUEUES: &[u16] = &[16, 16, 64];
const REPORTING_QUEUE: usize = 2;
const F_REPORTING: u64 = 1 << 5;

/// The device.
#[derive(Debug)]
pub struct Balloon {
    stats: Stats,
    chain: Chain,
}

impl Balloon {
    /// A device that counts in `stats`.
    pub fn new(stats: Stats) -> Balloon {
        Balloon { stats, chain: Chain::new() }
    }

    /// Gives every reported range back, those that touch as one.
    fn give_back(&mut self, ram: &Ram) {
        coalesce(self.chain.writable(), |range| {
            // What the host cannot take back stays with the guest: nothing is lost but the saving.
            let given = ram.give_back(range.0.at, range.1).unwrap_or(0);
            self.stats.add_reported(given);
        });
    }
}

/// Calls `each` with the start of every run of buffers that touch, and its length.
fn coalesce(buffers: Buffers<'_>, mut each: impl FnMut((Buffer, u64))) {
    let mut run: Option<(Buffer, u64)> = None;
    for buffer in buffers.iter() {
        run = match run {
            Some((first, bytes)) if first.at.0.checked_add(bytes) == Some(buffer.at.0) => {
                Some((first, bytes + u64::from(buffer.bytes)))
            }
            other => {
                other.into_iter().for_each(&mut each);
                Some((buffer, buffer.bytes.into()))
            }
        };
    }
    run.into_iter().for_each(&mut each);
}

impl Backend for Balloon {
    /// Bytes reported since the start.
    type State = u64;

    fn kind(&self) -> u32 {
        5
    }

    fn queues(&self) -> &'static [u16] {
        QUEUES
    }

    fn features(&self) -> u64 {
        F_REPORTING
    }

    /// No pages wanted, none given.
    fn config(&self, _offset: usize, _bytes: &mut [u8]) {}

    fn reset(&mut self) {}

    fn serve(&mut self, _event: Event, io: &mut Io<'_>) -> Result<(), Fault> {
        for index in 0..QUEUES.len() {
            loop {
                while io.queues[index].pop(io.ram, &mut self.chain)? {
                    if index == REPORTING_QUEUE {
                        self.give_back(io.ram);
                    }
                    io.queues[index].push(io.ram, &self.chain, 0)?;
                }
                if !io.queues[index].ask(io.ram)? {
                    break;
                }
            }
        }
        Ok(())
    }

    fn save(&self) -> u64 {
        self.stats.reported()
    }

    fn load(&mut self, reported: u64) {
        self.stats.set_reported(reported);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn ranges_that_touch_are_one() {
        let buffer = |at, bytes| Buffer { at: GuestAddress(at), bytes };
        let buffers = [buffer(0x1000, 0x1000), buffer(0x2000, 0x3000), buffer(0x6000, 0x1000), buffer(0x4000, 0x1000)];
        let mut runs = Vec::new();
        coalesce(Buffers::new(&buffers), |(first, bytes)| runs.push((first.at.0, bytes)));
        assert_eq!(runs, [(0x1000, 0x4000), (0x6000, 0x1000), (0x4000, 0x1000)]);
    }
}

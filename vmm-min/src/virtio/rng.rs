//! The entropy device: random bytes of the host's for whoever asks.
//!
//! Source: virtio 1.2, 5.4.

use super::queue::Chain;
use super::{Backend, Event, Fault, Io};
use crate::sys;

const QUEUE: &[u16] = &[16];
/// Most bytes for one request; a driver asks for 64 or so.
const MOST_BYTES: usize = 4096;

/// The device; it has no state.
#[derive(Debug, Default)]
pub struct Rng {
    chain: Chain,
}

impl Backend for Rng {
    type State = ();

    fn kind(&self) -> u32 {
        4
    }

    fn queues(&self) -> &'static [u16] {
        QUEUE
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self, _offset: usize, _bytes: &mut [u8]) {}

    fn reset(&mut self) {}

    fn serve(&mut self, _event: Event, io: &mut Io<'_>) -> Result<(), Fault> {
        loop {
            while io.queues[0].pop(io.ram, &mut self.chain)? {
                let target = self.chain.writable();
                let mut bytes = [0; MOST_BYTES];
                let wanted = usize::try_from(target.bytes()).unwrap_or(MOST_BYTES).min(MOST_BYTES);
                // Fewer than asked for are allowed, none is not wanted: the kernel's own generator does not fail.
                let count = sys::random(&mut bytes[..wanted]).unwrap_or(0);
                if !target.write(io.ram, 0, &bytes[..count]) {
                    return Err(Fault("entropy buffers change"));
                }
                io.queues[0].push(io.ram, &self.chain, u32::try_from(count).unwrap_or(0))?;
            }
            if !io.queues[0].ask(io.ram)? {
                return Ok(());
            }
        }
    }

    fn save(&self) {}

    fn load(&mut self, _state: ()) {}
}

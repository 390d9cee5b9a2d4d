//! virtio 1.2 devices over memory-mapped registers: one [`mmio::Mmio`] each, with a [`Backend`] behind it.
//!
//! A backend sees requests and guest RAM, both as arguments; it has neither an interrupt line nor a place in memory. It
//! works until there is nothing more to do now, which is bounded: the guest does not run meanwhile.

pub mod balloon;
pub mod blk;
pub mod device;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod vsock;

use queue::Queue;

use crate::ram::Ram;

/// The driver broke the rules of the specification: how. The device stops until the driver resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault(pub &'static str);

/// Why a backend is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The driver notified this queue.
    Queue(usize),
    /// The device came alive, or a signal came and any descriptor of the host's may be ready.
    Host,
}

/// What a backend works with.
pub struct Io<'a> {
    /// The device's queues, in the order of [`Backend::queues`].
    pub queues: &'a mut [Queue],
    /// Guest RAM.
    pub ram: &'a Ram,
    /// To be set when the device's configuration changed: the driver is told.
    pub config_changed: bool,
}

/// What makes a transport a device.
pub trait Backend {
    /// All that [`Backend::load`] needs to go on where [`Backend::save`] was, apart from files and sockets.
    type State: Clone + PartialEq + std::fmt::Debug;

    /// Device type (virtio 1.2, 5).
    fn kind(&self) -> u32;
    /// Most requests of each queue; powers of two, at most [`queue::MOST_BUFFERS`].
    fn queues(&self) -> &'static [u16];
    /// Feature bits of this type of device that are offered.
    fn features(&self) -> u64;
    /// Reads the device's configuration from `offset`. `bytes` comes zeroed, which is what lies beyond its end.
    fn config(&self, offset: usize, bytes: &mut [u8]);
    /// The driver writes to the configuration.
    fn set_config(&mut self, _offset: usize, _bytes: &[u8]) {}
    /// The driver is ready, and has accepted these of the offered features.
    fn activate(&mut self, _features: u64) {}
    /// The driver gave the device up, at any moment: back to the first state.
    fn reset(&mut self);
    /// Does all that can be done now. Only called for an active device.
    fn serve(&mut self, event: Event, io: &mut Io<'_>) -> Result<(), Fault>;
    /// A signal came: any descriptor of the host's may be ready again.
    fn woken(&mut self) {}
    /// The state as plain data.
    fn save(&self) -> Self::State;
    /// Takes a state back.
    fn load(&mut self, state: Self::State);
}

/// Copies the part of `config` that starts at `offset` to the start of `bytes`.
pub fn read_config(config: &[u8], offset: usize, bytes: &mut [u8]) {
    let rest = config.get(offset..).unwrap_or_default();
    let count = rest.len().min(bytes.len());
    bytes[..count].copy_from_slice(&rest[..count]);
}

//! Every kind of device behind one type, without dynamic dispatch.

use super::balloon::Balloon;
use super::blk::Blk;
use super::fs::Fs;
use super::net::{self, Net};
use super::rng::Rng;
use super::vsock::{self, Vsock};
use super::{Backend, Event, Fault, Io};

/// A device of any kind.
#[derive(Debug)]
pub enum Device {
    /// A disk.
    Blk(Blk),
    /// Free-page reporting.
    Balloon(Balloon),
    /// Entropy.
    Rng(Rng),
    /// A network interface.
    Net(Net),
    /// Streams.
    Vsock(Vsock),
    /// A directory.
    Fs(Fs),
}

/// The state of a device of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Of [`Blk`] and [`Rng`].
    None,
    /// Of [`Balloon`].
    Balloon(u64),
    /// Of [`Net`].
    Net(net::State),
    /// Of [`Vsock`].
    Vsock(vsock::State),
    /// Of [`Fs`].
    Fs(<Fs as Backend>::State),
}

impl Backend for Device {
    type State = State;

    fn kind(&self) -> u32 {
        match self {
            Device::Blk(blk) => blk.kind(),
            Device::Balloon(balloon) => balloon.kind(),
            Device::Rng(rng) => rng.kind(),
            Device::Net(net) => net.kind(),
            Device::Vsock(vsock) => vsock.kind(),
            Device::Fs(fs) => fs.kind(),
        }
    }

    fn queues(&self) -> &'static [u16] {
        match self {
            Device::Blk(blk) => blk.queues(),
            Device::Balloon(balloon) => balloon.queues(),
            Device::Rng(rng) => rng.queues(),
            Device::Net(net) => net.queues(),
            Device::Vsock(vsock) => vsock.queues(),
            Device::Fs(fs) => fs.queues(),
        }
    }

    fn features(&self) -> u64 {
        match self {
            Device::Blk(blk) => blk.features(),
            Device::Balloon(balloon) => balloon.features(),
            Device::Rng(rng) => rng.features(),
            Device::Net(net) => net.features(),
            Device::Vsock(vsock) => vsock.features(),
            Device::Fs(fs) => fs.features(),
        }
    }

    fn config(&self, offset: usize, bytes: &mut [u8]) {
        match self {
            Device::Blk(blk) => blk.config(offset, bytes),
            Device::Balloon(balloon) => balloon.config(offset, bytes),
            Device::Rng(rng) => rng.config(offset, bytes),
            Device::Net(net) => net.config(offset, bytes),
            Device::Vsock(vsock) => vsock.config(offset, bytes),
            Device::Fs(fs) => fs.config(offset, bytes),
        }
    }

    fn set_config(&mut self, offset: usize, bytes: &[u8]) {
        match self {
            Device::Blk(blk) => blk.set_config(offset, bytes),
            Device::Balloon(balloon) => balloon.set_config(offset, bytes),
            Device::Rng(rng) => rng.set_config(offset, bytes),
            Device::Net(net) => net.set_config(offset, bytes),
            Device::Vsock(vsock) => vsock.set_config(offset, bytes),
            Device::Fs(fs) => fs.set_config(offset, bytes),
        }
    }

    fn activate(&mut self, features: u64) {
        match self {
            Device::Blk(blk) => blk.activate(features),
            Device::Balloon(balloon) => balloon.activate(features),
            Device::Rng(rng) => rng.activate(features),
            Device::Net(net) => net.activate(features),
            Device::Vsock(vsock) => vsock.activate(features),
            Device::Fs(fs) => fs.activate(features),
        }
    }

    fn reset(&mut self) {
        match self {
            Device::Blk(blk) => blk.reset(),
            Device::Balloon(balloon) => balloon.reset(),
            Device::Rng(rng) => rng.reset(),
            Device::Net(net) => net.reset(),
            Device::Vsock(vsock) => vsock.reset(),
            Device::Fs(fs) => fs.reset(),
        }
    }

    fn serve(&mut self, event: Event, io: &mut Io<'_>) -> Result<(), Fault> {
        match self {
            Device::Blk(blk) => blk.serve(event, io),
            Device::Balloon(balloon) => balloon.serve(event, io),
            Device::Rng(rng) => rng.serve(event, io),
            Device::Net(net) => net.serve(event, io),
            Device::Vsock(vsock) => vsock.serve(event, io),
            Device::Fs(fs) => fs.serve(event, io),
        }
    }

    fn woken(&mut self) {
        match self {
            Device::Blk(blk) => blk.woken(),
            Device::Balloon(balloon) => balloon.woken(),
            Device::Rng(rng) => rng.woken(),
            Device::Net(net) => net.woken(),
            Device::Vsock(vsock) => vsock.woken(),
            Device::Fs(fs) => fs.woken(),
        }
    }

    fn save(&self) -> State {
        match self {
            Device::Blk(_) | Device::Rng(_) => State::None,
            Device::Balloon(balloon) => State::Balloon(balloon.save()),
            Device::Net(net) => State::Net(net.save()),
            Device::Vsock(vsock) => State::Vsock(vsock.save()),
            Device::Fs(fs) => State::Fs(fs.save()),
        }
    }

    fn load(&mut self, state: State) {
        match (self, state) {
            (Device::Balloon(balloon), State::Balloon(state)) => balloon.load(state),
            (Device::Net(net), State::Net(state)) => net.load(state),
            (Device::Vsock(vsock), State::Vsock(state)) => vsock.load(state),
            (Device::Fs(fs), State::Fs(state)) => fs.load(state),
            (Device::Blk(blk), State::None) => blk.load(()),
            (Device::Rng(rng), State::None) => rng.load(()),
            // Mmio::load has compared the kinds by their queues; a state of another kind changes nothing.
            _ => {}
        }
    }
}

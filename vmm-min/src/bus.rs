//! The devices together: each access goes to its register, and the host's descriptors follow.

use std::time::Instant;

use machinen_share::server::Refused;

use crate::arch::{self, End, Register, Registers, Step};
use crate::ctl::{Ctl, Refusal, Request};
use crate::device::console::{Console, Output};
use crate::device::uart::Uart;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::kick::{self, Kick};
use crate::ram::Ram;
use crate::sys::Ready;
use crate::terminal::Terminal;
use crate::trace::Trace;
use crate::virtio::Fault;
use crate::virtio::device::Device;
use crate::virtio::fs::Fs;
use crate::virtio::mmio::{Mmio, WINDOW_BYTES};

const SLEEP_ENABLE: u8 = 1 << 5;
const PULL_RESET: u8 = 0xfe;

/// All devices of one machine and their host side.
pub struct Bus {
    ram: Ram,
    uart: Uart,
    /// By slot: their windows lie one after the other from [`arch::VIRTIO_START`].
    devices: Vec<Mmio<Device>>,
    console: Console,
    kick: Kick,
    terminal: Option<Terminal>,
    ctl: Option<Ctl>,
    /// The first device is the root disk.
    has_root_disk: bool,
    end_at_first_byte: bool,
    trace: Trace,
    /// There was output.
    spoke: bool,
}

impl Bus {
    /// A UART on `console`, and virtio devices; signals come by `kick`. `terminal`: to be given back while the process is
    /// stopped.
    pub fn new(ram: Ram, devices: Vec<Device>, console: Console, kick: Kick, terminal: Option<Terminal>) -> Bus {
        let devices = devices.into_iter().map(Mmio::new).collect();
        let (uart, trace, ctl, has_root_disk) = (Uart::default(), Trace::default(), None, false);
        let (end_at_first_byte, spoke) = (false, false);
        Bus { ram, uart, devices, console, kick, terminal, ctl, has_root_disk, end_at_first_byte, trace, spoke }
    }

    /// Ends the machine at the first byte of output.
    pub fn end_at_first_byte(&mut self, on: bool) {
        self.end_at_first_byte = on;
    }

    /// Does what is asked for there; `has_root_disk`: the first device is that.
    pub fn control(&mut self, ctl: Option<Ctl>, has_root_disk: bool) {
        (self.ctl, self.has_root_disk) = (ctl, has_root_disk);
    }

    /// Marks the first byte of output and the end of the machine.
    pub fn trace(&mut self, trace: Trace) {
        self.trace = trace;
    }

    /// A device that the guest's driver has stopped by breaking the rules; once for each device.
    pub fn take_fault(&mut self) -> Option<Error> {
        self.devices.iter_mut().enumerate().find_map(|(slot, device)| {
            let Fault(what) = device.take_fault()?;
            let message = format!("virtio device {slot} stopped until the guest resets it: {what}");
            Some(Error::guest("GUEST_VIRTIO", message, "a defect or an attack of the guest's driver (virtio 1.2)"))
        })
    }

    /// Every interrupt line and its level.
    pub fn lines(&self) -> impl Iterator<Item = (usize, bool)> {
        let virtio = self.devices.iter().enumerate().map(|(slot, device)| (arch::virtio_irq(slot), device.irq()));
        std::iter::once((arch::UART_IRQ, self.uart.irq())).chain(virtio)
    }

    /// The device whose registers are at `address`, and the offset in its window.
    fn device(&mut self, address: u64) -> Option<(&mut Mmio<Device>, &Ram, u64)> {
        let offset = address.checked_sub(arch::VIRTIO_START)?;
        let slot = usize::try_from(offset / WINDOW_BYTES).ok()?;
        self.devices.get_mut(slot).map(|device| (device, &self.ram, offset % WINDOW_BYTES))
    }

    /// KVM_RUN was interrupted: takes the signals, after which every descriptor is worth a look.
    pub fn woken(&mut self) -> Result<Step> {
        let pending = self.kick.drain()?;
        self.console.woken();
        self.ctl.iter_mut().for_each(Ctl::woken);
        self.devices.iter_mut().for_each(Mmio::woken);
        if let Some(signal) = pending.end {
            return Ok(Step::End(End::Signal(signal)));
        }
        if let Some(terminal) = self.terminal.as_ref().filter(|_| pending.stop) {
            terminal.leave();
        }
        if pending.stop {
            kick::stop_self();
        }
        if let Some(terminal) = self.terminal.as_ref().filter(|_| pending.stop || pending.resumed) {
            terminal.enter()?;
        }
        Ok(Step::Continue)
    }

    /// Moves what can be moved between the devices and the host, without waiting.
    pub fn settle(&mut self) -> Result<Step> {
        for device in &mut self.devices {
            device.settle(&self.ram);
        }
        if let Some(ctl) = &mut self.ctl {
            ctl.serve(&mut |request| act(&mut self.devices, self.has_root_disk, request));
        }
        self.console.pump_input(&mut self.uart)?;
        self.send()
    }

    fn send(&mut self) -> Result<Step> {
        let waiting = !self.uart.transmitted().is_empty();
        match self.console.pump_output(&mut self.uart)? {
            Output::Closed => Ok(Step::End(End::OutputClosed)),
            Output::Open if waiting && !self.spoke && self.uart.transmitted().is_empty() => {
                self.spoke = true;
                self.trace.mark("first console byte");
                let end = End::FirstByte(Instant::now());
                Ok(if self.end_at_first_byte { Step::End(end) } else { Step::Continue })
            }
            Output::Open => Ok(Step::Continue),
        }
    }

    /// Waits until the host has taken enough of the output: all of it, or enough for one more byte.
    fn make_room(&mut self, all: bool) -> Result<Step> {
        loop {
            let step = self.send()?;
            let done = if all { self.uart.transmitted().is_empty() } else { !self.uart.transmit_full() };
            if done || step != Step::Continue {
                return Ok(step);
            }
            self.kick.wait(self.console.output_fd(), Ready::Write)?;
            let step = self.woken()?;
            if step != Step::Continue {
                return Ok(step);
            }
        }
    }

    /// Gives the host the rest of the output. A signal meanwhile is the end instead of `end`; when it is the end
    /// already, its sender does not wait for a reader that may have stopped.
    pub fn finish(&mut self, end: End) -> Result<End> {
        self.trace.mark("exit");
        let step = if let End::Signal(_) = end { self.send()? } else { self.make_room(true)? };
        match step {
            Step::End(End::Signal(signal)) => Ok(End::Signal(signal)),
            _ => Ok(end),
        }
    }
}

/// Does what was asked for on the control socket.
fn act(devices: &mut [Mmio<Device>], has_root_disk: bool, request: Request) -> std::result::Result<(), Refusal> {
    let failed = |cause| Refusal::new("CTL_WRITE", format!("write of the file: {cause}"));
    match request {
        Request::Share { tag, root, read_only } => share(devices, &tag)?.attach(root, read_only).map_err(refusal),
        Request::Unshare { tag } => share(devices, &tag)?.detach().map_err(refusal),
        Request::Layer { file } => {
            let root = disk(devices, 0).filter(|_| has_root_disk);
            match root.map(|root| root.save(&file.into())).transpose().map_err(failed)? {
                Some(true) => Ok(()),
                Some(false) | None => {
                    Err(Refusal::new("CTL_NO_LAYER", "the machine has no root disk whose image stays as it is"))
                }
            }
        }
        Request::Disk { number, file } => match disk(devices, number) {
            Some(disk) => disk.flatten(&file.into()).map_err(failed),
            None => Err(Refusal::new("CTL_NO_DISK", format!("the machine has no disk {number}"))),
        },
    }
}

fn share<'a>(devices: &'a mut [Mmio<Device>], tag: &str) -> std::result::Result<&'a mut Fs, Refusal> {
    let found = devices.iter_mut().find_map(|device| match device.backend_mut() {
        Device::Fs(fs) if fs.tag() == tag => Some(fs),
        _ => None,
    });
    found.ok_or_else(|| Refusal::new("CTL_NO_SHARE", format!("the machine has no share {tag}")))
}

fn refusal(refused: Refused) -> Refusal {
    match refused {
        Refused::Busy => Refusal::new("CTL_SHARE_BUSY", "the guest has it mounted"),
        Refused::Host(errno) => Refusal::new("CTL_SHARE_UNREADABLE", std::io::Error::from(errno).to_string()),
    }
}

/// Disks are the first of all devices, the root disk before the others.
fn disk(devices: &[Mmio<Device>], number: usize) -> Option<&Disk> {
    match devices.get(number).map(Mmio::backend) {
        Some(Device::Blk(blk)) => Some(blk.disk()),
        _ => None,
    }
}

impl Registers for Bus {
    fn read(&mut self, register: Register) -> u8 {
        match register {
            Register::Uart(offset) => self.uart.read(offset),
            _ => 0xff,
        }
    }

    fn write(&mut self, register: Register, value: u8) -> Result<Step> {
        match register {
            Register::Uart(offset) => {
                self.uart.write(offset, value);
                // Only a guest that does not ask for room fills the FIFO: it waits, and nothing is lost.
                if self.uart.transmit_full() { self.make_room(false) } else { Ok(Step::Continue) }
            }
            Register::Exit => Ok(Step::End(End::Code(value))),
            Register::Reset if value == PULL_RESET => Ok(Step::End(End::Reset)),
            Register::Power if value & SLEEP_ENABLE != 0 => Ok(Step::End(End::PowerOff)),
            Register::Reset | Register::Power | Register::None => Ok(Step::Continue),
        }
    }

    fn read_memory(&mut self, address: u64, bytes: &mut [u8]) {
        if let Some((device, _, offset)) = self.device(address) {
            device.read(offset, bytes);
        }
    }

    fn write_memory(&mut self, address: u64, bytes: &[u8]) {
        if let Some((device, ram, offset)) = self.device(address) {
            device.write(ram, offset, bytes);
        }
    }
}

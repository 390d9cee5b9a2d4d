//! The memory-mapped transport: registers, feature negotiation, reset, interrupts. Modern only.
//!
//! Source: virtio 1.2, 4.2 (registers) and 2.1 (device status).

use bitflags::bitflags;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::queue::Queue;
use super::{Backend, Event, Fault, Io};
use crate::ram::Ram;

/// Bytes of the register window of a device.
pub const WINDOW_BYTES: u64 = 0x1000;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"mchn");
const CONFIG: u64 = 0x100;
/// Feature bits of every device.
const COMMON_FEATURES: u64 =
    (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC);

bitflags! {
    /// Device status.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u32 {
        /// The guest has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is set up.
        const DRIVER_OK = 4;
        /// Features are agreed on.
        const FEATURES_OK = 8;
        /// The device met an error that only a reset mends.
        const NEEDS_RESET = 64;
        /// The guest gave up.
        const FAILED = 128;
    }

    /// Why the interrupt line is high.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Interrupt: u32 {
        /// Buffers were used.
        const USED = 1;
        /// The configuration changed, or the device needs a reset.
        const CONFIG = 2;
    }
}

/// The registers, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    status: Status,
    interrupt: Interrupt,
    /// The line falls for a moment although a cause is left: an edge-triggered controller must see the next one.
    dropped: bool,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    queue: u32,
    /// What the driver writes about each queue before it is ready.
    setup: Vec<QueueState>,
    config_generation: u32,
}

/// A whole device, as plain data.
#[derive(Clone, Debug, PartialEq)]
pub struct State<B> {
    registers: Registers,
    queues: Vec<QueueState>,
    backend: B,
}

/// A device on the bus.
pub struct Mmio<B> {
    registers: Registers,
    queues: Vec<Queue>,
    backend: B,
    /// Any descriptor of the host's may be ready.
    woken: bool,
    /// What stopped the device first.
    fault: Option<Fault>,
    /// Somebody has been told of it. Later ones are not worth a word: a guest could make any number of them.
    fault_taken: bool,
}

impl<B: Backend> Mmio<B> {
    /// The device after power-on.
    pub fn new(backend: B) -> Mmio<B> {
        let queues: Vec<Queue> = backend.queues().iter().map(|most| Queue::new(*most)).collect();
        Mmio { registers: Registers::new(&queues), queues, backend, woken: true, fault: None, fault_taken: false }
    }

    /// Level of the interrupt line.
    pub fn irq(&self) -> bool {
        !self.registers.interrupt.is_empty() && !self.registers.dropped
    }

    /// The device behind the registers.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The same, to be changed by the host.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// What the driver did wrong first; only told once.
    pub fn take_fault(&mut self) -> Option<Fault> {
        let fault = self.fault.filter(|_| !self.fault_taken);
        self.fault_taken |= fault.is_some();
        fault
    }

    /// The guest reads `bytes.len()` bytes at `offset` of the window.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        bytes.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.backend.config(usize::try_from(offset).unwrap_or(usize::MAX), bytes);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(bytes) {
            *word = self.register(offset).to_le_bytes();
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let registers = &self.registers;
        let setup = registers.setup.get(registers.queue as usize);
        match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => self.backend.kind(),
            0x00c => VENDOR,
            0x010 => page(self.features(), registers.device_features_page),
            0x034 => setup.map_or(0, |setup| setup.max_size.into()),
            0x044 => setup.is_some_and(|setup| setup.ready).into(),
            0x060 => registers.interrupt.bits(),
            0x070 => registers.status.bits(),
            // No shared memory: a length of all ones.
            0x0b0..=0x0bc => u32::MAX,
            0x0fc => registers.config_generation,
            _ => 0,
        }
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES | self.backend.features()
    }

    /// The guest writes `bytes` at `offset` of the window.
    pub fn write(&mut self, ram: &Ram, offset: u64, bytes: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.backend.set_config(usize::try_from(offset).unwrap_or(usize::MAX), bytes);
        } else if let Ok(word) = <[u8; 4]>::try_from(bytes)
            && let Err(fault) = self.set_register(ram, offset, u32::from_le_bytes(word))
        {
            self.stop(fault);
        }
    }

    fn set_register(&mut self, ram: &Ram, offset: u64, value: u32) -> Result<(), Fault> {
        let registers = &mut self.registers;
        match offset {
            0x014 => registers.device_features_page = value,
            0x020 if !registers.status.contains(Status::FEATURES_OK) => match registers.driver_features_page {
                0 => registers.driver_features = (registers.driver_features >> 32 << 32) | u64::from(value),
                1 => registers.driver_features = (registers.driver_features & 0xffff_ffff) | (u64::from(value) << 32),
                _ => {}
            },
            0x024 => registers.driver_features_page = value,
            0x030 => registers.queue = value,
            0x050 => return self.serve(ram, Event::Queue(value as usize)),
            0x064 => {
                registers.interrupt &= !Interrupt::from_bits_truncate(value);
                registers.dropped = true;
            }
            0x070 => return self.set_status(ram, value),
            0x044 => return self.set_ready(ram, value == 1),
            _ => registers.set_up_queue(offset, value),
        }
        Ok(())
    }

    fn set_status(&mut self, ram: &Ram, value: u32) -> Result<(), Fault> {
        if value == 0 {
            self.reset();
            return Ok(());
        }
        let (before, offered) = (self.registers.status, self.features());
        // A driver only ever adds bits; NEEDS_RESET is the device's own.
        let mut status = before | (Status::from_bits_truncate(value) - Status::NEEDS_RESET);
        let features = self.registers.driver_features;
        let agreed = features & !offered == 0 && features & (1 << VIRTIO_F_VERSION_1) != 0;
        if !before.contains(Status::FEATURES_OK) && !agreed {
            status -= Status::FEATURES_OK;
        }
        if !status.contains(Status::FEATURES_OK) {
            status -= Status::DRIVER_OK;
        }
        self.registers.status = status;
        if status.contains(Status::DRIVER_OK) && !before.contains(Status::DRIVER_OK) {
            self.backend.activate(features);
            return self.serve(ram, Event::Host);
        }
        Ok(())
    }

    /// A queue is set up, or given up.
    fn set_ready(&mut self, ram: &Ram, ready: bool) -> Result<(), Fault> {
        let index = self.registers.queue as usize;
        let (Some(setup), Some(queue)) = (self.registers.setup.get_mut(index), self.queues.get_mut(index)) else {
            return Ok(());
        };
        if setup.ready == ready {
            return Ok(());
        }
        let event_idx_enabled = self.registers.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        queue.load(ram, QueueState { ready, event_idx_enabled, ..*setup })?;
        setup.ready = ready;
        // What it was notified of before counts.
        if ready { self.serve(ram, Event::Queue(index)) } else { Ok(()) }
    }

    fn reset(&mut self) {
        self.backend.reset();
        self.queues = self.backend.queues().iter().map(|most| Queue::new(*most)).collect();
        self.registers =
            Registers { config_generation: self.registers.config_generation, ..Registers::new(&self.queues) };
        self.woken = true;
    }

    /// A signal came: any descriptor of the host's may be ready.
    pub fn woken(&mut self) {
        self.woken = true;
        self.backend.woken();
    }

    /// Looks at the host's side, if a signal came since. To be called after every access of the guest's.
    pub fn settle(&mut self, ram: &Ram) {
        self.registers.dropped = false;
        if std::mem::take(&mut self.woken)
            && let Err(fault) = self.serve(ram, Event::Host)
        {
            self.stop(fault);
        }
    }

    fn serve(&mut self, ram: &Ram, event: Event) -> Result<(), Fault> {
        let status = self.registers.status;
        if !status.contains(Status::DRIVER_OK) || status.contains(Status::NEEDS_RESET) {
            return Ok(());
        }
        let mut io = Io { queues: &mut self.queues, ram, config_changed: false };
        let served = self.backend.serve(event, &mut io);
        if io.config_changed {
            self.registers.config_generation = self.registers.config_generation.wrapping_add(1);
            self.registers.interrupt |= Interrupt::CONFIG;
        }
        for queue in &mut self.queues {
            if queue.take_interrupt(ram)? {
                self.registers.interrupt |= Interrupt::USED;
            }
        }
        served
    }

    /// The driver broke the rules: the device does nothing more until it is reset.
    fn stop(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        self.registers.status |= Status::NEEDS_RESET;
        if self.registers.status.contains(Status::DRIVER_OK) {
            self.registers.interrupt |= Interrupt::CONFIG;
        }
    }

    /// The whole device as plain data.
    pub fn save(&self) -> State<B::State> {
        State {
            registers: self.registers.clone(),
            queues: self.queues.iter().map(Queue::save).collect(),
            backend: self.backend.save(),
        }
    }

    /// Takes a state back, into a device with the same backend.
    ///
    /// Errors: a state of another kind of device, or queues that are not in this RAM; the device is as it was.
    pub fn load(&mut self, ram: &Ram, state: State<B::State>) -> Result<(), Fault> {
        let mut queues: Vec<Queue> = self.backend.queues().iter().map(|most| Queue::new(*most)).collect();
        if state.queues.len() != queues.len() || state.registers.setup.len() != queues.len() {
            return Err(Fault("state of another device"));
        }
        for (queue, state) in queues.iter_mut().zip(&state.queues) {
            queue.load(ram, *state)?;
        }
        self.queues = queues;
        self.registers = state.registers;
        self.backend.load(state.backend);
        self.woken = true;
        Ok(())
    }
}

impl Registers {
    fn new(queues: &[Queue]) -> Registers {
        Registers {
            status: Status::empty(),
            interrupt: Interrupt::empty(),
            dropped: false,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            queue: 0,
            setup: queues.iter().map(Queue::save).collect(),
            config_generation: 0,
        }
    }

    /// A queue's registers; they are fixed while it is ready.
    fn set_up_queue(&mut self, offset: u64, value: u32) {
        let Some(setup) = self.setup.get_mut(self.queue as usize).filter(|setup| !setup.ready) else { return };
        match offset {
            // What does not fit is no size that set_ready() takes.
            0x038 => setup.size = u16::try_from(value).unwrap_or(0),
            0x080 => set_low(&mut setup.desc_table, value),
            0x084 => set_high(&mut setup.desc_table, value),
            0x090 => set_low(&mut setup.avail_ring, value),
            0x094 => set_high(&mut setup.avail_ring, value),
            0x0a0 => set_low(&mut setup.used_ring, value),
            0x0a4 => set_high(&mut setup.used_ring, value),
            _ => {}
        }
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = (*address >> 32 << 32) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = (*address & 0xffff_ffff) | (u64::from(value) << 32);
}

/// 32 feature bits.
fn page(features: u64, number: u32) -> u32 {
    match number {
        0 => (features & 0xffff_ffff) as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

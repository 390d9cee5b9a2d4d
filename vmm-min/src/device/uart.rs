//! The 16550A UART as registers: no descriptors, no interrupt controller.
//!
//! Source: National Semiconductor PC16550D data sheet. Two deviations, both invisible to a driver: the
//! receive queue is deeper than 16 bytes, and a byte is on the wire as soon as the host took it.

use std::collections::VecDeque;

use bitflags::bitflags;

/// Bytes that may wait for the guest. Linux reads at most 256 per interrupt.
const RECEIVE_ROOM: usize = 256;
/// Transmit FIFO of the 16550A, in bytes.
const TRANSMIT_ROOM: usize = 16;

bitflags! {
    /// Interrupt enable register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Ier: u8 {
        const RECEIVED = 0x01;
        const TRANSMIT_EMPTY = 0x02;
        const LINE_STATUS = 0x04;
        const MODEM_STATUS = 0x08;
    }

    /// Modem control register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Mcr: u8 {
        const DTR = 0x01;
        const RTS = 0x02;
        const OUT1 = 0x04;
        const OUT2 = 0x08;
        const LOOP = 0x10;
    }
}

const LSR_DATA_READY: u8 = 0x01;
const LSR_BREAK: u8 = 0x10;
const LSR_THR_EMPTY: u8 = 0x20;
const LSR_IDLE: u8 = 0x40;
const LSR_ERRORS: u8 = 0x1e;

const LCR_DLAB: u8 = 0x80;
const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RECEIVE: u8 = 0x02;
const FCR_CLEAR_TRANSMIT: u8 = 0x04;
/// Carrier, data set ready and clear to send: the host's end is always there.
const MSR_CONNECTED: u8 = 0xb0;

const IIR_NONE: u8 = 0x01;
const IIR_TRANSMIT_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_FIFOS: u8 = 0xc0;

/// What arrives at the guest's end of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A byte.
    Byte(u8),
    /// A break condition.
    Break,
}

impl Received {
    fn byte(self) -> u8 {
        match self {
            Received::Byte(byte) => byte,
            Received::Break => 0,
        }
    }

    fn line_status(self) -> u8 {
        match self {
            Received::Byte(_) => 0,
            Received::Break => LSR_BREAK,
        }
    }
}

/// All of the UART's state, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    ier: Ier,
    fcr: u8,
    lcr: u8,
    mcr: Mcr,
    scratch: u8,
    divisor: [u8; 2],
    /// The transmit-empty interrupt is due: set when the FIFO runs empty, cleared by reading IIR.
    transmit_empty_due: bool,
    /// The guest has seen the receive queue empty and not read since. Only then is it filled: the interrupt line must
    /// fall between two batches, or an edge-triggered controller never tells of the second (Linux' handler gives up
    /// after 512 rounds with the line still high).
    seen_empty: bool,
    /// OUT1 rose since [`Uart::take_request`].
    requested: bool,
    received: VecDeque<Received>,
    transmit: VecDeque<u8>,
}

impl Default for Uart {
    fn default() -> Uart {
        Uart {
            ier: Ier::empty(),
            fcr: 0,
            lcr: 0x03,
            mcr: Mcr::empty(),
            scratch: 0,
            divisor: [1, 0],
            transmit_empty_due: false,
            seen_empty: true,
            requested: false,
            received: VecDeque::new(),
            transmit: VecDeque::new(),
        }
    }
}

impl Uart {
    /// The whole state; [`Uart::load`] takes it back.
    pub fn save(&self) -> Uart {
        self.clone()
    }

    /// A UART in the given state.
    pub fn load(state: Uart) -> Uart {
        state
    }

    /// Level of the interrupt line.
    pub fn irq(&self) -> bool {
        self.interrupt() != IIR_NONE
    }

    /// How many bytes the guest would take now: none while it does not assert RTS or is still reading.
    pub fn receive_room(&self) -> usize {
        if self.ready_to_receive() && self.seen_empty { RECEIVE_ROOM.saturating_sub(self.received.len()) } else { 0 }
    }

    /// The guest raised OUT1 since the last call: /init asks for input that way.
    pub fn take_request(&mut self) -> bool {
        std::mem::take(&mut self.requested)
    }

    /// Puts one item on the line to the guest.
    pub fn receive(&mut self, item: Received) {
        self.received.push_back(item);
    }

    /// Bytes that the guest sent and the host has not taken, oldest first.
    pub fn transmitted(&self) -> &VecDeque<u8> {
        &self.transmit
    }

    /// The host took the oldest `count` bytes.
    pub fn take_transmitted(&mut self, count: usize) {
        self.transmit.drain(..count.min(self.transmit.len()));
        self.transmit_empty_due |= self.transmit.is_empty();
    }

    /// The transmit FIFO is full: one more byte would be lost.
    pub fn transmit_full(&self) -> bool {
        self.transmit.len() >= TRANSMIT_ROOM
    }

    /// Reads the register at `offset` (0–7).
    pub fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 | 1 if self.lcr & LCR_DLAB != 0 => self.divisor[usize::from(offset)],
            0 => {
                self.seen_empty = false;
                self.received.pop_front().map_or(0, Received::byte)
            }
            1 => self.ier.bits(),
            2 => {
                let interrupt = self.interrupt();
                self.seen_empty |= self.received.is_empty();
                if interrupt == IIR_TRANSMIT_EMPTY {
                    self.transmit_empty_due = false;
                }
                let fifos = if self.fcr & FCR_ENABLE != 0 { IIR_FIFOS } else { 0 };
                interrupt | fifos
            }
            3 => self.lcr,
            4 => self.mcr.bits(),
            5 => {
                self.seen_empty |= self.received.is_empty();
                self.line_status()
            }
            6 => self.modem_status(),
            _ => self.scratch,
        }
    }

    /// Writes the register at `offset` (0–7).
    pub fn write(&mut self, offset: u16, value: u8) {
        match offset {
            0 | 1 if self.lcr & LCR_DLAB != 0 => self.divisor[usize::from(offset)] = value,
            0 if self.mcr.contains(Mcr::LOOP) => {
                if self.received.len() < RECEIVE_ROOM {
                    self.received.push_back(Received::Byte(value));
                }
                self.transmit_empty_due = true;
            }
            0 => {
                self.transmit_empty_due = false;
                self.transmit.push_back(value);
            }
            1 => {
                let enabled = Ier::from_bits_truncate(value);
                let newly = enabled.contains(Ier::TRANSMIT_EMPTY) && !self.ier.contains(Ier::TRANSMIT_EMPTY);
                self.transmit_empty_due |= newly && self.transmit.is_empty();
                self.ier = enabled;
            }
            2 => {
                self.fcr = value;
                if value & FCR_CLEAR_RECEIVE != 0 {
                    self.received.clear();
                    self.seen_empty = true;
                }
                // What was sent is on its way to the host and stays there.
                if value & FCR_CLEAR_TRANSMIT != 0 && self.transmit.is_empty() {
                    self.transmit_empty_due = true;
                }
            }
            3 => self.lcr = value,
            4 => {
                let new = Mcr::from_bits_truncate(value);
                let rises = new.contains(Mcr::OUT1) && !self.mcr.contains(Mcr::OUT1);
                self.requested |= rises && !new.contains(Mcr::LOOP);
                self.mcr = new;
            }
            5 | 6 => {}
            _ => self.scratch = value,
        }
    }

    fn ready_to_receive(&self) -> bool {
        self.mcr.contains(Mcr::RTS) && !self.mcr.contains(Mcr::LOOP)
    }

    fn interrupt(&self) -> u8 {
        let errors = self.received.front().is_some_and(|item| item.line_status() != 0);
        if self.ier.contains(Ier::LINE_STATUS) && errors {
            IIR_LINE_STATUS
        } else if self.ier.contains(Ier::RECEIVED) && !self.received.is_empty() {
            IIR_RECEIVED
        } else if self.ier.contains(Ier::TRANSMIT_EMPTY) && self.transmit_empty_due {
            IIR_TRANSMIT_EMPTY
        } else {
            IIR_NONE
        }
    }

    fn line_status(&self) -> u8 {
        let received = self.received.front().map_or(0, |item| LSR_DATA_READY | (item.line_status() & LSR_ERRORS));
        let sent = if self.transmit.is_empty() { LSR_THR_EMPTY | LSR_IDLE } else { 0 };
        received | sent
    }

    fn modem_status(&self) -> u8 {
        if !self.mcr.contains(Mcr::LOOP) {
            return MSR_CONNECTED;
        }
        // Loopback wires RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        [(Mcr::RTS, 0x10), (Mcr::DTR, 0x20), (Mcr::OUT1, 0x40), (Mcr::OUT2, 0x80)]
            .iter()
            .filter(|(output, _)| self.mcr.contains(*output))
            .fold(0, |status, (_, input)| status | input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Uart {
        let mut uart = Uart::default();
        uart.write(4, (Mcr::DTR | Mcr::RTS | Mcr::OUT2).bits());
        uart
    }

    #[test]
    fn sent_bytes_wait_for_the_host() {
        let mut uart = open();
        uart.write(0, b'a');
        assert_eq!(uart.read(5) & LSR_THR_EMPTY, 0);
        assert_eq!(uart.transmitted(), b"a");
        uart.take_transmitted(1);
        assert_eq!(uart.read(5) & (LSR_THR_EMPTY | LSR_IDLE), LSR_THR_EMPTY | LSR_IDLE);
    }

    #[test]
    fn transmit_interrupt_comes_when_enabled_and_when_drained() {
        let mut uart = open();
        assert!(!uart.irq());
        uart.write(1, Ier::TRANSMIT_EMPTY.bits());
        assert!(uart.irq());
        assert_eq!(uart.read(2), IIR_TRANSMIT_EMPTY);
        assert!(!uart.irq(), "reading IIR acknowledges");
        uart.write(0, b'a');
        assert!(!uart.irq());
        uart.take_transmitted(1);
        assert!(uart.irq());
    }

    #[test]
    fn receive_interrupt_is_a_level() {
        let mut uart = open();
        uart.write(1, Ier::RECEIVED.bits());
        uart.receive(Received::Byte(1));
        uart.receive(Received::Byte(2));
        assert_eq!(uart.read(2), IIR_RECEIVED);
        assert_eq!(uart.read(0), 1);
        assert!(uart.irq());
        assert_eq!(uart.read(0), 2);
        assert!(!uart.irq());
    }

    #[test]
    fn a_break_is_seen_in_line_status_with_its_byte() {
        let mut uart = open();
        uart.write(1, (Ier::RECEIVED | Ier::LINE_STATUS).bits());
        uart.receive(Received::Break);
        uart.receive(Received::Byte(7));
        assert_eq!(uart.read(2), IIR_LINE_STATUS);
        assert_eq!(uart.read(5) & (LSR_DATA_READY | LSR_ERRORS), LSR_DATA_READY | LSR_BREAK);
        assert_eq!(uart.read(0), 0);
        assert_eq!(uart.read(5) & (LSR_DATA_READY | LSR_ERRORS), LSR_DATA_READY);
        assert_eq!(uart.read(0), 7);
    }

    #[test]
    fn nothing_is_taken_before_rts_nor_in_loopback() {
        let mut uart = Uart::default();
        assert_eq!(uart.receive_room(), 0);
        uart.write(4, Mcr::RTS.bits());
        assert_eq!(uart.receive_room(), RECEIVE_ROOM);
        uart.write(4, (Mcr::RTS | Mcr::LOOP).bits());
        assert_eq!(uart.receive_room(), 0);
    }

    #[test]
    fn a_batch_is_read_to_its_end_before_the_next() {
        let mut uart = open();
        for byte in 0..RECEIVE_ROOM {
            uart.receive(Received::Byte(byte.to_le_bytes()[0]));
        }
        assert_eq!(uart.receive_room(), 0);
        uart.write(1, Ier::RECEIVED.bits());
        for _ in 0..RECEIVE_ROOM {
            assert!(uart.irq());
            assert_eq!(uart.receive_room(), 0);
            uart.read(0);
        }
        assert!(!uart.irq(), "the line falls before anything can follow");
        assert_eq!(uart.receive_room(), 0);
        uart.read(5);
        assert_eq!(uart.receive_room(), RECEIVE_ROOM);
    }

    #[test]
    fn a_rise_of_out1_is_one_request() {
        let mut uart = open();
        assert!(!uart.take_request());
        uart.write(4, (Mcr::RTS | Mcr::OUT1).bits());
        uart.write(4, (Mcr::RTS | Mcr::OUT1).bits());
        assert!(uart.take_request());
        assert!(!uart.take_request());
        uart.write(4, (Mcr::LOOP | Mcr::RTS).bits());
        uart.write(4, (Mcr::LOOP | Mcr::OUT1).bits());
        assert!(!uart.take_request(), "a probe in loopback is none");
    }

    #[test]
    fn loopback_returns_the_modem_outputs_as_linux_probes_them() {
        let mut uart = Uart::default();
        uart.write(4, (Mcr::LOOP | Mcr::RTS | Mcr::OUT2).bits());
        assert_eq!(uart.read(6) & 0xf0, 0x90);
    }

    #[test]
    fn every_register_survives_any_access() {
        let mut uart = Uart::default();
        for value in 0..=255u8 {
            for offset in 0..8 {
                uart.write(offset, value);
                uart.read(offset);
            }
        }
        assert!(uart.transmitted().len() <= 256);
    }

    #[test]
    fn state_goes_out_and_back_mid_traffic() {
        let mut uart = open();
        uart.write(1, 0x07);
        uart.write(0, b'x');
        uart.receive(Received::Break);
        let copy = Uart::load(uart.save());
        assert_eq!(copy, uart);
        assert_eq!(copy.irq(), uart.irq());
    }
}

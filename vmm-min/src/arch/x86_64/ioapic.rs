//! The I/O APIC: 24 lines in, messages to the local APIC out.
//!
//! Source: Intel 82093AA data sheet. Every line that our tables describe is edge-triggered, so the remote IRR and
//! the end-of-interrupt broadcast do not exist here; an entry that a guest declares as level-triggered sends one
//! message for each rising edge. Unlike the data sheet, a line that is high when its entry is unmasked sends its
//! message then, so no edge is lost.

use kvm_bindings::kvm_msi;

/// Number of lines.
pub const PINS: usize = 24;

const MASKED: u64 = 1 << 16;
/// Version 0x11, and the number of the last entry.
const VERSION: u32 = 0x11 | (23 << 16);
const LOCAL_APIC: u32 = 0xfee0_0000;
/// Bits of a redirection entry that the guest may write: all but delivery status and remote IRR.
const WRITABLE: u64 = !((1 << 12) | (1 << 14));

/// The whole state, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoApic {
    id: u32,
    selected: u8,
    entries: [u64; PINS],
    levels: [bool; PINS],
}

impl Default for IoApic {
    fn default() -> IoApic {
        IoApic { id: 0, selected: 0, entries: [MASKED; PINS], levels: [false; PINS] }
    }
}

impl IoApic {
    /// Line `pin` is now at `level`. Returns the message to send, if this is an edge that the guest wants.
    pub fn set_line(&mut self, pin: usize, level: bool) -> Option<kvm_msi> {
        let rising = level && !self.levels[pin];
        self.levels[pin] = level;
        if rising { self.message(pin) } else { None }
    }

    /// Reads the 32-bit register at `offset` of the memory window.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => self.selected.into(),
            0x10 => match self.selected {
                0x00 | 0x02 => self.id,
                0x01 => VERSION,
                _ => match self.entry() {
                    Some((pin, true)) => (self.entries[pin] >> 32) as u32,
                    Some((pin, false)) => (self.entries[pin] & 0xffff_ffff) as u32,
                    None => 0,
                },
            },
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset`. Returns the message to send, if the write unmasked a high line.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<kvm_msi> {
        match (offset, self.selected) {
            (0x00, _) => {
                self.selected = value.to_le_bytes()[0];
                None
            }
            (0x10, 0x00) => {
                self.id = value & 0x0f00_0000;
                None
            }
            (0x10, _) => {
                let (pin, high) = self.entry()?;
                let old = self.entries[pin];
                let new = if high {
                    (old & 0xffff_ffff) | (u64::from(value) << 32)
                } else {
                    (old & !0xffff_ffff) | u64::from(value)
                };
                self.entries[pin] = new & WRITABLE;
                let unmasked = old & MASKED != 0 && new & MASKED == 0;
                if unmasked && self.levels[pin] { self.message(pin) } else { None }
            }
            _ => None,
        }
    }

    /// Which half of which entry is selected: pin, and whether it is the high half.
    fn entry(&self) -> Option<(usize, bool)> {
        let index = usize::from(self.selected).checked_sub(0x10)?;
        (index / 2 < PINS).then_some((index / 2, index % 2 == 1))
    }

    fn message(&self, pin: usize) -> Option<kvm_msi> {
        let entry = self.entries[pin];
        if entry & MASKED != 0 {
            return None;
        }
        let low = (entry & 0xffff_ffff) as u32;
        let destination = (entry >> 56) as u32;
        let logical = (low >> 11) & 1;
        Some(kvm_msi {
            address_lo: LOCAL_APIC | (destination << 12) | (logical << 2),
            // Vector and delivery mode lie in the same bits of an entry and of a message.
            data: low & 0x7ff,
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_entry(ioapic: &mut IoApic, pin: u32, entry: u64) -> Option<kvm_msi> {
        ioapic.write(0x00, 0x11 + 2 * pin);
        let first = ioapic.write(0x10, (entry >> 32) as u32);
        ioapic.write(0x00, 0x10 + 2 * pin);
        first.or(ioapic.write(0x10, (entry & 0xffff_ffff) as u32))
    }

    #[test]
    fn an_edge_becomes_the_message_of_its_entry() {
        let mut ioapic = IoApic::default();
        set_entry(&mut ioapic, 4, (3 << 56) | 0x0800 | 0x24);
        let message = ioapic.set_line(4, true).expect("unmasked");
        assert_eq!((message.address_lo, message.address_hi, message.data), (0xfee0_3004, 0, 0x24));
        assert!(ioapic.set_line(4, true).is_none(), "no edge, no message");
        assert!(ioapic.set_line(4, false).is_none());
        assert!(ioapic.set_line(4, true).is_some());
    }

    #[test]
    fn a_masked_edge_is_delivered_when_unmasked() {
        let mut ioapic = IoApic::default();
        assert!(ioapic.set_line(4, true).is_none());
        assert!(set_entry(&mut ioapic, 4, 0x24).is_some());
        assert!(set_entry(&mut ioapic, 4, 0x24).is_none(), "not twice");
    }

    #[test]
    fn version_and_entries_read_back() {
        let mut ioapic = IoApic::default();
        ioapic.write(0x00, 0x01);
        assert_eq!(ioapic.read(0x10), 0x0017_0011);
        set_entry(&mut ioapic, 23, 0xff00_0000_0001_00ff);
        assert_eq!(ioapic.read(0x10), 0x0001_00ff);
        ioapic.write(0x00, 0x3f);
        assert_eq!(ioapic.read(0x10), 0xff00_0000);
    }

    #[test]
    fn registers_that_do_not_exist_are_harmless() {
        let mut ioapic = IoApic::default();
        for selected in 0..=255 {
            for offset in [0x10, 0x20, 0x40, 0xffc] {
                ioapic.write(0x00, selected);
                ioapic.read(offset);
                ioapic.write(offset, 0xffff_ffff);
            }
        }
    }
}

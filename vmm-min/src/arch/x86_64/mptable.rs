//! The MP configuration table: where the I/O APIC is, for a kernel without ACPI. Pure function to bytes.
//!
//! Source: Intel MultiProcessor Specification 1.4, chapter 4. Every line of the I/O APIC is described as an ISA
//! interrupt of its own number, edge-triggered and active high; a kernel that has ACPI reads the MADT instead.

use super::ioapic::PINS;
use super::layout::{IOAPIC_START, LOCAL_APIC_START};

/// "PCMP", length, revision, checksum, OEM and product, OEM table, number of entries, local APIC, extension.
const HEADER_BYTES: usize = 44;
const POINTER_BYTES: usize = 16;
/// Revision 1.4.
const REVISION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const BOOT_PROCESSOR_ENABLED: u8 = 0b11;
/// Its own number in the space that it shares with local APICs; the processor's is 0.
const IOAPIC_ID: u8 = 1;
const ISA_BUS: u8 = 0;
/// Types of entries.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const INTERRUPT: u8 = 3;
/// A vectored interrupt, with the polarity and trigger mode of its bus.
const VECTORED: [u8; 3] = [0, 0, 0];

/// The floating pointer and the table after it, as they lie in memory from `start`, which is a multiple of 16 between
/// 0xf0000 and 1 MiB.
pub fn table(start: u32) -> Vec<u8> {
    let mut table = vec![0; HEADER_BYTES];
    let mut count: u16 = 0;
    let mut entry = |bytes: &[u8]| {
        table.extend_from_slice(bytes);
        count += 1;
    };
    let mut processor = [0; 20];
    processor[..4].copy_from_slice(&[PROCESSOR, 0, LOCAL_APIC_VERSION, BOOT_PROCESSOR_ENABLED]);
    entry(&processor);
    entry(&[BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = low(IOAPIC_START).to_le_bytes();
    entry(&[IOAPIC, IOAPIC_ID, IOAPIC_VERSION, 1, a, b, c, d]);
    for (line, _) in (0..).zip(0..PINS) {
        let [kind, polarity, trigger] = VECTORED;
        entry(&[INTERRUPT, kind, polarity, trigger, ISA_BUS, line, IOAPIC_ID, line]);
    }

    let length = u16::try_from(table.len()).expect("some hundred bytes");
    table[..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&length.to_le_bytes());
    table[6] = REVISION;
    table[8..28].copy_from_slice(b"MACHINENVMM-MIN     ");
    table[34..36].copy_from_slice(&count.to_le_bytes());
    table[36..40].copy_from_slice(&low(LOCAL_APIC_START).to_le_bytes());
    table[7] = complement(&table);

    let mut memory = vec![0; POINTER_BYTES];
    memory[..4].copy_from_slice(b"_MP_");
    memory[4..8].copy_from_slice(&(start + 16).to_le_bytes());
    // The pointer's own length, in units of 16 bytes.
    memory[8] = 1;
    memory[9] = REVISION;
    memory[10] = complement(&memory);
    memory.extend(table);
    memory
}

/// What makes the sum of all bytes 0.
fn complement(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

fn low(address: u64) -> u32 {
    u32::try_from(address).expect("below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::acpi::tests::dump;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn the_pointer_leads_to_a_table_and_both_sum_to_zero() {
        let memory = table(0xf_0000);
        assert_eq!((&memory[..4], sum(&memory[..16])), (&b"_MP_"[..], 0));
        assert_eq!(memory[4..8], 0xf_0010u32.to_le_bytes());
        let table = &memory[16..];
        assert_eq!((&table[..4], sum(table)), (&b"PCMP"[..], 0));
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        assert_eq!(table[36..40], 0xfee0_0000u32.to_le_bytes());
    }

    #[test]
    fn one_processor_one_bus_one_controller_and_each_of_its_lines() {
        let memory = table(0xf_0000);
        let mut entries = &memory[16 + HEADER_BYTES..];
        let mut kinds = [0u16; 4];
        while let Some(kind) = entries.first() {
            kinds[usize::from(*kind)] += 1;
            if *kind == INTERRUPT {
                assert_eq!((entries[4], entries[5], entries[6]), (ISA_BUS, entries[7], IOAPIC_ID));
            }
            entries = &entries[if *kind == PROCESSOR { 20 } else { 8 }..];
        }
        assert_eq!(kinds, [1, 1, 1, 24]);
        assert_eq!(u16::from_le_bytes([memory[50], memory[51]]), 27);
    }

    #[test]
    fn the_whole_table() {
        let dump = dump(&table(0xf_0000));
        assert_eq!(dump, include_str!("mptable.golden"), "{dump}");
    }
}

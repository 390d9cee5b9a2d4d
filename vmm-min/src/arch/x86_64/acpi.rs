//! ACPI tables for stock kernels: where the interrupt controller, the UART and the virtio devices are, how to switch off,
//! and how to tell one life of the VM from another. Nothing else.
//!
//! Hardware-reduced ACPI, so there is no PIC, PIT, RTC, PM timer or SCI to emulate. Source: ACPI specification 6.5,
//! 5.2 (tables) and 4.1 (hardware-reduced).

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::layout::{
    IOAPIC_START, RESET_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, UART_IRQ, UART_PORT, VIRTIO_START, virtio_irq,
};
use crate::virtio::mmio::WINDOW_BYTES;

const OEM_ID: [u8; 6] = *b"MACHIN";
const OEM_TABLE_ID: [u8; 8] = *b"VMM-MIN ";
const LOCAL_APIC: u32 = 0xfee0_0000;
const RESET_VALUE: u8 = 0xfe;
/// IAPC_BOOT_ARCH: no VGA, no RTC; the 8042 and legacy-devices bits stay clear.
const BOOT_ARCH: u16 = (1 << 2) | (1 << 5);

/// Where the 16 bytes are that differ between two lives of a VM.
pub const GENERATION_ID: u32 = 0xf_f000;

/// All tables as they lie in memory from `start`, the RSDP first, for a machine with this many virtio devices.
pub fn tables(start: u64, devices: usize) -> Vec<u8> {
    let mut memory = Vec::with_capacity(1024);
    memory.resize(Rsdp::len().next_multiple_of(16), 0);
    let mut place = |table: &dyn Aml| {
        let at = start + memory.len() as u64;
        table.to_aml_bytes(&mut memory);
        memory.resize(memory.len().next_multiple_of(16), 0);
        at
    };
    let dsdt = place(&dsdt(devices));
    let fadt = place(&fadt(dsdt));
    let madt = place(&madt());
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    memory[..rsdp.len()].copy_from_slice(&rsdp);
    memory
}

fn dsdt(devices: usize) -> Sdt {
    let mut aml = Vec::new();
    // The kernel writes SLP_TYP 5 to the sleep control register to switch off.
    Name::new("_S5_".into(), &Package::new(vec![&5u8])).to_aml_bytes(&mut aml);
    let mut system = uart();
    (0..devices).for_each(|slot| system.extend(virtio(slot)));
    system.extend(generation_id());
    aml.extend_from_slice(&Scope::raw(Path::new("_SB_"), system));
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, 1);
    table.append_slice(&aml);
    table
}

fn uart() -> Vec<u8> {
    let irq = u32::try_from(UART_IRQ).expect("a line number");
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(UART_PORT, UART_PORT, 1, 8),
                    &Interrupt::new(true, true, false, false, irq),
                ]),
            ),
        ],
    )
    .to_bytes()
}

/// A virtio device by memory-mapped registers. Source: drivers/virtio/virtio_mmio.c in Linux (the name), ACPI 6.4.3 (resources).
fn virtio(slot: usize) -> Vec<u8> {
    let number = u32::try_from(slot).expect("few devices");
    let irq = u32::try_from(virtio_irq(slot)).expect("a line number");
    let bytes = u32::try_from(WINDOW_BYTES).expect("a page");
    let start = u32::try_from(VIRTIO_START).expect("below 4 GiB") + number * bytes;
    Device::new(
        format!("VR{slot:02}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &number),
            // DMA needs no care: what a device reads and writes is what the processor sees.
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, start, bytes),
                    &Interrupt::new(true, true, false, false, irq),
                ]),
            ),
        ],
    )
    .to_bytes()
}

/// The VM generation device. Source: «Virtual Machine Generation ID», Microsoft, 2012.
fn generation_id() -> Vec<u8> {
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"MCHN0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            // Low and high half of the address.
            &Name::new("ADDR".into(), &Package::new(vec![&GENERATION_ID, &0u32])),
        ],
    )
    .to_bytes()
}

trait ToBytes: Aml {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes);
        bytes
    }
}
impl<T: Aml> ToBytes for T {}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt() -> MADT {
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, 1, LocalInterruptController::Address(LOCAL_APIC));
    madt.add_structure(ProcessorLocalApic::new(0, 0, EnabledStatus::Enabled));
    madt.add_structure(IoApic::new(0, u32::try_from(IOAPIC_START).expect("below 4 GiB"), 0));
    madt
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use acpi_tables::Checksum;

    /// The byte sum of a table, which must be 0.
    fn sum(bytes: &[u8]) -> u8 {
        let mut sum = Checksum::default();
        sum.append(bytes);
        sum.raw_value()
    }

    fn table_at(memory: &[u8], start: u64, at: u64) -> &[u8] {
        let from = usize::try_from(at - start).expect("after the start");
        let length = u32::from_le_bytes(memory[from + 4..from + 8].try_into().expect("4 bytes"));
        &memory[from..from + length as usize]
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_and_sums_to_zero() {
        let start = 0xe_0000;
        let memory = tables(start, 3);
        assert_eq!(&memory[..8], b"RSD PTR ");
        assert_eq!((sum(&memory[..20]), sum(&memory[..36])), (0, 0));
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        let xsdt = table_at(&memory, start, word(&memory[24..32]));
        assert_eq!((&xsdt[..4], sum(xsdt), xsdt.len()), (&b"XSDT"[..], 0, 36 + 16));
        let fadt = table_at(&memory, start, word(&xsdt[36..44]));
        assert_eq!((&fadt[..4], sum(fadt)), (&b"FACP"[..], 0));
        let dsdt = table_at(&memory, start, word(&fadt[140..148]));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        let madt = table_at(&memory, start, word(&xsdt[44..52]));
        assert_eq!((&madt[..4], sum(madt)), (&b"APIC"[..], 0));
    }

    /// Sixteen bytes a line, with their place and what of them is text.
    pub fn dump(memory: &[u8]) -> String {
        let text = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' };
        let line = |(index, bytes): (usize, &[u8])| {
            let words: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{:04x}  {:47}  {}\n", index * 16, words.join(" "), bytes.iter().map(text).collect::<String>())
        };
        memory.chunks(16).enumerate().map(line).collect()
    }

    #[test]
    fn the_tables_with_two_devices() {
        let dump = dump(&tables(0xe_0000, 2));
        assert_eq!(dump, include_str!("acpi.golden"), "{dump}");
    }
}

//! Where everything lies. What a guest is told of it is in the tables (`acpi`, `mptable`, `tables`).
//!
//! Guest-physical memory:
//!
//! ```text
//! 0x0000_6000  GDT                              boot tables: written at start,
//! 0x0000_7000  boot parameters ("zero page")    the kernel takes what it needs
//! 0x0000_8ff0  stack of the first instructions
//! 0x0000_9000  page tables (3 pages)
//! 0x0000_c000  kernel command line
//! 0x0009_fc00  ---- end of low RAM in the e820 map ----
//! 0x000e_0000  ACPI: RSDP first, then the tables
//! 0x000f_0000  MP table, for kernels without ACPI
//! 0x000f_f000  VM generation id
//! 0x0010_0000  kernel (where its ELF says) ... initrd at the top of low RAM
//! 0xc000_0000  ---- hole: no RAM ----
//! 0xd000_0000  virtio devices, 4 KiB each
//! 0xfec0_0000  I/O APIC     0xfee0_0000  local APIC (in KVM)
//! 0x1_0000_0000 RAM above 4 GiB
//! ```

use vm_memory::GuestAddress;

use super::ioapic;
use crate::arch::Register;
use crate::ram::Range;
use crate::virtio::mmio::WINDOW_BYTES;

/// Name as in `uname -m`.
pub const NAME: &str = "x86_64";
/// `e_machine` of ELF files for this architecture.
pub const ELF_MACHINE: u16 = 62;
/// Most bytes of a device tree that the user gives: there are none here.
pub const MOST_DTB_BYTES: u64 = 0;
/// Interrupt line of the UART.
pub const UART_IRQ: usize = 4;
/// Words of the kernel command line that every guest gets first.
pub const BASE_CMDLINE: &str = "console=ttyS0 quiet loglevel=1 reboot=t panic=-1 cryptomgr.notests";

/// First address of the virtio devices' registers.
pub const VIRTIO_START: u64 = 0xd000_0000;
/// Interrupt lines after the UART's.
pub const MOST_DEVICES: usize = ioapic::PINS - FIRST_VIRTIO_IRQ;
const FIRST_VIRTIO_IRQ: usize = UART_IRQ + 1;

/// First address beyond RAM below 4 GiB.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// First address of RAM above it.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// First address of a kernel.
pub const KERNEL_START: u64 = 0x10_0000;
/// First register of the I/O APIC.
pub const IOAPIC_START: u64 = 0xfec0_0000;
/// Its window.
pub const IOAPIC_BYTES: u64 = 0x1000;
/// First register of the local APIC.
pub const LOCAL_APIC_START: u64 = 0xfee0_0000;

/// First of the UART's eight ports.
pub const UART_PORT: u16 = 0x3f8;
/// The reset line.
pub const RESET_PORT: u16 = 0x64;
/// The exit register.
pub const EXIT_PORT: u16 = 0x500;
/// ACPI sleep control.
pub const SLEEP_CONTROL_PORT: u16 = 0x501;
/// ACPI sleep status.
pub const SLEEP_STATUS_PORT: u16 = 0x502;

/// Interrupt line of the virtio device in `slot`.
pub fn virtio_irq(slot: usize) -> usize {
    FIRST_VIRTIO_IRQ + slot
}

/// Words of the command line that tell a kernel without ACPI where `devices` virtio devices are.
/// Source: drivers/virtio/virtio_mmio.c in Linux.
pub fn device_words(devices: usize) -> String {
    use std::fmt::Write;
    let mut words = String::new();
    for (slot, number) in (0..devices).zip(0..) {
        let start = VIRTIO_START + number * WINDOW_BYTES;
        write!(words, " virtio_mmio.device={WINDOW_BYTES}@{start:#x}:{}", virtio_irq(slot))
            .expect("writing to a string");
    }
    words
}

/// Where `bytes` of RAM lie: below the hole under 4 GiB, the rest above it.
pub fn ranges(bytes: u64) -> Vec<Range> {
    let low = bytes.min(LOW_RAM_END);
    let mut ranges = vec![Range { start: GuestAddress(0), bytes: low }];
    if bytes > low {
        ranges.push(Range { start: GuestAddress(HIGH_RAM_START), bytes: bytes - low });
    }
    ranges
}

/// Where kernel and initrd may lie, in RAM of `bytes`: first address and first one beyond.
pub fn kernel_window(bytes: u64) -> (u64, u64) {
    (KERNEL_START, bytes.min(LOW_RAM_END))
}

/// The register behind a port.
pub fn decode_port(port: u16) -> Register {
    match port {
        UART_PORT..=0x3ff => Register::Uart(port - UART_PORT),
        EXIT_PORT => Register::Exit,
        SLEEP_CONTROL_PORT => Register::Power,
        RESET_PORT => Register::Reset,
        _ => Register::None,
    }
}

/// Offset of an address in the I/O APIC's window.
pub fn ioapic_offset(address: u64) -> Option<u64> {
    address.checked_sub(IOAPIC_START).filter(|offset| *offset < IOAPIC_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_below_4_gib_free() {
        let mib = |count: u64| count << 20;
        assert_eq!(ranges(mib(128)), [Range { start: GuestAddress(0), bytes: mib(128) }]);
        assert_eq!(ranges(mib(3072)), [Range { start: GuestAddress(0), bytes: mib(3072) }]);
        assert_eq!(
            ranges(mib(8192)),
            [
                Range { start: GuestAddress(0), bytes: mib(3072) },
                Range { start: GuestAddress(HIGH_RAM_START), bytes: mib(5120) }
            ]
        );
    }

    #[test]
    fn ports_are_where_the_contract_says() {
        assert_eq!(decode_port(0x3f8), Register::Uart(0));
        assert_eq!(decode_port(0x3ff), Register::Uart(7));
        assert_eq!(decode_port(0x400), Register::None);
        assert_eq!(decode_port(0x500), Register::Exit);
        assert_eq!(decode_port(0x64), Register::Reset);
    }
}

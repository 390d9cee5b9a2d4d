//! Where everything lies. What a guest is told of it is in the device tree (`fdt`).
//!
//! Guest-physical memory:
//!
//! ```text
//! 0x0800_0000  GIC distributor                  in KVM
//! 0x0801_0000  GIC CPU interface (v2)           in KVM
//! 0x080a_0000  GIC redistributor (v3)           in KVM
//! 0x0900_0000  UART, 8 registers of a byte each
//! 0x0901_0000  exit register
//! 0x0a00_0000  virtio devices, 4 KiB each
//! 0x4000_0000  RAM: device tree
//! 0x401f_0000  VM generation id
//! 0x4020_0000  kernel (at the offset that its header asks for) ... initrd at the top
//! ```

use vm_memory::GuestAddress;

use crate::arch::Register;
use crate::ram::Range;

/// Name as in `uname -m`.
pub const NAME: &str = "aarch64";
/// `e_machine` of ELF files for this architecture.
pub const ELF_MACHINE: u16 = 183;
/// Words of the kernel command line that every guest gets first.
pub const BASE_CMDLINE: &str = "console=ttyS0 quiet loglevel=1 panic=-1 cryptomgr.notests";

/// Interrupt lines are shared peripheral interrupts (SPI), by their number among these.
pub const UART_IRQ: usize = 0;
/// Shared peripheral interrupts of the machine: with the 32 that a processor has of its own, the fewest that KVM makes.
pub const LINES: usize = 32;
/// Interrupt lines between the UART's and the last.
pub const MOST_DEVICES: usize = GENERATION_IRQ - FIRST_VIRTIO_IRQ;
const FIRST_VIRTIO_IRQ: usize = UART_IRQ + 1;
/// The line that says that the VM generation id is another one.
pub const GENERATION_IRQ: usize = LINES - 1;

/// First address of the GIC's distributor.
pub const DISTRIBUTOR: u64 = 0x0800_0000;
/// Its bytes, whatever the version.
pub const DISTRIBUTOR_BYTES: u64 = 0x1_0000;
/// First address of the CPU interface (GICv2).
pub const CPU_INTERFACE: u64 = 0x0801_0000;
/// Its bytes.
pub const CPU_INTERFACE_BYTES: u64 = 0x2000;
/// First address of the redistributor (GICv3) of the only processor.
pub const REDISTRIBUTOR: u64 = 0x080a_0000;
/// Its bytes: two frames.
pub const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;

/// First register of the UART.
pub const UART: u64 = 0x0900_0000;
/// Registers of the UART, a byte each.
pub const UART_REGISTERS: u16 = 8;
/// Its window in the device tree, a page.
pub const UART_BYTES: u64 = 0x1000;
/// The exit register, a byte; alone in 64 KiB, so that a guest can map it whatever its pages are.
pub const EXIT: u64 = 0x0901_0000;
/// First address of the virtio devices' registers.
pub const VIRTIO_START: u64 = 0x0a00_0000;

/// First address of RAM, and of the device tree.
pub const RAM_START: u64 = 0x4000_0000;
/// What lies before the kernel. Kernels map 2 MiB for the device tree, and want it in 2 MiB that begin at a multiple of that.
pub const LOW_BYTES: u64 = 2 << 20;
/// The device tree's room.
pub const FDT_BYTES: u64 = LOW_BYTES - GENERATION_BYTES;
/// Most bytes of a device tree that the user gives: there are to be more in it then.
pub const MOST_DTB_BYTES: u64 = LOW_BYTES / 2;
/// The VM generation id.
pub const GENERATION_ID: u64 = RAM_START + FDT_BYTES;
/// The memory that the guest's kernel leaves to it, since it maps it as a device's: a page, of the largest.
pub const GENERATION_BYTES: u64 = 0x1_0000;
/// Kernel and initrd lie in a window of this size (Documentation/arch/arm64/booting.rst in Linux).
const KERNEL_WINDOW_BYTES: u64 = 32 << 30;

/// Interrupt line of the virtio device in `slot`.
pub fn virtio_irq(slot: usize) -> usize {
    FIRST_VIRTIO_IRQ + slot
}

/// Words of the command line that tell where `devices` virtio devices are: none, that is in the device tree.
pub fn device_words(_devices: usize) -> String {
    String::new()
}

/// Where `bytes` of RAM lie: in one piece.
pub fn ranges(bytes: u64) -> Vec<Range> {
    vec![Range { start: GuestAddress(RAM_START), bytes }]
}

/// Where kernel and initrd may lie, in RAM of `bytes`: first address and first one beyond.
pub fn kernel_window(bytes: u64) -> (u64, u64) {
    (RAM_START + LOW_BYTES, RAM_START + bytes.min(KERNEL_WINDOW_BYTES))
}

/// The register at `address`, `None` where the bus knows better.
pub fn register(address: u64) -> Option<Register> {
    if address == EXIT {
        return Some(Register::Exit);
    }
    let offset = u16::try_from(address.checked_sub(UART)?).ok()?;
    (offset < UART_REGISTERS).then_some(Register::Uart(offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::mmio::WINDOW_BYTES;

    const _: () = assert!(DISTRIBUTOR + DISTRIBUTOR_BYTES <= CPU_INTERFACE);
    const _: () = assert!(CPU_INTERFACE + CPU_INTERFACE_BYTES <= REDISTRIBUTOR);
    const _: () = assert!(REDISTRIBUTOR + REDISTRIBUTOR_BYTES <= UART && UART + UART_BYTES <= EXIT);
    const _: () = assert!(EXIT < VIRTIO_START && VIRTIO_START + MOST_DEVICES as u64 * WINDOW_BYTES <= RAM_START);

    #[test]
    fn registers_are_where_the_contract_says() {
        assert_eq!(register(0x0900_0000), Some(Register::Uart(0)));
        assert_eq!(register(0x0900_0007), Some(Register::Uart(7)));
        assert_eq!(register(0x0901_0000), Some(Register::Exit));
        for address in [0, 0x08ff_ffff, 0x0900_0008, 0x0900_ffff, 0x0901_0001, 0x0a00_0000, u64::MAX] {
            assert_eq!(register(address), None, "{address:#x}");
        }
    }

    #[test]
    fn kernel_and_initrd_lie_in_the_window_that_linux_asks_for() {
        let gib = |count: u64| count << 30;
        assert_eq!(kernel_window(gib(1)), (0x4020_0000, 0x8000_0000));
        assert_eq!(kernel_window(gib(64)), (0x4020_0000, 0x8_4000_0000));
        assert_eq!(ranges(gib(64)), [Range { start: GuestAddress(0x4000_0000), bytes: gib(64) }]);
    }
}

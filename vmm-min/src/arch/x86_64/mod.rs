//! x86_64: split interrupt controller, one vCPU in 64-bit mode, ports.
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

mod acpi;
mod cpu;
mod cpuid;
mod ioapic;
mod mptable;
mod tables;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_msi, kvm_run};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestAddress;

use crate::arch::{Boot, Register, Registers, Step};
use crate::error::{Error, Result};
use crate::kick::Kick;
use crate::ram::{Ram, Range};
use crate::virtio::mmio::WINDOW_BYTES;
use ioapic::IoApic;

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

const LOW_RAM_END: u64 = 0xc000_0000;
const HIGH_RAM_START: u64 = 0x1_0000_0000;
const KERNEL_START: u64 = 0x10_0000;
const IOAPIC_START: u64 = 0xfec0_0000;
const IOAPIC_BYTES: u64 = 0x1000;
const LOCAL_APIC_START: u64 = 0xfee0_0000;

/// rip after a reset.
const RESET_VECTOR: u64 = 0xfff0;

const UART_PORT: u16 = 0x3f8;
const RESET_PORT: u16 = 0x64;
const EXIT_PORT: u16 = 0x500;
const SLEEP_CONTROL_PORT: u16 = 0x501;
const SLEEP_STATUS_PORT: u16 = 0x502;

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

/// Most RAM that the processor can address in a guest, in bytes.
pub fn host_ram_limit_bytes() -> u64 {
    (1u64 << cpu::physical_address_bits()) - (HIGH_RAM_START - LOW_RAM_END)
}

/// Interrupt controller and vCPU.
pub struct Platform {
    vcpu: VcpuFd,
    ioapic: IoApic,
}

impl Platform {
    /// Makes the interrupt controller and the vCPU. RAM must be registered already.
    pub fn new(kvm: &Kvm, vm: &VmFd, kick: &Kick) -> Result<Platform> {
        for (capability, name) in [
            (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
            (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        ] {
            if !kvm.check_extension(capability) {
                return Err(crate::machine::too_old(name));
            }
        }
        let split =
            kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [ioapic::PINS as u64, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&split).map_err(Error::kvm("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
        let vcpu = vm.create_vcpu(0).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        kick.arm(&vcpu)?;
        cpuid::set(kvm, &vcpu)?;
        cpu::set_msrs(&vcpu)?;
        Ok(Platform { vcpu, ioapic: IoApic::default() })
    }

    /// Writes the boot tables and sets the registers for the 64-bit entry of the Linux boot protocol.
    pub fn prepare(&mut self, ram: &Ram, boot: &Boot) -> Result<()> {
        tables::write(ram, boot)?;
        cpu::set_registers(&self.vcpu, boot.entry)
    }

    /// Device line `line` is now at `level`; a rising edge becomes a message to the local APIC.
    pub fn set_irq(&mut self, vm: &VmFd, line: usize, level: bool) -> Result<()> {
        match self.ioapic.set_line(line, level) {
            Some(message) => signal(vm, message),
            None => Ok(()),
        }
    }

    /// Runs the guest until it accesses a device or a signal arrives, and serves the access.
    pub fn run(&mut self, vm: &VmFd, devices: &mut impl Registers) -> Result<Step> {
        let run: *const kvm_run = self.vcpu.get_kvm_run();
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                for item in data.chunks(port_access_bytes(run)) {
                    for (byte, port) in item.iter().zip(port..=u16::MAX) {
                        let step = devices.write(decode_port(port), *byte)?;
                        if step != Step::Continue {
                            return Ok(step);
                        }
                    }
                }
                Ok(Step::Continue)
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                for item in data.chunks_mut(port_access_bytes(run)) {
                    // A port beyond 0xffff does not exist and reads as ones, like any other without a device.
                    item.fill(0xff);
                    for (byte, port) in item.iter_mut().zip(port..=u16::MAX) {
                        *byte = match port {
                            SLEEP_STATUS_PORT => 0,
                            _ => devices.read(decode_port(port)),
                        };
                    }
                }
                Ok(Step::Continue)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                data.fill(0xff);
                match ioapic_offset(address) {
                    None => devices.read_memory(address, data),
                    Some(offset) => {
                        if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
                            *word = self.ioapic.read(offset).to_le_bytes();
                        }
                    }
                }
                Ok(Step::Continue)
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                match ioapic_offset(address) {
                    None => devices.write_memory(address, data),
                    Some(offset) => {
                        if let Ok(word) = <[u8; 4]>::try_from(data)
                            && let Some(message) = self.ioapic.write(offset, u32::from_le_bytes(word))
                        {
                            signal(vm, message)?;
                        }
                    }
                }
                Ok(Step::Continue)
            }
            // EINTR, or EAGAIN while the vCPU waits to be started: both mean "look around and come back".
            Ok(VcpuExit::Intr) => Ok(Step::Kicked),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(Step::Kicked),
            Ok(VcpuExit::Shutdown) => Err(Error::guest(
                "GUEST_TRIPLE_FAULT",
                format!("the guest reset itself by a triple fault{}: kernel panic or restart", self.place()),
                "to see the kernel's messages: --cmdline loglevel=7",
            )),
            Ok(VcpuExit::InternalError) => Err(Error::guest(
                "GUEST_NOT_EMULATED",
                format!("KVM could not emulate an instruction of the guest{}", self.place()),
                "a kernel needs a processor with virtualization; this host may only run small guests",
            )),
            Ok(VcpuExit::FailEntry(reason, _)) => Err(Error::guest(
                "GUEST_ENTRY_FAILED",
                format!("the processor refused the guest's state{}: hardware reason {reason:#x}", self.place()),
                "",
            )),
            Err(error) if error.errno() == libc::EFAULT => Err(Error::guest(
                "GUEST_MEMORY_GONE",
                format!("the memory behind an access of the guest is gone{}", self.place()),
                "",
            )),
            Ok(exit) => Err(Error::guest("GUEST_UNKNOWN_EXIT", format!("KVM exit not expected: {exit:?}"), "")),
            Err(cause) => Err(Error::Kvm { call: "KVM_RUN", cause }),
        }
    }

    /// " at rip 0x…" for messages; empty when the registers cannot be had, or tell nothing: on AMD's processors KVM
    /// resets them at a triple fault.
    fn place(&self) -> String {
        match self.vcpu.get_regs() {
            Ok(regs) if regs.rip != RESET_VECTOR => format!(" at rip {:#x}", regs.rip),
            _ => String::new(),
        }
    }
}

/// Bytes of one access of the port exit that just happened. kvm-ioctls gives count × size bytes in one slice,
/// in which `outl` and `rep outsb` look alike.
fn port_access_bytes(run: *const kvm_run) -> usize {
    // SAFETY: `run` points to the vCPU's live run area, and the caller saw KVM_EXIT_IO, which makes `io` the
    // valid member.
    let size = unsafe { (&raw const (*run).__bindgen_anon_1.io.size).read() };
    usize::from(size).max(1)
}

fn decode_port(port: u16) -> Register {
    match port {
        UART_PORT..=0x3ff => Register::Uart(port - UART_PORT),
        EXIT_PORT => Register::Exit,
        SLEEP_CONTROL_PORT => Register::Power,
        RESET_PORT => Register::Reset,
        _ => Register::None,
    }
}

fn ioapic_offset(address: u64) -> Option<u64> {
    address.checked_sub(IOAPIC_START).filter(|offset| *offset < IOAPIC_BYTES)
}

fn signal(vm: &VmFd, message: kvm_msi) -> Result<()> {
    match vm.signal_msi(message) {
        // 0 or EPERM: no APIC takes it. A real bus would drop the message too.
        Ok(_) => Ok(()),
        Err(cause) if cause.errno() == libc::EPERM => Ok(()),
        Err(cause) => Err(Error::Kvm { call: "KVM_SIGNAL_MSI", cause }),
    }
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

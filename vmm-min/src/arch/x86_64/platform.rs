//! Split interrupt controller, one vCPU in 64-bit mode, ports.

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_msi, kvm_run};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};

use super::ioapic::{self, IoApic};
use super::layout::{HIGH_RAM_START, LOW_RAM_END, SLEEP_STATUS_PORT, decode_port, ioapic_offset};
use super::{cpu, cpuid, tables};
use crate::arch::{self, Boot, Registers, Step};
use crate::error::{Error, Result};
use crate::kick::Kick;
use crate::ram::Ram;

/// rip after a reset.
const RESET_VECTOR: u64 = 0xfff0;

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
            Ok(VcpuExit::FailEntry(reason, _)) => Err(arch::entry_failed(reason, &self.place())),
            Ok(exit) => Err(arch::unexpected(&exit)),
            Err(cause) => Err(arch::run_failed(cause, &self.place())),
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

fn signal(vm: &VmFd, message: kvm_msi) -> Result<()> {
    match vm.signal_msi(message) {
        // 0 or EPERM: no APIC takes it. A real bus would drop the message too.
        Ok(_) => Ok(()),
        Err(cause) if cause.errno() == libc::EPERM => Ok(()),
        Err(cause) => Err(Error::Kvm { call: "KVM_SIGNAL_MSI", cause }),
    }
}

//! Interrupt controller and vCPU by KVM.

use kvm_bindings::{
    KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_vcpu_init,
};
use kvm_ioctls::{Cap, DeviceFd, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestAddress;

use super::dtb;
use super::fdt::{self, Gic};
use super::gic::{self, Lines};
use super::layout;
use crate::arch::{self, Boot, Dtb, End, Registers, Step};
use crate::error::{Error, Result};
use crate::kick::Kick;
use crate::ram::Ram;
use crate::sys;

/// Width of a guest-physical address where KVM does not say.
const PHYSICAL_ADDRESS_BITS: u32 = 40;
/// What the kernel's own limit (COMMAND_LINE_SIZE on arm64) leaves, NUL included.
const CMDLINE_BYTES: usize = 2048;

/// KVM's numbers of registers: half their offset in words of 32 bits in `struct kvm_regs`, behind this.
const CORE: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64;
const X0: u64 = CORE;
const PC: u64 = CORE + 2 * 32;

/// Most RAM that the processor can address in a guest, in bytes. Only KVM knows; without it, what most have.
pub fn host_ram_limit_bytes() -> u64 {
    let bits = Kvm::new().ok().and_then(|kvm| u32::try_from(kvm.get_host_ipa_limit()).ok());
    let bits = bits.filter(|bits| (32..=52).contains(bits)).unwrap_or(PHYSICAL_ADDRESS_BITS);
    (1u64 << bits) - layout::RAM_START
}

/// The bytes of the user's device tree with this machine put in.
fn patched(own: &Dtb, boot: &Boot, ram: &Ram, seed: &[u8; fdt::SEED_BYTES]) -> Result<Vec<u8>> {
    let refused = |why: &str| Error::usage("DTB_MALFORMED", format!("device tree {}: {why}", own.path), "");
    let tree = dtb::patched(&own.bytes, boot, ram.first_range(), seed).map_err(refused)?;
    let bytes = tree.to_bytes().map_err(|cause| refused(&cause.to_string()))?;
    if bytes.len() as u64 > layout::FDT_BYTES { Err(refused("it is too large")) } else { Ok(bytes) }
}

/// Interrupt controller and vCPU.
pub struct Platform {
    vcpu: VcpuFd,
    gic: Gic,
    /// Open as long as the machine is.
    _controller: DeviceFd,
    lines: Lines,
}

impl Platform {
    /// Makes the vCPU and the interrupt controller. RAM must be registered already.
    pub fn new(kvm: &Kvm, vm: &VmFd, kick: &Kick) -> Result<Platform> {
        for (capability, name) in [
            (Cap::DeviceCtrl, "KVM_CAP_DEVICE_CTRL"),
            (Cap::OneReg, "KVM_CAP_ONE_REG"),
            (Cap::ArmPsci02, "KVM_CAP_ARM_PSCI_0_2"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        ] {
            if !kvm.check_extension(capability) {
                return Err(crate::machine::too_old(name));
            }
        }
        let vcpu = vm.create_vcpu(0).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        kick.arm(&vcpu)?;
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).map_err(Error::kvm("KVM_ARM_PREFERRED_TARGET"))?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        vcpu.vcpu_init(&init).map_err(Error::kvm("KVM_ARM_VCPU_INIT"))?;
        let (gic, controller) = gic::make(vm)?;
        Ok(Platform { vcpu, gic, _controller: controller, lines: Lines::default() })
    }

    /// Writes the device tree and sets the registers as Documentation/arch/arm64/booting.rst asks: x0 points to the
    /// tree. The others are right from KVM_ARM_VCPU_INIT on: EL1, interrupts masked, MMU off, x1 to x3 zero.
    ///
    /// Errors: `CMDLINE_TOO_LONG`, `DTB_MALFORMED`.
    pub fn prepare(&mut self, ram: &Ram, boot: &Boot) -> Result<()> {
        if boot.cmdline.len() >= CMDLINE_BYTES {
            return Err(Error::usage(
                "CMDLINE_TOO_LONG",
                format!("kernel command line of {} bytes: the kernel takes {}", boot.cmdline.len(), CMDLINE_BYTES - 1),
                "shorten --cmdline",
            ));
        }
        let mut seed = [0; fdt::SEED_BYTES];
        sys::random(&mut seed).map_err(|cause| Error::host("HOST_RANDOM", "getrandom", cause))?;
        let tree = match &boot.dtb {
            None => fdt::tree(boot, ram.first_range(), self.gic, &seed).to_bytes().expect("a tree of our own"),
            Some(own) => patched(own, boot, ram, &seed)?,
        };
        let at = GuestAddress(layout::RAM_START);
        // A huge page for three small ones would be a quarter of the start. Not on x86_64, where Linux uses what is below its
        // tables, and more page faults cost it four times what the start gains.
        ram.keep_small(at, layout::FDT_BYTES);
        ram.populate(at, tree.len() as u64);
        assert!(ram.write(at, &tree), "RAM holds at least the tree");
        // Whatever tree it is: the user's may be one of ours.
        let mut generation_id = [0; fdt::GENERATION_ID_BYTES];
        sys::random(&mut generation_id).map_err(|cause| Error::host("HOST_RANDOM", "getrandom", cause))?;
        assert!(ram.write(GuestAddress(layout::GENERATION_ID), &generation_id), "RAM holds more than the tree");
        self.set(X0, at.0)?;
        self.set(PC, boot.entry.0)
    }

    fn set(&self, register: u64, value: u64) -> Result<()> {
        self.vcpu.set_one_reg(register, &value.to_ne_bytes()).map(drop).map_err(Error::kvm("KVM_SET_ONE_REG"))
    }

    /// Device line `line` is now at `level`.
    pub fn set_irq(&mut self, vm: &VmFd, line: usize, level: bool) -> Result<()> {
        self.lines.set(vm, line, level)
    }

    /// Runs the guest until it accesses a device or a signal arrives, and serves the access.
    pub fn run(&mut self, _vm: &VmFd, devices: &mut impl Registers) -> Result<Step> {
        match self.vcpu.run() {
            Ok(VcpuExit::MmioWrite(address, data)) => {
                if layout::register(address).is_none() {
                    devices.write_memory(address, data);
                    return Ok(Step::Continue);
                }
                for (byte, address) in data.iter().zip(address..) {
                    let Some(register) = layout::register(address) else { break };
                    let step = devices.write(register, *byte)?;
                    if step != Step::Continue {
                        return Ok(step);
                    }
                }
                Ok(Step::Continue)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                data.fill(0xff);
                if layout::register(address).is_none() {
                    devices.read_memory(address, data);
                    return Ok(Step::Continue);
                }
                for (byte, address) in data.iter_mut().zip(address..) {
                    let Some(register) = layout::register(address) else { break };
                    *byte = devices.read(register);
                }
                Ok(Step::Continue)
            }
            Ok(VcpuExit::Intr) => Ok(Step::Kicked),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(Step::Kicked),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Ok(Step::End(End::PowerOff)),
            // PSCI does not tell a restart that was asked for from one after a panic.
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Err(Error::guest(
                "GUEST_RESET",
                "the guest reset itself: kernel panic or restart",
                "to see the kernel's messages: --cmdline loglevel=7",
            )),
            Err(error) if error.errno() == libc::ENOSYS => Err(Error::guest(
                "GUEST_NOT_EMULATED",
                format!("KVM could not emulate an instruction of the guest{}", self.place()),
                "it accesses a device by an instruction that the processor does not describe",
            )),
            Ok(VcpuExit::FailEntry(reason, _)) => Err(arch::entry_failed(reason, &self.place())),
            Ok(exit) => Err(arch::unexpected(&exit)),
            Err(cause) => Err(arch::run_failed(cause, &self.place())),
        }
    }

    /// " at pc 0x…" for messages; empty when the register cannot be had.
    fn place(&self) -> String {
        let mut pc = [0; 8];
        match self.vcpu.get_one_reg(PC, &mut pc) {
            Ok(_) => format!(" at pc {:#x}", u64::from_ne_bytes(pc)),
            Err(_) => String::new(),
        }
    }
}

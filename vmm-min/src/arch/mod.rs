//! The architecture: all differences behind one set of names, and the only place with `cfg(target_arch)`.
//!
//! The contract, five functions for each architecture that make a machine and run it:
//! - [`ranges`]: where RAM of a given size lies;
//! - [`Platform::new`]: interrupt controller and vCPU, when RAM is registered;
//! - [`Platform::prepare`]: tables in RAM and registers, so that the next KVM_RUN starts the guest;
//! - [`Platform::set_irq`]: the level of a device's line changed;
//! - [`Platform::run`]: one KVM_RUN, with what the guest accessed passed on to a [`Registers`].
//!
//! What else the monitor knows of one are figures, none of which needs KVM but the last: its names ([`NAME`],
//! [`ELF_MACHINE`]), where things lie ([`kernel_window`], [`VIRTIO_START`], [`UART_IRQ`], [`virtio_irq`]), what the kernel is
//! told ([`BASE_CMDLINE`], [`device_words`]), and limits ([`MOST_DEVICES`], [`MOST_DTB_BYTES`], [`host_ram_limit_bytes`]).

/// Cortex-A and its like: GIC, PSCI, a device tree. What has no KVM in it is there for tests of any host.
#[cfg(any(target_arch = "aarch64", test))]
pub mod aarch64 {
    pub mod dtb;
    pub mod fdt;
    #[cfg(target_arch = "aarch64")]
    mod gic;
    pub mod layout;
    pub mod node;
    #[cfg(target_arch = "aarch64")]
    pub mod platform;
}
#[cfg(target_arch = "aarch64")]
pub use aarch64::{
    layout::{
        BASE_CMDLINE, ELF_MACHINE, MOST_DEVICES, MOST_DTB_BYTES, NAME, UART_IRQ, VIRTIO_START, device_words,
        kernel_window, ranges, virtio_irq,
    },
    platform::{Platform, host_ram_limit_bytes},
};

/// Split interrupt controller, ports, ACPI. What has no KVM in it is there for tests of any host.
#[cfg(any(target_arch = "x86_64", test))]
pub mod x86_64 {
    pub mod acpi;
    #[cfg(target_arch = "x86_64")]
    mod cpu;
    #[cfg(target_arch = "x86_64")]
    mod cpuid;
    pub mod ioapic;
    pub mod layout;
    pub mod mptable;
    #[cfg(target_arch = "x86_64")]
    pub mod platform;
    // The kernel's structures are linux-loader's, which has them on x86_64 only.
    #[cfg(target_arch = "x86_64")]
    mod tables;
}
#[cfg(target_arch = "x86_64")]
pub use x86_64::{
    layout::{
        BASE_CMDLINE, ELF_MACHINE, MOST_DEVICES, MOST_DTB_BYTES, NAME, UART_IRQ, VIRTIO_START, device_words,
        kernel_window, ranges, virtio_irq,
    },
    platform::{Platform, host_ram_limit_bytes},
};

use std::time::Instant;

use kvm_ioctls::VcpuExit;
use vm_memory::GuestAddress;

use crate::error::{Error, Result};

/// What the guest starts with; everything it names is in RAM already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// First instruction.
    pub entry: GuestAddress,
    /// Initial RAM file system: address and length in bytes.
    pub initrd: Option<(GuestAddress, u64)>,
    /// Kernel command line, without NUL.
    pub cmdline: String,
    /// Number of virtio devices, at most [`MOST_DEVICES`]: one window after the other from [`VIRTIO_START`].
    pub devices: usize,
    /// The user's device tree, where there are such.
    pub dtb: Option<Dtb>,
}

/// A device tree given by the user, as it is in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dtb {
    /// Path of the file, for messages.
    pub path: String,
    /// Its content, at most [`MOST_DTB_BYTES`] of it.
    pub bytes: Vec<u8>,
}

/// A device register, wherever the architecture puts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// UART register 0–7.
    Uart(u16),
    /// Exit register: the byte written is the exit code.
    Exit,
    /// Reset line: pulled by the byte 0xfe.
    Reset,
    /// Power-off: bit 5 of the byte written (ACPI sleep control, SLP_EN).
    Power,
    /// Nothing answers here: reads as ones, ignores writes.
    None,
}

/// How the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The exit register was written.
    Code(u8),
    /// The guest switched the machine off.
    PowerOff,
    /// The guest pulled the reset line.
    Reset,
    /// The reader of stdout is gone.
    OutputClosed,
    /// The first output byte came, then, and that was all that was asked for (`--boot-test`).
    FirstByte(Instant),
    /// A user's signal.
    Signal(crate::kick::Signal),
}

/// What to do after a step of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Run on.
    Continue,
    /// A signal is pending: drain, look at the descriptors, run on.
    Kicked,
    /// The machine is to end.
    End(End),
}

/// The devices as the architecture sees them.
pub trait Registers {
    /// The guest reads a byte.
    fn read(&mut self, register: Register) -> u8;
    /// The guest writes a byte. Errors: of the host's side of the device.
    fn write(&mut self, register: Register, value: u8) -> Result<Step>;
    /// The guest reads 1 to 8 bytes at a physical address that is not RAM.
    fn read_memory(&mut self, address: u64, bytes: &mut [u8]);
    /// The guest writes 1 to 8 bytes to a physical address that is not RAM.
    fn write_memory(&mut self, address: u64, bytes: &[u8]);
}

/// The processor refused to run the guest. `place` is where it stood: " at …", or nothing.
fn entry_failed(reason: u64, place: &str) -> Error {
    let message = format!("the processor refused the guest's state{place}: hardware reason {reason:#x}");
    Error::guest("GUEST_ENTRY_FAILED", message, "")
}

/// KVM_RUN failed with `cause`.
fn run_failed(cause: kvm_ioctls::Error, place: &str) -> Error {
    match cause.errno() {
        libc::EFAULT => {
            let message = format!("the memory behind an access of the guest is gone{place}");
            Error::guest("GUEST_MEMORY_GONE", message, "")
        }
        _ => Error::Kvm { call: "KVM_RUN", cause },
    }
}

/// KVM_RUN returned for a reason that no guest of ours can bring about.
fn unexpected(exit: &VcpuExit<'_>) -> Error {
    Error::guest("GUEST_UNKNOWN_EXIT", format!("KVM exit not expected: {exit:?}"), "")
}

//! What differs between the labs of two architectures.

use std::path::PathBuf;

use crate::{cache_dir, sys};

/// Architecture of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// A processor with SVM.
    X86_64,
    /// A processor with EL2, and a GICv3.
    Aarch64,
}

impl Arch {
    /// This program's own.
    pub const OWN: Arch = if cfg!(target_arch = "aarch64") { Arch::Aarch64 } else { Arch::X86_64 };

    /// By the name as in `uname -m`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Arch::X86_64, Arch::Aarch64].into_iter().find(|arch| arch.name() == name)
    }

    /// As in `uname -m`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// Debian's name.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }

    /// The Rust target that programs are built for.
    #[must_use]
    pub fn musl_target(self) -> String {
        format!("{}-unknown-linux-musl", self.name())
    }

    /// What `make lab` has made: what the lab boots, and assets for tests. `make rootfs` adds to it.
    #[must_use]
    pub fn assets_dir(self) -> PathBuf {
        cache_dir().join("lab").join(self.debian())
    }

    /// The emulator.
    pub(super) fn qemu(self) -> &'static str {
        match self {
            Arch::X86_64 => "qemu-system-x86_64",
            Arch::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// The machine. One processor: with two, QEMU 7.2 runs a stale int3 now and then while an x86 kernel patches itself, and
    /// panics. `EPYC` rather than `max`: without 5-level page tables and what else a nested guest pays for, it boots a third
    /// faster; for the same reason no `max` on arm64, where pointer authentication costs most.
    pub(super) fn machine(self) -> &'static [&'static str] {
        match self {
            Arch::X86_64 => &["-M", "q35", "-cpu", "EPYC,check=off", "-smp", "1", "-bios", "qboot.rom"],
            Arch::Aarch64 => &["-M", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a76", "-smp", "1"],
        }
    }

    /// Kernel command line. Where the machine's time-stamp counter is the host's, it says how fast that is: a kernel that
    /// measures it while the host is busy now and then takes 1.0 GHz for 2.6, and then no timer fires when it should.
    pub(super) fn cmdline(self, counting: bool) -> String {
        let words = "loglevel=5 panic=-1 oops=panic mitigations=off cryptomgr.notests";
        match self {
            Arch::X86_64 => {
                let rate = sys::tsc_khz().filter(|_| !counting);
                let rate = rate.map_or(String::new(), |khz| format!(" tsc_early_khz={khz}"));
                format!("console=ttyS0 tsc=reliable {words}{rate}")
            }
            Arch::Aarch64 => format!("console=ttyAMA0 {words}"),
        }
    }

    /// Arguments that add a serial line on the character device `line`, for a terminal.
    pub(super) fn line(self) -> &'static [&'static str] {
        match self {
            Arch::X86_64 => &["-serial", "chardev:line"],
            // The machine has one UART.
            Arch::Aarch64 => &["-device", "virtconsole,chardev=line"],
        }
    }

    /// Where that line is in the lab.
    pub(super) fn line_device(self) -> &'static str {
        match self {
            Arch::X86_64 => "/dev/ttyS1",
            Arch::Aarch64 => "/dev/hvc0",
        }
    }
}

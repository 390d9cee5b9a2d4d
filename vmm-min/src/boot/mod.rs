//! From files to a guest ready in RAM: kernel and initrd.

pub mod bzimage;
pub mod elf;
pub mod image;
pub mod source;

use vm_memory::GuestAddress;

use crate::arch;
use crate::error::{Error, Result};
use crate::ram::{PAGE_BYTES, Ram};
use source::Source;

/// Where a loaded kernel starts and what it occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// First instruction.
    pub entry: GuestAddress,
    /// First address after all segments, uninitialised data included.
    pub end: u64,
}

/// Loads an ELF kernel, a bzImage, or an arm64 image. Errors: `KERNEL_*`.
pub fn load_kernel(ram: &Ram, window: (u64, u64), kernel: &Source) -> Result<Kernel> {
    let mut head = [0; bzimage::HEAD_BYTES];
    let count = kernel.read_head(&mut head)?;
    let head = &head[..count];
    if head.starts_with(&elf::MAGIC) {
        return elf::load(ram, window, kernel);
    }
    if let Some(payload) = bzimage::payload(kernel, head)? {
        return elf::load(ram, window, &bzimage::vmlinux(kernel, &payload)?);
    }
    if let Some(header) = image::Header::read(head) {
        return image::load(ram, window, kernel, header);
    }
    Err(unknown(&kernel.path, head))
}

/// `KERNEL_UNKNOWN_FORMAT`. A compressed Image is what some distributions have for arm64; unpacking is not the monitor's work.
fn unknown(path: &str, head: &[u8]) -> Error {
    let (what, hint) = match head {
        [0x1f, 0x8b, ..] => ("it is compressed by gzip", "machinen-kernel extract unpacks it, as gzip -dc does"),
        _ => (
            "neither an ELF file nor a bzImage nor an arm64 image",
            "give an uncompressed vmlinux, a vmlinuz or an Image",
        ),
    };
    Error::usage("KERNEL_UNKNOWN_FORMAT", format!("kernel {path}: {what}"), hint)
}

/// Places the initrd as high as RAM below the hole allows, above the kernel. Errors: `INITRD_*`.
pub fn load_initrd(ram: &Ram, window: (u64, u64), kernel: Kernel, initrd: &Source) -> Result<(GuestAddress, u64)> {
    let start = window.1.checked_sub(initrd.bytes).map(|start| start & !(PAGE_BYTES - 1));
    match start {
        Some(start) if start >= kernel.end => {
            let start = GuestAddress(start);
            ram.copy(start, &initrd.file, 0, initrd.bytes).map_err(|cause| initrd.unreadable(cause))?;
            Ok((start, initrd.bytes))
        }
        _ => {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            Err(Error::usage(
                "INITRD_TOO_LARGE",
                format!(
                    "initrd {}: its {} MiB do not fit between the kernel's end at {} MiB and {} MiB",
                    initrd.path,
                    mib(initrd.bytes),
                    mib(kernel.end),
                    window.1 >> 20,
                ),
                "give the guest more RAM with --memory",
            ))
        }
    }
}

/// Name of the architecture with ELF machine number `machine`.
fn machine_name(machine: u16) -> String {
    match machine {
        3 => "i386".into(),
        40 => "arm".into(),
        62 => "x86_64".into(),
        183 => "aarch64".into(),
        243 => "riscv".into(),
        other => format!("ELF machine {other}"),
    }
}

/// The architecture that this monitor runs.
fn own_machine() -> String {
    machine_name(arch::ELF_MACHINE)
}

#[cfg(test)]
mod tests {
    use super::unknown;

    #[test]
    fn a_compressed_image_is_told_from_noise() {
        let text = |head: &[u8]| unknown("Image.gz", head).to_string();
        assert!(text(&[0x1f, 0x8b, 8, 0]).contains("kernel Image.gz: it is compressed by gzip"));
        assert!(text(b"#!/bin/sh").contains("neither an ELF file nor a bzImage nor an arm64 image"));
        assert!(text(&[]).contains("neither"));
    }
}

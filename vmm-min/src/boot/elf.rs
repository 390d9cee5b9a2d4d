//! An ELF kernel: its loadable segments read to where they ask to be.
//!
//! The structures are linux-loader's; the loop is ours because linux-loader copies every segment through a buffer first.
//! Source: System V ABI, chapter 4 (ELF header) and 5 (program header).

use std::os::unix::fs::FileExt;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use vm_memory::{ByteValued, GuestAddress};

use super::source::Source;
use super::{Kernel, machine_name, own_machine};
use crate::arch::ELF_MACHINE;
use crate::error::{Error, Result};
use crate::ram::Ram;

/// First bytes of an ELF file.
pub const MAGIC: [u8; 4] = *b"\x7fELF";

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
/// A kernel has about five segments; more than this is not a kernel.
const MOST_SEGMENTS: u16 = 64;

/// Loads `kernel` into `window` (first address, first address beyond).
///
/// Errors: `KERNEL_TRUNCATED`, `KERNEL_WRONG_ARCH`, `KERNEL_TOO_LARGE`, `KERNEL_MALFORMED`.
pub fn load(ram: &Ram, window: (u64, u64), kernel: &Source) -> Result<Kernel> {
    let header: Elf64_Ehdr = read(kernel, 0)?;
    if header.e_ident[4] != CLASS_64 || header.e_ident[5] != LITTLE_ENDIAN || header.e_machine != ELF_MACHINE {
        return Err(wrong_architecture(kernel, &machine_name(header.e_machine)));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() || header.e_phnum > MOST_SEGMENTS {
        return Err(malformed(kernel, "its program headers have a size or number that no kernel has"));
    }
    let mut end = 0;
    let mut entry_is_loaded = false;
    for index in 0..u64::from(header.e_phnum) {
        let at = header.e_phoff.checked_add(index * size_of::<Elf64_Phdr>() as u64);
        let segment: Elf64_Phdr = read(kernel, at.ok_or_else(|| truncated(kernel))?)?;
        if segment.p_type != PT_LOAD || segment.p_memsz == 0 {
            continue;
        }
        let limit = check(kernel, window, &segment)?;
        ram.copy(GuestAddress(segment.p_paddr), &kernel.file, segment.p_offset, segment.p_filesz)
            .map_err(|cause| kernel.unreadable(cause))?;
        end = end.max(limit);
        entry_is_loaded |= (segment.p_paddr..limit).contains(&header.e_entry);
    }
    if !entry_is_loaded {
        return Err(malformed(kernel, "its entry point lies in no loadable segment"));
    }
    Ok(Kernel { entry: GuestAddress(header.e_entry), end })
}

/// The error for a kernel of architecture `theirs`.
pub fn wrong_architecture(kernel: &Source, theirs: &str) -> Error {
    Error::usage(
        "KERNEL_WRONG_ARCH",
        format!("kernel {}: it is for {theirs}, this host runs 64-bit {}", kernel.path, own_machine()),
        "",
    )
}

/// Checks one segment against file and window; returns its first address beyond.
fn check(kernel: &Source, window: (u64, u64), segment: &Elf64_Phdr) -> Result<u64> {
    match segment.p_offset.checked_add(segment.p_filesz) {
        Some(end) if end <= kernel.bytes => {}
        _ => return Err(truncated(kernel)),
    }
    if segment.p_filesz > segment.p_memsz {
        return Err(malformed(kernel, "a segment is larger in the file than in memory"));
    }
    if segment.p_paddr < window.0 {
        return Err(malformed(kernel, "a segment lies below 1 MiB, where the boot tables are"));
    }
    match segment.p_paddr.checked_add(segment.p_memsz) {
        Some(limit) if limit <= window.1 => Ok(limit),
        limit => Err(Error::usage(
            "KERNEL_TOO_LARGE",
            format!(
                "kernel {}: it reaches to {} MiB, RAM for it ends at {} MiB",
                kernel.path,
                limit.unwrap_or(u64::MAX).div_ceil(1 << 20),
                window.1 >> 20,
            ),
            "give the guest more RAM with --memory",
        )),
    }
}

fn read<T: ByteValued>(kernel: &Source, offset: u64) -> Result<T> {
    let mut value = T::zeroed();
    match offset.checked_add(size_of::<T>() as u64) {
        Some(end) if end <= kernel.bytes => {}
        _ => return Err(truncated(kernel)),
    }
    kernel.file.read_exact_at(value.as_mut_slice(), offset).map_err(|cause| kernel.unreadable(cause))?;
    Ok(value)
}

fn truncated(kernel: &Source) -> Error {
    Error::usage(
        "KERNEL_TRUNCATED",
        format!("kernel {}: its headers name bytes beyond its end at {}", kernel.path, kernel.bytes),
        "was the file copied completely?",
    )
}

fn malformed(kernel: &Source, why: &str) -> Error {
    Error::usage("KERNEL_MALFORMED", format!("kernel {}: {why}", kernel.path), "")
}

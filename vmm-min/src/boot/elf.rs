//! An ELF kernel: its loadable segments read to where they ask to be.
//!
//! By hand, because linux-loader copies every segment through a buffer first, and has these structures on x86 only.
//! Source: System V ABI, chapter 4 (ELF header) and 5 (program header).

use std::os::unix::fs::FileExt;

use vm_memory::GuestAddress;

use super::source::Source;
use super::{Kernel, machine_name, own_machine};
use crate::arch::ELF_MACHINE;
use crate::error::{Error, Result};
use crate::ram::Ram;

/// First bytes of an ELF file.
pub const MAGIC: [u8; 4] = *b"\x7fELF";

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
/// Type of a segment that is loaded.
const LOADABLE: u32 = 1;
/// A kernel has about five segments; more than this is not a kernel.
const MOST_SEGMENTS: u16 = 64;
/// No processor addresses so much memory: these are addresses of the kernel's own space, as in an arm64 vmlinux.
const NO_PHYSICAL_ADDRESS: u64 = 1 << 63;

/// Loads `kernel` into `window` (first address, first address beyond).
///
/// Errors: `KERNEL_TRUNCATED`, `KERNEL_WRONG_ARCH`, `KERNEL_TOO_LARGE`, `KERNEL_MALFORMED`.
pub fn load(ram: &Ram, window: (u64, u64), kernel: &Source) -> Result<Kernel> {
    let header = Header::read(kernel)?;
    if header.class != CLASS_64 || header.data != LITTLE_ENDIAN || header.machine != ELF_MACHINE {
        return Err(wrong_architecture(kernel, &machine_name(header.machine)));
    }
    if usize::from(header.segment_bytes) != Segment::BYTES || header.segments > MOST_SEGMENTS {
        return Err(malformed(kernel, "its program headers have a size or number that no kernel has"));
    }
    let mut end = 0;
    let mut entry_is_loaded = false;
    for index in 0..u64::from(header.segments) {
        let at = header.segments_offset.checked_add(index * Segment::BYTES as u64);
        let segment = Segment::read(kernel, at.ok_or_else(|| truncated(kernel))?)?;
        if segment.kind != LOADABLE || segment.memory_bytes == 0 {
            continue;
        }
        let limit = check(kernel, window, &segment)?;
        ram.copy(GuestAddress(segment.address), &kernel.file, segment.offset, segment.file_bytes)
            .map_err(|cause| kernel.unreadable(cause))?;
        end = end.max(limit);
        entry_is_loaded |= (segment.address..limit).contains(&header.entry);
    }
    if !entry_is_loaded {
        return Err(malformed(kernel, "its entry point lies in no loadable segment"));
    }
    Ok(Kernel { entry: GuestAddress(header.entry), end })
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
fn check(kernel: &Source, window: (u64, u64), segment: &Segment) -> Result<u64> {
    match segment.offset.checked_add(segment.file_bytes) {
        Some(end) if end <= kernel.bytes => {}
        _ => return Err(truncated(kernel)),
    }
    if segment.file_bytes > segment.memory_bytes {
        return Err(malformed(kernel, "a segment is larger in the file than in memory"));
    }
    if segment.address >= NO_PHYSICAL_ADDRESS {
        return Err(malformed(kernel, "its segments have no physical addresses: give the Image made from it"));
    }
    if segment.address < window.0 {
        return Err(malformed(
            kernel,
            &format!("a segment lies below {} MiB, where the boot tables are", window.0 >> 20),
        ));
    }
    match segment.address.checked_add(segment.memory_bytes) {
        Some(limit) if limit <= window.1 => Ok(limit),
        limit => Err(too_large(kernel, window, limit)),
    }
}

/// The error for a kernel that reaches to `limit` (`None`: beyond all addresses), outside of `window`.
pub fn too_large(kernel: &Source, window: (u64, u64), limit: Option<u64>) -> Error {
    Error::usage(
        "KERNEL_TOO_LARGE",
        format!(
            "kernel {}: it reaches to {} MiB, RAM for it ends at {} MiB",
            kernel.path,
            limit.unwrap_or(u64::MAX).div_ceil(1 << 20),
            window.1 >> 20,
        ),
        "give the guest more RAM with --memory",
    )
}

/// What is needed of the file's header.
struct Header {
    class: u8,
    data: u8,
    machine: u16,
    entry: u64,
    segments_offset: u64,
    segment_bytes: u16,
    segments: u16,
}

impl Header {
    fn read(kernel: &Source) -> Result<Header> {
        let bytes: [u8; 64] = read(kernel, 0)?;
        Ok(Header {
            class: bytes[4],
            data: bytes[5],
            machine: u16::from_le_bytes(field(&bytes, 18)),
            entry: u64::from_le_bytes(field(&bytes, 24)),
            segments_offset: u64::from_le_bytes(field(&bytes, 32)),
            segment_bytes: u16::from_le_bytes(field(&bytes, 54)),
            segments: u16::from_le_bytes(field(&bytes, 56)),
        })
    }
}

/// What is needed of a program header.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

impl Segment {
    /// Bytes of a program header.
    const BYTES: usize = 56;

    fn read(kernel: &Source, at: u64) -> Result<Segment> {
        let bytes: [u8; Segment::BYTES] = read(kernel, at)?;
        let word = |at| u64::from_le_bytes(field(&bytes, at));
        Ok(Segment {
            kind: u32::from_le_bytes(field(&bytes, 0)),
            offset: word(8),
            address: word(24),
            file_bytes: word(32),
            memory_bytes: word(40),
        })
    }
}

/// `N` bytes of a structure that has them.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..].first_chunk().copied().expect("a field of the structure")
}

fn read<const N: usize>(kernel: &Source, offset: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    match offset.checked_add(N as u64) {
        Some(end) if end <= kernel.bytes => {}
        _ => return Err(truncated(kernel)),
    }
    kernel.file.read_exact_at(&mut bytes, offset).map_err(|cause| kernel.unreadable(cause))?;
    Ok(bytes)
}

/// `KERNEL_TRUNCATED` for this kernel.
pub fn truncated(kernel: &Source) -> Error {
    Error::usage(
        "KERNEL_TRUNCATED",
        format!("kernel {}: its headers name bytes beyond its end at {}", kernel.path, kernel.bytes),
        "was the file copied completely?",
    )
}

/// `KERNEL_MALFORMED` for this kernel.
pub fn malformed(kernel: &Source, why: &str) -> Error {
    Error::usage("KERNEL_MALFORMED", format!("kernel {}: {why}", kernel.path), "")
}

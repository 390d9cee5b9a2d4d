//! An arm64 kernel image: one piece, read to where its header asks to be.
//!
//! Source: Documentation/arch/arm64/booting.rst in Linux; PE Format (Microsoft), 3 and 4.

use vm_memory::GuestAddress;

use super::source::Source;
use super::{Kernel, elf};
use crate::arch::ELF_MACHINE;
use crate::error::Result;
use crate::ram::Ram;

/// `e_machine` of the architecture that these images are for.
const MACHINE: u16 = 183;
/// Bytes of the header.
const HEADER_BYTES: usize = 64;
const MAGIC: [u8; 4] = *b"ARM\x64";
const PE_SIGNATURE: u32 = u32::from_le_bytes(*b"PE\0\0");
/// Bytes of a PE header with its signature, up to the optional header.
const PE_HEADER_BYTES: usize = 24;
const SECTION_BYTES: usize = 40;
const BIG_ENDIAN: u64 = 1;
/// The image lies at its offset from a multiple of this.
const ALIGNMENT: u64 = 2 << 20;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Distance in bytes from a multiple of 2 MiB.
    text_offset: u64,
    /// Bytes that the kernel occupies in memory; 0 before Linux 3.17.
    image_bytes: u64,
    flags: u64,
    /// Bytes that the file has at least: where the last section ends, as the image is also a program for EFI. 0: it is not.
    file_bytes: u64,
}

impl Header {
    /// Reads the first bytes of a file, a page of it at most. `None`: not such an image.
    pub fn read(head: &[u8]) -> Option<Header> {
        let header: &[u8; HEADER_BYTES] = head.first_chunk()?;
        let word = |at: usize| header[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        (header[56..60] == MAGIC).then_some(())?;
        let file_bytes = sections_end(head).unwrap_or(0);
        Some(Header { text_offset: word(8)?, image_bytes: word(16)?, flags: word(24)?, file_bytes })
    }
}

/// Where the last section of a PE file ends that begins with `head`. `None`: it is none, or its table is not in there.
fn sections_end(head: &[u8]) -> Option<u64> {
    let half = |at: usize| head.get(at..)?.first_chunk().map(|bytes| usize::from(u16::from_le_bytes(*bytes)));
    let word = |at: usize| head.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let pe = usize::try_from(word(60)?).ok()?;
    (word(pe)? == PE_SIGNATURE).then_some(())?;
    let table = pe + PE_HEADER_BYTES + half(pe + 20)?;
    // Each section has its length in the file, and where it is there.
    let end = |index: usize| {
        let section = table + index * SECTION_BYTES;
        Some(u64::from(word(section + 16)?) + u64::from(word(section + 20)?))
    };
    (0..half(pe + 6)?).map(end).try_fold(0, |most, end| Some(most.max(end?)))
}

/// Loads `kernel`, whose header was read before, into `window` (first address, first address beyond).
///
/// Errors: `KERNEL_WRONG_ARCH`, `KERNEL_TRUNCATED`, `KERNEL_MALFORMED`, `KERNEL_TOO_LARGE`.
pub fn load(ram: &Ram, window: (u64, u64), kernel: &Source, header: Header) -> Result<Kernel> {
    if ELF_MACHINE != MACHINE {
        return Err(elf::wrong_architecture(kernel, "aarch64"));
    }
    let (start, end) = place(window, kernel, header)?;
    ram.copy(GuestAddress(start), &kernel.file, 0, kernel.bytes).map_err(|cause| kernel.unreadable(cause))?;
    Ok(Kernel { entry: GuestAddress(start), end })
}

/// First address of the image, and first beyond it and its uninitialised data.
fn place(window: (u64, u64), kernel: &Source, header: Header) -> Result<(u64, u64)> {
    if header.flags & BIG_ENDIAN != 0 {
        return Err(elf::wrong_architecture(kernel, "big-endian aarch64"));
    }
    if header.file_bytes > kernel.bytes {
        return Err(elf::truncated(kernel));
    }
    if header.image_bytes == 0 {
        return Err(elf::malformed(kernel, "its header does not say how large it is (Linux before 3.17)"));
    }
    if header.text_offset >= ALIGNMENT {
        return Err(elf::malformed(kernel, "its header asks for an offset of 2 MiB or more"));
    }
    let start = window.0.next_multiple_of(ALIGNMENT) + header.text_offset;
    // What a file has behind the kernel, a signature perhaps, is loaded with it.
    match start.checked_add(header.image_bytes.max(kernel.bytes)) {
        Some(end) if end <= window.1 => Ok((start, end)),
        end => Err(elf::too_large(kernel, window, end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::source::Role;
    use std::io::Write;

    const WINDOW: (u64, u64) = (0x4020_0000, 0x4800_0000);

    fn image(text_offset: u64, image_bytes: u64, flags: u64) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        for word in [text_offset, image_bytes, flags, 0, 0, 0] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(b"ARM\x64\0\0\0\0");
        bytes.resize(4096, 0);
        bytes
    }

    fn placed(bytes: &[u8]) -> Result<(u64, u64)> {
        let mut file = crate::sys::memfd("image").expect("memfd");
        file.write_all(bytes).expect("memory");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let kernel = Source::open(Role::Kernel, &path, 1 << 20)?;
        place(WINDOW, &kernel, Header::read(bytes).expect("a header"))
    }

    fn refused(bytes: &[u8]) -> &'static str {
        placed(bytes).expect_err("refused").code()
    }

    #[test]
    fn it_lies_at_its_offset_and_ends_after_its_data() {
        assert_eq!(placed(&image(0, 0x23_0000, 0xa)).expect("placed"), (0x4020_0000, 0x4043_0000));
        assert_eq!(placed(&image(0x8_0000, 0x1000, 0)).expect("placed"), (0x4028_0000, 0x4028_1000));
        assert_eq!(placed(&image(0, 1, 0)).expect("placed"), (0x4020_0000, 0x4020_1000), "a longer file");
        assert_eq!(placed(&image(0, 0x7e0_0000, 0)).expect("placed"), WINDOW, "as large as RAM allows");
    }

    #[test]
    fn what_no_kernel_says_is_refused() {
        assert_eq!(refused(&image(0, 0x7e0_0001, 0)), "KERNEL_TOO_LARGE");
        assert_eq!(refused(&image(0, u64::MAX, 0)), "KERNEL_TOO_LARGE");
        assert_eq!(refused(&image(0, 0, 0)), "KERNEL_MALFORMED");
        assert_eq!(refused(&image(2 << 20, 0x1000, 0)), "KERNEL_MALFORMED");
        assert_eq!(refused(&image(0, 0x1000, 1)), "KERNEL_WRONG_ARCH");
    }

    /// An image that is a program for EFI, whose two sections end at 4096 and at `end`.
    fn efi_image(end: u32) -> Vec<u8> {
        let mut bytes = image(0, 0x10_0000, 0);
        bytes[60] = 64;
        bytes[64..68].copy_from_slice(b"PE\0\0");
        bytes[70] = 2;
        bytes[84] = 160;
        let table = 64 + 24 + 160;
        for (at, word) in [(16, 2048), (20, 2048), (40 + 16, end - 4096), (40 + 20, 4096)] {
            bytes[table + at..table + at + 4].copy_from_slice(&u32::to_le_bytes(word));
        }
        bytes
    }

    #[test]
    fn an_image_without_its_end_is_refused() {
        let mut whole = efi_image(8192);
        assert_eq!(refused(&whole), "KERNEL_TRUNCATED");
        whole.resize(8191, 0);
        assert_eq!(refused(&whole), "KERNEL_TRUNCATED");
        whole.resize(8192, 0);
        assert_eq!(placed(&whole).expect("placed"), (0x4020_0000, 0x4030_0000));
        whole.resize(9000, 0);
        placed(&whole).expect("a signature behind it");
    }

    #[test]
    fn sections_are_read_only_where_there_are_some() {
        let whole = efi_image(5000);
        assert_eq!(sections_end(&whole), Some(5000));
        for end in 0..64 + 24 + 160 + 80 {
            // The last four words of a section are not looked at.
            let known = end >= 64 + 24 + 160 + 40 + 24;
            assert_eq!(sections_end(&whole[..end]).is_some(), known, "{end} bytes");
        }
        let mut far = whole;
        far[60..64].fill(0xff);
        assert_eq!(sections_end(&far), None);
    }

    #[test]
    fn other_files_have_no_header() {
        assert_eq!(Header::read(b"MZ"), None);
        assert_eq!(Header::read(&[0; 4096]), None);
        let bytes = image(0, 1, 0);
        assert_eq!(Header::read(&bytes[..63]), None);
        assert!(Header::read(&bytes[..64]).is_some());
    }
}

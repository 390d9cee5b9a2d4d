//! An arm64 kernel image: one piece, read to where its header asks to be.
//!
//! Source: Documentation/arch/arm64/booting.rst in Linux.

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
}

impl Header {
    /// Reads the first bytes of a file. `None`: not such an image.
    pub fn read(head: &[u8]) -> Option<Header> {
        let header: &[u8; HEADER_BYTES] = head.first_chunk()?;
        let word = |at: usize| header[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        (header[56..60] == MAGIC).then_some(())?;
        Some(Header { text_offset: word(8)?, image_bytes: word(16)?, flags: word(24)? })
    }
}

/// Loads `kernel`, whose header was read before, into `window` (first address, first address beyond).
///
/// Errors: `KERNEL_WRONG_ARCH`, `KERNEL_MALFORMED`, `KERNEL_TOO_LARGE`.
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

    #[test]
    fn other_files_have_no_header() {
        assert_eq!(Header::read(b"MZ"), None);
        assert_eq!(Header::read(&[0; 4096]), None);
        let bytes = image(0, 1, 0);
        assert_eq!(Header::read(&bytes[..63]), None);
        assert!(Header::read(&bytes[..64]).is_some());
    }
}

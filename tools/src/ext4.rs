//! ext4 images by the crate mkext4: how large, with which parameters, an empty one, and whether one looks right.
//!
//! No kernel, no root and no mke2fs: the writer lays everything out before it writes, and each image that is kept is checked
//! by e2fsck. The images have no reserved descriptor blocks: when the guest grows one, the kernel turns on meta_bg.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use mkext4::{FsBuilder, InodeCount, Options};

use crate::fault::{Fault, Result};

/// Block of the images.
pub const BLOCK_BYTES: u64 = 4096;
/// Least size: the journal needs room.
pub const MIN_BYTES: u64 = 16 << 20;
/// mke2fs's ratio.
const BYTES_PER_INODE: u64 = 16 << 10;
/// What a size given by nobody is a multiple of.
const ROUND_BYTES: u64 = 1 << 20;

/// Size for `content_bytes` in so many inodes: 2.5 times the content, at least 2 GiB and the ratio of inodes.
pub fn default_bytes(content_bytes: u64, inodes: u64) -> u64 {
    let bytes = (content_bytes.saturating_mul(5) / 2).max(inodes.saturating_mul(BYTES_PER_INODE)).max(2 << 30);
    bytes.min(u64::MAX - ROUND_BYTES).next_multiple_of(ROUND_BYTES)
}

/// A size as users give it: a number of MiB, or one with K, M, G or T (powers of 1024). Bytes, whole blocks.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let wrong = || format!("{text}: not a size, as in 4096 (MiB), 512M or 8G");
    let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        Some(b'T') => (&text[..text.len() - 1], 40),
        _ => (text, 20),
    };
    // parse would take a plus sign.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << shift).and_then(|bytes| bytes.checked_next_multiple_of(BLOCK_BYTES));
    match bytes {
        Some(bytes) if bytes < MIN_BYTES => Err(format!("{text}: less than 16M, too little for a file system")),
        Some(bytes) if bytes < 16 << 40 => Ok(bytes),
        _ => Err(format!("{text}: 16T or more, too much for the file system")),
    }
}

/// An image to be filled: its size, name, and how many inodes it needs.
pub fn builder(bytes: u64, uuid: [u8; 16], inodes: u64) -> Result<FsBuilder> {
    // Dated 1970: an image is a function of its content alone.
    let mut options = Options::new(bytes, uuid, 0);
    // Room for twice as many, as in 2.5 times the content.
    let count = (bytes / BYTES_PER_INODE).max(inodes.saturating_mul(2).saturating_add(1024));
    options.inodes = InodeCount::Exact(u32::try_from(count).unwrap_or(u32::MAX - 1));
    options.reserved_percent = 0;
    FsBuilder::new(options).map_err(limit)
}

/// Writes an empty file system of `bytes` to `file`.
pub fn write_empty(file: &File, bytes: u64, uuid: [u8; 16]) -> Result<()> {
    let layout = builder(bytes, uuid, 0)?.seal().map_err(limit)?;
    file.set_len(bytes).map_err(written)?;
    layout.writer(Positioned(file)).and_then(|writer| writer.finish()).map_err(|e| match e {
        mkext4::Error::Io(e) => written(e),
        other => limit(other),
    })?;
    Ok(())
}

/// A failed write of an image.
pub fn written(cause: io::Error) -> Fault {
    Fault::host("write", "image".as_ref(), cause)
}

/// What the writer says when something does not fit its format.
pub fn limit(error: mkext4::Error) -> Fault {
    let text = match error {
        mkext4::Error::Invalid(text) | mkext4::Error::Unsupported(text) => text,
        other => other.to_string(),
    };
    Fault::Limit(text)
}

/// Writes regions where they belong; zeros are holes.
#[derive(Debug)]
pub struct Positioned<'a>(pub &'a File);

impl mkext4::RegionSink for Positioned<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn zeros(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the superblock is one of a clean ext4 file system that fits into `bytes` (Documentation/filesystems/ext4).
pub fn looks_clean(file: &File, bytes: u64) -> bool {
    let mut block = [0; 1024];
    if file.read_exact_at(&mut block, 1024).is_err() {
        return false;
    }
    let u16_at = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let checksum = mkext4::csum::superblock(&block);
    let needs_recovery = u32_at(0x60) & 4 != 0;
    u16_at(0x38) == 0xef53
        && u16_at(0x3a) == 1
        && !needs_recovery
        && u32_at(0x3fc) == checksum
        && u64::from(u32_at(4)) * BLOCK_BYTES <= bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4 << 30));
        assert_eq!(parse_size("512m"), Ok(512 << 20));
        assert_eq!(parse_size("16385K"), Ok((16 << 20) + 4096));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        for bad in ["", "G", "1x", "-1", "+1", "1.5G", "15", "16T", "99999999999999999999", "99999999999T", "1é"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(default_bytes(0, 0), 2 << 30);
        assert_eq!(default_bytes(1 << 30, 9), 2560 << 20);
    }
}

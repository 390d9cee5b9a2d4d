//! A bzImage: the ELF kernel inside it, decompressed once on the host and cached by content.
//!
//! Decompressing in the guest costs every boot 100 ms and more. Source: Documentation/arch/x86/boot.rst.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use lzma_rust2::XzReader;
use sha2::{Digest, Sha256};

use super::elf;
use super::source::Source;
use crate::error::{Error, Result};
use crate::{cache, sys};

/// How much of a file tells what it is: the boot sector and the setup header.
pub const HEAD_BYTES: usize = 0x264;
/// No kernel is larger; a payload that claims to be is refused before memory is taken for it.
const MOST_BYTES: u32 = 1 << 30;
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Kernels are compressed with dictionaries of up to 128 MiB (scripts/xz_wrap.sh).
const XZ_MEMORY_KIB: u32 = 256 << 10;
/// LZ4's legacy frame holds blocks of at most this many decompressed bytes.
const LZ4_BLOCK_BYTES: usize = 8 << 20;

/// The compressed kernel within a bzImage.
pub struct Payload {
    compressed: Vec<u8>,
    bytes: u32,
}

/// Finds the payload of `kernel`, whose first bytes are `head`. `None`: not a bzImage.
pub fn payload(kernel: &Source, head: &[u8]) -> Result<Option<Payload>> {
    if head.len() < HEAD_BYTES || head[0x1fe..0x200] != [0x55, 0xaa] || head[0x202..0x206] != *b"HdrS" {
        return Ok(None);
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let setup_sectors = match head[0x1f1] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + u64::from(word(0x248));
    let length = u64::from(word(0x24c));
    if length < 8 || start + length > kernel.bytes {
        return Err(broken(kernel, format_args!("its header names bytes beyond its end at {}", kernel.bytes)));
    }
    let mut compressed = room_for(length).map_err(|cause| kernel.unreadable(cause))?;
    compressed.resize(usize::try_from(length).map_err(|_| kernel.unreadable(io::ErrorKind::OutOfMemory.into()))?, 0);
    kernel.file.read_exact_at(&mut compressed, start).map_err(|cause| kernel.unreadable(cause))?;
    // The decompressed size: gzip has it at its end, to the others the kernel's build appends it.
    let (rest, tail) = compressed.split_last_chunk().expect("8 bytes at least");
    let bytes = u32::from_le_bytes(*tail);
    if bytes > MOST_BYTES {
        return Err(broken(kernel, format_args!("it says that its kernel has {bytes} bytes")));
    }
    if !compressed.starts_with(&GZIP) {
        compressed.truncate(rest.len());
    }
    Ok(Some(Payload { compressed, bytes }))
}

/// The ELF kernel in `payload`: from the cache, or decompressed and put there when the cache can be written.
pub fn vmlinux(kernel: &Source, payload: &Payload) -> Result<Source> {
    let cached = cache_path(payload);
    if let Some(file) = cached.as_ref().and_then(|path| File::open(path).ok())
        && is_whole(&file, payload.bytes)
    {
        return Ok(kernel.replaced(file, payload.bytes.into()));
    }
    let image = decompress(&payload.compressed, payload.bytes).map_err(|cause| match cause.kind() {
        io::ErrorKind::Unsupported => Error::usage(
            "KERNEL_UNKNOWN_FORMAT",
            format!("bzImage {}: {cause}", kernel.path),
            "give an uncompressed vmlinux",
        ),
        _ => broken(kernel, format_args!("its kernel does not decompress: {cause}")),
    })?;
    if !image.starts_with(&elf::MAGIC) {
        return Err(broken(kernel, format_args!("what it holds is not an ELF kernel")));
    }
    let file = match cached.and_then(|path| cache::store(&path, &image).ok()) {
        Some(file) => file,
        None => {
            let mut file = sys::memfd("vmlinux").map_err(|cause| kernel.unreadable(cause))?;
            file.write_all(&image).map_err(|cause| kernel.unreadable(cause))?;
            file
        }
    };
    Ok(kernel.replaced(file, image.len() as u64))
}

/// A cached kernel that this user put there, and that a crash of the host has not emptied.
fn is_whole(file: &File, bytes: u32) -> bool {
    let mut magic = [0; elf::MAGIC.len()];
    sys::is_own_file(file)
        && file.metadata().is_ok_and(|metadata| metadata.len() == u64::from(bytes))
        && file.read_exact_at(&mut magic, 0).is_ok()
        && magic == elf::MAGIC
}

/// `kernels/SHA256.elf` in the cache directory. `None`: there is none.
fn cache_path(payload: &Payload) -> Option<PathBuf> {
    let digest = Sha256::digest(&payload.compressed);
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(cache::directory()?.join("kernels").join(name + ".elf"))
}

/// An empty vector with exactly this capacity, or an error where the host has no memory for it.
fn room_for(bytes: u64) -> io::Result<Vec<u8>> {
    let mut room = Vec::new();
    room.try_reserve_exact(usize::try_from(bytes).map_err(io::Error::other)?)?;
    Ok(room)
}

fn decompress(compressed: &[u8], bytes: u32) -> io::Result<Vec<u8>> {
    let mut image = room_for(bytes.into())?;
    // One byte more than promised is enough to see that the promise was wrong.
    let limit = u64::from(bytes) + 1;
    match compressed {
        [first, second, ..] if [*first, *second] == GZIP => {
            flate2::read::GzDecoder::new(compressed).take(limit).read_to_end(&mut image)?;
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(compressed).map_err(io::Error::other)?;
            decoder.take(limit).read_to_end(&mut image)?;
        }
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => lz4(blocks, &mut image)?,
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            XzReader::new_mem_limit(compressed, false, XZ_MEMORY_KIB).take(limit).read_to_end(&mut image)?;
        }
        _ => {
            let why = "its kernel is compressed by none of gzip, xz, lz4 and zstd";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
    }
    if image.len() as u64 != u64::from(bytes) {
        return Err(io::Error::other(format!("{bytes} bytes promised, {} found", image.len())));
    }
    Ok(image)
}

/// LZ4 legacy frame: blocks, each after its compressed length. Source: lz4_Frame_format.md, "Legacy frame".
fn lz4(mut blocks: &[u8], image: &mut Vec<u8>) -> io::Result<()> {
    while let Some((length, rest)) = blocks.split_first_chunk() {
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(io::Error::other)?;
        let (block, rest) = rest.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        let room = (image.capacity() - image.len()).min(LZ4_BLOCK_BYTES);
        image.extend_from_slice(&lz4_flex::block::decompress(block, room).map_err(io::Error::other)?);
        blocks = rest;
    }
    Ok(())
}

fn broken(kernel: &Source, why: std::fmt::Arguments<'_>) -> Error {
    Error::usage("KERNEL_TRUNCATED", format!("bzImage {}: {why}", kernel.path), "was the file copied completely?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_gives_back_what_went_in() {
        let image: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let length = u32::try_from(image.len()).expect("small");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&image).expect("in memory");
        // As the kernel's build does: with the filter for x86 code.
        let mut options = lzma_rust2::XzOptions::with_preset(1);
        options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).expect("in memory");
        xz.write_all(&image).expect("in memory");
        let xz = xz.finish().expect("in memory");
        let zstd = ruzstd::encoding::compress_to_vec(&*image, ruzstd::encoding::CompressionLevel::Fastest);
        let block = lz4_flex::block::compress(&image);
        let mut lz4 = vec![0x02, 0x21, 0x4c, 0x18];
        lz4.extend_from_slice(&u32::try_from(block.len()).expect("small").to_le_bytes());
        lz4.extend_from_slice(&block);
        for compressed in [gzip.finish().expect("in memory"), xz, zstd, lz4] {
            assert_eq!(decompress(&compressed, length).expect("whole"), image);
            assert!(decompress(&compressed, length - 1).is_err(), "longer than promised");
            assert!(decompress(&compressed, length + 1).is_err(), "shorter than promised");
            assert!(decompress(&compressed[..compressed.len() / 2], length).is_err(), "cut off");
        }
        let unknown = decompress(b"neither of them", 5).expect_err("refused");
        assert_eq!(unknown.kind(), io::ErrorKind::Unsupported);
    }
}

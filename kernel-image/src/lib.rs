//! What is inside a kernel file: the compressed ELF kernel of a bzImage, and an embedded configuration.
//!
//! Bytes in, bytes out: files, caches and messages are the callers'. Sources: Documentation/arch/x86/boot.rst (setup
//! header, payload), kernel/configs.c (embedded configuration).

#![forbid(unsafe_code)]

use std::io::{self, Read};

use lzma_rust2::XzReader;

/// How much of a file tells what it is: the boot sector and the setup header.
pub const HEAD_BYTES: usize = 0x264;
/// First bytes of an ELF file.
pub const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// No kernel is larger; a payload that claims to be is refused before memory is taken for it.
pub const MOST_BYTES: u32 = 1 << 30;
/// First bytes of a gzip stream.
pub const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const XZ: [u8; 5] = [0xfd, b'7', b'z', b'X', b'Z'];
/// Kernels are compressed with dictionaries of up to 128 MiB (scripts/xz_wrap.sh).
const XZ_MEMORY_KIB: u32 = 256 << 10;
/// LZ4's legacy frame holds blocks of at most this many decompressed bytes.
const LZ4_BLOCK_BYTES: usize = 8 << 20;

/// Where the payload of a bzImage lies in its file: first byte and length. `None`: not a bzImage. At least 8 bytes,
/// which may reach beyond the end of a file that is cut off.
pub fn payload_range(head: &[u8]) -> Option<(u64, u64)> {
    if head.len() < HEAD_BYTES || head[0x1fe..0x200] != [0x55, 0xaa] || head[0x202..0x206] != *b"HdrS" {
        return None;
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let setup_sectors = match head[0x1f1] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    Some(((setup_sectors + 1) * 512 + u64::from(word(0x248)), u64::from(word(0x24c)).max(8)))
}

/// The compressed kernel within a bzImage.
pub struct Payload {
    compressed: Vec<u8>,
    bytes: u32,
}

impl Payload {
    /// Takes the bytes of [`payload_range`]. `Err`: the size of the kernel that they claim, above [`MOST_BYTES`].
    pub fn new(mut raw: Vec<u8>) -> Result<Payload, u32> {
        // The decompressed size: gzip has it at its end, to the others the kernel's build appends it.
        let bytes = raw.last_chunk().map_or(0, |tail| u32::from_le_bytes(*tail));
        if bytes > MOST_BYTES {
            return Err(bytes);
        }
        if !raw.starts_with(&GZIP) {
            raw.truncate(raw.len().saturating_sub(4));
        }
        Ok(Payload { compressed: raw, bytes })
    }

    /// The compressed bytes, which name the kernel in a cache.
    pub fn compressed(&self) -> &[u8] {
        &self.compressed
    }

    /// Size of the kernel, as promised.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// The kernel. Errors: `Unsupported` with the name of the format; anything else means broken bytes, or no memory.
    pub fn decompress(&self) -> io::Result<Vec<u8>> {
        decompress(&self.compressed, self.bytes)
    }
}

/// An empty vector with exactly this capacity, or an error where the host has no memory for it.
pub fn room_for(bytes: u64) -> io::Result<Vec<u8>> {
    let mut room = Vec::new();
    room.try_reserve_exact(usize::try_from(bytes).map_err(io::Error::other)?)?;
    Ok(room)
}

fn decompress(compressed: &[u8], bytes: u32) -> io::Result<Vec<u8>> {
    let mut image = room_for(bytes.into())?;
    // One byte more than promised is enough to see that the promise was wrong.
    let limit = u64::from(bytes) + 1;
    if compressed.starts_with(&GZIP) {
        flate2::read::GzDecoder::new(compressed).take(limit).read_to_end(&mut image)?;
    } else if compressed.starts_with(&ZSTD) {
        let decoder = ruzstd::decoding::StreamingDecoder::new(compressed).map_err(io::Error::other)?;
        decoder.take(limit).read_to_end(&mut image)?;
    } else if compressed.starts_with(&LZ4_LEGACY) {
        lz4(&compressed[LZ4_LEGACY.len()..], &mut image)?;
    } else if compressed.starts_with(&XZ) {
        XzReader::new_mem_limit(compressed, false, XZ_MEMORY_KIB).take(limit).read_to_end(&mut image)?;
    } else {
        let why = match unknown(compressed) {
            Some(name) => format!("its kernel is compressed by {name}, not by gzip, xz, lz4 or zstd"),
            None => "its kernel is compressed by none of gzip, xz, lz4 and zstd".into(),
        };
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    if image.len() as u64 != u64::from(bytes) {
        return Err(io::Error::other(format!("{bytes} bytes promised, {} found", image.len())));
    }
    Ok(image)
}

/// Formats that the kernel's build knows and we do not. Source: scripts/Makefile.lib, lib/decompress.c.
fn unknown(compressed: &[u8]) -> Option<&'static str> {
    let magics: [(&[u8], &str); 3] = [(b"BZh", "bzip2"), (b"\x5d\0\0", "lzma"), (b"\x89LZO", "lzo")];
    magics.iter().find(|(magic, _)| compressed.starts_with(magic)).map(|(_, name)| *name)
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

/// The configuration that a decompressed kernel built with `IKCONFIG` carries, at most `most_bytes` of it. `None`: none.
pub fn embedded_config(image: &[u8], most_bytes: u64) -> Option<io::Result<Vec<u8>>> {
    const START: &[u8] = b"IKCFG_ST";
    let (start, first) = (START[0], START[1]);
    let mut rest = image;
    // The marker is also a string in programs that look for it; the real one is followed by gzip.
    while let Some(at) = rest.iter().position(|byte| *byte == start) {
        rest = &rest[at..];
        if rest.get(1) == Some(&first)
            && let Some(packed) = rest.strip_prefix(START)
            && packed.starts_with(&GZIP)
        {
            let mut config = Vec::new();
            let read = flate2::read::GzDecoder::new(packed).take(most_bytes).read_to_end(&mut config);
            return Some(read.map(|_| config));
        }
        rest = &rest[1..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).expect("in memory");
        gzip.finish().expect("in memory")
    }

    #[test]
    fn every_format_gives_back_what_went_in() {
        let image: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let length = u32::try_from(image.len()).expect("small");
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
        for compressed in [gzip(&image), xz, zstd, lz4] {
            assert_eq!(decompress(&compressed, length).expect("whole"), image);
            assert!(decompress(&compressed, length - 1).is_err(), "longer than promised");
            assert!(decompress(&compressed, length + 1).is_err(), "shorter than promised");
            assert!(decompress(&compressed[..compressed.len() / 2], length).is_err(), "cut off");
        }
        let unknown = decompress(b"neither of them", 5).expect_err("refused");
        assert_eq!(unknown.kind(), io::ErrorKind::Unsupported);
        let bzip2 = decompress(b"BZh91AY", 5).expect_err("refused");
        assert!(bzip2.to_string().contains("by bzip2"), "{bzip2}");
    }

    #[test]
    fn the_size_is_the_last_word_and_gzip_keeps_it() {
        let payload = Payload::new(b"BZhxxxx\x05\0\0\0".to_vec()).expect("small");
        assert_eq!((payload.bytes(), payload.compressed()), (5, &b"BZhxxxx"[..]));
        assert_eq!(Payload::new(vec![0xff; 12]).err(), Some(0xffff_ffff));
        assert_eq!(Payload::new(vec![]).expect("nothing").bytes(), 0);
    }

    #[test]
    fn a_configuration_is_found_behind_its_marker() {
        let packed = gzip(b"CONFIG_A=y\n");
        let image = [b"xIKCFG_ST no IIKCFG_ST", &packed[..], b"IKCFG_ED"].concat();
        assert_eq!(embedded_config(&image, 100).expect("there").expect("whole"), b"CONFIG_A=y\n");
        assert_eq!(embedded_config(&image, 4).expect("there").expect("cut"), b"CONF");
        assert!(embedded_config(b"IKCFG_S", 100).is_none());
        assert!(embedded_config(&image[..image.len() - 20], 100).expect("there").is_err(), "cut off");
    }
}

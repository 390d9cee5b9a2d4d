//! What a kernel module says about itself: its dependencies, and the modules it would like before and after it.
//!
//! Source: include/linux/module.h (MODULE_INFO), the section `.modinfo`: `name=value` strings, each ended by a NUL.

use std::io::{self, Read};

use machinen_kernel_image::GZIP;

/// No module is larger; what decompresses to more is broken.
const MOST_BYTES: u64 = 256 << 20;
const XZ_MEMORY_KIB: u32 = 128 << 10;

/// The names that a module gives.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Modinfo {
    /// `depends=`: must be loaded before it.
    pub depends: Vec<String>,
    /// `softdep=pre:`: loaded before it where they exist.
    pub before: Vec<String>,
    /// `softdep=post:`: loaded after it where they exist.
    pub after: Vec<String>,
}

/// The module with dashes as underscores, as the kernel has it.
pub fn plain_name(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module in the file `name`, `None` when it is no module's: `.ko`, `.ko.xz`, `.ko.zst`, `.ko.gz`.
pub fn module_name(name: &str) -> Option<String> {
    let name = name.rsplit('/').next().unwrap_or_default();
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|end| name.strip_suffix(end))?;
    Some(plain_name(stem)).filter(|name| !name.is_empty())
}

/// The module's ELF file, decompressed if its first bytes say so.
pub fn decompress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    match bytes {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            lzma_rust2::XzReader::new_mem_limit(bytes, true, XZ_MEMORY_KIB).take(MOST_BYTES).read_to_end(&mut plain)
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(bytes).map_err(io::Error::other)?;
            decoder.take(MOST_BYTES).read_to_end(&mut plain)
        }
        [first, second, ..] if [*first, *second] == GZIP => {
            flate2::read::MultiGzDecoder::new(bytes).take(MOST_BYTES).read_to_end(&mut plain)
        }
        _ => return Ok(bytes.to_vec()),
    }?;
    Ok(plain)
}

/// Reads what a decompressed module says. `None`: it is not an ELF file, or says nothing.
pub fn parse(module: &[u8]) -> Option<Modinfo> {
    if !module.starts_with(&machinen_kernel_image::ELF_MAGIC) {
        return None;
    }
    let mut info = Modinfo::default();
    let mut found = false;
    // Strings elsewhere in the file have no such beginning after a NUL.
    for text in module.split(|byte| *byte == 0) {
        if let Some(list) = text.strip_prefix(b"depends=") {
            found = true;
            let list = String::from_utf8_lossy(list);
            info.depends.extend(list.split(',').filter(|name| !name.is_empty()).map(plain_name));
        } else if let Some(list) = text.strip_prefix(b"softdep=") {
            softdep(&String::from_utf8_lossy(list), &mut info);
        }
    }
    found.then_some(info)
}

/// `pre: a b post: c`.
fn softdep(list: &str, info: &mut Modinfo) {
    let mut to = None;
    for word in list.split_whitespace() {
        match word {
            "pre:" => to = Some(true),
            "post:" => to = Some(false),
            name => match to {
                Some(true) => info.before.push(plain_name(name)),
                Some(false) => info.after.push(plain_name(name)),
                None => {}
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_and_soft_ones() {
        let module =
            b"\x7fELF\0\0license=GPL\0softdep=pre: crc32c\0depends=virtio-ring,virtio\0softdep=pre: x post: y-z w\0";
        let info = parse(module).expect("a module");
        assert_eq!(info.depends, ["virtio_ring", "virtio"]);
        assert_eq!((info.before, info.after), (vec!["crc32c".into(), "x".into()], vec!["y_z".into(), "w".into()]));
        assert_eq!(parse(b"\x7fELF\0depends=\0"), Some(Modinfo::default()));
        assert_eq!(parse(b"\x7fELF\0nothing"), None);
        assert_eq!(parse(b"text\0depends=a\0"), None);
    }

    #[test]
    fn names() {
        assert_eq!(module_name("kernel/fs/virtio-rng.ko.xz").as_deref(), Some("virtio_rng"));
        assert_eq!(module_name("a/.ko"), None);
        assert_eq!(module_name("modules.dep"), None);
    }

    #[test]
    fn compressed_or_not() {
        let module = b"\x7fELF\0depends=\0".repeat(100);
        let zstd = ruzstd::encoding::compress_to_vec(&*module, ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(decompress(&zstd).expect("whole"), module);
        assert_eq!(decompress(&module).expect("plain"), module);
        assert!(decompress(&zstd[..zstd.len() / 2]).is_err());
        assert!(decompress(b"\xfd7zXZ\0 broken").is_err());
    }
}

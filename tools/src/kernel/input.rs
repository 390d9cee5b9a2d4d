//! Kernel files and configurations: read whole, told apart by their bytes, and opened down to the kernel itself.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use machinen_kernel_image::{ELF_MAGIC, GZIP, MOST_BYTES, Payload, embedded_config, payload_range};

use super::{broken, failed};
use crate::diagnostic::Diagnostic;

/// No configuration is larger; Debian's has 250 KiB.
const MOST_CONFIG_BYTES: u64 = 16 << 20;

/// What a file was.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// An ELF kernel, perhaps out of a bzImage.
    Elf(Vec<u8>),
    /// An arm64 Image.
    Image(Vec<u8>),
    /// A configuration as text.
    Config(String),
}

/// Reads the file at `path`, `-` being standard input. Errors: `KERNEL_HOST`, `KERNEL_BROKEN`.
pub fn read(path: &str) -> Result<Vec<u8>, Diagnostic> {
    let name = Path::new(if path == "-" { "standard input" } else { path });
    let mut bytes = Vec::new();
    let limit = u64::from(MOST_BYTES) + 1;
    let read = match path {
        "-" => io::stdin().lock().take(limit).read_to_end(&mut bytes),
        _ => File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)),
    };
    read.map_err(failed("read", name))?;
    if bytes.len() as u64 == limit {
        return Err(broken(path, format_args!("more than {} MiB", MOST_BYTES >> 20)));
    }
    Ok(bytes)
}

/// Opens what `name` held, down to the kernel. Errors: `KERNEL_BROKEN`, `KERNEL_UNKNOWN_FORMAT`.
pub fn open(name: &str, bytes: Vec<u8>) -> Result<Content, Diagnostic> {
    if bytes.starts_with(&GZIP) {
        let mut inner = Vec::new();
        let decoder = flate2::read::MultiGzDecoder::new(&*bytes);
        let read = decoder.take(u64::from(MOST_BYTES)).read_to_end(&mut inner);
        read.map_err(|cause| broken(name, format_args!("does not decompress: {cause}")))?;
        return plain(name, inner);
    }
    plain(name, bytes)
}

fn plain(name: &str, bytes: Vec<u8>) -> Result<Content, Diagnostic> {
    if bytes.starts_with(&ELF_MAGIC) {
        return Ok(Content::Elf(bytes));
    }
    if bytes.get(56..60) == Some(b"ARM\x64".as_slice()) {
        return Ok(Content::Image(bytes));
    }
    if let Some((start, length)) = payload_range(&bytes) {
        return unpack(name, &bytes, start, length).map(Content::Elf);
    }
    match String::from_utf8(bytes) {
        Ok(text) if text.lines().any(|line| line.starts_with("CONFIG_")) => Ok(Content::Config(text)),
        _ => Err(Diagnostic::new(
            "KERNEL_UNKNOWN_FORMAT",
            format!("{name}: neither an ELF file nor a bzImage, an arm64 Image or a configuration"),
        )
        .hint("give a vmlinux, a vmlinuz or a config file")),
    }
}

fn unpack(name: &str, bytes: &[u8], start: u64, length: u64) -> Result<Vec<u8>, Diagnostic> {
    let range = usize::try_from(start).ok().zip(usize::try_from(start + length).ok());
    let raw = range.and_then(|(from, to)| bytes.get(from..to)).ok_or_else(|| broken(name, "the bzImage is cut off"))?;
    let payload = Payload::new(raw.to_vec())
        .map_err(|claims| broken(name, format_args!("the bzImage says that its kernel has {claims} bytes")))?;
    let elf = payload.decompress().map_err(|cause| match cause.kind() {
        io::ErrorKind::Unsupported => Diagnostic::new("KERNEL_UNKNOWN_FORMAT", format!("{name}: {cause}"))
            .hint("build it with CONFIG_KERNEL_ZSTD=y, or give its vmlinux"),
        _ => broken(name, format_args!("its kernel does not decompress: {cause}")),
    })?;
    if !elf.starts_with(&ELF_MAGIC) {
        return Err(broken(name, "what it holds is not an ELF kernel"));
    }
    Ok(elf)
}

/// The configuration of what `path` names: a configuration; a kernel that carries its own; or `config-VERSION` beside
/// a `vmlinuz-VERSION` or `vmlinux-VERSION`. Errors: those of [`read`] and [`open`], `KERNEL_NO_CONFIG`.
pub fn config(path: &str) -> Result<String, Diagnostic> {
    let kernel = match open(path, read(path)?)? {
        Content::Config(text) => return Ok(text),
        Content::Elf(bytes) | Content::Image(bytes) => bytes,
    };
    if let Some(config) = embedded_config(&kernel, MOST_CONFIG_BYTES) {
        let text =
            config.map_err(|cause| broken(path, format_args!("its configuration does not decompress: {cause}")))?;
        return Ok(String::from_utf8_lossy(&text).into_owned());
    }
    if let Some(beside) = beside(Path::new(path)).filter(|beside| beside.is_file()) {
        let bytes = std::fs::read(&beside).map_err(failed("read", &beside))?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    Err(Diagnostic::new("KERNEL_NO_CONFIG", format!("{path}: the kernel does not carry its configuration"))
        .hint("give its configuration: /boot/config-VERSION, or .config of its build"))
}

/// `DIR/config-VERSION` for `DIR/vmlinuz-VERSION`.
fn beside(kernel: &Path) -> Option<std::path::PathBuf> {
    let name = kernel.file_name()?.to_str()?;
    let version = name.strip_prefix("vmlinuz-").or_else(|| name.strip_prefix("vmlinux-"))?;
    Some(kernel.with_file_name(format!("config-{version}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_by_their_bytes() {
        let kind = |bytes: &[u8]| open("x", bytes.to_vec());
        assert!(matches!(kind(b"\x7fELF..."), Ok(Content::Elf(_))));
        assert_eq!(kind(b"# a\nCONFIG_A=y\n"), Ok(Content::Config("# a\nCONFIG_A=y\n".into())));
        for bad in [&b""[..], b"text", b"\x1f\x8b\x08 broken"] {
            assert!(kind(bad).is_err(), "{bad:?}");
        }
        let mut image = vec![0; 64];
        image[56..60].copy_from_slice(b"ARM\x64");
        assert!(matches!(kind(&image), Ok(Content::Image(_))));
    }

    #[test]
    fn a_bzimage_that_is_cut_off_is_refused() {
        let mut head = vec![0; 0x264];
        head[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = open("k", head).expect_err("refused");
        assert_eq!((error.code, error.message.as_str()), ("KERNEL_BROKEN", "k: the bzImage is cut off"));
    }

    #[test]
    fn the_configuration_lies_beside_an_installed_kernel() {
        assert_eq!(beside(Path::new("/boot/vmlinuz-6.1")), Some("/boot/config-6.1".into()));
        assert_eq!(beside(Path::new("/boot/bzImage")), None);
    }
}

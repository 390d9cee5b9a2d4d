//! A bzImage: the ELF kernel inside it, decompressed once on the host and cached by content.
//!
//! Decompressing in the guest costs every boot 100 ms and more. Source: Documentation/arch/x86/boot.rst.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

pub use machinen_kernel_image::HEAD_BYTES;
use machinen_kernel_image::{Payload, payload_range, room_for};
use sha2::{Digest, Sha256};

use super::elf;
use super::source::Source;
use crate::error::{Error, Result};
use crate::{cache, sys};

/// Finds the payload of `kernel`, whose first bytes are `head`. `None`: not a bzImage.
pub fn payload(kernel: &Source, head: &[u8]) -> Result<Option<Payload>> {
    let Some((start, length)) = payload_range(head) else { return Ok(None) };
    if start + length > kernel.bytes {
        return Err(broken(kernel, format_args!("its header names bytes beyond its end at {}", kernel.bytes)));
    }
    let mut compressed = room_for(length).map_err(|cause| kernel.unreadable(cause))?;
    compressed.resize(usize::try_from(length).map_err(|_| kernel.unreadable(io::ErrorKind::OutOfMemory.into()))?, 0);
    kernel.file.read_exact_at(&mut compressed, start).map_err(|cause| kernel.unreadable(cause))?;
    let claims = |bytes| broken(kernel, format_args!("it says that its kernel has {bytes} bytes"));
    Payload::new(compressed).map(Some).map_err(claims)
}

/// The ELF kernel in `payload`: from the cache, or decompressed and put there when the cache can be written.
pub fn vmlinux(kernel: &Source, payload: &Payload) -> Result<Source> {
    let cached = cache_path(payload);
    if let Some(file) = cached.as_ref().and_then(|path| File::open(path).ok())
        && is_whole(&file, payload.bytes())
    {
        return Ok(kernel.replaced(file, payload.bytes().into()));
    }
    let image = payload.decompress().map_err(|cause| match cause.kind() {
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
    let digest = Sha256::digest(payload.compressed());
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(cache::directory()?.join("kernels").join(name + ".elf"))
}

fn broken(kernel: &Source, why: std::fmt::Arguments<'_>) -> Error {
    Error::usage("KERNEL_TRUNCATED", format!("bzImage {}: {why}", kernel.path), "was the file copied completely?")
}

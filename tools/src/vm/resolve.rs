//! What a machine is made of, found: kernel, image, monitor, memory.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::phases::Phases;
use crate::{imagecache, rootfs_img};

/// A kernel, and the modules that its guests load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The ELF or bzImage.
    pub path: PathBuf,
    /// Directory that `machinen-kernel` made; `None` when nothing is to be loaded.
    pub modules: Option<PathBuf>,
}

/// Finds a kernel: `given`, `MACHINEN_KERNEL`, `MACHINEN_ASSETS_DIR`, then in the cache the tuned kernel and after it the
/// distribution's that `machinen-kernel host` made ready.
///
/// Modules: `modules`, else `MACHINEN_MODULES`, else those that `machinen-kernel host` put beside the kernel.
///
/// # Errors
/// `BOOT_KERNEL_MISSING`, with what was tried and what to type.
pub fn resolve_kernel(given: Option<&Path>, modules: Option<&Path>) -> Result<Kernel> {
    let path = find_kernel(given, imagecache::directory().as_deref(), &variable)?;
    let path = std::path::absolute(&path).unwrap_or(path);
    let modules = modules.map(Path::to_owned).or_else(|| variable("MACHINEN_MODULES").map(PathBuf::from));
    let modules = modules.or_else(|| {
        let entry = path.parent()?;
        let is_entry = entry.join("version").is_file() && entry.join("modules/order").is_file();
        is_entry.then(|| entry.join("modules"))
    });
    Ok(Kernel { path, modules })
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn find_kernel(
    given: Option<&Path>,
    cache: Option<&Path>,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if let Some(path) = variable("MACHINEN_KERNEL") {
        return Ok(path.into());
    }
    let tuned = format!("vmlinux-tuned-{}", std::env::consts::ARCH);
    let mut tried = vec!["MACHINEN_KERNEL (not set)".to_string()];
    let mut places = Vec::new();
    match variable("MACHINEN_ASSETS_DIR").map(PathBuf::from) {
        Some(dir) => places.extend([dir.join(&tuned), dir.join("vmlinux")]),
        None => tried.push("MACHINEN_ASSETS_DIR (not set)".to_string()),
    }
    places.extend(cache.map(|cache| cache.join("kernel").join(&tuned)));
    for path in places {
        if path.is_file() {
            return Ok(path);
        }
        tried.push(path.display().to_string());
    }
    let hosts = cache.map(|cache| cache.join("kernel/host"));
    if let Some(path) = hosts.as_deref().and_then(newest_host) {
        return Ok(path);
    }
    tried.extend(hosts.map(|dir| dir.join("*/vmlinux").display().to_string()));
    Err(Error::new("BOOT_KERNEL_MISSING", format!("find a kernel: tried {}", tried.join(", ")))
        .hint("machinen-kernel host makes this host's kernel ready; or give one with --kernel FILE"))
}

/// The kernel that `machinen-kernel host` made ready last.
fn newest_host(dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    // The version is written last: without it the entry is not whole.
    let made = |entry: &PathBuf| fs::metadata(entry.join("version")).and_then(|found| found.modified()).ok();
    let whole = entries.filter_map(|entry| Some((made(&entry)?, entry.join("vmlinux"))));
    whole.filter(|(_, kernel)| kernel.is_file()).max().map(|(_, kernel)| kernel)
}

/// Finds the monitor: `given`, `MACHINEN_VMM`, `vmm-min` beside this program, in PATH.
///
/// # Errors
/// `BOOT_VMM_MISSING`, with what was tried.
pub fn resolve_vmm(given: Option<&Path>) -> Result<PathBuf> {
    const NAME: &str = "vmm-min";
    if let Some(path) = given.map(Path::to_owned).or_else(|| variable("MACHINEN_VMM").map(PathBuf::from)) {
        return Ok(std::path::absolute(&path).unwrap_or(path));
    }
    let mut tried = vec!["MACHINEN_VMM (not set)".to_string()];
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_owned()));
    let path = variable("PATH").unwrap_or_default();
    for dir in beside.into_iter().chain(std::env::split_paths(&path)) {
        let path = dir.join(NAME);
        if path.is_file() {
            return Ok(std::path::absolute(&path).unwrap_or(path));
        }
        tried.push(path.display().to_string());
    }
    Err(Error::new("BOOT_VMM_MISSING", format!("find the monitor: tried {}", tried.join(", ")))
        .hint("put vmm-min beside this program, or set MACHINEN_VMM to its path"))
}

/// Finds or makes the disk image of an image: an ext4 image is one, everything else becomes one in the cache.
///
/// # Errors
/// `BOOT_IMAGE_MISSING`, and `ROOTFS_IMG_…` of what cannot become an image.
pub fn resolve_image(image: &str, verbose: bool) -> Result<PathBuf> {
    let path = Path::new(image);
    if image != "-" {
        let found = fs::metadata(path).map_err(|cause| {
            Error::host("BOOT_IMAGE_MISSING", format!("open image {image}"), cause)
                .hint("IMAGE is a tar file, - for one on standard input, a directory or an ext4 image")
        })?;
        if !found.is_dir() && is_ext4(path) {
            return fs::canonicalize(path)
                .map_err(|cause| Error::host("BOOT_IMAGE_MISSING", format!("open image {image}"), cause));
        }
    }
    let mut phases = Phases::new("machinen-run", verbose);
    Ok(rootfs_img::image_of(image, &mut phases)?)
}

/// Whether a file or block device begins as an ext4 file system does (Documentation/filesystems/ext4, super block).
fn is_ext4(path: &Path) -> bool {
    let mut magic = [0; 2];
    let is_seekable = |file: &File| {
        file.metadata().is_ok_and(|found| {
            use std::os::unix::fs::FileTypeExt;
            found.is_file() || found.file_type().is_block_device()
        })
    };
    // Not a pipe: opening it would take its content from who reads it.
    let is_pipe = fs::metadata(path).is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_fifo(&found.file_type()));
    let file = Some(path).filter(|_| !is_pipe).and_then(|path| File::open(path).ok());
    file.filter(is_seekable)
        .is_some_and(|file| file.read_exact_at(&mut magic, 1024 + 0x38).is_ok() && magic == [0x53, 0xef])
}

/// RAM of a guest in MiB when nobody says how much: half of the host's, at least 512, at most 16384.
pub fn default_memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    let total = info.totalram.saturating_mul(u64::from(info.mem_unit));
    (total / 2 / (1 << 20)).clamp(512, 16384)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_looked_for_in_order() {
        let dir = std::env::temp_dir().join(format!("machinen-resolve-{}", std::process::id()));
        let tuned = format!("vmlinux-tuned-{}", std::env::consts::ARCH);
        let none = |_: &str| None;
        let error = find_kernel(None, Some(&dir), &none).unwrap_err();
        assert_eq!(error.code(), "BOOT_KERNEL_MISSING");
        assert!(error.to_string().contains(&tuned) && error.what_to_do().unwrap().contains("machinen-kernel host"));
        for (entry, version) in [("a", true), ("b", false)] {
            let entry = dir.join("kernel/host").join(entry);
            fs::create_dir_all(&entry).unwrap();
            fs::write(entry.join("vmlinux"), "x").unwrap();
            if version {
                fs::write(entry.join("version"), "6.12").unwrap();
            }
        }
        assert_eq!(find_kernel(None, Some(&dir), &none).unwrap(), dir.join("kernel/host/a/vmlinux"));
        fs::write(dir.join("kernel").join(&tuned), "x").unwrap();
        assert_eq!(find_kernel(None, Some(&dir), &none).unwrap(), dir.join("kernel").join(&tuned));
        let assets = |name: &str| (name == "MACHINEN_ASSETS_DIR").then(|| dir.join("kernel/host/a").into());
        assert_eq!(find_kernel(None, Some(&dir), &assets).unwrap(), dir.join("kernel/host/a/vmlinux"));
        let named = |name: &str| (name == "MACHINEN_KERNEL").then(|| "/k".into());
        assert_eq!(find_kernel(None, Some(&dir), &named).unwrap(), Path::new("/k"));
        assert_eq!(find_kernel(Some(Path::new("/g")), None, &named).unwrap(), Path::new("/g"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_image_that_is_not_there_says_what_to_give() {
        let error = resolve_image("/nowhere/image", false).unwrap_err();
        assert_eq!(error.code(), "BOOT_IMAGE_MISSING");
        assert!(!is_ext4(Path::new("/dev/null")) && !is_ext4(Path::new("/proc/self/exe")));
        assert!((512..=16384).contains(&default_memory_mib()));
    }
}

//! `machinen-kernel host`: a distribution's kernel made ready, once: the ELF kernel and its modules, in the cache.

use std::fs;
use std::path::{Path, PathBuf};

use argh::FromArgs;
use machinen_initramfs::error::show_path;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::input::{self, Content};
use super::modules::{Closure, fill};
use super::package::{Body, Package, is_deb};
use super::{broken, failed, features, usage};
use crate::args::plain;
use crate::diagnostic::Diagnostic;
use crate::imagecache;
use crate::outdir::Outdir;

/// Part of the key: raise it when the entry's content changes.
const FORMAT: &str = "machinen kernel host 1";

/// make a distribution's kernel ready for guests: ELF kernel and modules in the cache, paths printed
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "host")]
pub struct Args {
    /// print one line of JSON, also for an error
    #[argh(switch)]
    pub json: bool,
    /// kernel package (.deb), an unpacked one, or ROOT/boot/vmlinuz-VERSION (default: the running
    /// kernel of /boot, else the newest there)
    #[argh(positional)]
    pub kernel: Option<String>,
}

/// Makes the entry unless it is there; says where it is.
pub fn run(args: Args) -> Result<String, Diagnostic> {
    let (version, kernel, package) = source(args.kernel.map(plain))?;
    let name = format!("vmlinuz-{version}");
    let bytes = kernel.read().map_err(failed("read", Path::new(&name)))?;
    let features: Vec<_> = features::FEATURES.iter().collect();
    let entry = cache()?.join("kernel/host").join(key(&bytes, &features));
    if !is_whole(&entry) {
        let elf = match input::open(&name, bytes)? {
            Content::Elf(kernel) | Content::Image(kernel) => kernel,
            Content::Config(_) => return Err(broken(&name, "a configuration, not a kernel")),
        };
        let closure = Closure::of(&package, &features)?;
        for name in &closure.missing {
            eprintln!("machinen-kernel: {}: no module {name}, and it is not built in: left out", package.name);
        }
        let parent = entry.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(failed("make directory", parent))?;
        let dir = Outdir::create(&entry, |_| true).map_err(failed("make directory", &entry))?;
        let put = |name: &str, bytes: &[u8]| {
            let path = dir.partial().join(name);
            fs::write(&path, bytes).map_err(failed("write", &path))
        };
        put("vmlinux", &elf)?;
        let modules = dir.partial().join("modules");
        fs::create_dir(&modules).map_err(failed("make directory", &modules))?;
        fill(&closure, &modules, &entry)?;
        // Last: a host that crashes leaves no entry that looks whole.
        rustix::fs::sync();
        put("version", version.as_bytes())?;
        dir.commit().map_err(failed("replace", &entry))?;
    }
    let (kernel, modules) = (show_path(&entry.join("vmlinux")), show_path(&entry.join("modules")));
    Ok(match args.json {
        true => format!("{}\n", json!({"version": version, "kernel": kernel, "modules": modules})),
        false => format!("kernel {kernel}\nmodules {modules}\n"),
    })
}

fn is_whole(entry: &Path) -> bool {
    let has_size = |name: &str| fs::metadata(entry.join(name)).is_ok_and(|found| found.len() > 0);
    has_size("version") && has_size("vmlinux") && entry.join("modules/order").is_file()
}

/// Version, kernel and modules of what the user named, or of the host.
fn source(given: Option<String>) -> Result<(String, Body, Package), Diagnostic> {
    let Some(given) = given else { return installed(&running(Path::new("/"))?) };
    let path = Path::new(&given);
    if path.is_dir() || is_deb(path) {
        let mut package = Package::open(path)?;
        let kernel = package.kernel.take();
        let (version, kernel) =
            kernel.ok_or_else(|| broken(&given, "no boot/vmlinuz-VERSION in it").hint("give a linux-image package"))?;
        return Ok((version, kernel, package));
    }
    installed(path)
}

/// The kernel at ROOT/boot/vmlinuz-VERSION, with the modules of ROOT/lib/modules/VERSION.
fn installed(path: &Path) -> Result<(String, Body, Package), Diagnostic> {
    let version = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("vmlinuz-"));
    let version = version.ok_or_else(|| usage(format!("host: {}: not named vmlinuz-VERSION", show_path(path))))?;
    fs::metadata(path).map_err(failed("open", path))?;
    let root = path.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    let package = Package::open(&root.join("lib/modules").join(version))?;
    Ok((version.to_string(), Body::Path(path.to_path_buf()), package))
}

/// The kernel to take of those under ROOT/boot that have their modules: the running one, else the newest.
fn running(root: &Path) -> Result<PathBuf, Diagnostic> {
    let boot = root.join("boot");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let names = fs::read_dir(&boot).into_iter().flatten().filter_map(|item| item.ok()?.file_name().into_string().ok());
    let versions = names.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_string));
    let versions = versions.filter(|version| root.join("lib/modules").join(version).is_dir());
    let best = versions.max_by_key(|version| (version == release.trim(), order(version)));
    best.map(|version| boot.join(format!("vmlinuz-{version}"))).ok_or_else(|| {
        Diagnostic::new("KERNEL_NOT_INSTALLED", format!("{}: no vmlinuz-VERSION with its modules", show_path(&boot)))
            .hint("download one and name it, with a VERSION of: apt-cache search linux-image-.*-cloud")
    })
}

/// The numbers of a version, to compare.
fn order(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn key(kernel: &[u8], features: &[&features::Feature]) -> String {
    let mut digest = Sha256::new();
    digest.update(FORMAT);
    for feature in features {
        digest.update(feature.modules.join(","));
    }
    digest.update(kernel);
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn cache() -> Result<PathBuf, Diagnostic> {
    imagecache::directory().ok_or_else(|| {
        Diagnostic::new("KERNEL_NO_CACHE", "no variable says where the cache is").hint("set MACHINEN_CACHE_DIR")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_that_has_modules_is_taken() {
        let root = std::env::temp_dir().join(format!("machinen-host-{}", std::process::id()));
        running(&root).expect_err("nothing there");
        for version in ["6.9.1-a", "6.12.1-a", "6.100.0"] {
            fs::create_dir_all(root.join("boot")).expect("make");
            fs::write(root.join("boot").join(format!("vmlinuz-{version}")), "").expect("write");
        }
        for version in ["6.9.1-a", "6.12.1-a"] {
            fs::create_dir_all(root.join("lib/modules").join(version)).expect("make");
        }
        assert_eq!(running(&root).expect("there"), root.join("boot/vmlinuz-6.12.1-a"));
        fs::remove_dir_all(root).expect("clean up");
    }
}

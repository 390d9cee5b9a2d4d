//! The harness of the end-to-end tests: the lab, the test runner, and helpers for tests.
//!
//! A test file named `linux_*` needs a KVM that boots Linux, `kvm_*` one that runs guests of a few instructions; the
//! runner takes them to where that is. All others need just the host.

pub mod agent;
pub mod bundles;
pub mod cli;
pub mod criu;
pub mod e2fs;
pub mod guest;
pub mod host;
pub mod hostile;
pub mod kill;
pub mod lab;
pub mod machines;
pub mod monitor;
pub mod pty;
mod run;
pub mod runner;
pub mod session;
pub mod sys;

use std::path::{Path, PathBuf};

/// Ends a test on other architectures than that one, visibly: `only_on!("x86_64", "ports are x86_64's")`. Such a test is in the
/// executables of all, so that what one has and another has not is in every list.
#[macro_export]
macro_rules! only_on {
    ($arch:literal, $why:literal) => {
        if !cfg!(target_arch = $arch) {
            println!("SKIP: {}", $why);
            return;
        }
    };
}

pub use run::{Finished, Run};

/// Where downloaded and generated things are kept: `MACHINEN_CACHE_DIR`, or `machinen` in the user's cache.
#[must_use]
pub fn cache_dir() -> PathBuf {
    vmm_min::cache::directory().unwrap_or_default()
}

/// A program of the release build: in `MACHINEN_TEST_BIN_DIR`, or in the target directory that the caller is in.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn bin(name: &str) -> PathBuf {
    let below = Path::new(&lab::Arch::OWN.musl_target()).join("release");
    let dir = set("MACHINEN_TEST_BIN_DIR").or_else(|| {
        let own = std::env::current_exe().ok()?;
        own.ancestors().map(|dir| dir.join(&below)).find(|dir| dir.join(name).exists())
    });
    let path = dir.unwrap_or(below).join(name);
    assert!(path.exists(), "{} is missing; run: make build", path.display());
    path
}

/// An asset (`vmlinuz`, `busybox`, `rootfs-debian-amd64.tar`, …): in `MACHINEN_TEST_ASSETS`, or in the cache.
///
/// # Panics
/// When it has not been made.
#[must_use]
pub fn asset(name: &str) -> PathBuf {
    let path = set("MACHINEN_TEST_ASSETS").unwrap_or_else(|| lab::Arch::OWN.assets_dir()).join(name);
    let target = match name {
        "vmlinux-tuned" => "kernel",
        "pjdfstest" | "fsx" => "suites",
        name if name.starts_with("rootfs-") => "rootfs",
        _ => "lab",
    };
    assert!(path.exists(), "{} is missing; run: make {target}", path.display());
    path
}

/// Name of the asset that is a minimal Debian with CRIU and Python.
#[must_use]
pub fn rootfs(arch: lab::Arch) -> String {
    format!("rootfs-debian-{}.tar", arch.debian())
}

/// Whether the image's CRIU, 3.17.1, brings memory page by page: on aarch64 only 3.19 does, and /init restores all of it first.
pub const IS_LAZY: bool = !cfg!(target_arch = "aarch64");

/// Whether tests shall take their time (`make soak`): gigabytes and hundreds of rounds instead of a few.
#[must_use]
pub fn soak() -> bool {
    set("MACHINEN_SOAK").is_some()
}

fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

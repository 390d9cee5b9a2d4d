//! Kernels in a bzImage, which only x86_64 has: decompressed once, and kept.

#![forbid(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use machinen_tests::asset;
use machinen_tests::guest::{Guest, Scratch, monitor};

/// Boots a bzImage with `cache` as the cache directory.
fn boot_bzimage(initrd: &Path, cache: &Path) {
    let finished = monitor(&asset("vmlinuz"), initrd).env("MACHINEN_CACHE_DIR", cache).finish();
    assert_eq!(finished.printed(), "booted\n");
}

#[test]
fn the_kernel_of_a_bzimage_is_kept_and_a_broken_copy_replaced() {
    let guest = Guest::busybox("echo booted");
    let (initrd, cache) = (guest.initrd(), Scratch::new());
    boot_bzimage(&initrd, &cache.path(""));
    let mut kernels = fs::read_dir(cache.path("kernels")).unwrap();
    let kernel = kernels.next().unwrap().unwrap().path();
    assert!(kernels.next().is_none() && kernel.extension().is_some_and(|extension| extension == "elf"));
    let made = kernel.metadata().unwrap();

    boot_bzimage(&initrd, &cache.path(""));
    let used = kernel.metadata().unwrap();
    assert_eq!((used.ino(), used.mtime_nsec()), (made.ino(), made.mtime_nsec()), "it was made again");

    let content = fs::read(&kernel).unwrap();
    fs::write(&kernel, &content[..content.len() / 2]).unwrap();
    boot_bzimage(&initrd, &cache.path(""));
    assert!(fs::read(&kernel).unwrap() == content);
}

#[test]
fn a_bzimage_boots_without_a_cache() {
    // A file where the directory should be: root may write everywhere else.
    let guest = Guest::busybox("echo booted");
    boot_bzimage(&guest.initrd(), &asset("busybox"));
}

//! A Debian root disk from its tar file, on the stock and on the tuned kernel.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use machinen_tests::e2fs::E2fs;
use machinen_tests::guest::{Scratch, monitor};
use machinen_tests::host::without_holes;
use machinen_tests::lab::Arch;
use machinen_tests::{Finished, Run, asset, bin, rootfs};

/// Copies thousands of files, looks whether they are the same as before and after all has been read from the disk again.
const SCRIPT: &str = r#"
set -e
mkdir /root/tree
cp -a /usr/share /var/lib /root/tree/
cd /root/tree
find . -type f -print0 | sort -z | xargs -0 sha256sum >/root/sums
sync
echo 3 >/proc/sys/vm/drop_caches
sha256sum --quiet -c /root/sums
diff -r --no-dereference /usr/share share
wc -l </root/sums
cat /etc/debian_version
"#;

/// An image in a cache of the test's own, made by `machinen-rootfs-img`.
fn image(scratch: &Scratch, e2fs: &E2fs) -> PathBuf {
    let run = Run::new(bin("machinen-rootfs-img")).env("MACHINEN_CACHE_DIR", scratch.path("cache"));
    let run = run.env("MACHINEN_E2FSCK", e2fs.e2fsck()).limit(Duration::from_secs(100));
    let made = run.arg(asset(&rootfs(Arch::OWN))).finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    String::from_utf8(made.stdout).unwrap().trim_end().into()
}

/// Boots the image, with `:rw` or nothing after its path, and runs the script in it.
fn run_in(scratch: &Scratch, kernel: &str, modules: &[&str], disk: &str) -> Finished {
    let initrd = scratch.path("initrd");
    let mut make = Run::new(bin("machinen-mkinitramfs")).arg("minimal").arg(&initrd);
    make = make.args(["--root", "/dev/vda", "--env", &format!("S={SCRIPT}"), "--cmd", "sh -c 'eval \"$S\"'"]);
    for name in modules {
        make = make.arg("--module").arg(asset(&format!("modules/{name}.ko")));
    }
    let made = make.finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    monitor(&asset(kernel), &initrd).args(["-m", "512", "--root-disk", disk]).finish()
}

fn assert_ran(finished: &Finished) {
    let printed = finished.printed();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((finished.code(), lines.len()), (0, 2), "{printed}");
    assert!(lines[0].parse::<u32>().unwrap() > 2000, "files: {printed}");
    assert!(lines[1].starts_with("12"), "Debian's version: {printed}");
}

fn on_a_layer(kernel: &str, modules: &[&str]) {
    let (scratch, e2fs) = (Scratch::new(), E2fs::new());
    let image = image(&scratch, &e2fs);
    let before = without_holes(&image);
    assert_ran(&run_in(&scratch, kernel, modules, &image.display().to_string()));
    assert!(without_holes(&image) == before, "the base image has changed");
}

fn in_place(kernel: &str, modules: &[&str]) {
    let (scratch, e2fs) = (Scratch::new(), E2fs::new());
    let image = image(&scratch, &e2fs);
    assert_ran(&run_in(&scratch, kernel, modules, &format!("{}:rw", image.display())));
    e2fs.expect_clean(&image);
}

/// What Debian's kernel has as modules of what this needs.
const STOCK: [&str; 2] = ["virtio_mmio", "virtio_blk"];

#[test]
fn the_stock_kernel_runs_debian_and_the_image_stays() {
    on_a_layer("vmlinux", &STOCK);
}

#[test]
fn the_tuned_kernel_runs_debian_and_the_image_stays() {
    on_a_layer("vmlinux-tuned", &[]);
}

#[test]
fn the_stock_kernel_leaves_a_debian_disk_clean() {
    in_place("vmlinux", &STOCK);
}

#[test]
fn the_tuned_kernel_leaves_a_debian_disk_clean() {
    in_place("vmlinux-tuned", &[]);
}

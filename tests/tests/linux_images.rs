//! Guests on what the image tools make: the root from `machinen-rootfs-img`, grown, and the upper of `machinen-mountdisk`.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use machinen_tests::e2fs::{E2fs, put_root};
use machinen_tests::guest::{Guest, Scratch, monitor};
use machinen_tests::{Run, asset, bin};

const MODULES: [&str; 5] = ["virtio_mmio", "virtio_blk", "overlay", "libcrc32c", "squashfs"];

/// An image of the directory `root`, of at least `size`. The lab has no e2fsck of its own; the tests check here.
fn image(scratch: &Scratch, cache: &str, size: &str) -> PathBuf {
    let run = Run::new(bin("machinen-rootfs-img")).args(["--size", size]).arg(scratch.path("root"));
    let made = run.env("MACHINEN_CACHE_DIR", scratch.path(cache)).env("MACHINEN_E2FSCK", scratch.path("true")).finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    PathBuf::from(made.printed().trim_end())
}

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    put_root(&scratch.path("root"));
    for n in 0..300 {
        scratch.put(&format!("root/etc/many/file-with-a-long-name-{n:060}"), format!("{n}\n"));
    }
    std::os::unix::fs::symlink(scratch.path("root/bin/busybox"), scratch.path("true")).unwrap();
    scratch
}

/// Runs a script on the image, which is written to itself: the cache is this test's own.
fn run_in(scratch: &Scratch, image: &Path, script: &str) -> String {
    let mut run = Run::new(bin("machinen-mkinitramfs")).arg("minimal").arg(scratch.path("initrd"));
    run = run.args(["--root", "/dev/vda", "--env", &format!("S={script}"), "--cmd", "sh -c 'eval \"$S\"'"]);
    for name in MODULES {
        run = run.arg("--module").arg(asset(&format!("modules/{name}.ko")));
    }
    let made = run.finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    let disk = format!("{}:rw", image.display());
    let finished = monitor(&asset("vmlinux"), &scratch.path("initrd")).arg("--root-disk").arg(disk).finish();
    assert_eq!(finished.code(), 0, "{}", finished.printed());
    finished.printed()
}

#[test]
fn an_image_grows_in_the_guest() {
    grow("1G", 900 << 10);
}

/// 16 GiB is what one block of descriptors describes.
#[test]
fn an_image_grows_beyond_its_descriptors() {
    grow("40G", 39 << 20);
}

fn grow(size: &str, least_kib: u64) {
    let (e2fs, scratch) = (E2fs::new(), scratch());
    let path = image(&scratch, size, "64M");
    e2fs.expect_clean(&path);
    assert_eq!(image(&scratch, size, size), path);
    let script = "df -k / | tail -n 1 | { read -r device kib rest; echo $kib; }
            cat /etc/many/* | sha256sum; ls /etc/many | wc -l
            i=0; while [ $i -lt 20 ]; do head -c 1000000 /dev/urandom >/root/$i; i=$((i+1)); done; mkdir -p /a/b/c";
    let printed = run_in(&scratch, &path, script);
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].parse::<u64>().unwrap() > least_kib, "{size}: {printed}");
    assert_eq!(lines[2], "300", "{printed}");
    e2fs.expect_clean(&path);
}

#[test]
fn a_fresh_upper_takes_what_is_written() {
    let (e2fs, scratch) = (E2fs::new(), Scratch::new());
    scratch.put("dir/kept", "kept\n");
    scratch.put("dir/sub/file", "");
    let run = Run::new(bin("machinen-mountdisk")).args(["--upper-size", "1G"]).arg(scratch.path("dir"));
    let made = run.arg(scratch.path("upper")).env("MACHINEN_CACHE_DIR", scratch.path("cache")).finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    let printed = made.printed();
    let paths: Vec<&str> = printed.lines().collect();
    e2fs.expect_clean(Path::new(paths[1]));
    let run = |script: &str| {
        let guest = Guest::busybox(script).modules(&MODULES).make(&["--mount", "/dev/vda:/dev/vdb:/work"]);
        let disks = [format!("{}:ro", paths[0]), format!("{}:rw", paths[1])];
        let finished = guest.monitor(&["--disk", &disks[0], "--disk", &disks[1]]).run();
        e2fs.expect_clean(Path::new(paths[1]));
        (finished.code(), finished.printed())
    };
    assert_eq!(run("cat /work/kept; echo new >/work/new; rm /work/sub/file"), (0, "kept\n".to_owned()));
    assert_eq!(run("cat /work/new; ls /work/sub"), (0, "new\n".to_owned()));
}

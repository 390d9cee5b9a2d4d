//! Disks that fail under a running guest: it gets I/O errors, and lives.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use machinen_tests::guest::{Guest, Scratch};
use machinen_tests::monitor::{Live, read_bytes};
use machinen_tests::{Finished, Run};

const MODULES: [&str; 2] = ["virtio_mmio", "virtio_blk"];
const DISK_MIB: u64 = 16;

fn disk(scratch: &Scratch) -> std::path::PathBuf {
    let path = scratch.path("disk");
    let content: Vec<u8> = (0..DISK_MIB << 20).map(|at| u8::try_from(at / 4096 % 251).unwrap()).collect();
    fs::write(&path, content).unwrap();
    path
}

/// A file system of 2 MiB; unmounted with its owner.
struct Small(Scratch);

impl Small {
    /// None: this machine has no right to mount.
    fn mount() -> Option<Small> {
        let scratch = Scratch::new();
        let mount = Run::new("/bin/mount").args(["-t", "tmpfs", "-o", "size=2m", "small"]).arg(scratch.path(""));
        let mounted = mount.outcome().is_ok_and(|finished| finished.code() == 0);
        mounted.then_some(Small(scratch))
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path("")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _: Result<Finished, _> = Run::new("/bin/umount").arg(self.path()).outcome();
    }
}

#[test]
fn a_full_host_is_an_io_error_of_the_guest() {
    let Some(small) = Small::mount() else {
        println!("SKIP: no right to mount a small file system");
        return;
    };
    let scratch = Scratch::new();
    let disk = disk(&scratch);
    let before = fs::read(&disk).unwrap();
    let script = "dd if=/dev/zero of=/dev/vda bs=64k conv=fsync 2>/dev/null; echo $?
        dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null; echo $?
        sync; dd if=/dev/null of=/dev/vda conv=fsync 2>/dev/null # whoever syncs next hears of what failed before
        dd if=/dev/urandom of=/x bs=64k count=1 2>/dev/null; dd if=/x of=/dev/vda bs=64k conv=fsync 2>/dev/null; echo $?
        echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k count=1 2>/dev/null | cmp - /x && echo same";
    let guest = Guest::busybox(script).modules(&MODULES).monitor(&["--disk", disk.to_str().unwrap()]);
    let (mut command, _files) = guest.start();
    command.env("TMPDIR", small.path()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut live = Live::start(command);
    // The first write fails for want of room, what is there can be read, and what has its room can be written again.
    let said = read_bytes(live.child.stdout.as_mut().unwrap(), 1 << 10);
    assert_eq!(String::from_utf8_lossy(&said), "1\n0\n0\nsame\n");
    assert!(live.wait().success());
    assert!(fs::read(&disk).unwrap() == before, "the image stays as it is");
}

#[test]
fn an_image_that_is_cut_off_is_an_io_error_of_the_guest() {
    let scratch = Scratch::new();
    let disk = disk(&scratch);
    let script = "dd if=/dev/vda of=/dev/null bs=1M count=1 2>/dev/null; echo $?; read word
        dd if=/dev/vda of=/dev/null bs=1M skip=8 count=1 2>/dev/null; echo $?
        dd if=/dev/vda of=/dev/null bs=1M count=4 2>/dev/null; echo $?";
    let guest = Guest::busybox(script).modules(&MODULES).monitor(&["--disk", disk.to_str().unwrap()]);
    let (mut command, _files) = guest.start();
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut live = Live::start(command);
    assert_eq!(read_bytes(live.child.stdout.as_mut().unwrap(), 2), b"0\n");
    truncate(&disk, 5 << 20);
    live.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(String::from_utf8_lossy(&read_bytes(live.child.stdout.as_mut().unwrap(), 100)), "1\n0\n");
    assert!(live.wait().success());
}

fn truncate(path: &Path, bytes: u64) {
    File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn several_disks_are_told_apart() {
    let scratch = Scratch::new();
    let paths = ["one", "two", "three"].map(|name| scratch.path(name));
    for (path, sectors) in paths.iter().zip([10u64, 20, 30]) {
        File::create(path).unwrap().set_len(sectors * 512).unwrap();
    }
    let script = "cat /sys/block/vd[abc]/size; for d in vda vdb vdc; do cat /sys/block/$d/serial; echo; done
        cat /sys/block/vd[abc]/ro; dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>/dev/null || echo refused";
    let [one, two, three] = paths.map(|path| path.to_str().unwrap().to_owned());
    let two = format!("{two}:ro");
    let guest = Guest::busybox(script).modules(&MODULES);
    let finished = guest.monitor(&["--disk", &two, "--root-disk", &one, "--disk", &three]).run();
    let expected = "10\n20\n30\none\ntwo\nthree\n0\n1\n0\nrefused\n";
    assert_eq!((finished.code(), finished.printed().as_str()), (0, expected));
}

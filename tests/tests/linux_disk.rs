//! Disks that fail under a running guest: it gets I/O errors, and lives.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use machinen_tests::asset;
use machinen_tests::guest::{Guest, Scratch, monitor};
use machinen_tests::host::Small;
use machinen_tests::monitor::{Live, read_bytes};

const MODULES: [&str; 2] = ["virtio_mmio", "virtio_blk"];
const DISK_MIB: u64 = 16;

fn disk(scratch: &Scratch) -> std::path::PathBuf {
    let path = scratch.path("disk");
    let content: Vec<u8> = (0..DISK_MIB << 20).map(|at| u8::try_from(at / 4096 % 251).unwrap()).collect();
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn a_full_host_is_an_io_error_of_the_guest() {
    let Some(small) = Small::mount(2) else {
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

/// Every device that one machine can have, on both kernels: interrupt lines 5 to 17.
#[test]
fn all_devices_at_once_have_their_lines() {
    let scratch = Scratch::new();
    let peer = UnixListener::bind(scratch.path("net")).unwrap();
    let mut args = Vec::new();
    for number in 0..9 {
        fs::write(scratch.path(&format!("disk{number}")), vec![b'0' + number; 64 << 10]).unwrap();
        let flag = if number == 0 { "--root-disk" } else { "--disk" };
        args.extend([flag.to_owned(), scratch.path(&format!("disk{number}")).display().to_string()]);
    }
    let vsock = format!("hybrid:{}", scratch.path("vsock").display());
    args.extend(["--net-socket".to_owned(), scratch.path("net").display().to_string(), "--vsock".to_owned(), vsock]);
    let script = "for d in a b c d e f g h i; do dd if=/dev/vd$d bs=1 count=1 2>/dev/null; done; echo
        for d in a b c d e f g h i; do dd if=/dev/zero of=/dev/vd$d bs=64k count=1 conv=fsync 2>/dev/null || echo $d; done
        dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c
        for d in /sys/bus/virtio/devices/*; do readlink -f $d/driver | sed s,.*/,,; done | sort | uniq -c | tr -s ' '
        awk '/virtio/ { print $4 }' /proc/interrupts | sort -n | tr -d '\n'";
    let modules = ["virtio_blk", "virtio_balloon", "rng_core", "virtio_rng", "failover", "net_failover", "virtio_net"];
    let vsock = ["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];
    let x86 = cfg!(target_arch = "x86_64");
    let kernels = [("vmlinux", [&["virtio_mmio"], &modules[..], &vsock].concat()), ("vmlinux-tuned", vec![])];
    for (kernel, modules) in kernels {
        let modules: Vec<&str> =
            modules.into_iter().filter(|name| asset("modules").join(format!("{name}.ko")).exists()).collect();
        let guest = Guest::busybox(script).modules(&modules);
        let finished = monitor(&asset(kernel), &guest.initrd()).args(&args).finish();
        let printed = finished.printed();
        let mut lines = printed.lines();
        assert_eq!((lines.next(), lines.next()), (Some("012345678"), Some("16")), "{kernel}: {printed}");
        let drivers =
            [" 1 virtio_balloon", " 9 virtio_blk", " 1 virtio_net", " 1 virtio_rng", " 1 vmw_vsock_virtio_transport"];
        assert_eq!(lines.by_ref().take(5).collect::<Vec<_>>(), drivers, "{kernel}: {printed}");
        // In the fourth column: a line of the I/O APIC, or the GIC's number of one, which is 32 more.
        let lines_of = |line: usize| if x86 { format!("{}-edge", line + 5) } else { format!("{}", line + 33) };
        let numbers: String = (0..13).map(lines_of).collect();
        assert_eq!(lines.next(), Some(numbers.as_str()), "{kernel}: {printed}");
    }
    drop(peer);
}

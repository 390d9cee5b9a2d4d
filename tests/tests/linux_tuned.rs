//! Guests of the tuned kernel, which `make kernel` builds: no ACPI, no modules, every driver built in.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use machinen_tests::e2fs::{E2fs, put_root};
use machinen_tests::guest::{Guest, Scratch, monitor};
use machinen_tests::lab::Arch;
use machinen_tests::{Finished, Run, asset, bin, rootfs};

fn boot(guest: &Guest) -> Finished {
    monitor(&asset("vmlinux-tuned"), &guest.initrd()).finish()
}

#[test]
fn it_boots_to_init_and_hands_over_the_exit_code() {
    let finished = boot(&Guest::busybox("echo hello; uname -r; exit 7"));
    let printed = finished.printed();
    assert!(printed.starts_with("hello\n6.12.") && printed.ends_with("-machinen\n"), "{printed}");
    assert_eq!((finished.code(), printed.lines().count()), (7, 2));
}

#[test]
fn it_has_one_processor_and_the_time_without_a_legacy_timer() {
    // On x86_64 a sleep needs the local APIC's timer, and its length the frequency that nobody could calibrate here.
    let script = "nproc; grep -c ttyS /proc/tty/drivers; cat /sys/devices/system/clocksource/*/current_clocksource; \
                  a=$(date +%s); sleep 1; b=$(date +%s); [ $((b - a)) -lt 30 ] && [ $a -gt 1700000000 ] && echo time";
    let clock = if cfg!(target_arch = "x86_64") { "kvm-clock" } else { "arch_sys_counter" };
    assert_eq!(boot(&Guest::busybox(script)).printed(), format!("1\n1\n{clock}\ntime\n"));
}

#[test]
fn stdin_reaches_the_command_with_its_end() {
    let guest = Guest::busybox("tr a-z A-Z; echo end");
    let input = "every line\n".repeat(5000);
    let finished = monitor(&asset("vmlinux-tuned"), &guest.initrd()).stdin(input.clone()).finish();
    assert_eq!(finished.printed(), input.to_uppercase() + "end\n");
}

#[test]
fn every_driver_and_file_system_is_built_in() {
    let script = "for fs in ext4 squashfs overlay fuse virtiofs tmpfs; do grep -qw $fs /proc/filesystems || echo no $fs; done; \
                  for d in virtio_blk virtio_net virtio_balloon virtio_rng vmw_vsock_virtio_transport virtiofs; do \
                  [ -d /sys/bus/virtio/drivers/$d ] || echo no $d; done; ls /sys/bus/virtio/drivers; ls -d /proc/modules";
    let printed = boot(&Guest::busybox(script)).printed();
    assert!(!printed.contains("no ") && printed.contains("/proc/modules: No such file"), "{printed}");
}

#[test]
fn criu_looks_good() {
    let initrd = Scratch::new();
    let out = initrd.path("initrd");
    let rootfs = asset(&rootfs(Arch::OWN));
    let command = "sh -c 'ip link set lo up && criu check 2>&1'";
    let made = Run::new(bin("machinen-mkinitramfs")).arg("rootfs").arg(rootfs).args(["--cmd", command]).arg(&out);
    assert_eq!(made.finish().code(), 0);
    let finished = monitor(Path::new(&asset("vmlinux-tuned")), &out).args(["--memory", "1024"]).finish();
    let printed = finished.printed();
    assert!(finished.code() == 0 && printed.ends_with("Looks good.\n"), "{printed}");
}

#[test]
fn every_device_has_its_driver_and_its_interrupts() {
    let script = "for d in /sys/bus/virtio/devices/*; do readlink -f $d/driver | sed s,.*/,,; done
        dd if=/dev/vda bs=64k 2>/dev/null | sha256sum; dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c
        dd if=/dev/zero of=/dev/vda bs=64k count=4 conv=fsync 2>/dev/null; echo $?
        awk '/virtio/ { print $NF, ($2 > 0) }' /proc/interrupts | sort";
    let (scratch, content) = (Scratch::new(), b"a disk of 16 B.\n".repeat(1 << 16));
    scratch.put("disk", &content);
    let guest = Guest::busybox(script);
    let run = monitor(&asset("vmlinux-tuned"), &guest.initrd()).arg("--disk").arg(scratch.path("disk"));
    let printed = run.finish().printed();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[..3], ["virtio_blk", "virtio_balloon", "virtio_rng"], "{printed}");
    let sum = Run::new("sha256sum").arg(scratch.path("disk")).finish().printed();
    assert_eq!((lines[3].split(' ').next(), &lines[4..6]), (sum.split(' ').next(), &["16", "0"][..]), "{printed}");
    // Free memory is reported when some has come together, which need not be by now.
    assert!(
        lines[6..] == ["virtio0 1", "virtio1 0", "virtio2 1"] || lines[6..] == ["virtio0 1", "virtio1 1", "virtio2 1"],
        "{printed}"
    );
    assert!(fs::read(scratch.path("disk")).unwrap() == content);
}

#[test]
fn the_root_is_on_a_disk_and_is_left_clean() {
    let (e2fs, scratch) = (E2fs::new(), Scratch::new());
    put_root(&scratch.path("root"));
    let (image, initrd) = (scratch.path("image"), scratch.path("initrd"));
    e2fs.make(&image, 32, Some(&scratch.path("root")));
    fs::File::options().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();
    let script = "df -k / | awk 'END { print $1, ($2 > 40000) }'; head -c 1000000 /dev/urandom >/root/data; exit 7";
    let made = Run::new(bin("machinen-mkinitramfs")).arg("minimal").arg(&initrd).args(["--root", "/dev/vda", "--env"]);
    let made = made.arg(format!("S={script}")).args(["--cmd", "sh -c 'eval \"$S\"'"]).finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    let run = monitor(&asset("vmlinux-tuned"), &initrd).arg("--root-disk").arg(format!("{}:rw", image.display()));
    let finished = run.finish();
    assert_eq!((finished.code(), finished.printed().as_str()), (7, "/dev/vda 1\n"));
    e2fs.expect_clean(&image);
}

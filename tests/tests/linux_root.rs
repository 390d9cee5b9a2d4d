//! Guests with disks: the root on one, overlays of two, and what the disks are like at the end.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use machinen_tests::e2fs::{E2fs, put_root};
use machinen_tests::guest::{Guest, Scratch, monitor};
use machinen_tests::{Finished, Run, asset, bin};

/// What Debian's kernel has as modules of what these guests need.
const MODULES: [&str; 5] = ["virtio_mmio", "virtio_blk", "overlay", "libcrc32c", "squashfs"];

/// `mksquashfs DIR lower.squashfs -all-time 0 -mkfs-time 0 -no-xattrs` of a directory of 1000:1000 with mode 750, in which
/// are `kept` ("kept") and `sub/file` ("lower").
const LOWER: &[u8] = include_bytes!("../data/lower.squashfs");

/// The initramfs of a guest with disks, made with these arguments.
fn initramfs(scratch: &Scratch, args: &[&str]) -> std::path::PathBuf {
    let out = scratch.path("initrd");
    let mut run = Run::new(bin("machinen-mkinitramfs")).arg("minimal").arg(&out).args(args);
    for name in MODULES {
        run = run.arg("--module").arg(asset(&format!("modules/{name}.ko")));
    }
    let made = run.finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    out
}

/// Runs a script in the root disk `image`, with `:rw`, `:ro` or nothing after its path.
fn run_in(scratch: &Scratch, image: &Path, access: &str, root: &str, script: &str) -> Finished {
    let initrd = initramfs(scratch, &["--root", root, "--env", &format!("S={script}"), "--cmd", "sh -c 'eval \"$S\"'"]);
    monitor(&asset("vmlinux"), &initrd).arg("--root-disk").arg(format!("{}{access}", image.display())).finish()
}

/// Leaves behind what keeps a file system busy, then exits with 7.
const BUSY: &str = r#"
df -k / | tail -n 1 | { read -r device kib rest; echo "$device $kib"; }
while read -r name kib rest; do [ $name = Shmem: ] && echo "Shmem $kib"; done </proc/meminfo
ls -a /machinen-root /init /lib/modules-machinen 2>&1 | grep -c "No such file"
cat /proc/sys/kernel/hostname
head -c 3000000 /dev/urandom >/root/data; cd /root; sha256sum data
mkdir "/mnt 1" /mnt2 /u /w
mount -o bind /root "/mnt 1"
mount -t overlay over -o lowerdir=/etc,upperdir=/u,workdir=/w /mnt2
echo changed >/mnt2/hostname
dd if=/dev/zero of=/swap bs=4096 count=256 2>/dev/null; mkswap /swap >/dev/null; swapon /swap || echo "no swap"
sh -c 'trap "" TERM; exec 5>/root/held; echo held >&5; while :; do sleep 1; done' &
until [ -s /root/held ]; do sleep 0.01; done
exit 7
"#;

#[test]
fn a_root_disk_grows_is_used_and_is_left_clean() {
    let (e2fs, scratch) = (E2fs::new(), Scratch::new());
    put_root(&scratch.path("root"));
    scratch.put("root/etc/hostname", "# a comment\n\n  inside \n");
    let image = scratch.path("image");
    e2fs.make(&image, 32, Some(&scratch.path("root")));
    fs::File::options().write(true).open(&image).unwrap().set_len(256 << 20).unwrap();

    let finished = run_in(&scratch, &image, ":rw", "/dev/vda", BUSY);
    let printed = finished.printed();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((finished.code(), lines.len()), (7, 5), "{printed}");
    let number = |line: &str, before: &str| line.strip_prefix(before).and_then(|n| n.parse::<u64>().ok()).unwrap();
    assert!(number(lines[0], "/dev/vda ") > 200 << 10, "it has not grown: {printed}");
    let initrd_kib = fs::metadata(scratch.path("initrd")).unwrap().len() >> 10;
    assert!(number(lines[1], "Shmem ") < initrd_kib / 2, "the initramfs of {initrd_kib} KiB is still there: {printed}");
    assert_eq!(lines[2..4], ["3", "inside"]);
    e2fs.expect_clean(&image);

    // What was written is there, also without writing to the disk, which stays as it is.
    let before = fs::read(&image).unwrap();
    let again = run_in(&scratch, &image, "", "/dev/vda", "cd /root; sha256sum data; cat /u/hostname; rm data");
    assert_eq!((again.code(), again.printed()), (0, format!("{}\nchanged\n", lines[4])));
    assert!(fs::read(&image).unwrap() == before);
}

#[test]
fn a_read_only_root_is_not_written_to_and_has_tmp() {
    let (e2fs, scratch) = (E2fs::new(), Scratch::new());
    put_root(&scratch.path("root"));
    let image = scratch.path("image");
    e2fs.make(&image, 32, Some(&scratch.path("root")));
    let before = fs::read(&image).unwrap();
    let script = "touch /file 2>/dev/null || echo refused; echo kept >/tmp/file; echo kept >/run/file; cat /tmp/file /run/file; exit 4";
    for access in [":ro", ":rw"] {
        let finished = run_in(&scratch, &image, access, "/dev/vda:ro", script);
        assert_eq!((finished.code(), finished.printed().as_str()), (4, "refused\nkept\nkept\n"));
        assert!(fs::read(&image).unwrap() == before, "{access}");
    }
    let finished = run_in(&scratch, &image, ":ro", "/dev/vda", "echo ran");
    let expected = "init: mount /dev/vda: the disk is read-only and the ext4 is to be written\n";
    assert_eq!((finished.code(), finished.printed().as_str()), (125, expected));
}

#[test]
fn a_file_system_that_cannot_grow_is_used_as_it_is() {
    let (e2fs, scratch) = (E2fs::new(), Scratch::new());
    put_root(&scratch.path("root"));
    let image = scratch.path("image");
    // Linux refuses to grow one with this feature.
    e2fs.make_with(&["-O", "sparse_super2"], &image, 32, Some(&scratch.path("root")));
    fs::File::options().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();

    let finished = run_in(&scratch, &image, ":rw", "/dev/vda", "echo kept >/root/file; exit 7");
    let printed = finished.printed();
    assert_eq!(finished.code(), 7, "{printed}");
    assert!(printed.contains("init: /dev/vda: the file system stays smaller than the disk: "), "{printed}");
    e2fs.expect_clean(&image);
    let again = run_in(&scratch, &image, ":ro", "/dev/vda:ro", "cat /root/file");
    assert_eq!((again.code(), again.printed().as_str()), (0, "kept\n"));
}

#[test]
fn a_journal_of_an_unclean_end_is_replayed_or_refused_never_left_out() {
    let (e2fs, scratch) = (E2fs::new(), Scratch::new());
    put_root(&scratch.path("root"));
    let image = scratch.path("image");
    e2fs.make(&image, 32, Some(&scratch.path("root")));
    let crash = "echo kept >/root/file; sync; echo b >/proc/sysrq-trigger; sleep 100";
    assert_eq!(run_in(&scratch, &image, ":rw", "/dev/vda", crash).code(), 125);
    let dirty = e2fs.check(&image).printed();
    assert!(dirty.contains("recover"), "nothing to replay: {dirty}");

    let before = fs::read(&image).unwrap();
    let why = "mount /dev/vda: the disk is read-only and its ext4 needs e2fsck after an unclean end";
    expect_refused(&run_in(&scratch, &image, ":ro", "/dev/vda:ro", "echo ran"), why);
    let why = "mount /dev/vda: the disk is read-only and the ext4 is to be written";
    expect_refused(&run_in(&scratch, &image, ":ro", "/dev/vda", "echo ran"), why);
    let layer = run_in(&scratch, &image, "", "/dev/vda:ro", "cat /root/file");
    assert_eq!((layer.code(), layer.printed().as_str()), (0, "kept\n"));
    assert!(fs::read(&image).unwrap() == before);
    let replayed = run_in(&scratch, &image, ":rw", "/dev/vda", "cat /root/file");
    assert_eq!((replayed.code(), replayed.printed().as_str()), (0, "kept\n"));
    e2fs.expect_clean(&image);
}

#[test]
fn the_image_gives_defaults_to_the_configuration_of_the_boot() {
    let (e2fs, scratch) = (E2fs::new(), Scratch::new());
    put_root(&scratch.path("root"));
    let config = r#"{"cmd": ["sh", "-c", "echo $A $B; pwd; exit 6"], "env": {"A": "1", "B": "2"}, "cwd": "/etc",
        "root": {"device": "/dev/nothing"}, "mounts": "nothing"}"#;
    scratch.put("root/machinen-config.json", config);
    let image = scratch.path("image");
    e2fs.make(&image, 32, Some(&scratch.path("root")));
    let run = |args: &[&str]| {
        let initrd = initramfs(&scratch, &[&["--root", "/dev/vda"], args].concat());
        let finished = monitor(&asset("vmlinux"), &initrd).arg("--root-disk").arg(&image).finish();
        (finished.code(), finished.printed())
    };
    assert_eq!(run(&["--env", "B=3"]), (6, "1 3\n/etc\n".to_owned()));
    assert_eq!(run(&["--cwd", "/", "--cmd", "sh -c 'echo $B; pwd'"]), (0, "2\n/\n".to_owned()));
}

#[test]
fn an_overlay_shows_the_lower_disk_and_keeps_what_is_written() {
    let (e2fs, scratch) = (E2fs::new(), Scratch::new());
    scratch.put("lower", LOWER);
    let (lower, upper) = (scratch.path("lower"), scratch.path("upper"));
    e2fs.make(&upper, 16, None);
    let run = |script: &str| {
        let guest = Guest::busybox(script).modules(&MODULES);
        let guest = guest.make(&["--mount", "/dev/vda:/dev/vdb:/home/my work"]);
        let disks = [format!("{}:ro", lower.display()), format!("{}:rw", upper.display())];
        let finished = guest.monitor(&["--disk", &disks[0], "--disk", &disks[1]]).run();
        e2fs.expect_clean(&upper);
        (finished.code(), finished.printed())
    };
    let script = "cd '/home/my work'; stat -c '%u %g %a' .; cat kept sub/file; ls /run/machinen; \
                  echo upper >sub/file; rm kept; echo new >new; mkdir sub/p; mount -t proc proc sub/p; \
                  mount -t tmpfs in-memory /sys/fs; sleep 1000 & exit 5";
    assert_eq!(run(script), (5, "1000 1000 750\nkept\nlower\n".to_owned()));
    assert_eq!(run("cd '/home/my work'; cat sub/file; ls"), (0, "upper\nnew\nsub\n".to_owned()));
    assert!(fs::read(&lower).unwrap() == LOWER);
}

/// /init refused for this reason, and said nothing else.
fn expect_refused(finished: &Finished, why: &str) {
    assert_eq!((finished.code(), finished.printed()), (125, format!("init: {why}\n")));
}

#[test]
fn a_disk_that_is_not_there_or_empty_is_refused_by_name() {
    let scratch = Scratch::new();
    let empty = scratch.path("empty");
    fs::File::create(&empty).unwrap().set_len(1 << 20).unwrap();
    let why = "mount /dev/vda: it has no ext4, or a damaged one";
    expect_refused(&run_in(&scratch, &empty, "", "/dev/vda", ""), why);
    let why = "/dev/vdb: no such disk after 10 s: it is not attached, or its driver is not loaded";
    expect_refused(&run_in(&scratch, &empty, "", "/dev/vdb", ""), why);
}

#[test]
fn a_root_disk_without_a_command_is_refused_and_left_clean() {
    let (e2fs, scratch) = (E2fs::new(), Scratch::new());
    put_root(&scratch.path("root"));
    let image = scratch.path("image");
    e2fs.make(&image, 32, Some(&scratch.path("root")));
    let initrd = initramfs(&scratch, &["--root", "/dev/vda"]);
    let run = monitor(&asset("vmlinux"), &initrd).arg("--root-disk").arg(format!("{}:rw", image.display()));
    expect_refused(&run.finish(), "/machinen-config.json: cmd: there is none");
    e2fs.expect_clean(&image);
}

#[test]
fn a_network_without_an_interface_is_refused() {
    let scratch = Scratch::new();
    let initrd = initramfs(&scratch, &["--cmd", "sh"]);
    let run = monitor(&asset("vmlinux"), &initrd).args(["--cmdline", "machinen.net=10.0.2.15/24,10.0.2.2"]);
    let why = "machinen.net: no network interface after 10 s: the VM has none, or its driver is not loaded";
    expect_refused(&run.finish(), why);
}

//! Directories shared with a Linux guest: what one side writes the other reads, on the stock and the tuned kernel.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;

use machinen_tests::guest::{Guest, LIMIT, Scratch};
use machinen_tests::monitor::wait_until;
use machinen_tests::session::Session;
use machinen_tests::{Finished, Run, asset};

/// The stock kernel needs a module, the tuned one none.
const KERNELS: [(&str, &[&str]); 2] = [("vmlinux", &["virtio_mmio"]), ("vmlinux-tuned", &[])];

/// A guest of this script with these shares: directory, path in the guest, forms.
fn boot((kernel, modules): (&str, &[&str]), script: &str, shares: &[(&Path, &str, &str)]) -> Finished {
    let mut guest = Guest::busybox(script).modules(modules);
    let mut run_args = Vec::new();
    for (number, (directory, path, form)) in shares.iter().enumerate() {
        guest = guest.make(&["--share", &format!("tag{number}:{path}{form}")]);
        run_args.extend(["--share".to_owned(), format!("tag{number}={}", directory.display())]);
    }
    let initrd = guest.initrd();
    machinen_tests::guest::monitor(&asset(kernel), &initrd).args(run_args).limit(LIMIT).finish()
}

fn sum(path: &Path) -> String {
    let printed = Run::new("sha256sum").arg(path).finish().printed();
    printed.split(' ').next().unwrap_or_default().to_owned()
}

/// Bytes that do not repeat.
fn bytes(count: u32) -> Vec<u8> {
    (0..count / 4).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

#[test]
fn files_go_both_ways_on_both_kernels() {
    for kernel in KERNELS {
        let scratch = Scratch::new();
        scratch.put("shared/from-host", bytes(12 << 20));
        scratch.put("shared/sub/old", "moved");
        fs::set_permissions(scratch.path("shared/from-host"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("sub/old", scratch.path("shared/link")).unwrap();
        let script = "set -e; cd /work/deep; umask 022
            sha256sum from-host | cut -c -64; stat -c '%a %s' from-host; cat link; echo
            dd if=from-host of=from-guest bs=1M skip=3 count=7 2>/dev/null; sha256sum from-guest | cut -c -64
            mkdir -m 1777 made; echo one >made/f; echo two >>made/f; mv made/f made/g; ln made/g made/hard; ln -s ../sub made/l
            mv sub/old sub/new; chmod 4751 made/g; mkfifo made/p; truncate -s 5 made/t; touch -d @1000000000 made/t
            chown 12:34 made/t; rm -r link; ls made | tr '\\n' ' '; cat made/l/new; echo
            cat made/g
            df -k . | awk 'END { print $6, ($2 > 0) }'; grep -c 'virtiofs rw' /proc/mounts; rmdir made 2>&1 || true";
        let finished = boot(kernel, script, &[(&scratch.path("shared"), "/work/deep", "")]);
        let at = |name: &str| scratch.path("shared").join(name);
        let expected = format!(
            "{}\n640 12582912\nmoved\n{}\ng hard l p t moved\none\ntwo\n/work/deep 1\n1\nrmdir: 'made': Directory not empty\n",
            sum(&at("from-host")),
            sum(&at("from-guest")),
        );
        assert_eq!((finished.code(), finished.printed()), (0, expected), "{}", kernel.0);
        assert!(fs::read(at("from-guest")).unwrap() == bytes(12 << 20)[3 << 20..10 << 20]);
        assert_eq!(fs::read(at("made/hard")).unwrap(), b"one\ntwo\n");
        let of = |name: &str| fs::symlink_metadata(at(name)).unwrap();
        assert_eq!((of("made").mode(), of("made/g").mode(), of("made/g").nlink()), (0o041_777, 0o104_751, 2));
        assert_eq!(
            (of("made/t").len(), of("made/t").mtime(), of("made/t").uid(), of("made/t").gid()),
            (5, 1_000_000_000, 12, 34)
        );
        assert!(of("made/p").file_type().is_fifo() && !at("link").exists());
        assert_eq!(fs::read_link(at("made/l")).unwrap().to_str(), Some("../sub"));
    }
}

/// Where the files of the next two tests are.
fn small(number: u32) -> String {
    format!("{}/{number}", number % 97)
}

#[test]
fn ten_thousand_small_files_are_read() {
    let scratch = Scratch::new();
    (0..10_000).for_each(|number| scratch.put(&format!("in/{}", small(number)), format!("{number} of the host\n")));
    let script = "cd /in && find . -type f | sort | xargs cat | sha256sum | cut -c -64";
    let finished = boot(KERNELS[1], script, &[(&*scratch.path("in"), "/in", ":ro")]);
    let sum = Run::new("sh").args(["-c", "find . -type f | LC_ALL=C sort | xargs cat | sha256sum | cut -c -64"]);
    let sum = sum.dir(scratch.path("in")).finish().printed();
    assert_eq!((finished.code(), finished.printed()), (0, sum));
}

#[test]
fn ten_thousand_small_files_are_written() {
    let scratch = Scratch::new();
    (0..97).for_each(|number| fs::create_dir_all(scratch.path(&format!("out/{number}"))).unwrap());
    let script = "cd /out && i=0; while [ $i -lt 10000 ]; do echo $i of the guest >$((i % 97))/$i; i=$((i + 1)); done
        rm -r 13; rm */*9; echo $i";
    let finished = boot(KERNELS[1], script, &[(&*scratch.path("out"), "/out", "")]);
    assert_eq!((finished.code(), finished.printed().as_str()), (0, "10000\n"));
    for number in 0..10_000 {
        let content = fs::read_to_string(scratch.path("out").join(small(number)));
        if number % 97 == 13 || number % 10 == 9 {
            assert!(content.is_err(), "{number}");
        } else {
            assert_eq!(content.unwrap(), format!("{number} of the guest\n"));
        }
    }
}

#[test]
fn a_read_only_share_is_one_whatever_the_guest_does() {
    let scratch = Scratch::new();
    scratch.put("ro/f", "content");
    // The first is mounted for reading only; the second is, on the host's side, whatever the guest mounts.
    let script = "cat /a/f; echo x >/a/f; mount -o remount,rw /a && echo x >/a/f; mkdir /b/d; rm /b/f; mv /b/f /b/g; \
        chmod 777 /b/f; touch /b/f; ln -s x /b/l; truncate -s 0 /b/f; echo x >>/b/f; cat /b/f";
    let mut guest = Guest::busybox(script).make(&["--share", "a:/a:ro", "--share", "b:/b"]);
    guest = guest.modules(KERNELS[0].1);
    let directory = scratch.path("ro").display().to_string();
    let run = machinen_tests::guest::monitor(&asset("vmlinux"), &guest.initrd());
    let run = run.args(["--share", &format!("a={directory}:ro"), "--share", &format!("b={directory}:ro")]).merged();
    let finished = run.finish();
    let printed = finished.printed();
    assert!(printed.starts_with("content") && printed.ends_with("content"), "{printed}");
    assert_eq!(printed.matches("Read-only file system").count(), 10, "{printed}");
    assert_eq!(fs::read(scratch.path("ro/f")).unwrap(), b"content");
    assert_eq!(fs::read_dir(scratch.path("ro")).unwrap().count(), 1);
}

#[test]
fn each_side_sees_what_the_other_changes() {
    let scratch = Scratch::new();
    scratch.put("shared/f", "first");
    // The guest holds all of it in its caches before the host changes it.
    let script = "cd /s; cat f; ls; cat gone 2>/dev/null; exec 3<f; echo >ready
        until [ \"$(cat f)\" = second ] && [ -e new ] && [ ! -e gone ]; do :; done; cat f new; ls | tr '\\n' ' '
        mv new renamed; echo >done; until [ -e end ]; do :; done; cat <&3";
    scratch.put("shared/gone", "");
    let guest = Guest::busybox(script).make(&["--share", "t:/s"]).modules(KERNELS[0].1);
    let directory = scratch.path("shared");
    let (command, _initrd) = guest.monitor(&["--share", &format!("t={}", directory.display())]).start();
    let mut session = Session::on_pipes(command);
    wait_until("the guest is ready", || directory.join("ready").exists());
    fs::write(directory.join("f"), "second").unwrap();
    fs::write(directory.join("new"), "new").unwrap();
    fs::remove_file(directory.join("gone")).unwrap();
    wait_until("the guest has seen it", || directory.join("done").exists());
    assert_eq!(fs::read(directory.join("renamed")).unwrap(), b"new");
    fs::write(directory.join("end"), "").unwrap();
    session.end();
    let printed = session.printed();
    assert_eq!(printed, "firstf\ngone\nsecondnewf new ready second", "{printed}");
}

#[test]
fn five_shares_are_unmounted_and_mounted_again() {
    let scratch = Scratch::new();
    let directories: Vec<_> = (0..5).map(|number| scratch.path(&format!("d{number}"))).collect();
    directories.iter().for_each(|directory| fs::create_dir(directory).unwrap());
    let paths = ["/a", "/a/b", "/mnt/c", "/d", "/e f"];
    let shares: Vec<_> = directories.iter().zip(paths).map(|(directory, path)| (&**directory, path, "")).collect();
    let script = "set -e; n=0; for p in /a /a/b /mnt/c /d '/e f'; do echo $n >\"$p/n\"; n=$((n + 1)); done
        exec 3</d/n; ! umount /d 2>/dev/null; exec 3<&-; umount /d; mkdir /again; mount -t virtiofs tag3 /again; cat /again/n
        mount -t virtiofs none /d 2>/dev/null || echo no such tag; mount -t virtiofs -o ro tag3 /d; cat /d/n
        i=0; while [ $i -lt 30 ]; do umount /again; mount -t virtiofs tag3 /again; echo $i >/again/round; i=$((i + 1)); done || echo $?
        umount /d; umount /again; mount -t virtiofs tag3 /again; cat /again/round";
    let finished = boot(KERNELS[0], script, &shares);
    assert_eq!((finished.code(), finished.printed().as_str()), (0, "3\nno such tag\n3\n29\n"));
    for (number, directory) in directories.iter().enumerate() {
        assert_eq!(fs::read_to_string(directory.join("n")).unwrap(), format!("{number}\n"));
    }
}

#[test]
fn a_users_monitor_shares_what_is_that_users() {
    const USER: u32 = 1000;
    let scratch = Scratch::new();
    for name in ["own", "others", "secret"] {
        scratch.put(&format!("shared/{name}"), name);
    }
    let shared = scratch.path("shared");
    fs::set_permissions(shared.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let script = "cd /s; stat -c '%u:%g %n' . own others secret; cat own others; cat secret 2>&1; echo x 2>&1 >>others
        echo made >made; mkdir -m 700 dir; chmod 600 own; chown 0:0 own; chown 7 own 2>&1; chgrp 7 made 2>&1
        stat -c '%u:%g %a' made dir; mv others mine; rm secret; ls | tr '\\n' ' '";
    let guest = Guest::busybox(script).make(&["--share", "t:/s"]).modules(KERNELS[0].1);
    let (mut command, _initrd) = guest.monitor(&["--share", &format!("t={}", shared.display())]).start();
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if root {
        std::os::unix::fs::chown(&shared, Some(USER), Some(USER)).unwrap();
        std::os::unix::fs::chown(shared.join("own"), Some(USER), Some(USER)).unwrap();
        // As udev has it for whoever is in its group.
        fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o666)).unwrap();
        command.uid(USER).gid(USER);
    } else {
        println!("SKIP: only root can give files away and become another user");
        return;
    }
    let mut session = Session::on_pipes(command);
    session.end();
    let expected = "0:0 .\n0:0 own\n65534:65534 others\n65534:65534 secret\nownotherscat: can't open 'secret': Permission denied\n\
        sh: can't create others: Permission denied\nchown: own: Operation not permitted\nchgrp: made: Operation not permitted\n\
        0:0 644\n0:0 700\ndir made mine own ";
    assert_eq!(session.printed(), expected);
    let owner = |name: &str| fs::metadata(shared.join(name)).unwrap();
    assert_eq!(["made", "dir", "own"].map(|name| (owner(name).uid(), owner(name).gid())), [(USER, USER); 3]);
    assert_eq!((owner("mine").uid(), owner("own").mode()), (0, 0o100_600));
}

#[test]
fn a_share_that_is_not_there_is_refused_by_name() {
    let scratch = Scratch::new();
    let directory = scratch.path("").display().to_string();
    for (kernel, modules) in KERNELS {
        for (share, of_machine, why) in [
            ("other:/w", format!("t={directory}"), "share at /w: the machine has no share with the tag other"),
            ("bundle:/w", "bundle=".to_owned(), "share at /w: the host has no directory for the tag bundle"),
            ("t:/bin/busybox", format!("t={directory}"), "share at /bin/busybox: mount: Not a directory"),
        ] {
            let guest = Guest::busybox("echo started").make(&["--share", share]).modules(modules);
            let run = machinen_tests::guest::monitor(&asset(kernel), &guest.initrd());
            let finished = run.args(["--share", &of_machine]).finish();
            assert_eq!((finished.code(), finished.printed()), (125, format!("init: {why}\n")), "{kernel}");
        }
    }
}

#[test]
fn a_hostile_guest_stays_in_its_directory() {
    let scratch = Scratch::new();
    scratch.put("shared/d/f", "inside");
    scratch.put("outside/f", "secret");
    scratch.put("outside/untouched", "secret");
    let shared = scratch.path("shared");
    symlink("../outside", shared.join("link")).unwrap();
    symlink(scratch.path("outside/f"), shared.join("file")).unwrap();
    // Links lead into the guest's own world, and what the host exchanges under its hands nowhere.
    let script = "cd /s; ls -d ../outside link/f 2>&1; cat file 2>&1; mkdir -p /outside; echo own >/outside/f; cat link/f
        mkdir -p /etc; ln -s /etc/passwd pw; echo mine >/etc/passwd; cat pw; mkdir up; mount --bind / up 2>/dev/null && cat up/outside/f
        umount up; mknod dev b 8 0 2>&1; ln -s / root; cat root/outside/f; echo >ready; seen=0
        while [ ! -e end ]; do
            x=$(cat d/f 2>/dev/null); [ \"$x\" = inside ] && seen=$((seen + 1)); [ \"$x\" = secret ] && echo escaped
            echo evil 2>/dev/null >d/g; rm -f d/g 2>/dev/null; mv d/f d/h 2>/dev/null && mv d/h d/f 2>/dev/null
            [ $seen -gt 20 ] && echo >enough
        done; echo over";
    let guest = Guest::busybox(script).make(&["--share", "t:/s"]).modules(KERNELS[0].1);
    let (command, _initrd) = guest.monitor(&["--share", &format!("t={}", shared.display())]).start();
    let mut session = Session::on_pipes(command);
    wait_until("the guest is ready", || shared.join("ready").exists());
    symlink(scratch.path("outside"), scratch.path("out-link")).unwrap();
    wait_until("the guest has had its chances", || {
        // A directory, and a link out of it: one after the other under one name.
        for _ in 0..50 {
            let _ = fs::rename(shared.join("d"), scratch.path("kept"));
            let _ = fs::rename(scratch.path("out-link"), shared.join("d"));
            let _ = fs::rename(shared.join("d"), scratch.path("out-link"));
            let _ = fs::rename(scratch.path("kept"), shared.join("d"));
        }
        shared.join("enough").exists()
    });
    fs::write(shared.join("end"), "").unwrap();
    session.end();
    let printed = session.printed();
    assert!(printed.ends_with("over\n") && !printed.contains("secret") && !printed.contains("escaped"), "{printed}");
    assert!(
        printed.contains("own\nmine\nown\n") && printed.contains("mknod: dev: Operation not permitted"),
        "{printed}"
    );
    assert_eq!(fs::read(scratch.path("outside/f")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(scratch.path("outside")).unwrap().count(), 2);
}

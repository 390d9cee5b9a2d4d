//! `machinen-mountdisk` as its users meet it, with unsquashfs and e2fsck as judges of its images.

mod images;

use std::fs::{self, File, FileTimes};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use images::{Scratch, fsck, is_root, lines, refused, stderr};

const TOOL: &str = env!("CARGO_BIN_EXE_machinen-mountdisk");

/// The lower of `dir`; its upper is removed.
fn lower(scratch: &Scratch, dir: &str) -> PathBuf {
    let said = lines(&scratch.run(TOOL, &[dir]));
    assert_eq!(said.len(), 2);
    fs::remove_file(&said[1]).unwrap();
    PathBuf::from(&said[0])
}

fn tree(scratch: &Scratch) {
    scratch.put("d/sub/file", [5; 300_000]);
    scratch.put("d/small", "small");
    fs::hard_link(scratch.path("d/small"), scratch.path("d/sub/same")).unwrap();
    symlink("../small", scratch.path("d/sub/link")).unwrap();
    fs::set_permissions(scratch.path("d/sub"), fs::Permissions::from_mode(0o2750)).unwrap();
    lines(&scratch.script(TOOL, "mkfifo d/fifo; mkdir d/empty; touch d/-dash 'd/with space' d/ü"));
}

fn set_time(path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    File::open(path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
}

#[test]
fn both_halves() {
    let scratch = Scratch::new();
    tree(&scratch);
    let done = scratch.run(TOOL, &["--json", "--upper-size", "1G", "d", "up.img"]);
    let value: serde_json::Value = serde_json::from_str(&lines(&done)[0]).unwrap();
    let (low, up) = (value["lower"].as_str().unwrap(), value["upper"].as_str().unwrap());
    assert_eq!(up, fs::canonicalize(scratch.path("up.img")).unwrap().to_str().unwrap());
    assert_eq!((&value["cached"], &value["upper_bytes"]), (&false.into(), &(1u64 << 30).into()));
    fsck(Path::new(up));
    let found = fs::metadata(up).unwrap();
    assert_eq!((found.len(), found.mode() & 0o777), (1 << 30, 0o600));
    assert!(found.blocks() * 512 < 4 << 20, "not sparse");

    // What is in the lower is what was in the directory.
    let unpacked = scratch.command("unsquashfs").args(["-q", "-n", "-d", "out", low]).output().unwrap();
    assert!(unpacked.status.success(), "{}", stderr(&unpacked));
    let listing = "find . -printf '%p %y %m %U %G %s %T@ %l %n\\n' | sed 's/^\\(.* d [^ ]* [^ ]* [^ ]*\\) [^ ]*/\\1/' |
        sed 's/[.][0-9]* \\([^ ]* [0-9]*\\)$/ \\1/' | sort; find . -type f | sort | xargs -d '\\n' sha256sum";
    let list = |dir: &str| lines(&scratch.script(TOOL, &format!("cd {dir}; {listing}")));
    assert_eq!(list("d"), list("out"));
    assert!(list("d").len() > 12);
    // In the guest the kernel says that it can.
    let superblock = scratch.command("unsquashfs").args(["-s", low]).output().unwrap();
    assert!(lines(&superblock).iter().any(|line| line == "Compression zstd"));
    assert_eq!(scratch.cached("mountdisk").len(), 2);
}

#[test]
fn the_manifest_is_the_key() {
    let scratch = Scratch::new();
    tree(&scratch);
    let first = lower(&scratch, "d");
    assert_eq!(lower(&scratch, "d"), first);
    lines(&scratch.script(TOOL, "cp -a d e"));
    assert_eq!(lower(&scratch, "e"), first, "the same elsewhere");
    let changes: [(&str, &dyn Fn()); 7] = [
        ("time", &|| set_time(&scratch.path("e/small"), 7)),
        ("length", &|| drop(scratch.put("e/small", "smalL!"))),
        ("mode", &|| fs::set_permissions(scratch.path("e/sub"), fs::Permissions::from_mode(0o700)).unwrap()),
        ("link target", &|| {
            fs::remove_file(scratch.path("e/sub/link")).unwrap();
            symlink("../smalL", scratch.path("e/sub/link")).unwrap();
        }),
        ("new name", &|| fs::rename(scratch.path("e/empty"), scratch.path("e/full")).unwrap()),
        ("less", &|| fs::remove_file(scratch.path("e/fifo")).unwrap()),
        ("attribute", &|| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(scratch.path("e/sub/file"), "user.a", b"v", flags).unwrap();
        }),
    ];
    let mut seen = vec![first];
    for (what, change) in changes {
        change();
        let next = lower(&scratch, "e");
        assert!(!seen.contains(&next), "{what}");
        seen.push(next);
    }
}

#[test]
fn an_unchanged_directory_is_only_walked() {
    let scratch = Scratch::new();
    tree(&scratch);
    let first = lower(&scratch, "d");
    let limit = Instant::now() + Duration::from_secs(20);
    let phases = || {
        let done = scratch.run(TOOL, &["-v", "d"]);
        let said = lines(&done);
        assert_eq!(said[0], first.display().to_string());
        fs::remove_file(&said[1]).unwrap();
        stderr(&done)
    };
    while phases().contains(": manifest ") {
        assert!(Instant::now() < limit, "it is read each time");
    }
    assert_eq!(phases().matches(" ms\n").count(), 2);
}

#[test]
fn damaged_entries_are_made_again() {
    let scratch = Scratch::new();
    tree(&scratch);
    let path = lower(&scratch, "d");
    let open = || File::options().write(true).open(&path).unwrap();
    let damage: [(&str, &dyn Fn()); 5] = [
        ("shorter", &|| open().set_len(100).unwrap()),
        ("empty", &|| open().set_len(0).unwrap()),
        ("superblock, with the time of before", &|| {
            let time = open().metadata().unwrap().modified().unwrap();
            open().write_all_at(&[0; 96], 0).unwrap();
            open().set_times(FileTimes::new().set_modified(time)).unwrap();
        }),
        ("no mark", &|| fs::remove_file(path.with_extension("mark")).unwrap()),
        ("gone", &|| fs::remove_file(&path).unwrap()),
    ];
    for (what, damage) in damage {
        damage();
        assert_eq!(lower(&scratch, "d"), path, "{what}");
        let listed = scratch.command("unsquashfs").arg("-ll").arg(&path).output().unwrap();
        assert!(listed.status.success(), "{what}");
        assert_eq!(scratch.cached("mountdisk").len(), 2, "{what}");
    }
}

#[test]
fn builders_at_once_and_killed_ones() {
    let scratch = Scratch::new();
    tree(&scratch);
    let start = |_| scratch.command(TOOL).args(["--json", "d"]).spawn().unwrap();
    let children: Vec<_> = (0..6).map(start).collect();
    let outputs = children.into_iter().map(|child| lines(&child.wait_with_output().unwrap()));
    let values: Vec<serde_json::Value> = outputs.map(|lines| serde_json::from_str(&lines[0]).unwrap()).collect();
    assert!(values.iter().all(|value| value["lower"] == values[0]["lower"]));
    assert_eq!(values.iter().filter(|value| value["cached"] == false).count(), 1);
    let uppers: std::collections::HashSet<_> = values.iter().map(|value| value["upper"].as_str().unwrap()).collect();
    assert_eq!(uppers.len(), 6);

    scratch.put("d/more", [9; 1_000_000]);
    for phase in ["walk", "manifest", "lock", "mksquashfs"] {
        let before = scratch.cached("mountdisk");
        let mut child = scratch.command(TOOL).args(["-v", "d", "killed.img"]).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let phase = format!(": {phase} ");
        assert!(said.any(|line| line.unwrap().contains(&phase)), "{phase}");
        child.kill().unwrap();
        child.wait().unwrap();
        let left = scratch.cached("mountdisk");
        assert!(left.len() == before.len() || left.len() == before.len() + 2, "{phase}: {left:?}");
        let _ = fs::remove_file(scratch.path("killed.img"));
        scratch.put("d/more", phase);
    }
    let path = lower(&scratch, "d");
    assert!(scratch.command("unsquashfs").arg("-ll").arg(path).output().unwrap().status.success());
}

#[test]
fn a_directory_that_changes_meanwhile() {
    let scratch = Scratch::new();
    tree(&scratch);
    // A packer that changes what it packs, the first time or always.
    let packer = |always: bool| {
        let script =
            format!("#!/bin/sh\n[ -e done ] || echo >> d/grows; {always} || touch done; exec mksquashfs \"$@\"\n");
        let path = scratch.put("packer", script);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    packer(true);
    let done = scratch.run(TOOL, &["--mksquashfs", "./packer", "d", "up.img"]);
    assert!(refused(&done, "MOUNTDISK_CHANGED", 1).contains("changed each of 3 times"));
    assert!(scratch.cached("mountdisk").is_empty());
    assert!(!scratch.path("up.img").exists());
    packer(false);
    let done = scratch.run(TOOL, &["-v", "--mksquashfs", "./packer", "d"]);
    assert_eq!(lines(&done).len(), 2);
    assert_eq!(stderr(&done).matches("trying again").count(), 1);
    assert_eq!(scratch.cached("mountdisk").len(), 2);
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let scratch = Scratch::new();
    tree(&scratch);
    fs::set_permissions(scratch.path("d/small"), fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = if is_root() {
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(scratch.path("d/sub"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(TOOL, scratch.path("tool")).unwrap();
        let mut command = scratch.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(scratch.path("tool"));
        command
    } else {
        scratch.command(TOOL)
    };
    let done = command.args(["d", "up.img"]).output().unwrap();
    let said = refused(&done, "MOUNTDISK_MKSQUASHFS", 1);
    assert!(said.contains("small"), "{said}");
    assert!(scratch.cached("mountdisk").is_empty());
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let scratch = Scratch::new();
    tree(&scratch);
    lines(&scratch.script(TOOL, "head -c 9000000 /dev/urandom >d/large; mkdir small"));
    let script = "mount -t tmpfs -o size=4m none small; export MACHINEN_CACHE_DIR=small; code=0; $T d up.img || code=$?
        MACHINEN_CACHE_DIR=cache $T --upper-size 3T d small/up.img || code=$code,$?
        find small -type f ! -name '.lock-*'; df --output=used small | tail -1; echo $code";
    let unshare = if is_root() { &["-m"][..] } else { &["-rm"] };
    let mut command = scratch.command("unshare");
    let done = command.args(unshare).args(["sh", "-c", script]).env("T", TOOL).output().unwrap();
    let said = lines(&done);
    assert_eq!(said.len(), 2, "{said:?} {}", stderr(&done));
    assert_eq!((said[0].trim(), &*said[1]), ("0", "1,1"), "{}", stderr(&done));
    assert!(stderr(&done).contains("MOUNTDISK_MKSQUASHFS"), "{}", stderr(&done));
    assert!(stderr(&done).contains("MOUNTDISK_HOST: write: small/up.img: no space left"), "{}", stderr(&done));
    assert!(!scratch.path("up.img").exists());
}

#[test]
fn usage_and_lookup() {
    let scratch = Scratch::new();
    tree(&scratch);
    let precious = scratch.put("precious", "data");
    for args in [&[][..], &[""], &["d", ""], &["d", "u", "x"], &["--upper-size", "x", "d"], &["d", "precious"]] {
        refused(&scratch.run(TOOL, args), "MOUNTDISK_USAGE", 2);
    }
    assert_eq!(fs::read(precious).unwrap(), b"data");
    refused(&scratch.run(TOOL, &["nowhere"]), "MOUNTDISK_HOST", 1);
    refused(&scratch.run(TOOL, &["precious"]), "MOUNTDISK_HOST", 1);
    refused(&scratch.run(TOOL, &["d", "nowhere/up.img"]), "MOUNTDISK_HOST", 1);
    assert!(lines(&scratch.run(TOOL, &["--help"])).len() > 30);

    set_time(&scratch.path("d/small"), 1);
    let done = scratch.command(TOOL).arg("d").env("PATH", "/nowhere").output().unwrap();
    let said = refused(&done, "MOUNTDISK_PROGRAM_MISSING", 1);
    for words in ["MACHINEN_MKSQUASHFS (not set)", "/nowhere/mksquashfs", "/sbin/mksquashfs", "squashfs-tools"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    refused(&scratch.run(TOOL, &["--mksquashfs", "nowhere", "d"]), "MOUNTDISK_HOST", 1);
    refused(&scratch.run(TOOL, &["--mksquashfs", "/bin/false", "d"]), "MOUNTDISK_MKSQUASHFS", 1);
    refused(&scratch.run(TOOL, &["--mksquashfs", "/bin/true", "d"]), "MOUNTDISK_MKSQUASHFS", 1);
    let assets = fs::canonicalize(
        Command::new("sh")
            .args(["-c", "command -v mksquashfs"])
            .output()
            .map(|found| PathBuf::from(String::from_utf8(found.stdout).unwrap().trim()))
            .unwrap(),
    )
    .unwrap();
    let mut command = scratch.command(TOOL);
    command.arg("d").env("PATH", "/nowhere").env("MACHINEN_ASSETS_DIR", assets.parent().unwrap());
    assert_eq!(lines(&command.output().unwrap()).len(), 2);

    // A directory that contains the cache.
    let first = lines(&scratch.run(TOOL, &[".", "../up-of-all.img"])).remove(0);
    fs::remove_file(scratch.path("../up-of-all.img")).unwrap();
    assert!(Path::new(&first).exists());
    let listed = scratch.command("unsquashfs").args(["-l", &first]).output().unwrap();
    assert!(!String::from_utf8_lossy(&listed.stdout).contains(".squashfs"));
}

//! `machinen-rootfs-img` as its users meet it, with e2fsck and debugfs as judges of its images.

mod images;

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use images::{Scratch, debugfs, fsck, header, is_root, lines, refused, stderr, tar_of};
use proptest::prelude::*;
use tar::EntryType;

const TOOL: &str = env!("CARGO_BIN_EXE_machinen-rootfs-img");

fn image(scratch: &Scratch, args: &[&str]) -> PathBuf {
    PathBuf::from(&lines(&scratch.run(TOOL, args))[0])
}

/// A tar file with one of everything.
fn everything() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let add = |tar: &mut tar::Builder<Vec<u8>>, path: &str, mut header: tar::Header, bytes: &[u8]| {
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, bytes).unwrap();
    };
    add(&mut tar, "./", header(EntryType::Directory, 0o751), b"");
    add(&mut tar, "bin/", header(EntryType::Directory, 0o1777), b"");
    let capability = [&[1, 0, 0, 2][..], &[0, 4, 0, 0], &[0; 12]].concat();
    let acl: Vec<u8> = [[2, 0, 0, 0].to_vec(), acl_entry(1, 6, u32::MAX), acl_entry(2, 7, 1000)]
        .into_iter()
        .chain([acl_entry(4, 4, u32::MAX), acl_entry(16, 7, u32::MAX), acl_entry(32, 4, u32::MAX)])
        .flatten()
        .collect();
    tar.append_pax_extensions([
        ("mtime", &b"1350244992.023960108"[..]),
        ("SCHILY.xattr.user.note", b"a note"),
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.system.posix_acl_access", &acl),
        ("SCHILY.xattr.user.long", &[b'x'; 1000]),
    ])
    .unwrap();
    let mut su = header(EntryType::Regular, 0o6755);
    su.set_uid(1000);
    su.set_gid(70_000);
    add(&mut tar, "bin/su", su, &[b's'; 5000]);
    let mut link = header(EntryType::Link, 0o777);
    tar.append_link(&mut link, "bin/su2", "bin/su").unwrap();
    for (path, target) in [("short", "bin/su"), ("long", &*"t/".repeat(50)), ("dangling", "/nowhere")] {
        tar.append_link(&mut header(EntryType::Symlink, 0o777), path, target).unwrap();
    }
    for (path, kind, major, minor) in [("c", EntryType::Char, 5, 1), ("b", EntryType::Block, 259, 70_000)] {
        let mut node = header(kind, 0o620);
        node.set_device_major(major).unwrap();
        node.set_device_minor(minor).unwrap();
        add(&mut tar, path, node, b"");
    }
    add(&mut tar, "fifo", header(EntryType::Fifo, 0o600), b"");
    let deep = format!("{}/{}", "d".repeat(120), "f".repeat(255));
    add(&mut tar, &deep, header(EntryType::Regular, 0o444), b"deep");
    add(&mut tar, "ümlaut", header(EntryType::Regular, 0o400), b"");
    add(&mut tar, "lost+found/", header(EntryType::Directory, 0o700), b"");
    add(&mut tar, "machinen-config.json", header(EntryType::Regular, 0o644), br#"{"cmd":["sh"]}"#);
    tar.into_inner().unwrap()
}

fn acl_entry(tag: u16, permissions: u16, id: u32) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
}

#[test]
fn keeps_everything_without_root() {
    let scratch = Scratch::new();
    scratch.put("all.tar", everything());
    let output = if is_root() {
        // As nobody, who may write here and has no capability.
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o777)).unwrap();
        let tool = scratch.path("tool");
        fs::copy(TOOL, &tool).unwrap();
        let mut command = scratch.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
        command.arg(tool).args(["--json", "all.tar"]).output().unwrap()
    } else {
        scratch.run(TOOL, &["--json", "all.tar"])
    };
    let value: serde_json::Value = serde_json::from_str(&lines(&output)[0]).unwrap();
    let image = PathBuf::from(value["image"].as_str().unwrap());
    fsck(&image);
    assert_eq!(fs::metadata(&image).unwrap().len(), 2 << 30);
    assert_eq!(value["bytes"], 2u64 << 30);
    assert_eq!(value["cached"], false);
    assert_eq!(fs::read(value["config"].as_str().unwrap()).unwrap(), br#"{"cmd":["sh"]}"#);

    let stat = |path: &str, wanted: &[&str]| {
        let text = debugfs(&image, &format!("stat {path}"));
        for words in wanted {
            assert!(text.contains(words), "{path}: {words}: {text}");
        }
    };
    stat("/", &["Type: directory", "Mode:  0751"]);
    stat("/bin", &["Mode:  01777"]);
    let attributes = ["user.note (6) = \"a note\"", "security.capability", "user.long (1000)", "posix_acl_access"];
    let su = ["Type: regular", "Mode:  06755", "User:  1000", "Group: 70000", "Size: 5000", "Links: 2"];
    stat("/bin/su", &[&su[..], &attributes].concat());
    // ext4 keeps nanoseconds times four beside two more bits of the seconds.
    stat("/bin/su", &[&format!("mtime: 0x{:08x}:{:08x}", 1_350_244_992, 23_960_108 << 2)]);
    assert_eq!(debugfs(&image, "stat /bin/su2"), debugfs(&image, "stat /bin/su"));
    stat("/short", &["Type: symlink", "Fast link dest: \"bin/su\""]);
    stat("/long", &["Type: symlink", "Size: 100"]);
    stat("/dangling", &["\"/nowhere\""]);
    stat("/c", &["Type: character special", "Mode:  0620", "05:01"]);
    stat("/b", &["Type: block special", "259:70000"]);
    stat("/fifo", &["Type: FIFO", "Mode:  0600"]);
    stat("/ümlaut", &["Mode:  0400", "Size: 0"]);
    let deep = format!("/{}/{}", "d".repeat(120), "f".repeat(255));
    assert_eq!(debugfs(&image, &format!("cat {deep}")), "deep");
    assert_eq!(debugfs(&image, "cat /bin/su"), "s".repeat(5000));
    assert_eq!(scratch.cached("rootfs").len(), 3);
}

#[test]
fn one_content_one_image_however_it_comes() {
    let scratch = Scratch::new();
    let tar = tar_of(&[("a", b"a"), ("b/c", &[7; 100_000])]);
    scratch.put("r.tar", &tar);
    scratch.put("r.tar.zst", ruzstd::encoding::compress_to_vec(&*tar, ruzstd::encoding::CompressionLevel::Fastest));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    scratch.put("r.tar.gz", gzip.finish().unwrap());
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    xz.write_all(&tar).unwrap();
    scratch.put("r.tar.xz", xz.finish().unwrap());

    let plain = image(&scratch, &["r.tar"]);
    fsck(&plain);
    let script = "cat r.tar | $T -; $T - <r.tar; mkfifo f; cat r.tar >f & $T f";
    assert_eq!(lines(&scratch.script(TOOL, script)), vec![plain.display().to_string(); 3]);
    for name in ["r.tar.zst", "r.tar.gz", "r.tar.xz"] {
        let other = image(&scratch, &[name]);
        fsck(&other);
        assert_ne!(other, plain, "{name}");
        assert_eq!(debugfs(&other, "cat /b/c"), debugfs(&plain, "cat /b/c"), "{name}");
        let bytes = fs::read(scratch.path(name)).unwrap();
        let piped = scratch.run_stdin(TOOL, &["-"], &bytes);
        assert_eq!(lines(&piped), [other.display().to_string()], "{name}");
        // Cut short in the middle and at the last byte.
        for end in [bytes.len() / 2, bytes.len() - 1] {
            let cut = scratch.run_stdin(TOOL, &["-"], &bytes[..end]);
            if !cut.status.success() {
                refused(&cut, "ROOTFS_IMG_SOURCE", 1);
            } else {
                assert!(end > bytes.len() / 2, "{name}: accepted with half of it missing");
            }
        }
    }
}

#[test]
fn directories_keep_what_they_have() {
    let scratch = Scratch::new();
    scratch.put("r/usr/file", [1; 9000]);
    scratch.put("r/machinen-config.json", "{}");
    fs::hard_link(scratch.path("r/usr/file"), scratch.path("r/same")).unwrap();
    symlink("usr", scratch.path("r/link")).unwrap();
    fs::set_permissions(scratch.path("r/usr"), fs::Permissions::from_mode(0o2750)).unwrap();
    rustix::fs::setxattr(scratch.path("r/same"), "user.a", b"value", rustix::fs::XattrFlags::empty()).unwrap();
    let first = image(&scratch, &["r"]);
    fsck(&first);
    let owner = fs::metadata(scratch.path("r/same")).unwrap().uid();
    let text = debugfs(&first, "stat /usr/file");
    for words in ["Links: 2", "Size: 9000", "user.a (5) = \"value\"", &format!("User: {owner:5}")] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(debugfs(&first, "stat /usr").contains("Mode:  02750"));
    assert_eq!(image(&scratch, &["r"]), first);

    // The same elsewhere is the same; another byte with the same length and time is not.
    lines(&scratch.script(TOOL, "cp -a r s"));
    assert_eq!(image(&scratch, &["s"]), first);
    let file = File::options().write(true).open(scratch.path("s/same")).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(&[2], 5000).unwrap();
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
    assert_ne!(image(&scratch, &["s"]), first);
    // The cache in the directory is not a part of it.
    let inside = scratch.command(TOOL).arg(".").output().unwrap();
    let inside = lines(&inside);
    assert_eq!(lines(&scratch.run(TOOL, &["."])), inside);
}

#[test]
fn an_unchanged_file_is_not_read_again() {
    let scratch = Scratch::new();
    let tar = scratch.put("r.tar", tar_of(&[("a", b"a")]));
    let first = image(&scratch, &["r.tar"]);
    // Times in the past show every change since.
    let file = File::options().write(true).open(&tar).unwrap();
    file.set_times(FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let phases = |scratch: &Scratch| {
        let done = scratch.run(TOOL, &["-v", "r.tar"]);
        assert_eq!(lines(&done), [first.display().to_string()]);
        stderr(&done)
    };
    while !phases(&scratch).contains(": recall ") {
        assert!(std::time::Instant::now() < limit, "it is read each time");
    }
    assert!(!phases(&scratch).contains(": hash "));
    // Other content, with the length and time of before.
    fs::write(&tar, tar_of(&[("b", b"b")])).unwrap();
    file.set_times(FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
    assert_ne!(image(&scratch, &["r.tar"]), first);
}

#[test]
fn damaged_entries_are_made_again() {
    let scratch = Scratch::new();
    scratch.put("r.tar", everything());
    let path = image(&scratch, &["r.tar"]);
    let good = content(&path);
    let mark = path.with_extension("mark");
    let damage: [(&str, &dyn Fn()); 7] = [
        ("shorter", &|| open(&path).set_len(1 << 20).unwrap()),
        ("longer", &|| open(&path).set_len(3 << 30).unwrap()),
        ("empty", &|| open(&path).set_len(0).unwrap()),
        ("written to", &|| open(&path).write_all_at(b"x", 1 << 24).unwrap()),
        ("superblock, with the time of before", &|| {
            let file = open(&path);
            let time = file.metadata().unwrap().modified().unwrap();
            file.write_all_at(&[0; 1024], 1024).unwrap();
            file.set_times(FileTimes::new().set_modified(time)).unwrap();
        }),
        ("no mark", &|| fs::remove_file(&mark).unwrap()),
        ("mark of zeros", &|| fs::write(&mark, [0; 70]).unwrap()),
    ];
    for (what, damage) in damage {
        damage();
        assert_eq!(image(&scratch, &["r.tar"]), path, "{what}");
        assert!(content(&path) == good, "{what}");
        assert_eq!(scratch.cached("rootfs").len(), 3, "{what}");
    }
    // Without the image too.
    fs::remove_file(&path).unwrap();
    assert_eq!(image(&scratch, &["r.tar"]), path);
    assert!(content(&path) == good);
}

fn open(path: &Path) -> File {
    File::options().write(true).open(path).unwrap()
}

/// Length and data of a sparse file, without its holes.
fn content(path: &Path) -> (u64, BTreeMap<u64, Vec<u8>>) {
    let file = File::open(path).unwrap();
    let bytes = file.metadata().unwrap().len();
    let mut blocks = BTreeMap::new();
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
        for at in (data..end).step_by(4096) {
            let mut block = vec![0; 4096];
            file.read_exact_at(&mut block, at).unwrap();
            if block.iter().any(|&b| b != 0) {
                blocks.insert(at, block);
            }
        }
        at = end;
    }
    (bytes, blocks)
}

#[test]
fn builders_at_once_make_one_image() {
    let scratch = Scratch::new();
    scratch.put("r.tar", tar_of(&[("a", &[3; 20_000_000]), ("b", b"b")]));
    let start = |_| scratch.command(TOOL).args(["--json", "r.tar"]).spawn().unwrap();
    let children: Vec<_> = (0..6).map(start).collect();
    let outputs = children.into_iter().map(|child| lines(&child.wait_with_output().unwrap()));
    let values: Vec<serde_json::Value> = outputs.map(|lines| serde_json::from_str(&lines[0]).unwrap()).collect();
    assert!(values.iter().all(|value| value["image"] == values[0]["image"]));
    assert_eq!(values.iter().filter(|value| value["cached"] == false).count(), 1);
    fsck(Path::new(values[0]["image"].as_str().unwrap()));
    assert_eq!(scratch.cached("rootfs").len(), 2);
}

#[test]
fn a_killed_builder_leaves_nothing() {
    let scratch = Scratch::new();
    scratch.put("r.tar", tar_of(&[("a", &[3; 60_000_000]), ("b", b"b")]));
    for phase in ["hash", "lock", "read", "plan", "write"] {
        let mut child = scratch.command(TOOL).args(["-v", "r.tar"]).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        let phase = format!(": {phase} ");
        let mut said = said.lines();
        assert!(said.any(|line| line.unwrap().contains(&phase)), "{phase}");
        child.kill().unwrap();
        child.wait().unwrap();
        let left = scratch.cached("rootfs");
        // Killed, or faster than the kill: whole.
        assert!(left.is_empty() || left.iter().any(|name| name.ends_with(".img")), "{phase}: {left:?}");
        for name in left {
            fs::remove_file(scratch.path("cache/rootfs").join(name)).unwrap();
        }
    }
    fsck(&image(&scratch, &["r.tar"]));
    assert_eq!(scratch.cached("rootfs").len(), 2);
}

#[test]
fn what_an_older_kill_left_is_removed() {
    // Only file systems without nameless files have such names.
    let scratch = Scratch::new();
    scratch.put("r.tar", tar_of(&[("a", b"a")]));
    let stale = scratch.put("cache/rootfs/.machinen-1.tmp", "x");
    open(&stale).set_times(FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
    let busy = scratch.put("cache/rootfs/.machinen-2.tmp", "x");
    image(&scratch, &["r.tar"]);
    assert!(!stale.exists());
    assert!(busy.exists());
}

#[test]
fn tar_files_that_lie() {
    let scratch = Scratch::new();
    let good = tar_of(&[("a", &[1; 3000]), ("b", &[2; 3000])]);
    let change = |at: usize, bytes: &[u8]| {
        let mut tar = good.clone();
        tar[at..at + bytes.len()].copy_from_slice(bytes);
        let block = at / 512 * 512;
        let sum: u32 = (0..512).map(|i| if (148..156).contains(&i) { 32 } else { tar[block + i].into() }).sum();
        tar[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar
    };
    let mut enormous = vec![0x80];
    enormous.extend([0xff; 11]);
    let lies: [(&str, Vec<u8>); 12] = [
        ("larger than the file", change(124, b"77777777777\0")),
        ("beyond 64 bits", change(124, &enormous)),
        ("no number", change(124, b"what is this")),
        ("one block more, which shifts the rest", change(124, b"00000007000\0")),
        ("unknown type", change(156, b"?")),
        ("a bad sum", {
            let mut tar = good.clone();
            tar[0] ^= 1;
            tar
        }),
        ("cut in a body", good[..1000].to_vec()),
        ("cut in a header", good[..3700].to_vec()),
        ("no end mark", good[..good.len() - 1024].to_vec()),
        ("nothing", Vec::new()),
        ("only zeros", vec![0; 10_240]),
        ("noise", (0u32..9000).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()),
    ];
    for (what, tar) in lies {
        scratch.put("lie.tar", &tar);
        for args in [&["lie.tar"][..], &["-"]] {
            let done = scratch.run_stdin(TOOL, args, if args == ["-"] { &tar } else { b"" });
            assert_eq!(done.status.code(), Some(1), "{what}: {}", stderr(&done));
            refused(&done, "ROOTFS_IMG_SOURCE", 1);
        }
        assert!(scratch.cached("rootfs").is_empty(), "{what}");
    }
    let done = scratch.run_stdin(TOOL, &["-"], b"BZh91AY&SY");
    assert!(refused(&done, "ROOTFS_IMG_SOURCE", 1).contains("bzip2"));
    // A stream with a name is called by it.
    assert!(refused(&scratch.run(TOOL, &["/dev/null"]), "ROOTFS_IMG_SOURCE", 1).contains("read: /dev/null: "));
}

#[test]
fn sparse_files_stay_sparse() {
    let scratch = Scratch::new();
    let script = "mkdir r; truncate -s 3G r/hole; echo data | dd of=r/hole bs=1 seek=1G conv=notrunc 2>/dev/null
        tar -S -C r -cf r.tar .; tar -S --format=pax -C r -cf pax.tar .; $T r.tar; ! $T pax.tar";
    let done = scratch.script(TOOL, script);
    let path = PathBuf::from(&lines(&done)[0]);
    assert!(stderr(&done).contains("sparse in pax form"), "{}", stderr(&done));
    fsck(&path);
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < 16 << 20);
    assert!(debugfs(&path, "stat /hole").contains("Size: 3221225472"));
    assert!(debugfs(&path, "blocks /hole").split_whitespace().count() <= 1);
}

#[test]
fn nothing_leads_out_of_the_root() {
    let scratch = Scratch::new();
    let outside = scratch.put("outside/file", "before");
    let out = scratch.path("outside");
    let out = out.to_str().unwrap();
    let up = "../".repeat(20);
    let raw = |path: &str| {
        let mut header = header(EntryType::Regular, 0o644);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(1);
        header.set_cksum();
        let mut tar = header.as_bytes().to_vec();
        tar.extend([b'x'; 1].iter().chain(&[0; 511 + 1024]));
        tar
    };
    for path in ["../x", "a/../../x", "/../x", "a/.."] {
        let done = scratch.run_stdin(TOOL, &["-"], &raw(path));
        assert!(refused(&done, "ROOTFS_IMG_PATH", 1).contains("contains .."), "{path}");
    }
    let through = |target: &str, kind: EntryType| {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_link(&mut header(EntryType::Symlink, 0o777), "evil", target).unwrap();
        if kind == EntryType::Link {
            tar.append_link(&mut header(kind, 0o644), "x", "evil/file").unwrap();
        } else {
            tar.append_data(&mut header(kind, 0o644), "evil/file", &b""[..]).unwrap();
        }
        tar.into_inner().unwrap()
    };
    for target in [out, "..", &*up, "/", "/etc", "nowhere", "evil"] {
        for kind in [EntryType::Regular, EntryType::Directory, EntryType::Link] {
            let done = scratch.run_stdin(TOOL, &["-"], &through(target, kind));
            refused(&done, "ROOTFS_IMG_PATH", 1);
        }
    }
    assert_eq!(fs::read(outside).unwrap(), b"before");
    // A leading slash is the root of the image; a symlink that stays inside is a merged /usr.
    let mut tar = tar::Builder::new(raw("/abs")[..1024].to_vec());
    tar.get_mut().truncate(1024);
    tar.append_data(&mut header(EntryType::Directory, 0o755), "usr/lib", &b""[..]).unwrap();
    tar.append_link(&mut header(EntryType::Symlink, 0o777), "lib", "usr/lib").unwrap();
    tar.append_data(&mut header(EntryType::Regular, 0o644), "lib/so", &b""[..]).unwrap();
    let done = scratch.run_stdin(TOOL, &["-"], &tar.into_inner().unwrap());
    let path = PathBuf::from(&lines(&done)[0]);
    assert!(debugfs(&path, "stat /abs").contains("Type: regular"));
    assert!(debugfs(&path, "stat /usr/lib/so").contains("Type: regular"));
    assert!(debugfs(&path, "stat /lib").contains("Type: symlink"));
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let scratch = Scratch::new();
    scratch.put("r.tar", tar_of(&[("a", &[3; 8_000_000])]));
    fs::create_dir(scratch.path("small")).unwrap();
    let script = "mount -t tmpfs -o size=4m none small; MACHINEN_CACHE_DIR=small
        export MACHINEN_CACHE_DIR; code=0; $T r.tar || code=$?; cat r.tar | $T - || code=$code,$?
        find small -type f ! -name '.lock-*'; df --output=used small | tail -1; echo $code";
    let unshare = if is_root() { &["-m"][..] } else { &["-rm"] };
    let mut command = scratch.command("unshare");
    let done = command.args(unshare).args(["sh", "-c", script]).env("T", TOOL).output().unwrap();
    let said = lines(&done);
    assert_eq!(said.len(), 2, "{said:?} {}", stderr(&done));
    assert_eq!((said[0].trim(), &*said[1]), ("0", "1,1"), "{}", stderr(&done));
    let errors = stderr(&done);
    assert_eq!(errors.matches("ROOTFS_IMG_HOST").count(), 2, "{errors}");
    assert_eq!(errors.matches("no space left on device").count(), 2, "{errors}");
}

#[test]
fn sizes() {
    let scratch = Scratch::new();
    scratch.put("r.tar", tar_of(&[("a", &[3; 30_000_000])]));
    let bytes = |path: &Path| fs::metadata(path).unwrap().len();
    let path = image(&scratch, &["--size", "100M", "r.tar"]);
    assert_eq!(bytes(&path), 100 << 20);
    fsck(&path);
    let inode = fs::metadata(&path).unwrap().ino();
    let taken = fs::metadata(&path).unwrap().blocks();
    let grown = scratch.run(TOOL, &["--json", "--size", "3G", "r.tar"]);
    let value: serde_json::Value = serde_json::from_str(&lines(&grown)[0]).unwrap();
    assert_eq!((&value["bytes"], &value["cached"]), (&(3u64 << 30).into(), &true.into()));
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.len(), found.ino(), found.blocks()), (3 << 30, inode, taken));
    fsck(&path);
    // Never smaller, and good for whoever gives no size. Who made it first with which size does not matter.
    scratch.put("small.tar", tar_of(&[("a", b"small")]));
    let small = image(&scratch, &["--size", "32M", "small.tar"]);
    assert_eq!(bytes(&small), 32 << 20);
    assert_eq!((image(&scratch, &["small.tar"]), bytes(&small)), (small.clone(), 2 << 30));
    fsck(&small);
    for args in [&["--size", "64", "r.tar"][..], &["r.tar"]] {
        assert_eq!((image(&scratch, args), bytes(&path)), (path.clone(), 3 << 30));
    }
    fs::write(scratch.path("r.tar"), tar_of(&[("b", &[3; 30_000_000])])).unwrap();
    let done = scratch.run(TOOL, &["--size", "24M", "r.tar"]);
    assert!(refused(&done, "ROOTFS_IMG_LIMIT", 1).contains("29 MiB of content in an image of 24 MiB"));
    for size in ["", "x", "8M", "-1", "99T"] {
        refused(&scratch.run(TOOL, &[&format!("--size={size}"), "r.tar"]), "ROOTFS_IMG_USAGE", 2);
    }
}

#[test]
fn many_inodes_and_a_large_directory() {
    let scratch = Scratch::new();
    let script = "mkdir r r/d; cd r/d; seq 1 150000 | xargs touch; cd ../..; tar -C r -cf r.tar .; $T r.tar";
    let path = PathBuf::from(&lines(&scratch.script(TOOL, script))[0]);
    fsck(&path);
    assert!(debugfs(&path, "stat /d/150000").contains("Type: regular"));
    assert!(debugfs(&path, "stat /d").contains("0x81000"), "no index: {}", debugfs(&path, "stat /d"));
}

#[test]
fn usage_and_lookup() {
    let scratch = Scratch::new();
    scratch.put("r.tar", tar_of(&[("a", b"a")]));
    refused(&scratch.run(TOOL, &[]), "ROOTFS_IMG_USAGE", 2);
    refused(&scratch.run(TOOL, &[""]), "ROOTFS_IMG_USAGE", 2);
    refused(&scratch.run(TOOL, &["a", "b"]), "ROOTFS_IMG_USAGE", 2);
    refused(&scratch.run(TOOL, &["--nonsense", "a"]), "ROOTFS_IMG_USAGE", 2);
    refused(&scratch.run(TOOL, &["nowhere"]), "ROOTFS_IMG_HOST", 1);
    assert!(lines(&scratch.run(TOOL, &["--help"])).len() > 30);
    assert_eq!(lines(&scratch.run(TOOL, &["--version"])), [concat!("machinen-rootfs-img ", env!("CARGO_PKG_VERSION"))]);
    let done = scratch.run(TOOL, &["--json", "nowhere"]);
    let value: serde_json::Value = serde_json::from_str(&stderr(&done)).unwrap();
    assert_eq!(value["code"], "ROOTFS_IMG_HOST");

    // What checks the image: given, named, found.
    let done = scratch.run(TOOL, &["--e2fsck", "nowhere", "r.tar"]);
    assert!(refused(&done, "ROOTFS_IMG_HOST", 1).contains("run: nowhere"));
    let done = scratch.command(TOOL).arg("r.tar").env("MACHINEN_E2FSCK", "/bin/false").output().unwrap();
    refused(&done, "ROOTFS_IMG_CHECK", 1);
    assert!(scratch.cached("rootfs").is_empty());
    let done = scratch.command(TOOL).arg("r.tar").env("PATH", "/nowhere").output().unwrap();
    assert_eq!(lines(&done).len(), 1, "in /usr/sbin");
    let mut command = scratch.command(TOOL);
    command.arg("r.tar").env_remove("MACHINEN_CACHE_DIR").env_remove("HOME").env_remove("XDG_CACHE_HOME");
    refused(&command.output().unwrap(), "ROOTFS_IMG_NO_CACHE", 1);
    let done = scratch.command(TOOL).arg("r.tar").env("MACHINEN_CACHE_DIR", "/dev/null").output().unwrap();
    refused(&done, "ROOTFS_IMG_HOST", 1);
    // A reader of standard output that went away.
    let mut child = scratch.command(TOOL).arg("r.tar").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

/// Files of a random tree: path, mode, owner, time, bytes.
type Files = BTreeMap<Vec<u8>, (u32, u32, i64, Vec<u8>)>;

fn files() -> impl Strategy<Value = Files> {
    let path = prop::collection::vec("[a-d]{1,3}", 1..4).prop_map(|names| names.join("/").into_bytes());
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        (any::<u8>(), 0usize..70_000).prop_map(|(byte, n)| vec![byte; n]),
        (any::<u8>(), 4090usize..4100).prop_map(|(byte, n)| vec![byte; n]),
    ];
    prop::collection::btree_map(path, (0u32..0o10000, any::<u32>(), 0i64..1 << 33, bytes), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_come_back(files in files()) {
        let scratch = Scratch::new();
        let mut tar = tar::Builder::new(Vec::new());
        // Later entries win: a file over a directory and the other way round.
        let mut expected = Files::new();
        for (path, (mode, owner, time, bytes)) in &files {
            let mut header = header(EntryType::Regular, *mode);
            header.set_uid((*owner).into());
            header.set_gid((*owner / 3).into());
            header.set_mtime(time.unsigned_abs());
            header.set_size(bytes.len() as u64);
            let text = std::str::from_utf8(path).unwrap();
            // Sorted: a file stands before what would be below it, which then cannot be.
            let blocked = (0..path.len()).any(|i| path[i] == b'/' && expected.contains_key(&path[..i]));
            if !blocked {
                tar.append_data(&mut header, text, &**bytes).unwrap();
                expected.insert(path.clone(), (*mode, *owner, *time, bytes.clone()));
            }
        }
        tar.append_data(&mut header(EntryType::Directory, 0o755), "./", &b""[..]).unwrap();
        scratch.put("r.tar", tar.into_inner().unwrap());
        let image = image(&scratch, &["--size", "64M", "r.tar"]);
        fsck(&image);
        let bytes = fs::read(&image).unwrap();
        let fs = mkext4::reader::Fs::open(&bytes[..]).unwrap();
        prop_assert!(fs.verify().unwrap().is_empty());
        for (path, (mode, owner, time, bytes)) in &expected {
            let ino = fs.resolve(&format!("/{}", std::str::from_utf8(path).unwrap())).unwrap();
            prop_assert_eq!(&fs.read_file(ino).unwrap(), bytes);
            let stat = debugfs(&image, &format!("stat <{ino}>"));
            let words = [format!("Mode:  0{mode:03o}"), format!("User: {:5}", owner.cast_signed()), format!("Size: {}", bytes.len())];
            for words in words {
                prop_assert!(stat.contains(&words), "{} in {}", words, stat);
            }
            let low = u32::try_from(time & 0xffff_ffff).unwrap();
            prop_assert!(stat.contains(&format!("mtime: 0x{low:08x}")), "{}", stat);
        }
    }
}

#[test]
fn tools_are_there() {
    for program in ["e2fsck", "debugfs", "tar", "unshare"] {
        assert!(Command::new(program).arg("--version").output().is_ok(), "{program} is missing: run make deps");
    }
}

//! Layouts end to end in memory: tar files and directories in, entries of the archive out.

use std::collections::BTreeMap;
use std::io::{Seek, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, id};
use std::string::ToString;
use std::sync::atomic::{AtomicU32, Ordering};

use tar::{Builder, EntryType, Header};

use super::config::{Parts, Root};
use super::*;
use crate::newc::{Item, Kind, Reader};
use crate::output::Output;
use crate::pack::pack;

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machinen-layout-{}-{n}", id()));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("init"), "INIT").unwrap();
        Scratch(path)
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn spec(&self, layout: Layout) -> Spec {
        Spec {
            layout,
            init: self.0.join("init"),
            config_file: None,
            config: Config::default(),
            excludes: None,
            modules: vec![],
            keep_owners: false,
            epoch: None,
            output: None,
        }
    }

    fn rootfs(&self, name: &str) -> Spec {
        let source = Source::Path(self.0.join(name));
        self.spec(Layout::Rootfs { source })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bytes(spec: &Spec) -> Result<Vec<u8>> {
    let (tree, plan) = build(spec)?;
    let mut bytes = Vec::new();
    pack(&tree, &plan, &mut Output::new(&mut bytes))?;
    assert_eq!(bytes.len() as u64, plan.bytes);
    Ok(bytes)
}

fn items(archive: &[u8]) -> BTreeMap<String, Item<'_>> {
    Reader::new(archive)
        .map(|item| item.unwrap())
        .map(|item| (String::from_utf8_lossy(item.entry.path).into_owned(), item))
        .collect()
}

fn names(archive: &[u8]) -> Vec<String> {
    items(archive).into_keys().collect()
}

/// Adds one entry as it stands, which the builder's own checks would refuse in part.
fn entry(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, body: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_size(body.len() as u64);
    header.set_mode(0o640);
    header.set_uid(1000);
    header.set_gid(50);
    header.set_mtime(77);
    header.set_cksum();
    tar.append(&header, body).unwrap();
}

fn tar_of(entries: &[(EntryType, &str, &str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, link, body) in entries {
        entry(&mut tar, *kind, name, link, body);
    }
    tar.into_inner().unwrap()
}

/// Takes a tar through a pipe, as from another program.
fn through_pipe(tar: &[u8]) -> Result<Tree> {
    let (reader, mut writer) = io::pipe().unwrap();
    let owned = tar.to_vec();
    let feeder = std::thread::spawn(move || {
        // The reader may stop early, at an error.
        let _ = writer.write_all(&owned);
    });
    let mut tree = Tree::new(0);
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    let done = tarball::add_stdin(&mut tree, file, u32::MAX);
    feeder.join().unwrap();
    done.map(|()| tree)
}

fn from_file(scratch: &Scratch, tar: &[u8]) -> Result<Tree> {
    let path = scratch.put("t.tar", tar);
    let mut tree = Tree::new(0);
    tarball::add_file(&mut tree, &path, u32::MAX)?;
    Ok(tree)
}

fn archive(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    let plan = Plan::new(tree).unwrap();
    pack(tree, &plan, &mut Output::new(&mut bytes)).unwrap();
    bytes
}

#[test]
fn minimal_has_what_a_guest_needs() {
    let scratch = Scratch::new();
    let mut spec = scratch.spec(Layout::Minimal);
    spec.epoch = Some(9);
    let archive = bytes(&spec).unwrap();
    let expected = ["dev", "dev/console", "init", "proc", "run", "sys", "tmp"];
    assert_eq!(names(&archive), expected);
    let items = items(&archive);
    let console = items["dev/console"].entry;
    let (major, minor) = (5, 1);
    assert_eq!(console.kind, Kind::Char(Device { major, minor }));
    assert_eq!((console.mode, console.mtime), (0o600, 9));
    assert_eq!(items["tmp"].entry.mode, 0o1777);
    assert_eq!((items["init"].entry.mode, items["init"].data), (0o755, &b"INIT"[..]));
}

#[test]
fn tar_keeps_owners_and_ours_win_at_init() {
    let scratch = Scratch::new();
    let tar = tar_of(&[
        (EntryType::Directory, "./", "", b""),
        (EntryType::Directory, "usr/bin/", "", b""),
        (EntryType::Symlink, "bin", "usr/bin", b""),
        (EntryType::Regular, "/abs", "", b"rooted"),
        (EntryType::Regular, "bin/tool", "", b"T"),
        (EntryType::Link, "hard", "usr/bin/tool", b""),
        (EntryType::Symlink, "init", "/sbin/init", b""),
        (EntryType::Fifo, "pipe", "", b""),
        (EntryType::Symlink, "tmp", "nowhere", b""),
        (EntryType::Regular, CONFIG_NAME, "", br#"{"cmd":["a"],"env":{"A":"1"}}"#),
    ]);
    scratch.put("t.tar", &tar);
    let mut spec = scratch.rootfs("t.tar");
    let more = vec![("B".to_string(), "2".to_string())];
    spec.config = Config::of_parts(Parts { env: more, ..Parts::default() }, "").unwrap();
    let archive = bytes(&spec).unwrap();
    let items = items(&archive);
    let tool = items["usr/bin/tool"];
    let entry = tool.entry;
    assert_eq!((entry.uid, entry.gid, entry.mode, entry.mtime), (1000, 50, 0o640, 77));
    // The body comes with the last name.
    assert_eq!((entry.nlink, tool.data, items["hard"].data), (2, &b"T"[..], &b""[..]));
    assert_eq!(entry.ino, items["hard"].entry.ino);
    assert_eq!(items["abs"].data, b"rooted");
    assert_eq!(items["init"].data, b"INIT");
    assert_eq!(items["tmp"].entry.kind, Kind::Directory);
    assert_eq!(items["pipe"].entry.kind, Kind::Fifo);
    let config = "{\"cmd\":[\"a\"],\"env\":{\"A\":\"1\",\"B\":\"2\"}}\n";
    assert_eq!(items[CONFIG_NAME].data, config.as_bytes());
    assert!(!items.contains_key("bin/tool"));
}

#[test]
fn a_piped_tar_and_a_tar_file_make_the_same_archive() {
    let scratch = Scratch::new();
    let big = vec![5; 700_001];
    let tar = tar_of(&[
        (EntryType::Regular, "b", "", &big),
        (EntryType::Regular, "a", "", b"first"),
        (EntryType::Regular, "zeros", "", &[0; 2048]),
    ]);
    let piped = archive(&through_pipe(&tar).unwrap());
    assert_eq!(piped, archive(&from_file(&scratch, &tar).unwrap()));
    assert_eq!(items(&piped)["b"].data, big);
}

#[test]
fn damaged_tars_are_refused_by_name() {
    let scratch = Scratch::new();
    let one = tar_of(&[(EntryType::Regular, "f", "", &[0; 1024])]);
    let dots = tar_of(&[(EntryType::Regular, "a/../../etc/passwd", "", b"x")]);
    let hard = tar_of(&[(EntryType::Link, "h", "gone", b"")]);
    let through =
        tar_of(&[(EntryType::Symlink, "out", "../../etc", b""), (EntryType::Regular, "out/passwd", "", b"x")]);
    let mut garbage = one.clone();
    garbage[0] ^= 1;
    let table: [(&[u8], &str); 8] = [
        (&one[..1000], "f: the file ends inside it"),
        (&one[..1536], "ends without its end mark"),
        (b"", "ends without its end mark"),
        (b"not a tar", ""),
        (&garbage, "checksum mismatch"),
        (&dots, "contains .."),
        (&hard, "hard link to a file that is not there"),
        (&through, "leads through something that is not a directory"),
    ];
    for (tar, why) in table {
        for done in [from_file(&scratch, tar), through_pipe(tar)] {
            let message = done.expect_err(why).to_string();
            assert!(message.contains(why), "{why}: {message}");
        }
    }
}

#[test]
fn compressed_tars_are_refused_with_the_command_to_type() {
    let scratch = Scratch::new();
    for (magic, command) in
        [(&b"\x1f\x8b\x08"[..], "gzip -dc"), (b"\xfd7zXZ\0\0", "xz -dc"), (b"\x28\xb5\x2f\xfd\0", "zstd -dc")]
    {
        for (done, source) in [(from_file(&scratch, magic), "t.tar"), (through_pipe(magic), "FILE")] {
            let hint = done.unwrap_err().hint().unwrap();
            assert!(hint.starts_with(command), "{hint}");
            assert!(hint.ends_with(" | machinen-mkinitramfs rootfs - OUT"), "{hint}");
            assert!(hint.contains(source), "{hint}");
        }
    }
}

/// Runs GNU tar, whose extensions no other writer makes alike.
fn gnu_tar(scratch: &Scratch, flags: &[&str]) -> Vec<u8> {
    let made = Command::new("tar")
        .args(flags)
        .args(["-cf", "../g.tar", "."])
        .current_dir(scratch.0.join("r"))
        .status()
        .expect("GNU tar is needed for this test: install the package tar");
    assert!(made.success());
    fs::read(scratch.0.join("g.tar")).unwrap()
}

#[test]
fn gnu_and_pax_extensions_are_read() {
    let scratch = Scratch::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    scratch.put(&format!("r/{long}"), "deep");
    symlink("t".repeat(300), scratch.0.join("r/link")).unwrap();
    let mut hole = File::create(scratch.0.join("r/hole")).unwrap();
    hole.seek(io::SeekFrom::Start(1 << 20)).unwrap();
    hole.write_all(b"end").unwrap();
    for flags in [&["--format=gnu"][..], &["--format=pax"], &["--format=gnu", "--sparse"]] {
        let tar = gnu_tar(&scratch, flags);
        let archive = archive(&from_file(&scratch, &tar).unwrap());
        assert_eq!(archive, self::archive(&through_pipe(&tar).unwrap()), "{flags:?}");
        let items = items(&archive);
        assert_eq!(items[&long].data, b"deep");
        assert_eq!(items["link"].entry.kind, Kind::Symlink("t".repeat(300).as_bytes()));
        let hole = items["hole"].data;
        assert!(hole.len() == (1 << 20) + 3 && hole.ends_with(b"\0end"), "{flags:?}");
    }
    let tar = gnu_tar(&scratch, &["--format=pax", "--sparse"]);
    let message = from_file(&scratch, &tar).unwrap_err().to_string();
    assert!(message.contains("sparse"), "{message}");
}

#[test]
fn directories_are_owned_by_root_and_know_no_time() {
    let scratch = Scratch::new();
    scratch.put("r/b/f", "one");
    scratch.put("r/a", "two");
    fs::set_permissions(scratch.0.join("r/a"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::hard_link(scratch.0.join("r/a"), scratch.0.join("r/b/a")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(scratch.0.join("r/sock")).unwrap();
    let first = bytes(&scratch.rootfs("r")).unwrap();
    let list = items(&first);
    assert!(!list.contains_key("sock"));
    assert_eq!((list["a"].entry.mode, list["a"].entry.nlink), (0o4711, 2));
    assert_eq!((list["a"].data, list["b/a"].data), (&b""[..], &b"two"[..]));
    assert!(list.values().all(|i| (i.entry.uid, i.entry.gid, i.entry.mtime) == (0, 0, 0)));
    let file = File::options().write(true).open(scratch.0.join("r/b/f")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(bytes(&scratch.rootfs("r")).unwrap(), first);
}

#[test]
fn too_large_files_are_refused_unread() {
    let scratch = Scratch::new();
    let path = scratch.put("r/huge", "");
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(1 << 32).unwrap();
    let error = bytes(&scratch.rootfs("r")).unwrap_err();
    assert_eq!(error.code(), "MKINITRAMFS_LIMIT");
    assert!(error.to_string().contains("huge: 4294967296 bytes"), "{error}");
}

#[test]
fn files_that_change_are_named() {
    let scratch = Scratch::new();
    for (after, why) in [("longer than", "became longer"), ("", "became shorter")] {
        scratch.put("r/log", "before");
        let (tree, plan) = build(&scratch.rootfs("r")).unwrap();
        scratch.put("r/log", after);
        let error = pack(&tree, &plan, &mut Output::new(Vec::new())).unwrap_err();
        assert!(error.retryable());
        assert!(error.to_string().contains(&format!("log: {why}")), "{error}");
    }
}

#[test]
fn excludes_take_subtrees_but_not_shared_bodies() {
    let scratch = Scratch::new();
    let tar = tar_of(&[
        (EntryType::Regular, "usr/share/doc/x/copy", "", b"body"),
        (EntryType::Link, "kept", "usr/share/doc/x/copy", b""),
        (EntryType::Regular, "lib/a.pyc", "", b""),
    ]);
    scratch.put("t.tar", tar);
    let mut spec = scratch.rootfs("t.tar");
    spec.excludes = Some(vec!["/usr/share/doc/".into(), "*.pyc".into()]);
    let archive = bytes(&spec).unwrap();
    let items = items(&archive);
    assert_eq!((items["kept"].entry.nlink, items["kept"].data), (1, &b"body"[..]));
    assert!(items.contains_key("usr/share") && items.contains_key("lib"));
    assert!(!items.contains_key("usr/share/doc") && !items.contains_key("lib/a.pyc"));
}

#[test]
fn bundle_goes_over_its_base() {
    let scratch = Scratch::new();
    let tar = tar_of(&[
        (EntryType::Directory, "usr/bin/", "", b""),
        (EntryType::Symlink, "bin", "usr/bin", b""),
        (EntryType::Regular, "etc/motd", "", b"base"),
    ]);
    let base = Some(Source::Path(scratch.put("t.tar", tar)));
    scratch.put("b/rootfs/bin/tool", "t");
    scratch.put("b/rootfs/etc/motd", "bundle");
    scratch.put("b/machinen-config.json", r#"{"cmd":["x"]}"#);
    let bundle = scratch.0.join("b");
    let tiny = scratch.spec(Layout::Tiny { bundle: bundle.clone() });
    let archive = bytes(&scratch.spec(Layout::Bundle { bundle, base })).unwrap();
    let list = items(&archive);
    assert_eq!(list["etc/motd"].data, b"bundle");
    assert_eq!(list["usr/bin/tool"].data, b"t");
    assert_eq!(list["usr/bin"].entry.uid, 1000);
    assert_eq!(list["bin"].entry.kind, Kind::Symlink(b"usr/bin"));
    assert_eq!(list[CONFIG_NAME].data, b"{\"cmd\":[\"x\"]}\n");
    let archive = bytes(&tiny).unwrap();
    let names = names(&archive);
    assert!(names.contains(&CONFIG_NAME.to_string()) && !names.contains(&"etc".to_string()));
}

#[test]
fn workspace_leaves_out_and_limits() {
    let scratch = Scratch::new();
    scratch.put("w/src/main.rs", "x");
    scratch.put("w/sub/node_modules/m", "x");
    scratch.put("w/.git/HEAD", "x");
    scratch.put("w/media/film", vec![1; 3 << 20]);
    let layout = |max_mib| Layout::Workspace { dir: scratch.0.join("w"), mountpoint: "home/me".to_string(), max_mib };
    let archive = bytes(&scratch.spec(layout(4))).unwrap();
    let list = names(&archive);
    assert!(list.contains(&"home/me/src/main.rs".to_string()));
    assert!(list.iter().all(|name| !name.contains("node_modules") && !name.contains(".git")));
    let error = build(&scratch.spec(layout(3))).unwrap_err();
    assert_eq!(error.code(), "MKINITRAMFS_TOO_LARGE");
    let message = error.to_string();
    assert!(message.contains("4 MiB, the limit is 3 MiB; largest: media 4 MiB, s"), "{message}");
}

#[test]
fn modules_are_listed_in_order() {
    let scratch = Scratch::new();
    let mut spec = scratch.spec(Layout::Minimal);
    spec.modules = ["z.ko", "a.ko.xz"].map(|name| scratch.put(name, name)).to_vec();
    let archive = bytes(&spec).unwrap();
    let list = items(&archive);
    let expected = "/lib/modules-machinen/z.ko\n/lib/modules-machinen/a.ko.xz\n";
    assert_eq!(list["machinen-modules"].data, expected.as_bytes());
    assert_eq!(list["lib/modules-machinen/a.ko.xz"].data, b"a.ko.xz");
    spec.modules.push(scratch.put("sub/z.ko", ""));
    assert!(bytes(&spec).unwrap_err().to_string().contains("given twice"));
    spec.modules = vec![scratch.put("not a.ko", "")];
    assert_eq!(bytes(&spec).unwrap_err().code(), "MKINITRAMFS_USAGE");
}

#[test]
fn a_configuration_without_command_is_refused() {
    let scratch = Scratch::new();
    let mut spec = scratch.spec(Layout::Minimal);
    spec.config = Config::of_parts(Parts { cwd: Some("/".into()), ..Parts::default() }, "").unwrap();
    let error = bytes(&spec).unwrap_err();
    assert!(error.to_string().contains("there is no cmd"), "{error}");
}

#[test]
fn an_agent_needs_no_command() {
    let scratch = Scratch::new();
    let mut spec = scratch.spec(Layout::Minimal);
    spec.config = Config::of_parts(Parts { agent: true, ..Parts::default() }, "").unwrap();
    assert_eq!(items(&bytes(&spec).unwrap())[CONFIG_NAME].data, b"{\"agent\":true}\n");
}

#[test]
fn a_root_disk_needs_no_command_and_no_files() {
    let scratch = Scratch::new();
    let root = |read_only| {
        let root = Root { device: "/dev/vda".into(), read_only };
        Config::of_parts(Parts { root: Some(root), ..Parts::default() }, "").unwrap()
    };
    let mut spec = scratch.spec(Layout::Minimal);
    spec.config = root(false);
    let archive = bytes(&spec).unwrap();
    assert_eq!(items(&archive)[CONFIG_NAME].data, b"{\"root\":{\"device\":\"/dev/vda\",\"ro\":false}}\n");
    assert_eq!(bytes(&spec).unwrap(), archive, "the same bytes again");
    scratch.put("b/machinen-config.json", r#"{"env":{"A":"1"},"root":{"device":"/dev/vdz"}}"#);
    let mut spec = scratch.spec(Layout::Tiny { bundle: scratch.0.join("b") });
    spec.config = root(true);
    let expected = b"{\"env\":{\"A\":\"1\"},\"root\":{\"device\":\"/dev/vda\",\"ro\":true}}\n";
    assert_eq!(items(&bytes(&spec).unwrap())[CONFIG_NAME].data, expected);
    scratch.put("r/file", "lost");
    let mut spec = scratch.rootfs("r");
    spec.config = root(false);
    assert_eq!(bytes(&spec).unwrap_err().code(), "MKINITRAMFS_USAGE");
}

#[test]
fn a_root_file_system_does_not_say_which_disks_there_are() {
    let scratch = Scratch::new();
    let baked =
        r#"{"cmd":["x"],"root":{"device":"/dev/vda"},"mounts":[{"lower":"/dev/a","upper":"/dev/b","at":"/w"}]}"#;
    scratch.put("r/machinen-config.json", baked);
    let archive = bytes(&scratch.rootfs("r")).unwrap();
    assert_eq!(items(&archive)[CONFIG_NAME].data, b"{\"cmd\":[\"x\"]}\n");
}

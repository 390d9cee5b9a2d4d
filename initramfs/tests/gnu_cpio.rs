//! Random trees through our writer: our reader, `cpio -t` and `cpio -i` must all find the same tree.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use machinen_initramfs::newc::{Device, Kind, Reader};
use machinen_initramfs::output::Output;
use machinen_initramfs::pack::{Plan, pack};
use machinen_initramfs::tree::{Found, Meta, Node, Tree};
use machinen_initramfs::walk::{Options, add_directory};
use proptest::prelude::*;

/// One addition to a tree. Numbers pick among what is there.
#[derive(Clone, Debug)]
enum Step {
    Directory(usize, Vec<u8>, u16),
    File(usize, Vec<u8>, u16, Vec<u8>),
    Symlink(usize, Vec<u8>, Vec<u8>),
    Fifo(usize, Vec<u8>),
    Char(usize, Vec<u8>, u8, u8),
    Link(usize, Vec<u8>, usize),
}

/// What a path is, in a form that all readers can be brought to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    kind: String,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: u32,
    body: Vec<u8>,
    /// First path of the same inode.
    same_as: Vec<u8>,
}

/// A path; a file's node; else a directory's mode, big-endian, or a hard link's target.
type Addition = (Vec<u8>, Option<(Meta, Node)>, Vec<u8>);
type Listing = BTreeMap<Vec<u8>, Seen>;

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machinen-cpio-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![b'a'..=b'd', Just(b'\n'), Just(b' '), Just(b'*'), Just(b'\\'), Just(0xff), Just(0xc3)];
    prop_oneof![
        8 => prop::collection::vec(byte, 1..5),
        1 => Just(vec![b'L'; 255]),
        1 => Just("ä€".as_bytes().to_vec()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let mode = 0_u16..0o10000;
    let body = prop_oneof![prop::collection::vec(any::<u8>(), 0..9), Just(vec![7; 300_001])];
    let target = prop::collection::vec(1_u8.., 1..20);
    prop_oneof![
        (any::<usize>(), name(), mode.clone()).prop_map(|(d, n, m)| Step::Directory(d, n, m)),
        (any::<usize>(), name(), mode, body).prop_map(|(d, n, m, b)| Step::File(d, n, m, b)),
        (any::<usize>(), name(), target).prop_map(|(d, n, t)| Step::Symlink(d, n, t)),
        (any::<usize>(), name()).prop_map(|(d, n)| Step::Fifo(d, n)),
        (any::<usize>(), name(), any::<u8>(), any::<u8>()).prop_map(|(d, n, a, b)| Step::Char(d, n, a, b)),
        (any::<usize>(), name(), any::<usize>()).prop_map(|(d, n, l)| Step::Link(d, n, l)),
    ]
}

fn meta(mode: u16) -> Meta {
    let (uid, gid, mtime) = (u32::from(mode) % 3, u32::from(mode) % 5, 1_000_000 + u32::from(mode));
    Meta { mode, uid, gid, mtime }
}

/// The tree, and the same as path and node for adding in another order. Taken names are passed over.
fn grow(steps: &[Step]) -> (Tree, Vec<Addition>) {
    let mut tree = Tree::new(0);
    let mut dirs: Vec<Vec<u8>> = vec![vec![]];
    let mut files: Vec<Vec<u8>> = vec![];
    let mut log: Vec<Addition> = vec![];
    for step in steps {
        let (Step::Directory(dir, name, _)
        | Step::File(dir, name, ..)
        | Step::Symlink(dir, name, _)
        | Step::Fifo(dir, name)
        | Step::Char(dir, name, ..)
        | Step::Link(dir, name, _)) = step;
        let mut path = dirs[dir % dirs.len()].clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name);
        if path.len() > 1000 || log.iter().any(|(taken, ..)| *taken == path) {
            continue;
        }
        let node = match step {
            Step::Directory(_, _, mode) => {
                tree.directory(&path, meta(*mode)).unwrap();
                dirs.push(path.clone());
                log.push((path, None, (*mode).to_be_bytes().to_vec()));
                continue;
            }
            Step::Link(_, _, which) => {
                if !files.is_empty() {
                    let target = files[which % files.len()].clone();
                    tree.link(&path, &target).unwrap();
                    log.push((path, None, target));
                }
                continue;
            }
            Step::File(.., mode, body) => (meta(*mode), Node::bytes(body)),
            Step::Symlink(.., target) => (meta(0o777), Node::Symlink(target.as_slice().into())),
            Step::Fifo(..) => (meta(0o622), Node::Fifo),
            Step::Char(.., major, minor) => {
                let (major, minor) = (u32::from(*major), u32::from(*minor));
                (meta(0o600), Node::Char(Device { major, minor }))
            }
        };
        tree.add(&path, node.0, node.1.clone()).unwrap();
        if !matches!(step, Step::Symlink(..)) {
            files.push(path.clone());
        }
        log.push((path, Some(node), vec![]));
    }
    (tree, log)
}

fn archive(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    let plan = Plan::new(tree).unwrap();
    pack(tree, &plan, &mut Output::new(&mut bytes)).unwrap();
    assert_eq!(bytes.len() as u64, plan.bytes);
    bytes
}

fn read_ours(bytes: &[u8]) -> Listing {
    let mut listing = Listing::new();
    let mut first: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut bodies: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    for item in Reader::new(bytes) {
        let item = item.unwrap();
        let entry = item.entry;
        let path = entry.path.to_vec();
        let (kind, body) = match entry.kind {
            Kind::Directory => ("dir".to_string(), vec![]),
            Kind::File { .. } => ("file".to_string(), item.data.to_vec()),
            Kind::Symlink(target) => ("link".to_string(), target.to_vec()),
            Kind::Char(d) => (format!("char {} {}", d.major, d.minor), vec![]),
            Kind::Block(d) => (format!("block {} {}", d.major, d.minor), vec![]),
            Kind::Fifo => ("fifo".to_string(), vec![]),
            Kind::Socket => ("socket".to_string(), vec![]),
        };
        if !body.is_empty() {
            bodies.insert(entry.ino, body);
        }
        let same_as = first.entry(entry.ino).or_insert(path.clone()).clone();
        let seen = Seen {
            kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            body: entry.ino.to_be_bytes().to_vec(),
            same_as,
        };
        assert!(listing.insert(path, seen).is_none());
    }
    for seen in listing.values_mut() {
        let ino = u32::from_be_bytes(seen.body[..].try_into().unwrap());
        seen.body = bodies.get(&ino).cloned().unwrap_or_default();
    }
    listing
}

fn read_disk(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for item in fs::read_dir(dir).unwrap() {
            let path = item.unwrap().path();
            let found = fs::symlink_metadata(&path).unwrap();
            let kind = found.file_type();
            let device = format!("{} {}", found.rdev() >> 8, found.rdev() & 0xff);
            let (kind, body) = if kind.is_dir() {
                pending.push(path.clone());
                ("dir".to_string(), vec![])
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                ("link".to_string(), target.as_os_str().as_bytes().to_vec())
            } else if kind.is_char_device() {
                (format!("char {device}"), vec![])
            } else if kind.is_fifo() {
                ("fifo".to_string(), vec![])
            } else {
                ("file".to_string(), fs::read(&path).unwrap())
            };
            let seen = Seen {
                kind,
                mode: u16::try_from(found.mode() & 0o7777).unwrap(),
                uid: found.uid(),
                gid: found.gid(),
                mtime: u32::try_from(found.mtime()).unwrap(),
                body,
                same_as: found.ino().to_be_bytes().to_vec(),
            };
            let below = path.strip_prefix(root).unwrap();
            listing.insert(below.as_os_str().as_bytes().to_vec(), seen);
        }
    }
    let mut first: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    // In the order of our archives, where a directory's names precede its longer-named neighbours'.
    let mut paths: Vec<_> = listing.keys().cloned().collect();
    paths.sort_by(|a, b| a.split(|&c| c == b'/').cmp(b.split(|&c| c == b'/')));
    for path in paths {
        let seen = listing.get_mut(&path).unwrap();
        let same_as = std::mem::take(&mut seen.same_as);
        seen.same_as = first.entry(same_as).or_insert(path).clone();
    }
    listing
}

fn cpio(args: &[&str], dir: &Path, input: &[u8]) -> Vec<u8> {
    let archive = dir.with_extension("cpio");
    fs::write(&archive, input).unwrap();
    let child = Command::new("cpio")
        .args(args)
        .current_dir(dir)
        .stdin(fs::File::open(&archive).unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("GNU cpio is needed for this test: install the package cpio");
    let done = child.wait_with_output().unwrap();
    fs::remove_file(&archive).unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "cpio {args:?}: {errors}");
    done.stdout
}

/// Owners and device nodes need root; a run without it must say so, not pass.
fn need_root() {
    let mine = fs::metadata("/proc/self").unwrap().uid();
    assert_eq!(mine, 0, "this test makes device nodes: run it as root or under fakeroot");
}

/// What cpio leaves different from the archive: times of directories it fills later, and of symlinks.
fn comparable(mut listing: Listing) -> Listing {
    for seen in listing.values_mut() {
        if matches!(seen.kind.as_str(), "dir" | "link") {
            seen.mtime = 0;
        }
    }
    listing
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gnu_cpio_extracts_the_same_tree(steps in prop::collection::vec(step(), 0..40)) {
        need_root();
        let (tree, _) = grow(&steps);
        let bytes = archive(&tree);
        let ours = read_ours(&bytes);
        let scratch = Scratch::new();
        // Lines cannot be told apart where names have newlines, so their bytes are counted.
        let names = cpio(&["-t", "--quiet"], &scratch.0, &bytes);
        let expected: usize = ours.keys().map(|path| path.len() + 1).sum();
        prop_assert_eq!(names.len(), expected);
        cpio(&["-i", "-d", "-m", "--quiet", "--no-absolute-filenames"], &scratch.0, &bytes);
        prop_assert_eq!(comparable(read_disk(&scratch.0)), comparable(ours.clone()));

        // And back: the extracted directory packs to the same entries, whatever order it lists them in.
        let mut again = Tree::new(0);
        let root = again.root();
        let options = Options { keep_owners: true, ..Options::default() };
        add_directory(&mut again, root, &scratch.0, &options, |_| false).unwrap();
        let mut expected = ours;
        expected.values_mut().for_each(|seen| seen.mtime = 0);
        prop_assert_eq!(read_ours(&archive(&again)), expected);
    }

    #[test]
    fn order_of_additions_does_not_matter(
        steps in prop::collection::vec(step(), 0..40), keys in prop::collection::vec(any::<u32>(), 40),
    ) {
        let (tree, log) = grow(&steps);
        let mut shuffled: Vec<_> = log.into_iter().zip(keys).collect();
        shuffled.sort_by_key(|(_, key)| *key);
        let mut other = Tree::new(0);
        let mut links = vec![];
        for ((path, node, extra), _) in shuffled {
            match node {
                Some((meta, node)) => drop(other.add(&path, meta, node).unwrap()),
                None if is_directory(&tree, &path) => {
                    let mode = u16::from_be_bytes(extra[..].try_into().unwrap());
                    other.directory(&path, meta(mode)).unwrap();
                }
                None => links.push((path, extra)),
            }
        }
        // A link needs its target; among themselves they too come in any order.
        for (path, target) in links {
            other.link(&path, &target).unwrap();
        }
        prop_assert_eq!(archive(&tree), archive(&other));
    }
}

fn is_directory(tree: &Tree, path: &[u8]) -> bool {
    tree.lookup(path).is_some_and(|id| matches!(tree.found(id), Found::Directory))
}

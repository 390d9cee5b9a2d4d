//! Trees: overriding, merging, symlinks on the way, what is refused.

use std::vec;
use std::vec::Vec;

use super::{Found, Meta, Node, PathFault, Tree};

const META: Meta = Meta { mode: 0o644, uid: 7, gid: 8, mtime: 9 };

fn paths(tree: &Tree) -> Vec<std::string::String> {
    let mut entries = tree.entries();
    let mut paths = vec![];
    while let Some((path, _)) = entries.step() {
        paths.push(std::string::String::from_utf8_lossy(path).into_owned());
    }
    paths
}

fn symlink(target: &str) -> Node {
    Node::Symlink(target.as_bytes().into())
}

#[test]
fn parents_are_implied_and_overrides_drop_what_was_below() {
    let mut tree = Tree::new(3);
    tree.add(b"/a/./b//c", META, Node::Fifo).unwrap();
    assert_eq!(paths(&tree), ["a", "a/b", "a/b/c"]);
    let a = tree.lookup(b"a").unwrap();
    assert_eq!(tree.meta(a), Meta { mode: 0o755, uid: 0, gid: 0, mtime: 3 });
    tree.add(b"a", META, Node::Fifo).unwrap();
    assert_eq!(paths(&tree), ["a"]);
    tree.directory(b"a", META).unwrap();
    assert_eq!(paths(&tree), ["a"]);
    assert!(matches!(tree.found(tree.lookup(b"a").unwrap()), Found::Directory));
}

#[test]
fn directories_merge_and_only_described_ones_change() {
    let mut tree = Tree::new(0);
    let id = tree.directory(b"d", META).unwrap();
    tree.add(b"d/f", META, Node::Fifo).unwrap();
    let other = Meta { mode: 0o700, ..META };
    assert_eq!(tree.directory_in(tree.root(), b"d", other), Ok(id));
    assert_eq!(tree.meta(id), META);
    assert_eq!(tree.directory(b"d", other), Ok(id));
    assert_eq!(tree.meta(id), other);
    assert_eq!(paths(&tree), ["d", "d/f"]);
}

#[test]
fn symlinks_in_a_path_stay_inside_the_tree() {
    let mut tree = Tree::new(0);
    tree.directory(b"usr/bin", META).unwrap();
    tree.add(b"bin", META, symlink("usr/bin")).unwrap();
    tree.add(b"usr/up", META, symlink("../../../../usr/bin")).unwrap();
    tree.add(b"abs", META, symlink("/usr/up")).unwrap();
    tree.add(b"bin/one", META, Node::Fifo).unwrap();
    tree.add(b"abs/two", META, Node::Fifo).unwrap();
    // A directory on a symlink to one merges, as where /bin is a link to usr/bin.
    let bin = tree.directory_in(tree.root(), b"bin", META).unwrap();
    assert_eq!(tree.lookup(b"usr/bin"), Some(bin));
    let usr = tree.lookup(b"usr").unwrap();
    assert_eq!(tree.directory_in(usr, b"up", META), Ok(bin));
    tree.directory(b"bin/three", META).unwrap();
    let expected = ["abs", "bin", "usr", "usr/bin", "usr/bin/one", "usr/bin/three", "usr/bin/two", "usr/up"];
    assert_eq!(paths(&tree), expected);
}

#[test]
fn paths_that_lead_nowhere_are_refused() {
    let mut tree = Tree::new(0);
    tree.add(b"loop", META, symlink("loop")).unwrap();
    tree.add(b"gone", META, symlink("nowhere")).unwrap();
    tree.add(b"file", META, Node::bytes("x")).unwrap();
    let long = [b'x'; 256];
    let table: [(&[u8], PathFault); 8] = [
        (b"loop/x", PathFault::NotDirectory),
        (b"gone/x", PathFault::NotDirectory),
        (b"file/x", PathFault::NotDirectory),
        (b"a/../b", PathFault::DotDot),
        (b"..", PathFault::DotDot),
        (b"a\0b", PathFault::Nul),
        (b"/./", PathFault::Root),
        (&long, PathFault::TooLong),
    ];
    for (path, fault) in table {
        assert_eq!(tree.add(path, META, Node::Fifo), Err(fault));
    }
    assert_eq!(tree.link(b"l", b"file2"), Err(PathFault::LinkTarget), "not there");
    assert_eq!(tree.link(b"l", b"/"), Err(PathFault::LinkTarget));
    assert_eq!(tree.add(b"s", META, symlink("")), Err(PathFault::EmptyTarget));
    assert_eq!(paths(&tree), ["file", "gone", "loop"]);
}

#[test]
fn prune_drops_subtrees_and_leaves_other_names_of_a_file() {
    let mut tree = Tree::new(0);
    tree.add(b"doc/f", META, Node::bytes("x")).unwrap();
    tree.link(b"keep", b"doc/f").unwrap();
    tree.prune(|path| path == b"doc");
    assert_eq!(paths(&tree), ["keep"]);
}

//! A file tree in memory: names, attributes and links as a root file system has them, bodies wherever they lie.
//!
//! Every path is resolved inside the tree, as in a chroot: symlinks in the middle of a path are followed, absolute ones
//! from the tree's root, and nothing leads out of it. Later additions override earlier ones.

#[cfg(test)]
mod tests;

use std::borrow::ToOwned;
use std::boxed::Box;
use std::collections::{BTreeMap, btree_map};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::vec::Vec;
use std::{mem, vec};

use crate::newc::{Device, MAX_PATH_BYTES};

const MAX_NAME_BYTES: usize = 255;
/// As many symlinks as the kernel follows in one path.
const MAX_SYMLINKS: u32 = 40;

/// Attributes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, seconds since 1970.
    pub mtime: u32,
}

/// A directory on the host that bodies are read from, held open.
#[derive(Debug)]
pub struct HostDir {
    /// The directory.
    pub fd: OwnedFd,
    /// Its name for messages.
    pub path: PathBuf,
}

/// Where the bytes of a file are.
#[derive(Clone, Debug)]
pub enum Body {
    /// Here.
    Bytes(Vec<u8>),
    /// In a file below a host directory, opened when it is packed.
    Host(Rc<HostDir>, Box<[u8]>),
    /// In an open file, from this offset on.
    Range(Rc<File>, u64),
}

/// A file that is not a directory.
#[derive(Clone, Debug)]
pub enum Node {
    /// A regular file of this length.
    File(Body, u64),
    /// A symbolic link to these bytes.
    Symlink(Box<[u8]>),
    /// A character device.
    Char(Device),
    /// A block device.
    Block(Device),
    /// A named pipe.
    Fifo,
}

/// An inode of one tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(usize);

impl Id {
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

type Names = BTreeMap<Box<[u8]>, Id>;
type Siblings<'a> = btree_map::Iter<'a, Box<[u8]>, Id>;

#[derive(Clone, Debug)]
enum Kind {
    Directory(Names),
    Node(Node),
}

#[derive(Clone, Debug)]
struct Inode {
    meta: Meta,
    kind: Kind,
}

/// What an [`Id`] stands for.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// A directory.
    Directory,
    /// Anything else.
    Node(&'a Node),
}

/// Why a path cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathFault {
    /// It has a `..` component.
    DotDot,
    /// It has a NUL.
    Nul,
    /// It or a component is longer than Linux allows.
    TooLong,
    /// It is the root, which is always a directory.
    Root,
    /// A component leads through something that is neither a directory nor a symlink to one.
    NotDirectory,
    /// A hard link to something that is not there, or is a directory.
    LinkTarget,
    /// A symlink without a target.
    EmptyTarget,
}

impl PathFault {
    /// The fault in words.
    pub fn why(self) -> &'static str {
        match self {
            PathFault::DotDot => "contains ..",
            PathFault::Nul => "contains a NUL",
            PathFault::TooLong => "path or name is too long for Linux",
            PathFault::Root => "the root can only be a directory",
            PathFault::NotDirectory => "leads through something that is not a directory",
            PathFault::LinkTarget => "hard link to a file that is not there",
            PathFault::EmptyTarget => "symlink without a target, or with one too long",
        }
    }
}

/// The tree. Its root always exists and has no attributes of its own: the kernel makes it, 0755 and owned by root.
#[derive(Clone, Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
    /// Attributes of directories that nobody described.
    implied: Meta,
}

impl Tree {
    /// An empty tree; parents that no source describes are 0755, owned by root, of time `mtime`.
    pub fn new(mtime: u32) -> Self {
        let implied = Meta { mode: 0o755, uid: 0, gid: 0, mtime };
        let root = Inode { meta: implied, kind: Kind::Directory(Names::new()) };
        Tree { inodes: vec![root], implied }
    }

    /// The root directory.
    pub fn root(&self) -> Id {
        Id(0)
    }

    /// Attributes of `id`.
    pub fn meta(&self, id: Id) -> Meta {
        self.inodes[id.0].meta
    }

    /// What `id` is.
    pub fn found(&self, id: Id) -> Found<'_> {
        match &self.inodes[id.0].kind {
            Kind::Directory(_) => Found::Directory,
            Kind::Node(node) => Found::Node(node),
        }
    }

    /// What `path` leads to, following symlinks, the last one too.
    pub fn lookup(&self, path: &[u8]) -> Option<Id> {
        let mut hops = 0;
        self.walk(vec![Id(0)], path, &mut hops)?.last().copied()
    }

    /// Adds a directory with its parents. Where there is one it takes the new attributes; a symlink to a directory
    /// stays, and the directory it leads to is returned.
    pub fn directory(&mut self, path: &[u8], meta: Meta) -> Result<Id, PathFault> {
        let Some((parent, name)) = self.parent(path)? else {
            return Ok(Id(0));
        };
        let id = self.directory_in(parent, name, meta)?;
        if self.child(parent, name) == Some(id) {
            self.inodes[id.0].meta = meta;
        }
        Ok(id)
    }

    /// [`Tree::directory`] for a name in a directory; one that is there keeps its attributes.
    pub fn directory_in(&mut self, parent: Id, name: &[u8], meta: Meta) -> Result<Id, PathFault> {
        check_name(name)?;
        if let Some(old) = self.child(parent, name) {
            match &self.inodes[old.0].kind {
                Kind::Directory(_) => return Ok(old),
                Kind::Node(Node::Symlink(_)) => {
                    if let Some(id) = self.symlinked_directory(parent, name) {
                        return Ok(id);
                    }
                }
                Kind::Node(_) => {}
            }
        }
        Ok(self.place(parent, name, meta, Kind::Directory(Names::new())))
    }

    /// Adds a file that is not a directory, with its parents, in place of what was there.
    pub fn add(&mut self, path: &[u8], meta: Meta, node: Node) -> Result<Id, PathFault> {
        let (parent, name) = self.parent(path)?.ok_or(PathFault::Root)?;
        self.add_in(parent, name, meta, node)
    }

    /// [`Tree::add`] for a name in a directory.
    pub fn add_in(&mut self, parent: Id, name: &[u8], meta: Meta, node: Node) -> Result<Id, PathFault> {
        check_name(name)?;
        if let Node::Symlink(target) = &node {
            if target.is_empty() || target.len() > MAX_PATH_BYTES {
                return Err(PathFault::EmptyTarget);
            }
            if target.contains(&0) {
                return Err(PathFault::Nul);
            }
        }
        Ok(self.place(parent, name, meta, Kind::Node(node)))
    }

    /// Adds a hard link to what `target` names; a symlink as its last component is linked, not followed.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), PathFault> {
        let (from, old_name) = self.parent(target)?.ok_or(PathFault::LinkTarget)?;
        let id = self.child(from, old_name).ok_or(PathFault::LinkTarget)?;
        let (parent, name) = self.parent(path)?.ok_or(PathFault::Root)?;
        self.link_in(parent, name, id)
    }

    /// Gives `id`, not a directory, another name.
    pub fn link_in(&mut self, parent: Id, name: &[u8], id: Id) -> Result<(), PathFault> {
        check_name(name)?;
        if matches!(self.inodes[id.0].kind, Kind::Directory(_)) {
            return Err(PathFault::LinkTarget);
        }
        self.names_mut(parent).insert(name.into(), id);
        Ok(())
    }

    /// Removes every entry, with what is below it, whose path from the root `unwanted` picks.
    pub fn prune(&mut self, unwanted: impl Fn(&[u8]) -> bool) {
        let mut pending = vec![(Id(0), Vec::new())];
        while let Some((dir, prefix)) = pending.pop() {
            let mut names = mem::take(self.names_mut(dir));
            names.retain(|name, id| {
                let mut path: Vec<u8> = prefix.clone();
                path.extend_from_slice(name);
                if unwanted(&path) {
                    return false;
                }
                if matches!(self.inodes[id.0].kind, Kind::Directory(_)) {
                    path.push(b'/');
                    pending.push((*id, path));
                }
                true
            });
            *self.names_mut(dir) = names;
        }
    }

    /// Goes through all entries but the root: parents before children, names of a directory in byte order.
    pub fn entries(&self) -> Entries<'_> {
        let names = match &self.inodes[0].kind {
            Kind::Directory(names) => names.iter(),
            Kind::Node(_) => Default::default(),
        };
        Entries { tree: self, stack: vec![(names, 0)], path: Vec::new() }
    }

    /// Number of inodes ever made; every [`Id::index`] is below.
    pub(crate) fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    fn place(&mut self, parent: Id, name: &[u8], meta: Meta, kind: Kind) -> Id {
        let id = Id(self.inodes.len());
        self.inodes.push(Inode { meta, kind });
        self.names_mut(parent).insert(name.into(), id);
        id
    }

    fn child(&self, dir: Id, name: &[u8]) -> Option<Id> {
        match &self.inodes[dir.0].kind {
            Kind::Directory(names) => names.get(name).copied(),
            Kind::Node(_) => None,
        }
    }

    /// Callers hold ids of directories only: an inode never changes its kind.
    fn names_mut(&mut self, dir: Id) -> &mut Names {
        match &mut self.inodes[dir.0].kind {
            Kind::Directory(names) => names,
            Kind::Node(_) => unreachable!("a parent that is not a directory"),
        }
    }

    /// The directory that `path` lies in, made if need be, and its last component; `None` for the root.
    fn parent<'p>(&mut self, path: &'p [u8]) -> Result<Option<(Id, &'p [u8])>, PathFault> {
        if path.len() > MAX_PATH_BYTES {
            return Err(PathFault::TooLong);
        }
        let components: Vec<_> = components(path).collect();
        for name in &components {
            check_name(name)?;
        }
        let Some((last, dirs)) = components.split_last() else {
            return Ok(None);
        };
        let mut trail = vec![Id(0)];
        let mut hops = 0;
        for name in dirs {
            let dir = trail.last().copied().unwrap_or(Id(0));
            if self.child(dir, name).is_none() {
                trail.push(self.place(dir, name, self.implied, Kind::Directory(Names::new())));
                continue;
            }
            trail = self.walk(trail, name, &mut hops).ok_or(PathFault::NotDirectory)?;
            let leads_to = trail.last().copied().unwrap_or(Id(0));
            if !matches!(self.inodes[leads_to.0].kind, Kind::Directory(_)) {
                return Err(PathFault::NotDirectory);
            }
        }
        Ok(Some((trail.last().copied().unwrap_or(Id(0)), *last)))
    }

    /// Follows `path` from the end of `trail`, the way from the root; the new trail, or `None` when it leads nowhere.
    fn walk(&self, mut trail: Vec<Id>, path: &[u8], hops: &mut u32) -> Option<Vec<Id>> {
        let mut pending: Vec<Box<[u8]>> = components(path).map(Box::from).collect();
        pending.reverse();
        while let Some(name) = pending.pop() {
            if *name == *b".." {
                // The root is its own parent.
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let id = self.child(*trail.last()?, &name)?;
            if let Kind::Node(Node::Symlink(target)) = &self.inodes[id.0].kind {
                *hops += 1;
                if *hops > MAX_SYMLINKS {
                    return None;
                }
                if target.starts_with(b"/") {
                    trail.truncate(1);
                }
                let at = pending.len();
                pending.extend(components(target).map(Box::from));
                pending[at..].reverse();
            } else {
                trail.push(id);
            }
        }
        Some(trail)
    }

    /// The directory that a symlink in `parent` leads to. `parent` is found again from the root for the sake of `..`.
    fn symlinked_directory(&self, parent: Id, name: &[u8]) -> Option<Id> {
        let mut hops = 0;
        let trail = self.walk(self.trail(parent)?, name, &mut hops)?;
        let id = trail.last().copied()?;
        matches!(self.inodes[id.0].kind, Kind::Directory(_)).then_some(id)
    }

    /// The way from the root to a directory. Rare: only when a directory meets a symlink.
    fn trail(&self, dir: Id) -> Option<Vec<Id>> {
        let mut parents = vec![None; self.inodes.len()];
        let mut pending = vec![Id(0)];
        while let Some(id) = pending.pop() {
            if let Kind::Directory(names) = &self.inodes[id.0].kind {
                for child in names.values() {
                    parents[child.0] = Some(id);
                    pending.push(*child);
                }
            }
        }
        let mut trail = vec![dir];
        while let Some(parent) = parents[trail.last()?.0] {
            trail.push(parent);
        }
        trail.reverse();
        (trail.first() == Some(&Id(0))).then_some(trail)
    }
}

/// Iteration over a tree; each step borrows the path from here.
#[derive(Debug)]
pub struct Entries<'a> {
    tree: &'a Tree,
    /// Directories from the root to here: names to come, and the length of the path to it.
    stack: Vec<(Siblings<'a>, usize)>,
    path: Vec<u8>,
}

impl Entries<'_> {
    /// The next entry: its path from the root, without leading slash, and its inode.
    pub fn step(&mut self) -> Option<(&[u8], Id)> {
        loop {
            let (names, prefix) = self.stack.last_mut()?;
            self.path.truncate(*prefix);
            let Some((name, &id)) = names.next() else {
                self.stack.pop();
                continue;
            };
            if *prefix > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            if let Kind::Directory(names) = &self.tree.inodes[id.0].kind {
                self.stack.push((names.iter(), self.path.len()));
            }
            return Some((&self.path, id));
        }
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".")
}

fn check_name(name: &[u8]) -> Result<(), PathFault> {
    if name == b".." {
        Err(PathFault::DotDot)
    } else if name.contains(&0) {
        Err(PathFault::Nul)
    } else if name.len() > MAX_NAME_BYTES {
        Err(PathFault::TooLong)
    } else {
        Ok(())
    }
}

impl Node {
    /// A file with these bytes.
    pub fn bytes(bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref().to_owned();
        let len_bytes = bytes.len() as u64;
        Node::File(Body::Bytes(bytes), len_bytes)
    }
}

//! The root file system as a tree in memory: attributes and names here, bodies where they lie.
//!
//! Later entries replace earlier ones. A path may lead through symlinks of the tree itself that stay inside it (a merged
//! /usr); one that is absolute or climbs out of the root is refused, as is every path with `..`.

use std::collections::BTreeMap;

/// Longest name of a Linux file in bytes.
const MAX_NAME_BYTES: usize = 255;
/// Longest path; deeper trees cannot be used by a guest anyway.
const MAX_PATH_BYTES: usize = 4095;
/// As many symlinks as the kernel follows in one path.
const MAX_SYMLINKS: u32 = 40;

/// Attributes of an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change: seconds since 1970, nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes: full name, value.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// Where the bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// In the tar file, from this offset on.
    Tar(u64),
    /// In the spool file, from this offset on; of a file with holes only the data, and the segments, as (length, is data).
    Spool(u64, Vec<(u64, bool)>),
    /// In the file of this path below the source directory.
    Host(Vec<u8>),
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory and its names.
    Directory(BTreeMap<Vec<u8>, Id>),
    /// A regular file and its length in bytes.
    File(Body, u64),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// Number of an inode, in the order of creation: a directory's is less than those of the directories in it.
pub type Id = usize;

/// The root directory.
pub const ROOT: Id = 0;

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its attributes.
    pub meta: Meta,
    /// What it is.
    pub node: Node,
}

/// The tree; inode 0 is the root.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
    /// The directory that the path before led to: archives list neighbours together.
    recent: Option<(Vec<u8>, Id)>,
}

impl Default for Tree {
    fn default() -> Self {
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let root = Inode { meta, node: Node::Directory(BTreeMap::new()) };
        Tree { inodes: vec![root], recent: None }
    }
}

/// Why a path is refused.
pub type Refusal = &'static str;

impl Tree {
    /// All inodes ever made, by number; some may have no name any more.
    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// The names in directory `id`; none if it is not a directory.
    pub fn names(&self, id: Id) -> impl Iterator<Item = (&[u8], Id)> {
        let names = match &self.inodes[id].node {
            Node::Directory(names) => Some(names),
            _ => None,
        };
        names.into_iter().flatten().map(|(name, id)| (&name[..], *id))
    }

    /// Adds a directory, or gives the one that is there these attributes. A symlink to a directory stays.
    pub fn directory(&mut self, path: &[u8], meta: Meta) -> Result<(), Refusal> {
        let Some((parent, name)) = self.parent(path)? else {
            self.inodes[ROOT].meta = meta;
            return Ok(());
        };
        match self.child(parent, name) {
            Some(old) if matches!(self.inodes[old].node, Node::Directory(_)) => self.inodes[old].meta = meta,
            Some(old) if matches!(self.inodes[old].node, Node::Symlink(_)) && self.is_directory(path) => {}
            _ => self.place(parent, name, meta, Node::Directory(BTreeMap::new())),
        }
        Ok(())
    }

    /// Adds anything but a directory, in place of what was there.
    pub fn add(&mut self, path: &[u8], meta: Meta, node: Node) -> Result<(), Refusal> {
        if let Node::Symlink(target) = &node
            && (target.is_empty() || target.len() > MAX_PATH_BYTES || target.contains(&0))
        {
            return Err("symlink without a target, or with one that Linux does not allow");
        }
        let (parent, name) = self.parent(path)?.ok_or("the root can only be a directory")?;
        self.place(parent, name, meta, node);
        Ok(())
    }

    /// Adds a hard link to what `target` names; a symlink there is linked, not followed.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Refusal> {
        const NO_TARGET: Refusal = "hard link to a file that is not there";
        let (from, old) = self.parent(target)?.ok_or(NO_TARGET)?;
        let id = self.child(from, old).ok_or(NO_TARGET)?;
        if matches!(self.inodes[id].node, Node::Directory(_)) {
            return Err("hard link to a directory");
        }
        let (parent, name) = self.parent(path)?.ok_or("the root can only be a directory")?;
        self.insert(parent, name, id);
        Ok(())
    }

    /// The regular file that `path` names, without following symlinks at its end.
    pub fn file(&self, path: &[u8]) -> Option<(&Body, u64)> {
        let mut id = ROOT;
        for name in components(path) {
            id = self.child(id, name)?;
        }
        match &self.inodes[id].node {
            Node::File(body, bytes) => Some((body, *bytes)),
            _ => None,
        }
    }

    /// The directory that holds the last name of `path`, made with its parents if it is not there, and that name.
    /// `None` for the root.
    fn parent<'p>(&mut self, path: &'p [u8]) -> Result<Option<(Id, &'p [u8])>, Refusal> {
        if path.contains(&0) {
            return Err("contains a NUL");
        }
        if path.len() > MAX_PATH_BYTES {
            return Err("path is too long for Linux");
        }
        let names: Vec<&[u8]> = components(path).collect();
        for name in &names {
            if *name == b".." {
                return Err("contains ..");
            }
            if name.len() > MAX_NAME_BYTES {
                return Err("a name is too long for Linux");
            }
        }
        let Some((last, dirs)) = names.split_last() else { return Ok(None) };
        let above = dirs.join(&b'/');
        if let Some((recent, id)) = &self.recent
            && *recent == above
        {
            return Ok(Some((*id, last)));
        }
        let id = self.resolve(&above, true)?;
        self.recent = Some((above, id));
        Ok(Some((id, last)))
    }

    /// The directory that `path` leads to, through symlinks that stay inside.
    fn resolve(&mut self, path: &[u8], make: bool) -> Result<Id, Refusal> {
        const NO_DIRECTORY: Refusal = "leads through something that is not a directory";
        let mut trail = vec![ROOT];
        let mut hops = 0;
        let mut pending: Vec<Vec<u8>> = components(path).map(<[u8]>::to_vec).rev().collect();
        while let Some(name) = pending.pop() {
            if name == b".." {
                trail.pop();
                if trail.is_empty() {
                    return Err("leads through a symlink out of the root");
                }
                continue;
            }
            let here = trail.last().copied().unwrap_or(ROOT);
            match self.child(here, &name) {
                Some(id) => match &self.inodes[id].node {
                    Node::Directory(_) => trail.push(id),
                    Node::Symlink(target) => {
                        hops += 1;
                        if hops > MAX_SYMLINKS {
                            return Err("leads through too many symlinks");
                        }
                        if target.starts_with(b"/") {
                            return Err("leads through an absolute symlink");
                        }
                        pending.extend(components(target).map(<[u8]>::to_vec).rev());
                    }
                    _ => return Err(NO_DIRECTORY),
                },
                // What a symlink promises and the archive does not have is not made up.
                None if make && hops == 0 => {
                    let meta = Meta { mode: 0o755, ..Meta::default() };
                    self.place(here, &name, meta, Node::Directory(BTreeMap::new()));
                    trail.push(self.inodes.len() - 1);
                }
                None => return Err(NO_DIRECTORY),
            }
        }
        Ok(trail.last().copied().unwrap_or(ROOT))
    }

    fn is_directory(&mut self, path: &[u8]) -> bool {
        self.resolve(path, false).is_ok()
    }

    fn child(&self, parent: Id, name: &[u8]) -> Option<Id> {
        match &self.inodes[parent].node {
            Node::Directory(names) => names.get(name).copied(),
            _ => None,
        }
    }

    fn place(&mut self, parent: Id, name: &[u8], meta: Meta, node: Node) {
        self.inodes.push(Inode { meta, node });
        self.insert(parent, name, self.inodes.len() - 1);
    }

    fn insert(&mut self, parent: Id, name: &[u8], id: Id) {
        if let Node::Directory(names) = &mut self.inodes[parent].node {
            let old = names.insert(name.to_vec(), id);
            // A directory or a symlink on the way may have gone.
            if old.is_some() {
                self.recent = None;
            }
        }
    }
}

/// The names of a path, without empty ones and `.`.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Node {
        Node::File(Body::Tar(0), 1)
    }

    fn symlink(target: &[u8]) -> Node {
        Node::Symlink(target.to_vec())
    }

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.directory(b"./usr/lib/", Meta::default()).expect("usr/lib");
        tree.add(b"lib", Meta::default(), symlink(b"usr/lib")).expect("lib");
        tree
    }

    #[test]
    fn symlinks_inside_are_followed() {
        let mut tree = tree();
        tree.add(b"/lib/a", Meta::default(), file()).expect("lib/a");
        assert!(tree.file(b"usr/lib/a").is_some());
        tree.directory(b"lib", Meta { mode: 0o700, ..Meta::default() }).expect("lib");
        assert_eq!(tree.names(ROOT).map(|(name, _)| name).collect::<Vec<_>>(), [b"lib", b"usr"]);
        tree.add(b"usr/up", Meta::default(), symlink(b"../usr/./lib")).expect("up");
        tree.link(b"usr/up/b", b"lib/a").expect("link");
        assert!(tree.file(b"usr/lib/b").is_some());
    }

    #[test]
    fn nothing_leads_out() {
        let mut tree = tree();
        for target in [&b"/etc"[..], b"../..", b"..", b"usr/lib/../../..", b"loop", b"nowhere", b"lib/../../../x"] {
            tree.add(b"loop", Meta::default(), symlink(target)).expect("symlink");
            assert!(tree.add(b"loop/x", Meta::default(), file()).is_err() || target == b"..", "{target:?}");
            assert!(tree.link(b"y", b"loop/x").is_err(), "{target:?}");
        }
        for path in [&b"../x"[..], b"a/../../x", b"/..", b"a/..", b"a\0b"] {
            assert!(tree.add(path, Meta::default(), file()).is_err(), "{path:?}");
            assert!(tree.directory(path, Meta::default()).is_err(), "{path:?}");
        }
        assert!(tree.add(&[b'a'; 256], Meta::default(), file()).is_err());
        tree.add(&[b'a'; 255], Meta::default(), file()).expect("255 bytes");
        assert!(tree.add(b".", Meta::default(), file()).is_err());
        assert!(tree.link(b"z", b"usr").is_err());
    }

    #[test]
    fn later_entries_replace_earlier_ones() {
        let mut tree = tree();
        tree.add(b"usr/lib/a/b", Meta::default(), file()).expect("a file in a directory made for it");
        tree.add(b"usr/lib", Meta::default(), file()).expect("a file for the directory");
        assert!(tree.file(b"usr/lib").is_some());
        assert!(tree.add(b"usr/lib/a/c", Meta::default(), file()).is_err());
        tree.directory(b"usr/lib", Meta::default()).expect("a directory for the file");
    }
}

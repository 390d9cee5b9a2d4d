//! A host directory as a source of a tree.

use std::borrow::ToOwned;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};

use crate::error::{Error, Result, show, show_path};
use crate::newc::Device;
use crate::pack::check_length;
use crate::tree::{Body, HostDir, Id, Meta, Node, PathFault, Tree};

/// What of a directory goes into a tree, and how.
#[derive(Debug, Default)]
pub struct Options {
    /// Owners stay as they are; otherwise all is owned by 0:0.
    pub keep_owners: bool,
    /// Time of every file, seconds since 1970: a directory's own times differ from checkout to checkout.
    pub mtime: u32,
    /// A file to leave out, by device and inode: the output itself.
    pub skip: Option<(u64, u64)>,
}

/// Adds what is below `dir` to `tree` at `at`.
///
/// Symlinks, device nodes, named pipes and hard links stay what they are; sockets are left out, as they mean nothing
/// without their process. Directories that are in the tree keep their attributes, files replace what is there.
/// `unwanted` gets each path below `dir` and drops it with what is below. Bodies are read when the tree is packed.
pub fn add_directory(
    tree: &mut Tree,
    at: Id,
    dir: &Path,
    options: &Options,
    unwanted: impl Fn(&[u8]) -> bool,
) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| Error::host("open directory", dir, e))?;
    let path = dir.to_owned();
    let root = Rc::new(HostDir { fd, path });
    let mut seen = HashMap::new();
    let mut pending = vec![(at, Vec::new())];
    while let Some((parent, prefix)) = pending.pop() {
        let named = |name: &[u8]| host_path(&root, &[&prefix, name].concat());
        // Without its slash, after which a symlink would be followed after all.
        let below = prefix.strip_suffix(b"/").unwrap_or(b".");
        let fd = openat(&root.fd, below, flags | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|e| Error::host("open directory", &named(b""), e))?;
        let listing = Dir::read_from(&fd).map_err(|e| Error::host("list", &named(b""), e))?;
        let mut names = Vec::new();
        for item in listing {
            let item = item.map_err(|e| Error::host("list", &named(b""), e))?;
            let name = item.file_name();
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        // Where symlinks lead two directories to one place, the order decides who wins.
        names.sort_unstable();
        for name in &names {
            let name = name.to_bytes();
            let path = [&prefix, name].concat();
            if unwanted(&path) {
                continue;
            }
            let stat =
                statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| Error::host("stat", &named(name), e))?;
            if options.skip == Some((stat.st_dev, stat.st_ino)) {
                continue;
            }
            let refused = |fault: PathFault| Error::Path(show_path(&root.path), show(&path), fault.why());
            let meta = meta(&stat, options);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let id = tree.directory_in(parent, name, meta).map_err(refused)?;
                pending.push((id, [&path[..], b"/"].concat()));
                continue;
            }
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(&id) = seen.get(&inode) {
                tree.link_in(parent, name, id).map_err(refused)?;
                continue;
            }
            let node = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => {
                    let len_bytes = u64::try_from(stat.st_size).unwrap_or(0);
                    check_length(&path, len_bytes)?;
                    Node::File(Body::Host(root.clone(), path.as_slice().into()), len_bytes)
                }
                FileType::Symlink => {
                    let target =
                        readlinkat(&fd, name, Vec::new()).map_err(|e| Error::host("read link", &named(name), e))?;
                    Node::Symlink(target.to_bytes().into())
                }
                FileType::CharacterDevice => Node::Char(device(&stat)),
                FileType::BlockDevice => Node::Block(device(&stat)),
                FileType::Fifo => Node::Fifo,
                _ => continue,
            };
            let id = tree.add_in(parent, name, meta, node).map_err(refused)?;
            if stat.st_nlink > 1 {
                seen.insert(inode, id);
            }
        }
    }
    Ok(())
}

fn host_path(root: &HostDir, below: &[u8]) -> PathBuf {
    root.path.join(OsStr::from_bytes(below))
}

fn meta(stat: &Stat, options: &Options) -> Meta {
    let (uid, gid) = if options.keep_owners { (stat.st_uid, stat.st_gid) } else { (0, 0) };
    Meta { mode: permissions(stat.st_mode), uid, gid, mtime: options.mtime }
}

/// The permission bits of a mode.
pub(crate) fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

fn device(stat: &Stat) -> Device {
    let major = rustix::fs::major(stat.st_rdev);
    let minor = rustix::fs::minor(stat.st_rdev);
    Device { major, minor }
}

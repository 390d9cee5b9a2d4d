//! A host directory as a tree, with the owners, times and extended attributes that its files have, and its fingerprint.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use machinen_initramfs::error::{show, show_path};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::acl;
use super::tree::{Body, Meta, Node, Tree};
use crate::fault::{Fault, Result};

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A directory and what was found in it.
#[derive(Debug)]
pub struct Found {
    /// The directory.
    pub fd: OwnedFd,
    /// Its tree.
    pub tree: Tree,
    /// Changes when anything in it changes that the system gives a time to.
    pub fingerprint: [u8; 32],
    /// The latest change: seconds since 1970, nanoseconds.
    pub newest: (i64, i64),
}

/// Walks `dir`. Sockets are left out: they mean nothing without their process. `skip` is a directory to leave out (device,
/// inode).
pub fn read(dir: &Path, skip: (u64, u64)) -> Result<Found> {
    let fd = rustix::fs::open(dir, OPEN, Mode::empty()).map_err(|e| Fault::host("open directory", dir, e))?;
    let mut walk =
        Walk { dir, skip, tree: Tree::default(), hash: Sha256::new(), links: HashMap::new(), newest: (0, 0) };
    let stat = rustix::fs::fstat(&fd).map_err(|e| Fault::host("stat", dir, e))?;
    let root = walk.meta(&fd, b".", &stat, b"")?;
    walk.tree.directory(b"", root).map_err(|why| walk.refused(b"", why))?;
    walk.below(&fd)?;
    Ok(Found { fd, tree: walk.tree, fingerprint: walk.hash.finalize().into(), newest: walk.newest })
}

struct Walk<'a> {
    dir: &'a Path,
    skip: (u64, u64),
    tree: Tree,
    hash: Sha256,
    /// First name of each inode with several.
    links: HashMap<(u64, u64), Vec<u8>>,
    newest: (i64, i64),
}

impl Walk<'_> {
    fn below(&mut self, root: &OwnedFd) -> Result<()> {
        let mut pending = vec![Vec::new()];
        while let Some(prefix) = pending.pop() {
            let below = prefix.strip_suffix(b"/").unwrap_or(b".");
            let flags = OPEN | OFlags::NOFOLLOW;
            let fd = openat(root, below, flags, Mode::empty())
                .map_err(|e| Fault::host("open directory", &self.path(&prefix), e))?;
            let listing = Dir::read_from(&fd).map_err(|e| Fault::host("list", &self.path(&prefix), e))?;
            let mut names = Vec::new();
            for item in listing {
                let item = item.map_err(|e| Fault::host("list", &self.path(&prefix), e))?;
                let name = item.file_name();
                if name != c"." && name != c".." {
                    names.push(name.to_owned());
                }
            }
            names.sort_unstable();
            for name in names {
                let path = [&prefix, name.to_bytes()].concat();
                if self.entry(&fd, name.to_bytes(), &path)? {
                    pending.push([&path[..], b"/"].concat());
                }
            }
        }
        Ok(())
    }

    /// Adds one entry; tells whether it is a directory to go into.
    fn entry(&mut self, fd: &OwnedFd, name: &[u8], path: &[u8]) -> Result<bool> {
        let stat = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| Fault::host("stat", &self.path(path), e))?;
        let inode = (stat.st_dev, stat.st_ino);
        if inode == self.skip {
            return Ok(false);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Socket {
            return Ok(false);
        }
        let meta = self.meta(fd, name, &stat, path)?;
        if kind == FileType::Directory {
            self.tree.directory(path, meta).map_err(|why| self.refused(path, why))?;
            return Ok(true);
        }
        if let Some(first) = self.links.get(&inode) {
            self.tree.link(path, first).map_err(|why| self.refused(path, why))?;
            return Ok(false);
        }
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let node = match kind {
            FileType::RegularFile => Node::File(Body::Host(path.to_vec()), u64::try_from(stat.st_size).unwrap_or(0)),
            FileType::Symlink => {
                let target =
                    readlinkat(fd, name, Vec::new()).map_err(|e| Fault::host("read link", &self.path(path), e))?;
                Node::Symlink(target.to_bytes().to_vec())
            }
            FileType::CharacterDevice => Node::Char(major, minor),
            FileType::BlockDevice => Node::Block(major, minor),
            FileType::Fifo => Node::Fifo,
            _ => return Ok(false),
        };
        self.tree.add(path, meta, node).map_err(|why| self.refused(path, why))?;
        if stat.st_nlink > 1 {
            self.links.insert(inode, path.to_vec());
        }
        Ok(false)
    }

    /// Attributes, which also go into the fingerprint, with what tells that a body changed.
    fn meta(&mut self, fd: &OwnedFd, name: &[u8], stat: &Stat, path: &[u8]) -> Result<Meta> {
        let mtime_ns = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        self.newest = self.newest.max((stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0)));
        self.hash.update(path);
        let numbers = [
            stat.st_dev,
            stat.st_ino,
            stat.st_mode.into(),
            stat.st_size.cast_unsigned(),
            stat.st_mtime.cast_unsigned(),
            mtime_ns.into(),
            stat.st_ctime.cast_unsigned(),
            stat.st_ctime_nsec,
        ];
        // A path cannot contain the byte that ends it here.
        self.hash.update([0]);
        for number in numbers {
            self.hash.update(number.to_le_bytes());
        }
        let beside = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())).join(OsStr::from_bytes(name));
        Ok(Meta {
            mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, mtime_ns),
            xattrs: xattrs(&beside).map_err(|e| Fault::host("read attributes", &self.path(path), e))?,
        })
    }

    fn path(&self, below: &[u8]) -> PathBuf {
        self.dir.join(OsStr::from_bytes(below))
    }

    fn refused(&self, path: &[u8], why: &str) -> Fault {
        Fault::Path(show_path(self.dir), show(path), why.to_string())
    }
}

/// Opens a file below `root` for its body.
pub fn open(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    openat(root, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Extended attributes that can be read here; none where the file system has none.
fn xattrs(path: &Path) -> rustix::io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = [0; 1024];
    let names = match rustix::fs::llistxattr(path, &mut names) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(n) => names[..n].to_vec(),
        Err(Errno::RANGE) => {
            let mut names = vec![0; 64 << 10];
            let n = rustix::fs::llistxattr(path, &mut names[..])?;
            names.truncate(n);
            names
        }
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { return Err(Errno::ILSEQ) };
        let mut value = vec![0; 64 << 10];
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(n) => value.truncate(n),
            // Removed since, or not for us.
            Err(Errno::NODATA | Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP) => continue,
            Err(e) => return Err(e),
        }
        if name.starts_with("system.posix_acl_") {
            value = acl::to_ext4(&value).ok_or(Errno::INVAL)?;
        }
        found.push((name.to_string(), value));
    }
    found.sort();
    Ok(found)
}

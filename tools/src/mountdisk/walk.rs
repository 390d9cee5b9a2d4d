//! The stat walk: what of a directory changes when anything in it changes, at the price of one call for each file.

use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat, openat, statat};
use sha2::{Digest, Sha256};

use crate::fault::{Fault, Result};

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const LISTING_BYTES: usize = 32 << 10;

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Of all paths, inodes, modes, owners, lengths and times.
    pub hash: [u8; 32],
    /// The latest change: seconds since 1970, nanoseconds.
    pub newest: (i64, i64),
}

/// Walks `dir`; `skip` is a directory to leave out (device, inode).
pub fn fingerprint(dir: &Path, skip: (u64, u64)) -> Result<Fingerprint> {
    let root = rustix::fs::open(dir, OPEN, Mode::empty()).map_err(|e| Fault::host("open directory", dir, e))?;
    let mut walk = Walk { dir, skip, hash: Sha256::new(), newest: (0, 0), listing: Vec::with_capacity(LISTING_BYTES) };
    let stat = rustix::fs::fstat(&root).map_err(|e| Fault::host("stat", dir, e))?;
    walk.take(b"", &stat);
    let mut pending = vec![Vec::new()];
    while let Some(prefix) = pending.pop() {
        walk.directory(&root, &prefix, &mut pending)?;
    }
    Ok(Fingerprint { hash: walk.hash.finalize().into(), newest: walk.newest })
}

struct Walk<'a> {
    dir: &'a Path,
    skip: (u64, u64),
    hash: Sha256,
    newest: (i64, i64),
    listing: Vec<u8>,
}

impl Walk<'_> {
    fn directory(&mut self, root: &OwnedFd, prefix: &[u8], pending: &mut Vec<Vec<u8>>) -> Result<()> {
        let below = if prefix.is_empty() { &b"."[..] } else { prefix };
        let failed = |operation, path: &[u8], e| Fault::host(operation, &self.dir.join(OsStr::from_bytes(path)), e);
        let fd = openat(root, below, OPEN, Mode::empty()).map_err(|e| failed("open directory", prefix, e))?;
        let mut names = Vec::new();
        let mut listing = [MaybeUninit::uninit(); LISTING_BYTES];
        let mut items = RawDir::new(&fd, &mut listing);
        while let Some(item) = items.next() {
            let item = item.map_err(|e| failed("list", prefix, e))?;
            if !matches!(item.file_name().to_bytes(), b"." | b"..") {
                names.push(CString::from(item.file_name()));
            }
        }
        names.sort_unstable();
        for name in &names {
            let stat = statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed("stat", name.to_bytes(), e))?;
            if (stat.st_dev, stat.st_ino) == self.skip {
                continue;
            }
            self.take(name.to_bytes(), &stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let slash: &[u8] = if prefix.is_empty() { b"" } else { b"/" };
                pending.push([prefix, slash, name.to_bytes()].concat());
            }
        }
        // Where the names of a directory end.
        self.hash.update([0]);
        Ok(())
    }

    fn take(&mut self, name: &[u8], stat: &Stat) {
        let ctime = (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0));
        self.newest = self.newest.max(ctime);
        self.listing.clear();
        self.listing.extend_from_slice(name);
        self.listing.push(0);
        let numbers = [
            stat.st_dev,
            stat.st_ino,
            stat.st_mode.into(),
            u64::from(stat.st_uid) << 32 | u64::from(stat.st_gid),
            stat.st_size.cast_unsigned(),
            stat.st_mtime.cast_unsigned(),
            stat.st_mtime_nsec,
            ctime.0.cast_unsigned(),
            ctime.1.cast_unsigned(),
        ];
        for number in numbers {
            self.listing.extend_from_slice(&number.to_le_bytes());
        }
        self.hash.update(&self.listing);
    }
}

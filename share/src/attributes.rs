//! Attributes of nodes and of the file system.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, AtFlags, FileType, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use crate::host;
use crate::request::SetAttr;
use crate::server::{Server, put32, put64};
use crate::wire::{MOST_NAME_BYTES, set};

/// How long a guest may believe what it was told, in seconds: so late it sees what the host changes.
const VALID_S: u64 = 1;
const WRITE_ONLY: u32 = 1;

impl Server {
    /// Answers with the attributes of a node.
    pub(crate) fn get_attributes(&mut self, node: u64) -> Result<(), Errno> {
        let stat = self.stat(node)?;
        put64(&mut self.out, VALID_S);
        put64(&mut self.out, 0);
        self.put_attributes(&stat);
        Ok(())
    }

    /// Sets attributes of a node and answers with all of them.
    pub(crate) fn set_attributes(&mut self, node: u64, wanted: &SetAttr) -> Result<(), Errno> {
        let place = self.place(node)?;
        if wanted.has(set::UID) || wanted.has(set::GID) {
            let uid = wanted.has(set::UID).then(|| self.owners.user(wanted.uid)).transpose()?;
            let gid = wanted.has(set::GID).then(|| self.owners.group(wanted.gid)).transpose()?;
            host::set_owner(place, uid, gid)?;
        }
        // After the owner, a change of which takes some of them away.
        if wanted.has(set::MODE) {
            if self.nodes.get(node)?.kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            host::set_permissions(place, wanted.mode)?;
        }
        if wanted.has(set::SIZE) {
            self.set_size(node, wanted)?;
        }
        if let Some(times) = times(wanted) {
            fs::utimensat(place, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        self.get_attributes(node)
    }

    fn set_size(&self, node: u64, wanted: &SetAttr) -> Result<(), Errno> {
        if i64::try_from(wanted.size).is_err() {
            return Err(Errno::FBIG);
        }
        let place = self.file_place(node)?;
        if wanted.has(set::KILL_SUIDGID) {
            drop_set_ids(place)?;
        }
        // An open file may be one that could not be opened any more.
        if wanted.has(set::HANDLE) {
            let (file, _) = self.handles.file(wanted.handle, node)?;
            return host::retried(|| fs::ftruncate(file, wanted.size));
        }
        let file = host::open(place, WRITE_ONLY)?;
        host::retried(|| fs::ftruncate(&file, wanted.size))
    }

    /// Answers with `struct fuse_statfs_out`.
    pub(crate) fn stat_fs(&mut self) -> Result<(), Errno> {
        let directory = self.directory.as_ref().ok_or(Errno::NODEV)?;
        let host = fs::fstatvfs(directory.place.as_fd())?;
        for value in [host.f_blocks, host.f_bfree, host.f_bavail, host.f_files, host.f_ffree] {
            put64(&mut self.out, value);
        }
        let word = |value: u64| u32::try_from(value).unwrap_or(4096);
        let names = word(host.f_namemax.min(MOST_NAME_BYTES as u64));
        for value in [word(host.f_bsize), names, word(host.f_frsize)] {
            put32(&mut self.out, value);
        }
        self.out.resize(80, 0);
        Ok(())
    }

    /// Appends `struct fuse_entry_out`.
    pub(crate) fn put_entry(&mut self, node: u64, stat: &Stat) {
        for value in [node, 0, VALID_S, VALID_S, 0] {
            put64(&mut self.out, value);
        }
        self.put_attributes(stat);
    }

    /// Appends `struct fuse_attr`.
    fn put_attributes(&mut self, stat: &Stat) {
        let number = self.inode_number(stat);
        let (uid, gid) = self.owners.shown(stat);
        let out = &mut self.out;
        put64(out, number);
        for value in [stat.st_size, stat.st_blocks, stat.st_atime, stat.st_mtime, stat.st_ctime] {
            put64(out, value.cast_unsigned());
        }
        for value in [stat.st_atime_nsec, stat.st_mtime_nsec, stat.st_ctime_nsec] {
            put32(out, u32::try_from(value).unwrap_or(0));
        }
        put32(out, stat.st_mode);
        #[allow(clippy::useless_conversion, reason = "of another type on the other architecture")]
        put32(out, u32::try_from(stat.st_nlink).unwrap_or(u32::MAX));
        put32(out, uid);
        put32(out, gid);
        let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        // As the kernel keeps device numbers in 32 bits.
        put32(out, (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12));
        put32(out, u32::try_from(stat.st_blksize).unwrap_or(4096));
        put32(out, 0);
    }

    /// The inode's number in the guest, for whom all of it is one device: subvolumes may use a number twice.
    pub(crate) fn inode_number(&self, stat: &Stat) -> u64 {
        match &self.directory {
            Some(directory) if directory.device != stat.st_dev => stat.st_ino ^ stat.st_dev.rotate_left(40),
            _ => stat.st_ino,
        }
    }
}

/// Takes set-user-id and set-group-id away, as a write by somebody without rights does.
pub(crate) fn drop_set_ids(place: BorrowedFd<'_>) -> Result<(), Errno> {
    let mode = host::stat(place)?.st_mode;
    let mut left = mode & !0o4000;
    // Without the group's execution it is not a set-group-id bit.
    if mode & 0o010 != 0 {
        left &= !0o2000;
    }
    if left == mode { Ok(()) } else { host::set_permissions(place, left) }
}

fn times(wanted: &SetAttr) -> Option<Timestamps> {
    let time = |is_set: bool, now: bool, (seconds, nanoseconds): (u64, u32)| match (is_set, now) {
        (false, _) => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        (true, true) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        (true, false) => Timespec { tv_sec: seconds.cast_signed(), tv_nsec: nanoseconds.min(999_999_999).into() },
    };
    let (atime, mtime) = (wanted.has(set::ATIME), wanted.has(set::MTIME));
    (atime || mtime).then(|| Timestamps {
        last_access: time(atime, wanted.has(set::ATIME_NOW), wanted.atime),
        last_modification: time(mtime, wanted.has(set::MTIME_NOW), wanted.mtime),
    })
}

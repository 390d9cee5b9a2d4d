//! Regular files: opened, read, written.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::attributes::drop_set_ids;
use crate::handles::Open;
use crate::host;
use crate::request::Place;
use crate::server::{Data, Server, errno, put32, put64};
use crate::wire::{MOST_DATA_BYTES, OPEN_KILL_SUIDGID, WRITE_CACHE, WRITE_KILL_SUIDGID};

/// Most bytes of one copy: the guest waits for it, and asks again for the rest.
const MOST_COPIED_BYTES: u64 = 16 << 20;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Server {
    /// Opens a regular file and answers with its handle.
    pub(crate) fn open(&mut self, node: u64, flags: u32, open_flags: u32) -> Result<(), Errno> {
        let wanted = OFlags::from_bits_retain(flags);
        let reads = wanted & OFlags::RWMODE == OFlags::RDONLY && !wanted.contains(OFlags::TRUNC);
        if self.is_read_only() && !reads {
            return Err(Errno::ROFS);
        }
        self.check_room()?;
        let file = host::open(self.file_place(node)?, flags)?;
        self.truncated(file.as_fd(), flags, open_flags)?;
        self.opened(node, file, flags)
    }

    /// What else a file loses when it is made empty by somebody without rights.
    pub(crate) fn truncated(&self, file: BorrowedFd<'_>, flags: u32, open_flags: u32) -> Result<(), Errno> {
        let empties = OFlags::from_bits_retain(flags).contains(OFlags::TRUNC);
        if empties && open_flags & OPEN_KILL_SUIDGID != 0 { drop_set_ids(file) } else { Ok(()) }
    }

    /// Appends `struct fuse_open_out` for an open file.
    pub(crate) fn opened(&mut self, node: u64, file: OwnedFd, flags: u32) -> Result<(), Errno> {
        let handle = self.handles.add(node, Open::File(File::from(file), flags))?;
        put64(&mut self.out, handle);
        put64(&mut self.out, 0);
        Ok(())
    }

    /// Writes, and answers with how much.
    pub(crate) fn write(
        &mut self,
        node: u64,
        (handle, offset, size): (u64, u64, u32),
        write_flags: u32,
        flags: u32,
        data: &mut dyn Data,
    ) -> Result<(), Errno> {
        let (file, _) = self.handles.file(handle, node)?;
        if write_flags & WRITE_KILL_SUIDGID != 0 {
            drop_set_ids(file.as_fd())?;
        }
        // What a mapping of the guest's has changed goes to its place.
        let append = OFlags::from_bits_retain(flags).contains(OFlags::APPEND) && write_flags & WRITE_CACHE == 0;
        let count = data.write(file, offset, size.min(MOST_DATA_BYTES).into(), append).map_err(errno)?;
        put64(&mut self.out, count);
        Ok(())
    }

    /// Makes what was written survive the host.
    pub(crate) fn sync(&self, node: u64, handle: u64, data_only: bool) -> Result<(), Errno> {
        let fd = self.handles.get(handle, node)?.as_fd();
        if data_only { fs::fdatasync(fd) } else { fs::fsync(fd) }
    }

    /// Finds data or a hole, and answers with where it begins.
    pub(crate) fn seek(&mut self, node: u64, handle: u64, offset: u64, whence: u32) -> Result<(), Errno> {
        let (file, _) = self.handles.file(handle, node)?;
        let from = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let found = fs::seek(file, from)?;
        put64(&mut self.out, found);
        Ok(())
    }

    /// Reserves room, or makes a hole.
    pub(crate) fn allocate(
        &mut self,
        node: u64,
        handle: u64,
        (offset, length): (u64, u64),
        mode: u32,
    ) -> Result<(), Errno> {
        const KNOWN: FallocateFlags =
            FallocateFlags::KEEP_SIZE.union(FallocateFlags::PUNCH_HOLE).union(FallocateFlags::ZERO_RANGE);
        let (file, _) = self.handles.file(handle, node)?;
        let mode = FallocateFlags::from_bits_retain(mode);
        if !KNOWN.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        host::retried(|| fs::fallocate(file, mode, offset, length))
    }

    /// Copies from file to file, and answers with how much.
    pub(crate) fn copy(&mut self, from: Place, to: Place, length: u64) -> Result<(), Errno> {
        let (source, _) = self.handles.file(from.handle, from.node)?;
        let (target, _) = self.handles.file(to.handle, to.node)?;
        let (mut read, mut written) = (from.offset, to.offset);
        let length = usize::try_from(length.min(MOST_COPIED_BYTES)).unwrap_or(0);
        let count = fs::copy_file_range(source, Some(&mut read), target, Some(&mut written), length)?;
        put32(&mut self.out, u32::try_from(count).unwrap_or(0));
        put32(&mut self.out, 0);
        Ok(())
    }
}

//! What a disk's sectors are kept in: an image of the user's, and layers over it.
//!
//! An image is written only where the user asks for that. Otherwise writes go to a [`layer::Layer`], which is gone with
//! the process; a fork freezes it and both sides stack a new one on it.

pub mod layer;
mod saved;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use crate::error::{Error, Result};
use crate::ram::Ram;
use crate::sys;
use crate::virtio::queue::Buffers;
use layer::{CLUSTER_BYTES, Cluster, Layer};

/// Bytes of a sector, whatever the medium (virtio 1.2, 5.2).
pub const SECTOR_BYTES: u64 = 512;

/// Longest image under a layer, as long as ext4 lets a file be: the map of what the layer holds then has 512 MiB.
const MOST_LAYER_BYTES: u64 = 16 << 40;

/// Who may write to an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Nobody: the guest's writes go to a layer of its own.
    #[default]
    CopyOnWrite,
    /// Nobody, and the guest knows.
    ReadOnly,
    /// The guest.
    InPlace,
}

/// A disk and everything that is in it.
#[derive(Debug)]
pub struct Disk {
    access: Access,
    base: File,
    /// Length of the image; the last sector may go beyond it and is zero there.
    base_bytes: u64,
    bytes: u64,
    /// Over the base, the lowest first. Only the last one is written.
    layers: Vec<Layer>,
    /// At most 20 bytes, for the guest to tell disks apart.
    id: Vec<u8>,
}

impl Disk {
    /// Opens and locks the image at `path`: for this process alone when it is written in place, else against those who
    /// would.
    ///
    /// Errors: `DISK_UNREADABLE`, `DISK_READ_ONLY`, `DISK_LOCKED`, `DISK_SIZE`, and `DISK_LAYER` when the host has no room for a
    /// layer.
    pub fn open(path: &str, access: Access) -> Result<Disk> {
        let base = open(path, access)?;
        let failed = |operation: &str| {
            let operation = format!("{operation} of disk {path}");
            |cause| Error::host("DISK_UNREADABLE", operation, cause)
        };
        match sys::lock(&base, access == Access::InPlace) {
            Ok(true) => {}
            Ok(false) => {
                let hint = match access {
                    Access::InPlace => "end the one that uses it, or leave :rw away to write to a layer of your own",
                    _ => "end the one that writes to it, or copy the image",
                };
                return Err(Error::usage("DISK_LOCKED", format!("disk {path}: another process uses it"), hint));
            }
            Err(cause) => return Err(failed("lock")(cause)),
        }
        let base_bytes = sys::size(&base).map_err(failed("size"))?;
        if base_bytes < SECTOR_BYTES {
            let message = format!("disk {path}: {base_bytes} bytes are less than a sector of {SECTOR_BYTES}");
            return Err(Error::usage(
                "DISK_SIZE",
                message,
                "an image is the bytes of a disk, as of machinen-rootfs-img",
            ));
        }
        if access == Access::InPlace && !base_bytes.is_multiple_of(SECTOR_BYTES) {
            let message = format!("disk {path}: {base_bytes} bytes end within a sector of {SECTOR_BYTES}");
            return Err(Error::usage("DISK_SIZE", message, format!("truncate -s %{SECTOR_BYTES} {path}")));
        }
        if access == Access::CopyOnWrite && base_bytes > MOST_LAYER_BYTES {
            let message = format!("disk {path}: {base_bytes} bytes are more than a layer can cover, 16 TiB");
            return Err(Error::usage("DISK_SIZE", message, "with :ro or :rw there is no layer"));
        }
        let bytes = base_bytes.next_multiple_of(SECTOR_BYTES);
        let name = path.rsplit('/').next().unwrap_or(path).as_bytes();
        let id = name[..name.len().min(20)].to_vec();
        let mut disk = Disk { access, base, base_bytes, bytes, layers: Vec::new(), id };
        if access == Access::CopyOnWrite {
            disk.freeze()?;
        }
        Ok(disk)
    }

    /// Number of sectors.
    pub fn sectors(&self) -> u64 {
        self.bytes / SECTOR_BYTES
    }

    /// Who may write to it.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The guest's name for it, at most 20 bytes.
    pub fn id(&self) -> &[u8] {
        &self.id
    }

    /// Leaves what is written so far as it is: from now on writes go to a new layer.
    ///
    /// Errors: `DISK_LAYER`.
    pub fn freeze(&mut self) -> Result<()> {
        let layer = Layer::new(self.bytes).map_err(|cause| Error::Host {
            code: "DISK_LAYER",
            operation: "a file for what the guest writes".into(),
            cause,
            hint: "TMPDIR names the directory for it, otherwise /var/tmp or /tmp".into(),
        })?;
        self.layers.push(layer);
        Ok(())
    }

    /// Lays what another machine's guest wrote to the same image over it, below what this one's will write.
    ///
    /// Errors: `DISK_LAYER_INVALID` for a file that is no layer of this disk, and where writes go to the image itself or nowhere.
    pub fn lay(&mut self, path: &str) -> Result<()> {
        let failed = |cause| Error::Host {
            code: "DISK_LAYER_INVALID",
            operation: format!("layer {path} over the root disk"),
            cause,
            hint: "it is the root.layer of a snapshot, for the same image, and the image neither :ro nor :rw".into(),
        };
        if self.access != Access::CopyOnWrite {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let layer = saved::load(file, self.bytes).map_err(failed)?;
        self.layers.insert(0, layer);
        Ok(())
    }

    /// Writes everything that the guest has written to a file, for [`Disk::lay`]. `false`: it went to the image itself, or
    /// nowhere.
    ///
    /// Errors: of the host.
    pub fn save(&self, out: &File) -> io::Result<bool> {
        match self.access {
            Access::CopyOnWrite => saved::save(&self.layers, self.bytes, out).map(|()| true),
            Access::ReadOnly | Access::InPlace => Ok(false),
        }
    }

    /// Writes all that the guest finds on it to an empty file.
    ///
    /// Errors: of the host.
    pub fn flatten(&self, out: &File) -> io::Result<()> {
        saved::flatten(&self.base, &self.layers, self.bytes, out)
    }

    /// Reads `bytes` bytes at `offset` into `buffers`. The range lies within the disk.
    ///
    /// Errors: of the host; an image that has become shorter is `UnexpectedEof`.
    pub fn read(&self, ram: &Ram, buffers: Buffers<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes {
            let at = offset + done;
            let (file, run) = self.source(at, bytes - done);
            let count = match file {
                Some(file) => ram.read_file(file, at, buffers.range(done, run))?,
                None => ram.zero(buffers.range(done, run)),
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += count;
        }
        Ok(())
    }

    /// Which file has the byte at `at`, and how many of the next `most` bytes it has, too. No file: they are zero.
    fn source(&self, at: u64, most: u64) -> (Option<&File>, u64) {
        let owner = |at: u64| self.layers.iter().rposition(|layer| layer.has(at / CLUSTER_BYTES));
        let first = owner(at);
        let mut end = (at / CLUSTER_BYTES + 1) * CLUSTER_BYTES;
        while end < at + most && owner(end) == first {
            end += CLUSTER_BYTES;
        }
        let run = most.min(end - at);
        match first {
            Some(index) => (Some(self.layers[index].file()), run),
            None if at >= self.base_bytes => (None, run),
            None => (Some(&self.base), run.min(self.base_bytes - at)),
        }
    }

    /// Writes `bytes` bytes of `buffers`, after the first `skip`, to `offset`. The range lies within the disk, which is
    /// not read-only.
    ///
    /// Errors: of the host, as when its disk is full. What was written before stays.
    pub fn write(&mut self, ram: &Ram, buffers: Buffers<'_>, skip: u64, offset: u64, bytes: u64) -> io::Result<()> {
        if self.access == Access::CopyOnWrite {
            self.complete_edges(offset, bytes)?;
        }
        self.write_by(offset, bytes, |file, done| {
            ram.write_file(file, offset + done, buffers.range(skip + done, bytes - done))
        })
    }

    /// Writes by calls of `call`, which gets the file and how much is done, and returns how much more it has done.
    fn write_by(
        &mut self,
        offset: u64,
        bytes: u64,
        mut call: impl FnMut(&File, u64) -> io::Result<u64>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < bytes {
            let count = call(self.layers.last().map_or(&self.base, Layer::file), done)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            done += count;
            if let Some(layer) = self.layers.last_mut() {
                // From the start: a call may end within a cluster, of which neither it nor the next one writes all.
                layer.add(offset, done);
            }
        }
        Ok(())
    }

    /// Copies what a write of part of a cluster leaves of it, at both ends of the range, to the top layer.
    fn complete_edges(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        let end = offset + bytes;
        for at in [offset, end] {
            let cluster = at / CLUSTER_BYTES;
            let top = self.layers.last().expect("a layer to write to");
            if !at.is_multiple_of(CLUSTER_BYTES) && !top.has(cluster) {
                let content = self.read_cluster(cluster)?;
                self.layers.last_mut().expect("a layer to write to").put(cluster, &content)?;
            }
        }
        Ok(())
    }

    fn read_cluster(&self, cluster: u64) -> io::Result<Cluster> {
        use std::os::unix::fs::FileExt;
        let mut content = [0; size_of::<Cluster>()];
        let start = cluster * CLUSTER_BYTES;
        let (file, run) = self.source(start, CLUSTER_BYTES.min(self.bytes - start));
        if let Some(file) = file {
            let run = usize::try_from(run).map_err(io::Error::other)?;
            file.read_exact_at(&mut content[..run], start)?;
        }
        Ok(content)
    }

    /// Makes everything written so far survive the host. A layer does not survive the process, so there is nothing to do for it.
    pub fn flush(&self) -> io::Result<()> {
        if self.access == Access::InPlace { self.base.sync_data() } else { Ok(()) }
    }

    /// Makes a range read as zeros, without room for them where the host can.
    ///
    /// Errors: of the host.
    pub fn zero(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        let Some(layer) = self.layers.last_mut() else { return layer::zero_range(&self.base, offset, bytes) };
        let (first, last) = (offset.next_multiple_of(CLUSTER_BYTES), (offset + bytes) / CLUSTER_BYTES * CLUSTER_BYTES);
        if first < last {
            layer::zero_range(layer.file(), first, last - first)?;
            layer.add(first, last - first);
        }
        for (from, to) in [(offset, first.min(offset + bytes)), (last.max(first.min(offset + bytes)), offset + bytes)] {
            if from < to {
                self.complete_edges(from, to - from)?;
                let layer = self.layers.last_mut().expect("seen above");
                layer::zero_range(layer.file(), from, to - from)?;
                layer.add(from, to - from);
            }
        }
        Ok(())
    }

    /// The driver no longer needs a range: it may read as anything from now on. Gives the host its room back.
    ///
    /// Errors: of the host, except that it cannot.
    pub fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        let Some(layer) = self.layers.last_mut() else {
            return match sys::punch_hole(&self.base, offset, bytes) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
                other => other,
            };
        };
        let (first, last) = (offset.next_multiple_of(CLUSTER_BYTES), (offset + bytes) / CLUSTER_BYTES * CLUSTER_BYTES);
        if first < last {
            layer::zero_range(layer.file(), first, last - first)?;
            layer.add(first, last - first);
        }
        Ok(())
    }
}

fn open(path: &str, access: Access) -> Result<File> {
    let in_place = access == Access::InPlace;
    // Without waiting, if it is a pipe, and without letting a terminal or tape take it as an invitation.
    let opened =
        OpenOptions::new().read(true).write(in_place).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = opened.map_err(|cause| match (cause.kind(), cause.raw_os_error()) {
        (io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem, _) if in_place => Error::Host {
            code: "DISK_READ_ONLY",
            operation: format!("open of disk {path} for writing"),
            cause,
            hint: "leave :rw away: the guest then writes to a layer that ends with it".into(),
        },
        _ => Error::host("DISK_UNREADABLE", format!("open of disk {path}"), cause),
    })?;
    use std::os::fd::AsFd;
    match sys::file_type(file.as_fd()) {
        Ok(libc::S_IFREG | libc::S_IFBLK) => Ok(file),
        Ok(_) => {
            let message = format!("disk {path}: neither a file nor a block device");
            Err(Error::usage("DISK_UNREADABLE", message, "an image is made by machinen-rootfs-img or mke2fs"))
        }
        Err(cause) => Err(Error::host("DISK_UNREADABLE", format!("fstat of disk {path}"), cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_write_that_the_host_does_in_parts_is_kept_whole() {
        let path = std::env::temp_dir().join(format!("machinen-disk-{}", std::process::id()));
        std::fs::write(&path, [0x5a; 16 << 10]).expect("a writable temporary directory");
        let mut disk = Disk::open(path.to_str().expect("text"), Access::CopyOnWrite).expect("a disk");
        // As a full disk that gets room again, a network's file system, or more than 2 GiB at once.
        let written = disk.write_by(4096, 8192, |file, done| {
            let count = (8192 - done).min(1000);
            file.write_all_at(&[7; 1000][..usize::try_from(count).expect("short")], 4096 + done)?;
            Ok(count)
        });
        written.expect("written");
        let found: Vec<u8> = (0..4).map(|cluster| disk.read_cluster(cluster).expect("read")[4095]).collect();
        assert_eq!(found, [0x5a, 7, 7, 0x5a]);
        std::fs::remove_file(path).expect("clean up");
    }
}

//! A copy-on-write layer: an unlinked sparse file as long as the disk, and one bit for each cluster that it holds.
//!
//! A cluster lies where it lies on the disk, so a run of clusters is one system call, and the map is an eighth of a bit for
//! each 512 bytes: 32 KiB for a GiB.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::sys;

/// The unit that a layer has or has not: a block of most file systems, so their writes copy nothing.
pub const CLUSTER_BYTES: u64 = size_of::<Cluster>() as u64;

/// What a cluster holds.
pub type Cluster = [u8; 4096];

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// What was written since the layer was made.
#[derive(Debug)]
pub struct Layer {
    file: File,
    present: Vec<u64>,
}

impl Layer {
    /// An empty layer over a disk of `bytes` bytes, in TMPDIR, /var/tmp or /tmp.
    pub fn new(bytes: u64) -> io::Result<Layer> {
        let file = unnamed_file()?;
        file.set_len(bytes.next_multiple_of(CLUSTER_BYTES))?;
        Ok(Layer { file, present: vec![0; words(bytes)?] })
    }

    /// What is in `file`, of which only these clusters count.
    pub fn of(file: File, present: Vec<u64>) -> Layer {
        Layer { file, present }
    }

    /// Which of 64 clusters it holds, a bit each.
    pub fn word(&self, index: usize) -> u64 {
        self.present.get(index).copied().unwrap_or(0)
    }

    /// Where its clusters are.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// It holds this cluster.
    pub fn has(&self, cluster: u64) -> bool {
        let (word, bit) = place(cluster);
        self.present.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Everything in this range of bytes is in the file now. A cluster counts when it was held before or all of it is in
    /// the range.
    pub fn add(&mut self, offset: u64, bytes: u64) {
        for cluster in offset.div_ceil(CLUSTER_BYTES)..(offset + bytes) / CLUSTER_BYTES {
            self.mark(cluster);
        }
    }

    /// Writes a whole cluster.
    pub fn put(&mut self, cluster: u64, content: &Cluster) -> io::Result<()> {
        self.file.write_all_at(content, cluster * CLUSTER_BYTES)?;
        self.mark(cluster);
        Ok(())
    }

    fn mark(&mut self, cluster: u64) {
        let (word, bit) = place(cluster);
        if let Some(word) = self.present.get_mut(word) {
            *word |= bit;
        }
    }
}

/// Words of the map of a disk of `bytes` bytes.
pub fn words(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes.div_ceil(CLUSTER_BYTES).div_ceil(64)).map_err(io::Error::other)
}

fn place(cluster: u64) -> (usize, u64) {
    (usize::try_from(cluster / 64).unwrap_or(usize::MAX), 1 << (cluster % 64))
}

/// Makes a range of `file` read as zeros: as a hole, or written where the file system has none.
pub fn zero_range(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    match sys::punch_hole(file, offset, bytes) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        other => return other,
    }
    let mut at = offset;
    while at < offset + bytes {
        let count = (offset + bytes - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..usize::try_from(count).map_err(io::Error::other)?], at)?;
        at += count;
    }
    Ok(())
}

/// A file that nobody else sees and that ends with the process.
fn unnamed_file() -> io::Result<File> {
    let named = std::env::var_os("TMPDIR").filter(|value| !value.is_empty()).map(PathBuf::from);
    let directories = match named {
        Some(directory) => vec![directory],
        None => vec!["/var/tmp".into(), "/tmp".into()],
    };
    let mut failure = io::ErrorKind::NotFound.into();
    for directory in directories {
        match sys::unnamed_file(&directory).or_else(|_| unlinked_file(&directory)) {
            Ok(file) => return Ok(file),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// For file systems without O_TMPFILE.
fn unlinked_file(directory: &Path) -> io::Result<File> {
    let path = directory.join(format!(".machinen-layer-{}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

//! A log that takes no more than so much room, however long the guest talks: its first and its last bytes stay, what lies between
//! becomes a hole.

use std::fs::File;
use std::io;

use crate::sys;

/// What holes are made of.
const STEP_BYTES: u64 = 1 << 20;
/// Bytes after which the file is looked at again.
const LOOK_BYTES: u64 = STEP_BYTES / 16;

/// What is kept of a file that this process appends to.
#[derive(Debug)]
pub struct LogLimit {
    /// At the beginning, and at the end.
    keep: u64,
    /// Everything from `keep` to here is a hole.
    hole_end: u64,
    /// Written since the last look.
    fresh: u64,
}

impl LogLimit {
    /// Keeps the first and the last `mib` MiB.
    pub fn new(mib: u64) -> LogLimit {
        let keep = mib * STEP_BYTES;
        LogLimit { keep, hole_end: keep, fresh: 0 }
    }

    /// `count` more bytes are in the file. Errors: of fstat(2) and fallocate(2), as where the file system knows no holes.
    pub fn wrote(&mut self, file: &File, count: usize) -> io::Result<()> {
        self.fresh += count as u64;
        if self.fresh < LOOK_BYTES {
            return Ok(());
        }
        self.fresh = 0;
        let end = file.metadata()?.len().saturating_sub(self.keep) / STEP_BYTES * STEP_BYTES;
        if end > self.hole_end {
            sys::punch_hole(file, self.hole_end, end - self.hole_end)?;
            self.hole_end = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn the_ends_stay_and_the_middle_takes_no_room() {
        let path = std::env::temp_dir().join(format!("machinen-log-{}", std::process::id()));
        let mut file = File::options().create_new(true).read(true).append(true).open(&path).expect("a file");
        std::fs::remove_file(&path).expect("removed");
        let mut log = LogLimit::new(1);
        let line = [b'x'; 4096];
        for _ in 0..16 * 256 {
            file.write_all(&line).expect("written");
            log.wrote(&file, line.len()).expect("looked at");
        }
        let metadata = file.metadata().expect("metadata");
        assert_eq!(metadata.len(), 16 << 20);
        // A step may be open.
        assert!(metadata.blocks() * 512 <= 3 << 20, "{} blocks", metadata.blocks());
        let byte = |at: u64| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("read");
            byte[0]
        };
        let places = [0, (1 << 20) - 1, 1 << 20, 14 << 20, (15 << 20) + 1, (16 << 20) - 1];
        assert_eq!(places.map(byte), [b'x', b'x', 0, 0, b'x', b'x']);
    }
}

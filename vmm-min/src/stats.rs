//! What a VM tells about its memory while it runs: 24 bytes that others may map.
//!
//! Three little-endian 64-bit numbers: bytes that the guest reported free and that were given back to the host, since
//! the start; bytes taken by inflating a balloon, always 0; reserved, 0. A page that is reported, used and reported again
//! counts twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::error::{Error, Result};

/// Length of the file.
pub const BYTES: u64 = 24;

/// The numbers, and the file that shows them.
#[derive(Debug, Default)]
pub struct Stats {
    reported: u64,
    file: Option<File>,
}

impl Stats {
    /// Numbers from 0 on, shown in the file at `path`, which is made or taken over.
    ///
    /// Errors: `STATS_FILE` when it cannot be written.
    pub fn open(path: Option<&str>) -> Result<Stats> {
        let Some(path) = path else { return Ok(Stats::default()) };
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(libc::O_NONBLOCK);
            let file = options.open(path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            file.set_len(BYTES)?;
            file.write_all_at(&[0; 24], 0)?;
            Ok(file)
        };
        let file = open().map_err(|cause| Error::host("STATS_FILE", format!("stats file {path}"), cause))?;
        Ok(Stats { reported: 0, file: Some(file) })
    }

    /// Bytes reported free since the start.
    pub fn reported(&self) -> u64 {
        self.reported
    }

    /// Counts `bytes` more.
    pub fn add_reported(&mut self, bytes: u64) {
        self.set_reported(self.reported.saturating_add(bytes));
    }

    /// Goes on from `bytes`.
    pub fn set_reported(&mut self, bytes: u64) {
        self.reported = bytes;
        if let Some(file) = &self.file {
            // Written in place, aligned and whole: whoever maps the file sees the old number or the new one. A file that
            // can no longer be written must not end the guest.
            let _: io::Result<()> = file.write_all_at(&bytes.to_le_bytes(), 0);
        }
    }
}

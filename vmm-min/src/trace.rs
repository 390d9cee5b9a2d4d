//! Named marks with the time, for whoever puts the start of a machine and of what is around it on one line.
//!
//! One line of JSON a mark: `{"mark":"KVM ready","ns":1700000000000000000}`, nanoseconds since 1970.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Where marks go; nowhere, at no cost, without a file.
#[derive(Debug, Default)]
pub struct Trace(Option<File>);

impl Trace {
    /// Marks are added to the file at `path`, which is made where it is missing.
    ///
    /// Errors: `TRACE_FILE` when it cannot be opened.
    pub fn open(path: Option<&str>) -> Result<Trace> {
        let Some(path) = path else { return Ok(Trace(None)) };
        let file = OpenOptions::new().append(true).create(true).open(path);
        let failed = |cause| Error::host("TRACE_FILE", format!("trace file {path}"), cause);
        file.map(|file| Trace(Some(file))).map_err(failed)
    }

    /// Whether anybody wants marks.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The machine has come to this point.
    pub fn mark(&self, name: &str) {
        self.mark_past(name, Duration::ZERO);
    }

    /// It came to this point so long ago.
    pub fn mark_past(&self, name: &str, ago: Duration) {
        let Some(mut file) = self.0.as_ref() else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = format!("{{\"mark\":\"{name}\",\"ns\":{}}}\n", now.saturating_sub(ago).as_nanos());
        // A file that can no longer be written must not end the guest.
        let _: io::Result<()> = file.write_all(line.as_bytes());
    }
}

//! A file read through a buffer that survives seeks: neighbouring headers and bodies cost one call.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// A position in a file, with what lies around it.
#[derive(Debug)]
pub struct Window<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Offset of the buffer's first byte.
    start: u64,
    filled: usize,
    at: u64,
}

impl<'a> Window<'a> {
    /// Stands at the start; reads `buffer_bytes` at a time.
    pub fn new(file: &'a File, buffer_bytes: usize) -> Self {
        Window { file, buffer: vec![0; buffer_bytes], start: 0, filled: 0, at: 0 }
    }

    /// Stands at `offset_bytes`.
    pub fn go_to(&mut self, offset_bytes: u64) {
        self.at = offset_bytes;
    }
}

impl Read for Window<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let held = self.at.checked_sub(self.start).and_then(|skip| usize::try_from(skip).ok());
        let mut skip = held.filter(|skip| *skip < self.filled);
        if skip.is_none() {
            if into.len() >= self.buffer.len() {
                let n = self.file.read_at(into, self.at)?;
                self.at += n as u64;
                return Ok(n);
            }
            self.filled = 0;
            self.filled = self.file.read_at(&mut self.buffer, self.at)?;
            self.start = self.at;
            skip = Some(0);
        }
        let held = &self.buffer[skip.unwrap_or(0)..self.filled];
        let n = held.len().min(into.len());
        into[..n].copy_from_slice(&held[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

//! The way out: one large buffer in front of a descriptor, into which file bodies are read directly.
//!
//! Read and write, not copy_file_range or sendfile: between files on a tmpfs all three took the same time.

use std::boxed::Box;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::vec;

use crate::newc::Sink;

/// Fits a second-level cache: twice or four times as much is slower, as each byte is written soon after it was read.
const BUFFER_BYTES: usize = 128 << 10;

/// A buffered writer. What it holds is lost unless [`Output::flush`] is called.
#[derive(Debug)]
pub struct Output<W> {
    inner: W,
    buffer: Box<[u8]>,
    filled: usize,
}

impl<W: Write> Output<W> {
    /// Buffers in front of `inner`.
    pub fn new(inner: W) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Output { inner, buffer, filled: 0 }
    }

    /// Writes out what is held.
    pub fn flush(&mut self) -> io::Result<()> {
        let held = &self.buffer[..self.filled];
        self.filled = 0;
        self.inner.write_all(held)
    }

    /// Copies the `want` bytes of a file from where `source` stands; fewer at its end. The second value tells whether
    /// there was more.
    ///
    /// The outer error is of the output, the inner of the source.
    pub fn copy_file(&mut self, source: &File, want: u64) -> io::Result<io::Result<(u64, bool)>> {
        let mut left = want;
        loop {
            let space = self.space()?;
            // One byte beyond asks for the end in the same call.
            let most = usize::try_from(left.saturating_add(1)).unwrap_or(usize::MAX);
            let end = most.min(space.len());
            let n = match (&*source).read(&mut space[..end]) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Ok(Err(e)),
            };
            if n as u64 > left {
                self.filled += n - 1;
                return Ok(Ok((want, true)));
            }
            self.filled += n;
            left -= n as u64;
            if n == 0 || (left == 0 && n < end) {
                return Ok(Ok((want - left, false)));
            }
        }
    }

    /// Copies `want` bytes of a file from an offset on; fewer at its end. Errors as in [`Output::copy_file`].
    pub fn copy_range(&mut self, source: &File, offset_bytes: u64, want: u64) -> io::Result<io::Result<u64>> {
        let mut done = 0;
        while done < want {
            let space = self.space()?;
            let most = usize::try_from(want - done).unwrap_or(usize::MAX);
            let end = most.min(space.len());
            match source.read_at(&mut space[..end], offset_bytes + done) {
                Ok(0) => break,
                Ok(n) => {
                    self.filled += n;
                    done += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Ok(Err(e)),
            }
        }
        Ok(Ok(done))
    }

    /// Free space, at least one byte.
    fn space(&mut self) -> io::Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }
}

impl<W: Write> Sink for Output<W> {
    type Error = io::Error;

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let space = self.space()?;
            let n = bytes.len().min(space.len());
            space[..n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
        }
        Ok(())
    }
}

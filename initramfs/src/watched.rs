//! How a tar file ends: shared by its readers.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

/// Reader that counts the zeros it read last: the end mark of a tar file is 512 of them after an entry.
pub struct Watched<R> {
    inner: R,
    zeros: Rc<Cell<u64>>,
}

impl<R> Watched<R> {
    /// Reads from `inner` and keeps the count in `zeros`.
    pub fn new(inner: R, zeros: Rc<Cell<u64>>) -> Self {
        Watched { inner, zeros }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let at_end = buffer[..n].iter().rev().take_while(|&&b| b == 0).count();
        let before = if at_end == n { self.zeros.get() } else { 0 };
        self.zeros.set(before + at_end as u64);
        Ok(n)
    }
}

impl<R: Seek> Seek for Watched<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.zeros.set(0);
        self.inner.seek(to)
    }
}

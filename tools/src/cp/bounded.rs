//! A bound on what a guest may send before the next file of its archive, as the reader of archives keeps that in memory.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// Most bytes between two files' contents: headers, long names, attributes.
const MOST_BYTES: u64 = 1 << 20;

/// An archive on its way to who reads it.
#[derive(Debug)]
pub(super) struct Bounded<R> {
    input: R,
    bound: Bound,
}

/// How many bytes may be read until it is set again.
#[derive(Clone, Debug)]
pub(super) struct Bound(Rc<Cell<u64>>);

impl Bound {
    /// What comes now is looked at, and kept.
    pub(super) fn headers(&self) {
        self.0.set(MOST_BYTES);
    }

    /// What comes now is handed on as it comes.
    pub(super) fn content(&self) {
        self.0.set(u64::MAX);
    }
}

/// The archive in `input`, at a header.
pub(super) fn bounded<R: Read>(input: R) -> (Bounded<R>, Bound) {
    let bound = Bound(Rc::new(Cell::new(MOST_BYTES)));
    (Bounded { input, bound: bound.clone() }, bound)
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.bound.0.get();
        if left == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too much before the next file"));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.input.read(&mut buffer[..most])?;
        self.bound.0.set(left.saturating_sub(count as u64));
        Ok(count)
    }
}

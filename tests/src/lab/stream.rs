//! A byte stream that ends with a mark.

use std::io::{self, Write};

/// Copies a stream to a writer up to the mark, which is cut off.
pub(super) struct Marked<'a> {
    mark: &'a [u8],
    sink: &'a mut dyn Write,
    /// Bytes not written yet: they may be the beginning of the mark.
    held: Vec<u8>,
    ended: bool,
}

impl<'a> Marked<'a> {
    pub(super) fn new(mark: &'a [u8], sink: &'a mut dyn Write) -> Self {
        Self { mark, sink, held: Vec::new(), ended: false }
    }

    /// Whether the mark has come.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Takes the next bytes of the stream.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.held.extend_from_slice(bytes);
        // Nothing comes after the mark, so it can only be the end of what is there.
        self.ended = self.held.ends_with(self.mark);
        let kept = (1..=self.mark.len()).rev().find(|&n| self.held.ends_with(&self.mark[..n])).unwrap_or(0);
        let ready = self.held.len() - kept;
        self.sink.write_all(&self.held[..ready])?;
        self.sink.flush()?;
        self.held.drain(..ready);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Marked;

    #[test]
    fn the_mark_is_cut_wherever_the_stream_is_split() {
        let stream = b"ab<ma<mark<mar>xyz<mark>";
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let mut sink = Vec::new();
                let mut marked = Marked::new(b"<mark>", &mut sink);
                marked.push(&stream[..first]).unwrap();
                marked.push(&stream[first..second]).unwrap();
                marked.push(&stream[second..]).unwrap();
                assert!(marked.ended());
                assert_eq!(sink, b"ab<ma<mark<mar>xyz");
            }
        }
    }

    #[test]
    fn what_cannot_be_the_mark_is_passed_on_at_once() {
        let mut sink = Vec::new();
        Marked::new(b"<mark>", &mut sink).push(b"now<m").unwrap();
        assert_eq!(sink, b"now");
    }
}

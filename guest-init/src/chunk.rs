//! A fixed buffer that is filled, then emptied: one direction of a copy between two descriptors.

/// Bytes under way. A chunk is refilled only when it is empty: the pipe and the terminal on either side
/// have buffers of their own, so nothing is gained by a ring here.
pub struct Chunk<const N: usize> {
    bytes: [u8; N],
    start: usize,
    end: usize,
}

impl<const N: usize> Chunk<N> {
    /// An empty chunk of `N` bytes.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; N], start: 0, end: 0 }
    }

    /// True when nothing is left to write.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// What is left to write, oldest byte first.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Drops the first `count` pending bytes, all of them if there are fewer: they have been written.
    pub fn consume(&mut self, count: usize) {
        self.start += count.min(self.end - self.start);
    }

    /// Drops everything pending.
    pub fn clear(&mut self) {
        self.start = self.end;
    }

    /// Adds one byte; false, and nothing added, when the chunk is full.
    #[must_use]
    pub fn push(&mut self, byte: u8) -> bool {
        self.rewind();
        let Some(slot) = self.bytes.get_mut(self.end) else { return false };
        *slot = byte;
        self.end += 1;
        true
    }

    /// Lets `read` fill the free space, at most `limit` bytes of it; `read` says how many bytes it put there.
    ///
    /// # Errors
    /// What `read` returns; the chunk is then as it was.
    pub fn refill<E>(&mut self, limit: usize, read: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<usize, E> {
        self.rewind();
        let space = &mut self.bytes[self.end..];
        let room = space.len().min(limit);
        let count = read(&mut space[..room])?.min(room);
        self.end += count;
        Ok(count)
    }

    fn rewind(&mut self) {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }
}

impl<const N: usize> Default for Chunk<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Chunk;
    use proptest::prelude::{any, prop, proptest};

    #[test]
    fn a_full_chunk_takes_no_more_until_it_is_empty() {
        let mut chunk = Chunk::<2>::new();
        assert!(chunk.push(1) && chunk.push(2) && !chunk.push(3));
        chunk.consume(1);
        assert!(!chunk.push(3));
        chunk.consume(5);
        assert!(chunk.is_empty() && chunk.push(3));
        assert_eq!(chunk.pending(), [3]);
    }

    #[test]
    fn a_failed_read_changes_nothing() {
        let mut chunk = Chunk::<4>::new();
        assert!(chunk.push(7));
        assert_eq!(chunk.refill(4, |_| Err("no")), Err("no"));
        assert_eq!(chunk.pending(), [7]);
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            input in prop::collection::vec(any::<u8>(), 0..200),
            steps in prop::collection::vec((0_usize..9, 0_usize..9), 0..200),
        ) {
            let mut chunk = Chunk::<8>::new();
            let (mut rest, mut output) = (&input[..], Vec::new());
            for (limit, written) in steps {
                if chunk.is_empty() {
                    let got = chunk.refill(limit, |space| {
                        let count = space.len().min(rest.len());
                        space[..count].copy_from_slice(&rest[..count]);
                        Ok::<_, ()>(count)
                    });
                    rest = &rest[got.unwrap()..];
                }
                let written = written.min(chunk.pending().len());
                output.extend_from_slice(&chunk.pending()[..written]);
                chunk.consume(written);
            }
            output.extend_from_slice(chunk.pending());
            output.extend_from_slice(rest);
            assert_eq!(output, input);
        }
    }
}

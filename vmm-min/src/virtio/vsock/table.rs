//! All streams, by a number that stays and by their ports.

use std::collections::HashMap;

use super::stream::{Key, State, Stream};

/// Each needs a descriptor, of which a process usually has 1024, and may hold up to 128 KiB.
pub const MOST_STREAMS: usize = 512;

/// The streams.
#[derive(Debug, Default)]
pub struct Table {
    streams: Vec<Option<Stream>>,
    free: Vec<usize>,
    by_key: HashMap<Key, usize>,
    removed: u64,
}

impl Table {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.streams.len() - self.free.len()
    }

    /// There is no room for another.
    pub fn is_full(&self) -> bool {
        self.len() >= MOST_STREAMS
    }

    /// How many have been removed, ever.
    pub fn removed(&self) -> u64 {
        self.removed
    }

    /// All, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Stream)> {
        self.streams.iter().enumerate().filter_map(|(index, stream)| Some((index, stream.as_ref()?)))
    }

    /// The stream with this number.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut Stream> {
        self.streams.get_mut(index)?.as_mut()
    }

    /// The number of the stream with these ports.
    pub fn find(&self, key: Key) -> Option<usize> {
        self.by_key.get(&key).copied()
    }

    /// Adds a stream; returns its number. `None`: there is no room.
    pub fn insert(&mut self, stream: Stream) -> Option<usize> {
        if self.is_full() {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.streams.push(None);
            self.streams.len() - 1
        });
        if stream.state() != State::Line {
            self.by_key.insert(stream.key, index);
        }
        self.streams[index] = Some(stream);
        Some(index)
    }

    /// A client has named its port.
    pub fn ask(&mut self, index: usize, key: Key) {
        if let Some(stream) = self.get_mut(index) {
            stream.ask(key);
            self.by_key.insert(key, index);
        }
    }

    /// The ports of this stream are free again.
    pub fn forget_key(&mut self, index: usize) {
        if let Some(key) = self.get_mut(index).map(|stream| stream.key)
            && self.find(key) == Some(index)
        {
            self.by_key.remove(&key);
        }
    }

    /// Takes a stream out; its number will be another's.
    pub fn remove(&mut self, index: usize) -> Option<Stream> {
        self.forget_key(index);
        let stream = self.streams.get_mut(index)?.take()?;
        self.free.push(index);
        self.removed += 1;
        Some(stream)
    }
}

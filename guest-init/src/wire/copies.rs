//! Copies of the main command's output for a stream that takes part in it: they never hold the command up.

use alloc::vec::Vec;

use machinen_abi::body::{Exit, Reason};

use super::report::Failed;
use super::stream::{Output, Stream};

/// A stream that is further behind than this, beyond its window, is given up.
const MOST_BEHIND_BYTES: usize = 256 << 10;

/// What such a stream has not been sent yet.
#[derive(Debug, Default)]
pub struct Copies {
    behind: [Vec<u8>; 2],
    ended: [bool; 2],
    exit: Option<Result<Exit, Failed>>,
}

impl Copies {
    /// The command has printed this. A stream whose reader is too slow for it is refused further service.
    pub fn add(&mut self, stream: &mut Stream, output: Output, bytes: &[u8]) {
        if stream.is_over() {
            return;
        }
        self.behind[output as usize].extend_from_slice(bytes);
        self.advance(stream);
        if self.behind[output as usize].len() > MOST_BEHIND_BYTES {
            self.behind = [Vec::new(), Vec::new()];
            stream.refuse(Reason::Busy, "output is not read fast enough to follow it");
        }
    }

    /// Nothing more comes of this output.
    pub fn end(&mut self, output: Output) {
        self.ended[output as usize] = true;
    }

    /// The command has ended like this.
    pub fn exit(&mut self, exit: Result<Exit, Failed>) {
        self.ended = [true; 2];
        self.exit = Some(exit);
    }

    /// Sends what there is room for now.
    pub fn advance(&mut self, stream: &mut Stream) {
        for output in Output::BOTH {
            let behind = &mut self.behind[output as usize];
            let count = behind.len().min(stream.room(output));
            if count > 0 {
                stream.data(output, &behind[..count]);
                behind.drain(..count);
            }
            if self.ended[output as usize] && behind.is_empty() {
                stream.end(output);
            }
        }
        match self.exit.as_ref().filter(|_| self.behind.iter().all(Vec::is_empty)) {
            Some(Ok(exit)) => stream.exit(*exit),
            Some(Err(failed)) => stream.fail(failed),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Copies, Exit, MOST_BEHIND_BYTES, Output, Stream};
    use machinen_abi::frame::{Header, Kind};
    use machinen_abi::window::WINDOW_BYTES;

    /// The kinds of what is pending, which is sent.
    fn kinds(stream: &mut Stream) -> Vec<Kind> {
        let (mut rest, mut kinds) = (stream.pending(), Vec::new());
        while let Some((header, after)) = rest.split_first_chunk() {
            let Header { kind, length } = Header::from_bytes(*header).unwrap();
            kinds.push(kind);
            rest = &after[length as usize..];
        }
        stream.sent(usize::MAX);
        kinds
    }

    #[test]
    fn what_is_behind_comes_before_the_end() {
        let (mut copies, mut stream) = (Copies::default(), Stream::default());
        copies.add(&mut stream, Output::Output, &[1; 100_000]);
        copies.add(&mut stream, Output::Error, &[2; 5]);
        copies.end(Output::Output);
        copies.exit(Ok(Exit::Code(0)));
        assert_eq!(kinds(&mut stream), [Kind::Output]);
        copies.advance(&mut stream);
        assert_eq!(kinds(&mut stream), [Kind::Output, Kind::OutputEnd, Kind::Error, Kind::ErrorEnd, Kind::Exit]);
        assert!(stream.is_over());
    }

    #[test]
    fn a_reader_that_stands_still_is_given_up() {
        let (mut copies, mut stream, mut taken) = (Copies::default(), Stream::default(), 0);
        while !stream.is_over() {
            copies.add(&mut stream, Output::Output, &[0; 1000]);
            taken += 1000;
            let kinds = kinds(&mut stream);
            assert!(!stream.is_over() || kinds.last() == Some(&Kind::Failed));
        }
        assert!(
            taken > WINDOW_BYTES as usize + MOST_BEHIND_BYTES
                && taken < WINDOW_BYTES as usize + MOST_BEHIND_BYTES + 2000
        );
    }
}

//! One stream: what came and is not handed on yet, what is to be sent, and how much of each there may be.

use alloc::string::ToString;
use alloc::vec::Vec;

use machinen_abi::body::{Credit, Exit, Failure, Mark, Reason, Signal, Size, Started, Stream as Data};
use machinen_abi::frame::{Header, Kind, MOST_PAYLOAD_BYTES};
use machinen_abi::window::{Allowance, Receipt};

use super::frames::Frames;
use super::report::Failed;

/// Data is added only while less than this is waiting to be sent.
const MOST_WAITING_BYTES: usize = 64 << 10;

/// What a frame asks for. Input and credits are kept in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first frame's payload.
    Open(Vec<u8>),
    /// A signal for the command.
    Signal(Signal),
    /// The terminal has this size from now on.
    Resize(Size),
}

/// The state of a stream.
#[derive(Debug, Default)]
pub struct Stream {
    frames: Frames,
    input: Vec<u8>,
    /// What of `input` is handed on.
    handed_on: usize,
    input_ended: bool,
    receipt: Receipt,
    allowances: [Allowance; 2],
    waiting: Vec<u8>,
    sent: usize,
    ended: [bool; 2],
    over: bool,
}

/// An output of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Its output.
    Output = 0,
    /// The standard error.
    Error = 1,
}

impl Output {
    /// Both.
    pub const BOTH: [Output; 2] = [Output::Output, Output::Error];

    fn kinds(self) -> (Kind, Kind) {
        match self {
            Output::Output => (Kind::Output, Kind::OutputEnd),
            Output::Error => (Kind::Error, Kind::ErrorEnd),
        }
    }
}

impl Stream {
    /// Takes bytes as they come from the host. After the last frame they are dropped.
    pub fn add(&mut self, bytes: &[u8]) {
        if !self.over {
            self.frames.add(bytes);
        }
    }

    /// The next thing that the host asks for; `None` when more has to come first. Call it until then. A host that
    /// breaks the protocol is told so, and the stream is [over](Self::is_over).
    pub fn take(&mut self) -> Option<Event> {
        while !self.over {
            let (kind, payload) = match self.frames.take() {
                Ok(Some(frame)) => frame,
                Ok(None) => return None,
                Err(broken) => {
                    self.refuse(Reason::Protocol, &broken.to_string());
                    return None;
                }
            };
            let event = match (kind, payload) {
                (Kind::Open, payload) => Some(Some(Event::Open(payload.into()))),
                (Kind::Input, bytes) if !self.input_ended && self.receipt.take(bytes.len()) => {
                    self.input.extend_from_slice(bytes);
                    Some(None)
                }
                (Kind::InputEnd, []) => {
                    self.input_ended = true;
                    Some(None)
                }
                (Kind::Signal, bytes) => Signal::parse(bytes).map(|signal| Some(Event::Signal(signal))),
                (Kind::Resize, bytes) => Size::parse(bytes).map(|size| Some(Event::Resize(size))),
                (Kind::Credit, bytes) => match Credit::parse(bytes) {
                    Some(Credit { stream: Data::Output, bytes }) => self.allowances[0].grant(bytes).then_some(None),
                    Some(Credit { stream: Data::Error, bytes }) => self.allowances[1].grant(bytes).then_some(None),
                    _ => None,
                },
                _ => None,
            };
            match event {
                Some(None) => {}
                Some(Some(event)) => return Some(event),
                None => {
                    self.refuse(Reason::Protocol, &alloc::format!("a frame of the kind {} makes no sense", kind as u16))
                }
            }
        }
        None
    }

    /// Input that is not handed on yet.
    #[must_use]
    pub fn input(&self) -> &[u8] {
        self.input.get(self.handed_on..).unwrap_or_default()
    }

    /// The host will send no more input.
    #[must_use]
    pub fn has_input_ended(&self) -> bool {
        self.input_ended
    }

    /// The first `bytes` of [input](Self::input) are handed on, or nobody wants them.
    pub fn consume(&mut self, bytes: usize) {
        let bytes = bytes.min(self.input().len());
        self.handed_on += bytes;
        if self.handed_on == self.input.len() {
            self.input.clear();
            self.handed_on = 0;
        } else if self.handed_on >= self.input.len() / 2 {
            self.input.drain(..self.handed_on);
            self.handed_on = 0;
        }
        if let Some(bytes) = self.receipt.consume(bytes) {
            self.frame(Kind::Credit, &Credit { stream: Data::Input, bytes }.to_bytes());
        }
    }

    /// Bytes of an output that may be added now; never more than a frame takes.
    #[must_use]
    pub fn room(&self, output: Output) -> usize {
        let full = self.over || self.ended[output as usize] || self.pending().len() >= MOST_WAITING_BYTES;
        if full { 0 } else { self.allowances[output as usize].left().min(MOST_PAYLOAD_BYTES) }
    }

    /// Adds bytes of an output: no more than there is [room](Self::room) for. What is too much is dropped.
    pub fn data(&mut self, output: Output, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.room(output))];
        if !bytes.is_empty() && self.allowances[output as usize].spend(bytes.len()) {
            self.frame(output.kinds().0, bytes);
        }
    }

    /// Nothing more comes of this output.
    pub fn end(&mut self, output: Output) {
        if !self.ended[output as usize] {
            self.ended[output as usize] = true;
            self.frame(output.kinds().1, &[]);
        }
    }

    /// The agent is ready for the main command.
    pub fn ready(&mut self) {
        self.frame(Kind::Ready, &machinen_abi::VERSION.to_le_bytes());
    }

    /// A point of the guest's start.
    pub fn mark(&mut self, mark: &Mark<'_>) {
        let mut payload = Vec::new();
        mark.write(&mut payload);
        self.frame(Kind::Mark, &payload);
    }

    /// The operation has begun, in this process.
    pub fn started(&mut self, pid: u32) {
        self.frame(Kind::Started, &Started(pid).to_bytes());
    }

    /// The operation has ended: the last frame.
    pub fn exit(&mut self, exit: Exit) {
        self.frame(Kind::Exit, &exit.to_bytes());
        self.over = true;
    }

    /// The operation has failed: the last frame.
    pub fn fail(&mut self, failed: &Failed) {
        failed.with(|failure| self.last(failure));
    }

    /// The operation is refused: the last frame.
    pub fn refuse(&mut self, reason: Reason, message: &str) {
        self.last(&Failure { reason, errno: 0, message });
    }

    /// No more frames come: the operation goes on without the stream.
    pub fn finish(&mut self) {
        self.over = true;
    }

    fn last(&mut self, failure: &Failure<'_>) {
        let mut payload = Vec::new();
        failure.write(&mut payload);
        self.frame(Kind::Failed, &payload);
        self.over = true;
    }

    /// The last frame has been added: the stream can be closed when nothing is [pending](Self::pending).
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// What is to be sent.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        self.waiting.get(self.sent..).unwrap_or_default()
    }

    /// The first `bytes` of what is pending are sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes.min(self.pending().len());
        if self.sent == self.waiting.len() {
            self.waiting.clear();
            self.sent = 0;
        }
    }

    fn frame(&mut self, kind: Kind, payload: &[u8]) {
        if self.over {
            return;
        }
        if let Some(header) = Header::new(kind, payload.len()) {
            self.waiting.drain(..self.sent);
            self.sent = 0;
            self.waiting.extend_from_slice(&header.to_bytes());
            self.waiting.extend_from_slice(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Output, Stream};
    use machinen_abi::body::{Credit, Exit, Failure, Reason, Signal, Stream as Data};
    use machinen_abi::frame::{Header, Kind};
    use machinen_abi::window::WINDOW_BYTES;
    use proptest::prelude::{any, prop, proptest};

    fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
        [&Header::new(kind, payload.len()).unwrap().to_bytes()[..], payload].concat()
    }

    fn opened() -> Stream {
        let mut stream = Stream::default();
        stream.add(&frame(Kind::Open, b"what"));
        assert_eq!((stream.take(), stream.take()), (Some(Event::Open(b"what".to_vec())), None));
        stream
    }

    fn credit(stream: Data, bytes: u32) -> Vec<u8> {
        frame(Kind::Credit, &Credit { stream, bytes }.to_bytes())
    }

    /// The kinds and payloads of what is pending.
    fn sent(stream: &mut Stream) -> Vec<(Kind, Vec<u8>)> {
        let (mut rest, mut all) = (stream.pending(), Vec::new());
        while let Some((header, after)) = rest.split_first_chunk() {
            let Header { kind, length } = Header::from_bytes(*header).unwrap();
            let (payload, after) = after.split_at(length as usize);
            all.push((kind, payload.to_vec()));
            rest = after;
        }
        stream.sent(usize::MAX);
        all
    }

    fn is_refused(stream: &mut Stream) -> bool {
        let sent = sent(stream);
        let (kind, payload) = sent.last().unwrap();
        stream.is_over() && *kind == Kind::Failed && Failure::parse(payload).unwrap().reason == Reason::Protocol
    }

    #[test]
    fn a_signal_passes_input_that_nobody_takes() {
        let mut stream = opened();
        for _ in 0..4 {
            stream.add(&frame(Kind::Input, &[7; 65_536]));
            assert_eq!(stream.take(), None);
        }
        stream.add(&frame(Kind::Signal, &[15, 0, 0, 0]));
        assert_eq!((stream.take(), stream.input().len()), (Some(Event::Signal(Signal(15))), WINDOW_BYTES as usize));
        stream.consume(WINDOW_BYTES as usize / 2);
        let credit = Credit { stream: Data::Input, bytes: WINDOW_BYTES / 2 };
        assert_eq!(sent(&mut stream), [(Kind::Credit, credit.to_bytes().to_vec())]);
        stream.add(&frame(Kind::InputEnd, &[]));
        assert!(stream.take().is_none() && stream.has_input_ended());
    }

    #[test]
    fn one_output_stands_still_and_the_other_goes_on() {
        let mut stream = opened();
        let mut output = 0;
        while stream.room(Output::Output) > 0 {
            let bytes = vec![1; stream.room(Output::Output)];
            stream.data(Output::Output, &bytes);
            output += bytes.len();
            assert!(stream.pending().len() < 2 * 65_536 + 16);
            sent(&mut stream);
        }
        assert_eq!((output, stream.room(Output::Error)), (WINDOW_BYTES as usize, 65_536));
        stream.add(&credit(Data::Output, 10));
        assert_eq!((stream.take(), stream.room(Output::Output)), (None, 10));
        stream.data(Output::Output, &[0; 99]);
        stream.end(Output::Output);
        stream.end(Output::Output);
        stream.exit(Exit::Code(3));
        stream.refuse(Reason::Busy, "too late");
        let kinds: Vec<(Kind, usize)> =
            sent(&mut stream).iter().map(|(kind, payload)| (*kind, payload.len())).collect();
        assert_eq!(kinds, [(Kind::Output, 10), (Kind::OutputEnd, 0), (Kind::Exit, 2)]);
        assert!(stream.is_over() && stream.room(Output::Error) == 0);
    }

    #[test]
    fn a_host_that_breaks_the_rules_is_refused() {
        let mut too_much = vec![frame(Kind::Input, &[0; 65_536]); 4];
        too_much.push(frame(Kind::Input, &[0]));
        let cases = [
            too_much.concat(),
            frame(Kind::Open, b""),
            frame(Kind::Signal, &[0; 4]),
            frame(Kind::Resize, &[0; 3]),
            frame(Kind::InputEnd, &[0]),
            [frame(Kind::InputEnd, &[]), frame(Kind::Input, b"x")].concat(),
            credit(Data::Input, 1),
            credit(Data::Error, 1),
            frame(Kind::Ready, &[1, 0]),
            vec![0xff; 8],
        ];
        for (number, case) in cases.iter().enumerate() {
            let mut stream = opened();
            stream.add(case);
            assert_eq!(stream.take(), None, "{number}");
            assert!(is_refused(&mut stream), "{number}");
            stream.add(&frame(Kind::Signal, &[9, 0, 0, 0]));
            assert_eq!(stream.take(), None, "{number}: after its end");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_makes_it_hold_more_than_a_window(
            start in any::<bool>(), kinds in prop::collection::vec((0..34_u16, prop::collection::vec(any::<u8>(), 0..9)), 0..60),
            garbage in prop::collection::vec(any::<u8>(), 0..60), step in 1..70_usize,
        ) {
            let mut stream = if start { opened() } else { Stream::default() };
            let mut bytes = Vec::new();
            for (number, payload) in kinds {
                bytes.extend(Kind::of(number).map_or(vec![], |kind| frame(kind, &payload)));
            }
            bytes.extend(garbage);
            for piece in bytes.chunks(step) {
                stream.add(piece);
                while stream.take().is_some() {}
                stream.consume(3);
                assert!(stream.input().len() <= WINDOW_BYTES as usize && stream.pending().len() < 4096);
            }
        }
    }
}

//! Frames from bytes that come in any pieces.

use alloc::vec::Vec;

use machinen_abi::frame::{HEADER_BYTES, Header, Kind, Malformed};

/// Bytes that came, until they make a frame. Holds one unfinished frame and what was added last.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    start: usize,
    /// The first frame has been taken.
    opened: bool,
}

/// Why the bytes are not what a host may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Eight bytes that are no header.
    Header(Malformed),
    /// A frame of this kind cannot come here.
    Order(Kind),
}

impl core::fmt::Display for Broken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Broken::Header(why) => write!(f, "{why}"),
            Broken::Order(kind) => write!(f, "a frame of the kind {} cannot come here", *kind as u16),
        }
    }
}

impl Frames {
    /// Adds bytes as they come.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        if self.bytes.is_empty() {
            // The first frame may have been large, and none after it is.
            self.bytes.shrink_to(HEADER_BYTES + machinen_abi::frame::MOST_PAYLOAD_BYTES);
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next frame when all of it is there: `open` first, then only what may follow.
    ///
    /// # Errors
    /// What comes is broken, as soon as its header tells; then nothing more can be understood.
    pub fn take(&mut self) -> Result<Option<(Kind, &[u8])>, Broken> {
        let rest = self.bytes.get(self.start..).unwrap_or_default();
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let Header { kind, length } = Header::from_bytes(*header).map_err(Broken::Header)?;
        let expected = match kind {
            Kind::Open => !self.opened,
            Kind::Input | Kind::InputEnd | Kind::Signal | Kind::Resize | Kind::Credit => self.opened,
            _ => false,
        };
        if !expected {
            return Err(Broken::Order(kind));
        }
        let Some(payload) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else { return Ok(None) };
        self.opened = true;
        self.start += HEADER_BYTES + payload.len();
        Ok(Some((kind, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Broken, Frames};
    use machinen_abi::frame::{Header, Kind, Malformed};
    use proptest::prelude::{any, prop, proptest};

    fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
        [&Header::new(kind, payload.len()).unwrap().to_bytes()[..], payload].concat()
    }

    /// The frames in bytes that are cut at every `step`.
    fn frames(bytes: &[u8], step: usize) -> (Vec<(Kind, Vec<u8>)>, Option<Broken>) {
        let (mut frames, mut all) = (Frames::default(), Vec::new());
        for piece in bytes.chunks(step.max(1)) {
            frames.add(piece);
            loop {
                match frames.take() {
                    Ok(Some((kind, payload))) => all.push((kind, payload.to_vec())),
                    Ok(None) => break,
                    Err(broken) => return (all, Some(broken)),
                }
            }
            assert!(frames.bytes.len() - frames.start <= (8 << 20) + 8);
        }
        (all, None)
    }

    #[test]
    fn only_open_comes_first_and_only_once() {
        let both = [frame(Kind::Open, b"x"), frame(Kind::Open, b"")].concat();
        assert_eq!(frames(&both, 3), (vec![(Kind::Open, b"x".to_vec())], Some(Broken::Order(Kind::Open))));
        assert_eq!(frames(&frame(Kind::Input, b"x"), 9), (vec![], Some(Broken::Order(Kind::Input))));
        let output = [frame(Kind::Open, b""), frame(Kind::Output, b"")].concat();
        assert_eq!(frames(&output, 99).1, Some(Broken::Order(Kind::Output)));
    }

    #[test]
    fn a_length_that_is_too_much_is_refused_before_its_payload_comes() {
        let header = [2, 0, 0, 0, 1, 0, 1, 0];
        let bytes = [&frame(Kind::Open, b"")[..], &header].concat();
        assert_eq!(frames(&bytes, 1).1, Some(Broken::Header(Malformed::Length(0x10001))));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8), step in 1..50_usize,
        ) {
            let kinds = [Kind::Input, Kind::InputEnd, Kind::Signal, Kind::Resize, Kind::Credit];
            let kinds = [Kind::Open].into_iter().chain(kinds.into_iter().cycle());
            let sent: Vec<(Kind, Vec<u8>)> = kinds.zip(payloads).collect();
            let bytes: Vec<u8> = sent.iter().flat_map(|(kind, payload)| frame(*kind, payload)).collect();
            assert_eq!(frames(&bytes, step), (sent, None));
        }

        #[test]
        fn garbage_is_refused_or_waits(bytes in prop::collection::vec(any::<u8>(), 0..300), step in 1..50_usize) {
            let (list, broken) = frames(&bytes, step);
            assert!(list.len() <= bytes.len() / 8 && (broken.is_some() || bytes.len() < 8 || list.len() < 40));
            assert_eq!(frames(&bytes, 1), (list, broken));
        }
    }
}

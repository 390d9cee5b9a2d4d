//! Decoder of a raw terminal's input with PARMRK set (termios(3)): bytes, breaks and parity-marked bytes.

/// What one byte read from the console completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A byte of the command's stdin.
    Byte(u8),
    /// `ff 00 00`: a break, the end of stdin.
    Break,
    /// `ff 00 n`: a byte that came with a parity error; `n` is not 0.
    Marked(u8),
}

/// The state between two bytes; a mark may be cut by the end of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decoder {
    /// Outside any mark.
    #[default]
    Plain,
    /// `ff` was read.
    Escape,
    /// `ff 00` was read.
    Mark,
}

impl Decoder {
    /// Takes the next byte. At most one event per byte, so the output never outgrows the input.
    ///
    /// A terminal never sends `ff` and then something else than `ff` or `00`; if it did, the `ff` is lost.
    pub fn push(&mut self, byte: u8) -> Option<Event> {
        let (next, event) = match (*self, byte) {
            (Self::Plain, 0xff) => (Self::Escape, None),
            (Self::Escape, 0x00) => (Self::Mark, None),
            (Self::Mark, 0x00) => (Self::Plain, Some(Event::Break)),
            (Self::Mark, n) => (Self::Plain, Some(Event::Marked(n))),
            (Self::Plain | Self::Escape, byte) => (Self::Plain, Some(Event::Byte(byte))),
        };
        *self = next;
        event
    }
}

#[cfg(test)]
mod tests {
    use super::{Decoder, Event};
    use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};

    fn decode(input: &[u8]) -> Vec<Event> {
        let mut decoder = Decoder::default();
        input.iter().filter_map(|&byte| decoder.push(byte)).collect()
    }

    /// What the kernel's n_tty puts in the read buffer for an event (drivers/tty/n_tty.c).
    fn encode(event: Event, wire: &mut Vec<u8>) {
        match event {
            Event::Byte(0xff) => wire.extend([0xff, 0xff]),
            Event::Byte(byte) => wire.push(byte),
            Event::Break => wire.extend([0xff, 0, 0]),
            Event::Marked(n) => wire.extend([0xff, 0, n]),
        }
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            4 => any::<u8>().prop_map(Event::Byte),
            2 => Just(Event::Byte(0xff)),
            2 => Just(Event::Byte(0)),
            1 => Just(Event::Break),
            1 => (1..=u8::MAX).prop_map(Event::Marked),
        ];
        prop::collection::vec(event, 0..100)
    }

    #[test]
    fn a_doubled_ff_before_zeros_is_data() {
        let byte = Event::Byte;
        assert_eq!(decode(&[0xff, 0xff, 0, 0]), [byte(0xff), byte(0), byte(0)]);
        assert_eq!(decode(&[0xff, 0, 0xff, 0xff, 0xff]), [Event::Marked(0xff), byte(0xff)]);
    }

    #[test]
    fn a_stray_escape_is_dropped() {
        assert_eq!(decode(&[0xff, 7, 8]), [Event::Byte(7), Event::Byte(8)]);
    }

    #[test]
    fn the_state_outlives_the_end_of_a_read() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(0xff), None);
        assert_eq!(decoder.push(0), None);
        assert_eq!(decoder, Decoder::Mark);
        assert_eq!(decoder.push(15), Some(Event::Marked(15)));
        assert_eq!(decoder, Decoder::Plain);
    }

    proptest! {
        #[test]
        fn decodes_what_the_kernel_encodes(events in events()) {
            let mut wire = Vec::new();
            events.iter().for_each(|&event| encode(event, &mut wire));
            assert_eq!(decode(&wire), events);
        }

        #[test]
        fn any_input_gives_at_most_as_many_events(input in prop::collection::vec(any::<u8>(), 0..300)) {
            assert!(decode(&input).len() <= input.len());
        }
    }
}

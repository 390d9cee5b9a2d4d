//! Windows: how much of a data stream may be under way, so that a stream that nobody reads never holds up the others.
//!
//! A side may send [`WINDOW_BYTES`] of each data stream, and then as much as the other side says by
//! [`Kind::Credit`](crate::frame::Kind::Credit). So the connection is always read: a signal passes input that a command does
//! not take, and a slow reader of one output stops only the writer of that output.

/// Bytes that may be sent before the first credit.
pub const WINDOW_BYTES: u32 = 256 << 10;

/// The sender's side: what it may still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance(u32);

impl Default for Allowance {
    fn default() -> Self {
        Allowance(WINDOW_BYTES)
    }
}

impl Allowance {
    /// Bytes that may be sent now.
    #[must_use]
    pub fn left(self) -> usize {
        self.0 as usize
    }

    /// `bytes` were sent. False, and nothing changed, when they were too many.
    #[must_use]
    pub fn spend(&mut self, bytes: usize) -> bool {
        let left = u32::try_from(bytes).ok().and_then(|bytes| self.0.checked_sub(bytes));
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }

    /// The receiver has room for `bytes` more. False when that makes more than a window: the peer is broken.
    #[must_use]
    pub fn grant(&mut self, bytes: u32) -> bool {
        let sum = self.0.checked_add(bytes).filter(|sum| *sum <= WINDOW_BYTES);
        self.0 = sum.unwrap_or(self.0);
        sum.is_some()
    }
}

/// The receiver's side: what the sender may still send, and what has been handed on since it was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    allowed: Allowance,
    consumed: u32,
}

impl Receipt {
    /// `bytes` came. False when the sender had no allowance for them: the peer is broken.
    #[must_use]
    pub fn take(&mut self, bytes: usize) -> bool {
        self.allowed.spend(bytes)
    }

    /// `bytes` were handed on. Returns the credit to send now: half a window or more, or nothing.
    pub fn consume(&mut self, bytes: usize) -> Option<u32> {
        self.consumed =
            u32::try_from(bytes).ok().and_then(|bytes| self.consumed.checked_add(bytes)).unwrap_or(u32::MAX);
        if self.consumed < WINDOW_BYTES / 2 {
            return None;
        }
        let credit = core::mem::take(&mut self.consumed);
        self.allowed.grant(credit).then_some(credit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_agree() {
        let (mut sender, mut receiver) = (Allowance::default(), Receipt::default());
        let (mut sent, mut held) = (0_usize, 0_usize);
        for step in 0..1000 {
            let bytes = sender.left().min(40_000);
            assert!(sender.spend(bytes) && receiver.take(bytes));
            (sent, held) = (sent + bytes, held + bytes);
            assert!(held <= WINDOW_BYTES as usize);
            if step % 3 == 0 {
                let handed_on = held.min(90_000);
                held -= handed_on;
                if let Some(credit) = receiver.consume(handed_on) {
                    assert!(sender.grant(credit));
                }
            }
        }
        assert!(sent > 10 << 20, "{sent}");
    }

    #[test]
    fn a_broken_peer_is_seen() {
        let mut receiver = Receipt::default();
        assert!(receiver.take(WINDOW_BYTES as usize) && !receiver.take(1));
        let mut sender = Allowance::default();
        assert!(!sender.spend(WINDOW_BYTES as usize + 1) && sender.spend(10));
        assert!(!sender.grant(11) && sender.grant(10) && !sender.grant(u32::MAX));
    }
}

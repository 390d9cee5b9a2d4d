//! How much each side of a stream may send: counters modulo 2^32.
//!
//! Source: virtio 1.2, 5.10.6.3.

/// What a stream holds for a host that does not read; the guest may not send more.
pub const BUF_ALLOC: u32 = 128 << 10;

/// The counters of one stream. The guest's are only what it says: one that lies stops or loses its own stream.
#[derive(Debug, Default)]
pub struct Credit {
    /// Bytes sent to the guest.
    sent: u32,
    /// The guest's `buf_alloc` and `fwd_cnt`.
    peer: (u32, u32),
    /// Bytes that came from the guest.
    received: u32,
    /// Of them, bytes that the host has taken.
    taken: u32,
    /// The last `taken` that the guest was told.
    told: u32,
    /// The guest was asked for credit since it last gave some.
    pub asked: bool,
}

impl Credit {
    /// Bytes that may be sent to the guest.
    pub fn room(&self) -> u32 {
        let (buf_alloc, fwd_cnt) = self.peer;
        buf_alloc.saturating_sub(self.sent.wrapping_sub(fwd_cnt))
    }

    /// A packet of the guest's said this.
    pub fn told_by_peer(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer = (buf_alloc, fwd_cnt);
        self.asked &= self.room() == 0;
    }

    /// Counts bytes sent to the guest.
    pub fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Counts bytes from the guest. `false`: it may not send that many.
    #[must_use]
    pub fn receive(&mut self, bytes: u32) -> bool {
        let held = self.received.wrapping_sub(self.taken);
        if bytes > BUF_ALLOC - held {
            return false;
        }
        self.received = self.received.wrapping_add(bytes);
        true
    }

    /// The host took `bytes` of what came from the guest.
    pub fn take(&mut self, bytes: u32) {
        self.taken = self.taken.wrapping_add(bytes);
    }

    /// What came from the guest need not be held any longer.
    pub fn take_all(&mut self) {
        self.taken = self.received;
    }

    /// The guest should be told, before it believes that it may not go on.
    pub fn is_due(&self) -> bool {
        self.taken.wrapping_sub(self.told) >= BUF_ALLOC / 2
    }

    /// `buf_alloc` and `fwd_cnt` for a packet to the guest.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.taken;
        (BUF_ALLOC, self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_guest_may_send_what_is_held_and_not_more() {
        let mut credit = Credit::default();
        assert!(credit.receive(BUF_ALLOC) && !credit.receive(1));
        credit.take(10);
        assert!(!credit.receive(11) && credit.receive(10) && !credit.is_due());
        credit.take(BUF_ALLOC / 2);
        assert!(credit.is_due());
        assert_eq!(credit.tell(), (BUF_ALLOC, BUF_ALLOC / 2 + 10));
        assert!(!credit.is_due());
    }

    proptest! {
        #[test]
        fn counters_go_round(start: u32, moves in proptest::collection::vec(0..=BUF_ALLOC, 1..200)) {
            let mut credit =
                Credit { sent: start, peer: (1000, start), received: start, taken: start, told: start, asked: false };
            for bytes in moves {
                if credit.receive(bytes) {
                    credit.take_all();
                }
                let room = credit.room();
                credit.send(room);
                prop_assert_eq!(credit.room(), 0);
                let sent = credit.sent;
                credit.told_by_peer(1000, sent);
                prop_assert_eq!(credit.room(), 1000);
            }
        }

        #[test]
        fn whatever_the_guest_says_gives_it_no_more_than_it_holds(buf_alloc: u32, fwd_cnt: u32, sent: u32) {
            let mut credit = Credit { sent, ..Credit::default() };
            credit.told_by_peer(buf_alloc, fwd_cnt);
            prop_assert!(credit.room() <= buf_alloc);
        }
    }
}

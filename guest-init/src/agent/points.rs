//! Points of the guest's start, and when they were reached.

use alloc::vec::Vec;

use guest_init::wire::stream::Stream;
use machinen_abi::body::Mark;

use crate::sys;

/// Names and times of CLOCK_MONOTONIC in nanoseconds: the wall clock may be set in between.
#[derive(Default)]
pub struct Points(Vec<(&'static str, u64)>);

impl Points {
    /// Now is the point of this name.
    pub fn add(&mut self, name: &'static str) {
        self.0.push((name, sys::clock_ns(libc::CLOCK_MONOTONIC)));
    }

    /// Sends all, in the time of the wall clock.
    pub fn send(&self, stream: &mut Stream) {
        let since_boot = sys::clock_ns(libc::CLOCK_MONOTONIC);
        let now = sys::clock_ns(libc::CLOCK_REALTIME);
        for (name, time_ns) in &self.0 {
            let time_ns = now.wrapping_sub(since_boot.wrapping_sub(*time_ns));
            stream.mark(&Mark { time_ns, name });
        }
    }
}

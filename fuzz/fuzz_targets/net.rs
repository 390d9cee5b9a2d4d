//! The network device: frames, lengths and requests, with a peer that does as it likes, too.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use vmm_min::ram::Ram;
use vmm_min::virtio::net::script::run;
use vmm_min::virtio::testing::ram;

thread_local! {
    /// Kept: each stays mapped for the life of the process.
    static RAM: RefCell<Option<Ram>> = const { RefCell::new(None) };
}

fuzz_target!(|data: &[u8]| RAM.with_borrow_mut(|kept| *kept = Some(run(data, kept.take().unwrap_or_else(ram)))));

//! Transport and queues, by the device that does least with a request.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_min::virtio::rng::Rng;
use vmm_min::virtio::testing::run_hostile_guest;

fuzz_target!(|data: &[u8]| run_hostile_guest(Rng::default(), data));

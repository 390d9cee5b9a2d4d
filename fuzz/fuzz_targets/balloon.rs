//! The balloon: what a guest reports as free.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_min::stats::Stats;
use vmm_min::virtio::balloon::Balloon;
use vmm_min::virtio::testing::run_hostile_guest;

fuzz_target!(|data: &[u8]| run_hostile_guest(Balloon::new(Stats::default()), data));

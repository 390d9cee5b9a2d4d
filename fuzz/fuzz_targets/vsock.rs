//! The socket device: packets, rings and the host's clients. Streams and what they hold stay within their bounds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_min::virtio::vsock::testing::fuzz;

fuzz_target!(|data: &[u8]| fuzz(data));

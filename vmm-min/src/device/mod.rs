//! Devices: pure registers on one side, the host's descriptors on the other.

pub mod console;
pub mod log;
pub mod uart;

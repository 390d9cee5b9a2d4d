//! The wire format between the toolkit and the guest agent: one stream for each operation, frames on it.
//!
//! `docs/wire-protocol.md` is the specification; this is its code for both sides. Everything is little-endian.
//!
//! - [`frame`]: the header of a frame, and the kinds of frames.
//! - [`open`]: the first frame, which says what the stream is for.
//! - [`body`]: the payloads of the other frames.
//! - [`glob`]: the patterns of what an archive leaves out.
//! - [`window`]: how much of a data stream may be under way.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod body;
pub mod fault;
pub mod frame;
pub mod glob;
pub mod open;
pub mod window;

/// Version of this protocol. A peer of another version gets [`body::Failure`] with [`body::Reason::Version`].
pub const VERSION: u16 = 1;

/// The vsock port on which the agent takes streams (CID 3).
pub const AGENT_PORT: u32 = 1024;

/// The vsock port of the host (CID 2) to which /init connects when it is ready for the machine's main command.
pub const MAIN_PORT: u32 = 1025;

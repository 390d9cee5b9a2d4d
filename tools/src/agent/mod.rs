//! Clients of the guest agent; `docs/wire-protocol.md` says what is spoken.
//!
//! - [`oneshot`]: an operation without data.

pub mod oneshot;

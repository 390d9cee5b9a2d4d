//! The agent's half of docs/wire-protocol.md, apart from its system calls.

pub mod copies;
pub mod frames;
pub mod report;
pub mod request;
pub mod stream;

//! A FUSE server for one directory of the host, from which nothing leads out.
//!
//! | file | job |
//! |---|---|
//! | [`wire`] | numbers and layouts of linux/fuse.h |
//! | [`request`] | bytes of the guest's to a checked request |
//! | [`server`] | one request after the other, in and out; the session |
//! | [`nodes`], [`handles`] | what the guest knows by number |
//! | [`host`] | the system calls, each confined to the directory |
//! | [`owner`] | whose files are shown as whose |
//! | `attributes`, `names`, `files`, `directories`, `xattr` | the operations |
//! | [`state`] | all of it as plain data, and back |
//!
//! Invariants: one request is one step, done when the call returns; a guest's bytes are copied once and checked once; every
//! name is one component, looked up by openat2(2) that follows no link, no `..` and no mount; only regular files and directories
//! are ever opened, by the descriptor that was looked up; nothing a guest sends makes a panic. No thread, no lock, no unsafe code.

#![forbid(unsafe_code)]

mod attributes;
mod directories;
mod files;
pub mod handles;
pub mod host;
mod names;
pub mod nodes;
pub mod owner;
pub mod request;
pub mod server;
pub mod state;
#[cfg(test)]
mod tests;
pub mod wire;
mod xattr;

pub use rustix::io::Errno;
pub use server::{Data, Reply, Server};

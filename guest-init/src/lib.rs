//! What PID 1 decides, apart from what it does: parsers, tables and state machines without system calls.
//!
//! `main.rs` and the modules beside it make the system calls; everything here is pure and tested on any host.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod chunk;
pub mod cmdline;
pub mod config;
pub mod criu;
pub mod disks;
pub mod ext4;
pub mod lookup;
pub mod marks;
pub mod modules;
pub mod mounts;
pub mod net;
pub mod shares;
pub mod status;
pub mod tar;
pub mod wire;

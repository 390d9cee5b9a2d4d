//! Initial RAM file systems: the cpio format the kernel unpacks, and what machinen puts into one.
//!
//! - [`newc`]: writer and reader of the format; `no_std` + `alloc`, so that the monitor or a guest can use it.
//! - With the feature `std`: [`tree`] (a file tree in memory, bodies elsewhere), its sources [`walk`] (a directory) and
//!   [`tarball`], [`pack`] (tree to archive through [`output`]), and [`layout`], which composes them for the tools.
//!
//! An archive is a function of its input alone: entries are sorted, inodes are numbered in that order, and neither the
//! order of `readdir`, nor the umask, nor the file times of a directory reach the output.
//!
//! Non-goals: compression (pipe through `zstd`), extended attributes (newc has no place for them), unpacking to a host
//! directory (`cpio -i` does it).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod newc;

#[cfg(feature = "std")]
pub mod error;
#[cfg(feature = "std")]
#[cfg(feature = "std")]
pub mod layout;
#[cfg(feature = "std")]
pub mod output;
#[cfg(feature = "std")]
pub mod pack;
#[cfg(feature = "std")]
pub mod tarball;
#[cfg(feature = "std")]
pub mod tree;
#[cfg(feature = "std")]
pub mod walk;
#[cfg(feature = "std")]
pub mod watched;

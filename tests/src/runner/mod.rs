//! The test runner: finds the workspace's tests, takes each to where it can run, and says what came of it.
//!
//! Each test is a process of its own with a limit. Those that need a KVM that the host does not have run in one lab
//! job: this program again, with `--inside`, which runs the tests one by one and writes a line for each.

#![forbid(unsafe_code)]

pub mod discover;
pub mod elsewhere;
pub mod execute;
pub mod inside;
pub mod place;
pub mod record;
pub mod report;

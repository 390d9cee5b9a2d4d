//! vmm-min: a KVM monitor in one process with one thread, built for the time to the guest's first byte.
//!
//! The map. A room is a file:
//!
//! | file | job |
//! |---|---|
//! | `main` | the only exit: arguments in, exit status out |
//! | [`config`] | flags, variables, defaults; no side effects |
//! | [`machine`] | the order of start-up, and the loop |
//! | [`bus`] | from an access of the guest to a device and back |
//! | [`device`] | registers (pure) and the host's side of them |
//! | [`virtio`] | queues, transport, and the devices behind it |
//! | [`trace`] | named marks with the time |
//! | [`stats`] | what a VM tells about its memory |
//! | [`socket`] | Unix sockets, wherever they come from |
//! | [`disk`] | images and copy-on-write layers |
//! | [`kick`], [`terminal`], [`sys`] | signals, terminal modes, system calls |
//! | [`ram`], [`heap`] | guest memory; the monitor's own |
//! | [`boot`] | kernel and initrd into RAM |
//! | [`cache`] | files that can be made again |
//! | [`arch`] | everything that differs between processors |
//! | [`error`] | failures by blame, with stable codes |
//!
//! Invariants: one thread; signals are blocked outside KVM_RUN while a guest runs; a device's interrupt line is a
//! function of its state; guest memory is only reached through [`ram::Ram`]; `unsafe` only in `ram`, `kick`, `sys`,
//! `terminal`, `heap` and `arch`; a guest cannot make the monitor panic.
//!
//! Non-goals: SMP, PCI, legacy PCs, firmware, live migration, graphics.

pub mod arch;
#[forbid(unsafe_code)]
pub mod boot;
#[forbid(unsafe_code)]
pub mod bus;
#[forbid(unsafe_code)]
pub mod cache;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod ctl;
#[forbid(unsafe_code)]
pub mod device;
#[forbid(unsafe_code)]
pub mod disk;
#[forbid(unsafe_code)]
pub mod error;
pub mod heap;
pub mod kick;
#[forbid(unsafe_code)]
pub mod listener;
#[forbid(unsafe_code)]
pub mod machine;
pub mod ram;
#[forbid(unsafe_code)]
pub mod socket;
#[forbid(unsafe_code)]
pub mod stats;
pub mod sys;
pub mod terminal;
#[forbid(unsafe_code)]
pub mod trace;
#[forbid(unsafe_code)]
pub mod virtio;

//! The toolkit's library: what the `machinen-*` programs share. Each program is usage, one call here, one diagnostic.
//!
//! - [`diagnostic`]: how a tool reports a failure and with which exit code it ends.
//! - [`error`]: the error of the calls that embed machines.
//! - [`agent`]: the client of a machine's agent.
//! - [`args`]: the command line as text, before any parser sees it.
//! - [`outfile`]: an output that is whole or absent, or standard output.
//! - [`outdir`]: the same for a directory.
//! - [`assets`]: where the programs that a guest needs are found.
//! - [`program`]: what every tool's `main` does.
//! - [`imagecache`]: images in the cache, whole and marked or not there; [`fault`]: why one was not made.
//! - [`registry`]: which machines there are, and whether they live.
//! - [`guestio`]: what the tools that run a command in a guest share.
//! - [`phases`]: phases with their times, and progress.
//! - [`ext4`], [`e2fsck`]: images of that file system, and their check.
//! - [`vm`]: machines, from options to their end.
//! - [`run`], [`exec`], [`attach`], [`cp`]: the work of the programs of these names, with guests.
//! - [`agent`]: clients of the guest agent.
//! - [`table`]: text for people.
//! - [`dispatch`]: the work of `machinen` itself.
//! - [`mkinitramfs`], [`rootfs_img`], [`mountdisk`], [`kernel`], [`net`], [`ls`], [`gc`], [`logs`], [`mem`], [`stop`]: the work of
//!   the programs of these names.

#![forbid(unsafe_code)]

pub mod agent;
pub mod args;
pub mod assets;
pub mod attach;
pub mod bootlog;
pub mod bundle;
pub mod cp;
pub mod diagnostic;
pub mod dispatch;
pub mod e2fsck;
pub mod error;
pub mod exec;
pub mod ext4;
pub mod fault;
pub mod fork;
pub mod gc;
pub mod guestio;
pub mod imagecache;
pub mod kernel;
pub mod logs;
pub mod ls;
pub mod mem;
pub mod mkinitramfs;
pub mod mountdisk;
pub mod net;
pub mod outdir;
pub mod outfile;
pub mod phases;
pub mod program;
pub mod registry;
pub mod restore;
pub mod rootfs_img;
pub mod run;
pub mod snapshot;
pub mod stop;
pub mod table;
pub mod vm;

//! Bundles: a machine's processes as a directory, from which they go on in other machines.
//!
//! | in the directory | |
//! |---|---|
//! | `meta.json` | [`Meta`]: what it came from, and what it needs, the images and their lengths; written last, so a bundle without it, or without one of those, is not whole |
//! | `img/` | the engine's images, and what the agent says of the main command (`workload.json`) |
//! | `root.layer` | what the guest has written to its root disk, as the monitor's `--root-layer` takes it |
//! | `mounts/` | of each `--mount` the read-only image and the disk with what the guest has written |
//! | `dump.log` | the engine's log |
//! | `faults` | what processes had to wait for at lazy restores: the only file that comes later |
//!
//! - [`snapshot`]: from a machine to a bundle.
//! - [`restore`], [`compare`]: what a new machine needs for one, compared with what there is.
//! - [`seal`]: whose bundle it is.
//! - [`fork`]: one after the other.

mod compare;
mod ctl;
mod fork;
mod halves;
mod inner;
mod lazy;
mod meta;
mod restore;
mod scratch;
mod seal;
mod snapshot;

pub(crate) use self::compare::There;
pub use self::fork::{DEFAULT_MIN_FREE_PERCENT, ForkOptions};
pub(crate) use self::halves::Halves;
pub(crate) use self::lazy::{LAZY, pages_pending, record_faults};
pub use self::meta::Meta;
pub(crate) use self::meta::{IMAGE_KEY, IMAGE_PATH, KERNEL_ID, LOWERS};
pub use self::restore::RestoreOptions;
pub(crate) use self::scratch::collect;
pub use self::snapshot::SnapshotOptions;

use machinen_abi::open::Tag;

use crate::agent::request::Request;
use crate::error::{Error, Result};

/// What was written to the root disk, in a bundle.
const LAYER: &str = "root.layer";

/// How processes are frozen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// By CRIU in the guest: they can go on under another kernel and image.
    #[default]
    Criu,
}

impl Engine {
    /// By its name.
    ///
    /// # Errors
    /// `SNAPSHOT_ENGINE`.
    pub fn parse(name: &str) -> Result<Engine> {
        match name {
            "criu" => Ok(Engine::Criu),
            _ => Err(Error::new("SNAPSHOT_ENGINE", format!("engine {name:?}: there is none of that name"))
                .hint("the engines are: criu")),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Criu => "criu",
        }
    }
}

/// What is done about TCP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tcp {
    /// A dump of processes that have any is refused.
    #[default]
    Refuse,
    /// They are closed where the processes are restored.
    Close,
    /// They are dumped with their state.
    Keep,
}

impl Tcp {
    /// From two switches.
    ///
    /// # Errors
    /// Both are on.
    pub fn of_switches(close: bool, keep: bool) -> std::result::Result<Tcp, String> {
        match (close, keep) {
            (false, false) => Ok(Tcp::Refuse),
            (true, false) => Ok(Tcp::Close),
            (false, true) => Ok(Tcp::Keep),
            (true, true) => Err("--tcp-close and --tcp-keep contradict each other".into()),
        }
    }

    /// Has the agent do it.
    fn ask(self, request: Request) -> Request {
        match self {
            Tcp::Refuse => request,
            Tcp::Close => request.with(Tag::TcpClose, []),
            Tcp::Keep => request.with(Tag::TcpKeep, []),
        }
    }
}

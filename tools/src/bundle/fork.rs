//! A machine's copy: a snapshot that leaves it running, restored into a sibling.

use std::path::{Path, PathBuf};

use super::meta::RESTORED_FROM;
use super::restore::RestoreOptions;
use super::scratch::Scratch;
use super::snapshot::SnapshotOptions;
use super::{Engine, Tcp};
use crate::error::{Error, Result};
use crate::registry::Registry;
use crate::vm::start::ports_are_free;
use crate::vm::{BootOptions, Vm};

/// Share of the host's memory that stays free, in percent.
pub const DEFAULT_MIN_FREE_PERCENT: f64 = 1.0;

/// How a machine is copied.
#[derive(Clone, Debug)]
pub struct ForkOptions {
    /// By what.
    pub engine: Engine,
    /// The copy's TCP connections go on; else they are closed. The source's go on in any case.
    pub tcp_keep: bool,
    /// Where the bundle is to stay; without it, it is gone when the copy runs.
    pub out: Option<PathBuf>,
    /// The fork is refused when less than so much of the host's memory would be free, in percent.
    pub min_free_percent: f64,
}

impl Default for ForkOptions {
    fn default() -> ForkOptions {
        ForkOptions { engine: Engine::Criu, tcp_keep: false, out: None, min_free_percent: DEFAULT_MIN_FREE_PERCENT }
    }
}

/// Where the bundle of a fork is.
#[derive(Debug)]
pub(crate) enum Place {
    /// It stays there.
    Kept(PathBuf),
    /// It goes with this.
    Scratch(Scratch),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Place::Kept(path) => path,
            Place::Scratch(scratch) => scratch.path(),
        }
    }
}

impl Vm {
    /// Makes a copy of this machine that goes on beside it; `boot` says how the copy differs: its name (without one it is
    /// `<source>/<process>`), its ports (none are inherited), whether it is detached.
    ///
    /// # Errors
    /// `FORK_MEMORY_BACKPRESSURE` when too little of the host's memory would be left; `REGISTRY_NAME_TAKEN`; those of [`Vm::snapshot`],
    /// [`RestoreOptions::boot_options`] and [`crate::vm::boot`].
    pub fn fork(&self, options: &ForkOptions, boot: BootOptions) -> Result<Vm> {
        let (boot, place) = self.fork_options(options, boot)?;
        let vm = crate::vm::boot(&boot);
        // Not before the copy has read it.
        drop(place);
        vm
    }

    /// Freezes this machine; gives what its copy is to be, and the bundle, which the copy needs until it runs.
    pub(crate) fn fork_options(&self, options: &ForkOptions, mut boot: BootOptions) -> Result<(BootOptions, Place)> {
        let stats = self.stats()?;
        // Twice: while the copy reads its memory, its guest has that in the page cache, too.
        let needed = stats.resident_bytes.unwrap_or(stats.ceiling_bytes).saturating_mul(2);
        check_memory(needed, options.min_free_percent)?;
        let name = boot.name.take().unwrap_or_else(|| format!("{}/{}", self.label(), std::process::id()));
        // Before anything is frozen for it.
        let registry = Registry::open()?;
        ports_are_free(&registry, &boot.publish)?;
        drop(registry.create(Some(&name))?);
        boot.name = Some(name);
        let place =
            options.out.clone().map_or_else(|| Scratch::new().map(Place::Scratch), |dir| Ok(Place::Kept(dir)))?;
        let tcp = if options.tcp_keep { Tcp::Keep } else { Tcp::Close };
        let snapshot =
            SnapshotOptions { engine: options.engine, leave_running: true, tcp, ..SnapshotOptions::default() };
        self.snapshot(place.path(), &snapshot)?;
        boot.forked_from = Some(self.label().to_owned());
        let mut boot = RestoreOptions::new(place.path())?.trust(true).tcp(tcp).boot_options(boot)?;
        if let Place::Scratch(_) = place {
            // It is gone when somebody may want to see it.
            boot.other.remove(RESTORED_FROM);
        }
        Ok((boot, place))
    }
}

/// Refuses what would leave too little memory free.
fn check_memory(needed: u64, min_free_percent: f64) -> Result<()> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    let (Some(total), Some(available)): (Option<u64>, Option<u64>) = (kib("MemTotal:"), kib("MemAvailable:")) else {
        return Ok(());
    };
    let left_percent = 100.0 * (available as f64 - needed as f64 / 1024.0) / total as f64;
    if left_percent >= min_free_percent {
        return Ok(());
    }
    let message = format!(
        "fork: a copy needs about {} MiB, and then {left_percent:.1} % of the host's memory would be free, less than {min_free_percent} %",
        needed >> 20
    );
    Err(Error::new("FORK_MEMORY_BACKPRESSURE", message)
        .hint("stop other machines, or allow it with --min-free PERCENT")
        .retry())
}

#[cfg(test)]
mod tests {
    use super::check_memory;

    #[test]
    fn a_fork_leaves_memory_free() {
        assert!(check_memory(0, 0.0).is_ok());
        let error = check_memory(0, 100.1).unwrap_err();
        assert_eq!((error.code(), error.is_retryable()), ("FORK_MEMORY_BACKPRESSURE", true));
        assert!(check_memory(u64::MAX, 1.0).is_err());
    }
}

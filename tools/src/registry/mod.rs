//! The registry: which machines there are, under which names, and whether they live. A directory for each, and no daemon.
//!
//! A machine is alive as long as its lock is held, which its monitor inherits and holds until it ends, whatever ends it. All that
//! changes names or removes directories happens under the registry's own lock; entries are replaced whole. So a tool may be
//! killed at any instruction.
//!
//! - [`place`]: where the registry is, for one user.
//! - [`claim`]: a new machine's directory.
//! - [`entry`]: what is written about it; [`name`]: what it may be called.
//! - [`vm`]: a machine that is there, and its end; [`process`]: its processes; [`memory`]: what it takes.
//! - [`gc`]: removing what dead ones left.
//!
//! ```
//! use machinen::registry::Registry;
//!
//! # fn main() -> machinen::error::Result<()> {
//! # let dir = std::env::temp_dir().join(format!("machinen-doc-{}", std::process::id()));
//! let registry = Registry::at(&dir)?;
//! let claim = registry.create(Some("worker/1"))?;
//! let taken = registry.create(Some("worker/1")).expect_err("one machine for each name");
//! assert_eq!((taken.code(), taken.is_retryable()), ("REGISTRY_NAME_TAKEN", false));
//! drop(claim); // nothing was started: nothing is left
//! assert!(registry.list()?.is_empty() && registry.gc(false)?.is_empty());
//! # let _ = std::fs::remove_dir_all(dir);
//! # Ok(())
//! # }
//! ```

pub mod claim;
pub mod entry;
pub mod gc;
pub mod memory;
pub mod name;
pub mod place;
pub mod process;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod vm;

use std::path::Path;

pub use self::claim::Claim;
pub use self::entry::Entry;
pub use self::gc::{Removed, What};
pub use self::place::{Place, ShortPath};
pub use self::process::Process;
pub use self::vm::{State, Vm};
use crate::error::{Error, Result};

/// The registry of the caller's machines.
#[derive(Clone, Debug)]
pub struct Registry {
    place: Place,
}

impl Registry {
    /// That of the environment; see [`Place::of_environment`]. It is made when the first machine is.
    ///
    /// # Errors
    /// `REGISTRY_DIRECTORY`: the directory is not the caller's own.
    pub fn open() -> Result<Registry> {
        Registry::of(Place::of_environment())
    }

    /// One in a directory of the caller's choice.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn at(dir: impl AsRef<Path>) -> Result<Registry> {
        Registry::of(Place::named(dir))
    }

    fn of(place: Place) -> Result<Registry> {
        place.open()?;
        Ok(Registry { place })
    }

    /// Its directory, absolute.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Makes a directory for a new machine, with its lock held, and gives it the name.
    ///
    /// # Errors
    /// `REGISTRY_NAME_INVALID`; `REGISTRY_NAME_TAKEN`: a machine that is alive has it; `REGISTRY_DIRECTORY`: it cannot be made.
    pub fn create(&self, name: Option<&str>) -> Result<Claim> {
        claim::create(&self.place, name)
    }

    /// All machines, dead ones that nobody has collected too, the oldest first.
    ///
    /// # Errors
    /// `REGISTRY_DIRECTORY`: it cannot be read.
    pub fn list(&self) -> Result<Vec<Vm>> {
        match self.place.open()? {
            Some(root) => vm::list(&self.place, &root),
            None => Ok(Vec::new()),
        }
    }

    /// The machine that lives under this name, id or process number.
    ///
    /// # Errors
    /// `REGISTRY_VM_NOT_FOUND`, with names that are near.
    pub fn find(&self, key: &str) -> Result<Vm> {
        let vms = self.list()?;
        let alive: Vec<&Vm> = vms.iter().filter(|vm| vm.is_alive()).collect();
        match pick(&alive, key) {
            Some(vm) => Ok(vm.clone()),
            None => Err(not_found(key, &vms)),
        }
    }

    /// [`Registry::find`], but without one that lives the last dead one.
    ///
    /// # Errors
    /// As [`Registry::find`].
    pub fn find_any(&self, key: &str) -> Result<Vm> {
        let vms = self.list()?;
        let (alive, dead): (Vec<&Vm>, Vec<&Vm>) = vms.iter().partition(|vm| vm.is_alive());
        match pick(&alive, key).or_else(|| pick(&dead, key)) {
            Some(vm) => Ok(vm.clone()),
            None => Err(not_found(key, &vms)),
        }
    }

    /// Removes what dead machines left: directories, helpers' processes, directories half-made or half-removed.
    ///
    /// With `dry_run` only tells. Of newer versions of this program nothing is removed. A directory that cannot be removed does
    /// not save the others ([`What::Left`]).
    ///
    /// # Errors
    /// `REGISTRY_DIRECTORY`: the registry cannot be read or written.
    pub fn gc(&self, dry_run: bool) -> Result<Vec<Removed>> {
        gc::gc(&self.place, dry_run)
    }

    /// Removes a dead machine's directory. False: it is alive, of a newer version, or gone already.
    ///
    /// # Errors
    /// `REGISTRY_DIRECTORY`: it cannot be removed.
    pub fn remove(&self, vm: &Vm) -> Result<bool> {
        gc::remove(&self.place, &vm.id, gc::Whose::Dead)
    }
}

/// By name, else by id, else by process number; the youngest of several.
fn pick<'a>(vms: &[&'a Vm], key: &str) -> Option<&'a Vm> {
    let last = |matches: &dyn Fn(&Vm) -> bool| vms.iter().rev().find(|vm| matches(vm)).copied();
    let named = last(&|vm| vm.entry.name.as_deref() == Some(key)).or_else(|| last(&|vm| vm.id == key));
    let pid: Option<u32> = key.parse().ok().filter(|_| key.bytes().all(|byte| byte.is_ascii_digit()));
    named.or_else(|| {
        let pid = pid?;
        last(&|vm| {
            if vm.is_alive() { vm.resident().is_some_and(|found| found.0 == pid) } else { vm.entry.pid == Some(pid) }
        })
    })
}

fn not_found(key: &str, vms: &[Vm]) -> Error {
    let error = |why: &str| Error::new("REGISTRY_VM_NOT_FOUND", format!("machine {}: {why}", name::show(key)));
    let dead: Vec<&Vm> = vms.iter().filter(|vm| !vm.is_alive()).collect();
    if pick(&dead, key).is_some() {
        return error("it has ended").hint(format!("machinen logs {key} shows its console, machinen gc removes it"));
    }
    let alive = vms.iter().filter(|vm| vm.is_alive());
    let near = name::near(key, alive.clone().map(Vm::label));
    let error = error("there is none of this name, id or process number");
    match near.as_slice() {
        [] if alive.count() == 0 => error.hint("none is running: machinen run starts one"),
        [] => error.hint("machinen ls lists those that are there"),
        near => error.hint(format!("is it {}?", near.join(" or "))),
    }
}

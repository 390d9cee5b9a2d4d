//! Removing what dead machines left, and nothing else.
//!
//! A directory gets a name that nobody looks at, under the registry's lock, and is taken apart after that: so names are
//! free at once, and what a killed gc leaves is seen by the next.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, openat, renameat, statat};
use rustix::io::Errno;

use super::claim::{NEW, is_id};
use super::entry::Entry;
use super::place::Place;
use super::process::Process;
use super::vm;
use crate::error::{Error, Result};

/// Beginning of the name of a directory that is being removed.
const OLD: &str = ".del-";

/// What gc removed, or would remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The machine's id.
    pub id: String,
    /// Its name, where it had one.
    pub name: Option<String>,
    /// What it was.
    pub what: What,
}

/// What a dead machine left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Its directory, with the names of what was in it.
    Directory(PathBuf, Vec<String>),
    /// A helper that had survived, and its program.
    Helper(Process, Option<PathBuf>),
    /// Nothing: this directory could not be removed, and why.
    Left(PathBuf, String),
}

/// Whose directory may be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The caller's, who holds its lock.
    Own,
    /// A dead machine's.
    Dead,
}

/// A directory on its way out, and the lock that says that somebody takes it apart.
struct Leaving {
    id: String,
    /// Its name before and now.
    names: [String; 2],
    entry: Entry,
    lock: OwnedFd,
}

pub(super) fn gc(place: &Place, dry_run: bool) -> Result<Vec<Removed>> {
    let Some(root) = place.open()? else { return Ok(Vec::new()) };
    let (mut leaving, mut removed) = (Vec::new(), Vec::new());
    {
        // Without it nobody is making a directory: where it cannot be had, nobody can.
        let _guard = if dry_run { place.lock(&root).ok() } else { Some(place.lock(&root)?) };
        for name in vm::names(place, &root)? {
            match consider(place, &root, &name, dry_run) {
                Ok(found) => leaving.extend(found),
                Err(what) => removed.push(Removed { id: name, name: None, what }),
            }
        }
    }
    for old in leaving {
        let of_it = |what| Removed { id: old.id.clone(), name: old.entry.name.clone(), what };
        let programs: Vec<_> = vm::helpers(&old.entry).into_iter().map(|one| (one, one.executable())).collect();
        let helpers = if dry_run { vm::helpers(&old.entry) } else { vm::end_helpers(&old.entry) };
        let program = |one| programs.iter().find(|(helper, _)| *helper == one).and_then(|(_, path)| path.clone());
        removed.extend(helpers.into_iter().map(|one| of_it(What::Helper(one, program(one)))));
        let [before, now] = &old.names;
        let content = vm::names_in(&old.lock);
        let gone = if dry_run { Ok(()) } else { take_apart(place, now) };
        removed.push(of_it(match gone {
            Ok(()) => What::Directory(place.path().join(before), content),
            Err(error) => What::Left(place.path().join(now), error.to_string()),
        }));
    }
    Ok(removed)
}

/// Renames a directory that nobody needs; of a dry run only tells that it would. Fails with [`What::Left`].
fn consider(place: &Place, root: &OwnedFd, name: &str, dry_run: bool) -> std::result::Result<Option<Leaving>, What> {
    let entry = || vm::read(root, name).unwrap_or_default();
    let (id, entry, is_old) = if let Some(id) = name.strip_prefix(OLD) {
        (id, entry(), true)
    } else if let Some(id) = name.strip_prefix(NEW) {
        // Its maker holds the registry's lock, which is ours.
        (id, entry(), false)
    } else if is_id(name) {
        match vm::look(place, root, name) {
            Some(vm) if !vm.is_alive() && !vm.entry.is_newer() => (name, vm.entry, false),
            _ => return Ok(None),
        }
    } else {
        return Ok(None);
    };
    if !is_id(id) {
        return Ok(None);
    }
    let Some(lock) = claim(root, name) else { return Ok(None) };
    let now = if is_old || dry_run { name.to_owned() } else { format!("{OLD}{id}") };
    if now != name {
        renameat(root, name, root, &now).map_err(|error| What::Left(place.path().join(name), error.to_string()))?;
    }
    Ok(Some(Leaving { id: id.to_owned(), names: [name.to_owned(), now], entry, lock }))
}

/// The right to take a directory apart: `None` when another does.
fn claim(root: &OwnedFd, name: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let dir = openat(root, name, flags, Mode::empty()).ok()?;
    flock(&dir, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Another may have been done with it in between.
    statat(root, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|_| dir)
}

fn failed(place: &Place, name: &str, cause: impl Into<std::io::Error>) -> Error {
    Error::host("REGISTRY_DIRECTORY", format!("remove {}", place.path().join(name).display()), cause)
}

/// Removes a directory with all in it. Symlinks in it are removed, not followed.
fn take_apart(place: &Place, name: &str) -> std::io::Result<()> {
    match fs::remove_dir_all(place.path().join(name)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes one machine's directory. False: it is alive, or another does it, or it is not there.
pub(super) fn remove(place: &Place, id: &str, whose: Whose) -> Result<bool> {
    let Some(root) = place.open()? else { return Ok(false) };
    let guard = place.lock(&root)?;
    let lives = || vm::look(place, &root, id).is_none_or(|vm| vm.is_alive() || vm.entry.is_newer());
    if whose == Whose::Dead && lives() {
        return Ok(false);
    }
    let Some(_lock) = claim(&root, id) else { return Ok(false) };
    let old = match renameat(&root, id, &root, format!("{OLD}{id}")) {
        Ok(()) => format!("{OLD}{id}"),
        Err(Errno::NOENT) => return Ok(false),
        Err(cause) => return Err(failed(place, id, cause)),
    };
    drop(guard);
    take_apart(place, &old).map(|()| true).map_err(|cause| failed(place, &old, cause))
}

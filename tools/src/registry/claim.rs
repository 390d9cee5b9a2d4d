//! A new machine's directory: made at once with its lock and its name, or not at all.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, mkdirat, openat, renameat, statat};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::rand::{GetRandomFlags, getrandom};

use super::entry::Entry;
use super::gc;
use super::name;
use super::place::{Place, ShortPath};
use super::vm::{self, State, Vm};
use crate::error::{Error, Result};

/// Beginning of the name of a directory that is being made, under the registry's lock.
pub(super) const NEW: &str = ".new-";

/// Characters of an id. The first is a letter: an id is never taken for a process number.
const ID: [&[u8]; 2] = [b"abcdefghijklmnopqrstuvwxyz", b"abcdefghijklmnopqrstuvwxyz0123456789"];
const ID_BYTES: usize = 10;

/// A machine that has a directory, a lock and perhaps a name. Dropped without [`Claim::keep`] it gives them back.
#[derive(Debug)]
pub struct Claim {
    /// The machine's id.
    pub id: String,
    /// Its directory, absolute.
    pub dir: PathBuf,
    /// The open file whose lock says that the machine is alive. Closed at exec; see [`Claim::lend`].
    pub lock: OwnedFd,
    name: Option<String>,
    place: Place,
    kept: bool,
}

/// Whether a file in the registry has an id for its name.
pub(super) fn is_id(name: &str) -> bool {
    let [first, rest] = ID;
    let (start, end) = name.as_bytes().split_at_checked(1).unwrap_or_default();
    name.len() == ID_BYTES
        && start.iter().all(|byte| first.contains(byte))
        && end.iter().all(|byte| rest.contains(byte))
}

pub(super) fn create(place: &Place, name: Option<&str>) -> Result<Claim> {
    name.map(name::check).transpose()?;
    let root = place.make()?;
    let guard = place.lock(&root)?;
    if let Some(name) = name {
        let vms = vm::list(place, &root)?;
        if let Some(holder) = vms.iter().find(|vm| vm.is_alive() && vm.entry.name.as_deref() == Some(name)) {
            // Its process may have to be looked for in all of /proc: not while everybody waits.
            drop(guard);
            return Err(taken(name, holder));
        }
    }
    let failed = |what: &str, cause: Errno| {
        Error::host("REGISTRY_DIRECTORY", format!("{what} in {}", place.path().display()), cause)
            .hint("set MACHINEN_REGISTRY_DIR to a directory of your own that you can write to")
    };
    let id = loop {
        let id = random_id().map_err(|cause| failed("make an id", cause))?;
        if statat(&root, &id, AtFlags::SYMLINK_NOFOLLOW).err() == Some(Errno::NOENT) {
            break id;
        }
    };
    let temporary = format!("{NEW}{id}");
    let made = make(&root, &temporary, &id, name).and_then(|lock| {
        renameat(&root, &temporary, &root, &id)?;
        Ok(lock)
    });
    match made {
        Ok(lock) => {
            let (name, dir) = (name.map(str::to_owned), place.path().join(&id));
            Ok(Claim { id, dir, lock, name, place: place.clone(), kept: false })
        }
        Err(cause) => {
            // What is left is garbage: the next gc takes it.
            let _: io::Result<()> = fs::remove_dir_all(place.path().join(temporary));
            Err(failed("make a machine's directory", cause))
        }
    }
}

/// Makes a whole directory under a name that nobody looks at.
fn make(root: &OwnedFd, temporary: &str, id: &str, name: Option<&str>) -> rustix::io::Result<OwnedFd> {
    mkdirat(root, temporary, Mode::RWXU)?;
    let dir = openat(root, temporary, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let lock = openat(&dir, "lock", flags, Mode::RUSR | Mode::WUSR)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    let entry = Entry { id: id.to_owned(), name: name.map(str::to_owned), ..Entry::new() };
    vm::write(&dir, &entry)?;
    Ok(lock)
}

fn random_id() -> rustix::io::Result<String> {
    let mut random = [0; ID_BYTES];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let [first, rest] = ID;
    let letter = |(at, byte): (usize, u8)| {
        let letters = if at == 0 { first } else { rest };
        letters.get(usize::from(byte) % letters.len()).copied().map(char::from)
    };
    Ok(random.into_iter().enumerate().filter_map(letter).collect())
}

fn taken(name: &str, holder: &Vm) -> Error {
    let by = match holder.process() {
        Some(process) => format!("process {}", process.pid),
        None => format!("machine {}", holder.id),
    };
    let unknown = if holder.state == State::Alive { "" } else { ", whose entry cannot be read" };
    let message = format!("name {}: {by} has it{unknown}", name::show(name));
    Error::new("REGISTRY_NAME_TAKEN", message).hint(format!("choose another name, or: machinen stop {name}"))
}

impl Claim {
    /// The machine's name.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Writes the entry, at once or not at all. Its id and name are the claim's, whatever it says.
    ///
    /// # Errors
    /// `REGISTRY_DIRECTORY`: it cannot be written.
    pub fn write(&self, entry: &Entry) -> Result<()> {
        let entry = Entry { id: self.id.clone(), name: self.name.clone(), ..entry.clone() };
        let write = || {
            let dir = vm::open_dir(&self.dir)?;
            vm::write(&dir, &entry)
        };
        write().map_err(|cause| {
            Error::host("REGISTRY_DIRECTORY", format!("write {}", self.dir.join("vm.json").display()), cause)
        })
    }

    /// A standard input for the monitor: empty, and it holds the lock until the monitor ends.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn stdin(&self) -> io::Result<Stdio> {
        self.lock.try_clone().map(Stdio::from)
    }

    /// Calls `spawn`, whose child inherits the lock under the same number: it is held then until that child ends, too. So does
    /// a child that another thread starts meanwhile; with [`Claim::stdin`] it does not.
    ///
    /// # Errors
    /// Of `spawn`.
    pub fn lend<T>(&self, spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        fcntl_setfd(&self.lock, FdFlags::empty())?;
        let spawned = spawn();
        fcntl_setfd(&self.lock, FdFlags::CLOEXEC)?;
        spawned
    }

    /// A path to `name` in the directory for bind(2) and connect(2), however long the directory's is.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn socket(&self, name: &str) -> io::Result<ShortPath> {
        ShortPath::new(&self.dir, name)
    }

    /// Leaves the directory to the machine. Returns the lock: whoever closes the last copy ends the machine's life.
    pub fn keep(mut self) -> io::Result<OwnedFd> {
        self.kept = true;
        self.lock.try_clone()
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now is left to gc.
            let _: Result<bool> = gc::remove(&self.place, &self.id, gc::Whose::Own);
        }
    }
}

//! A machine in the registry: its entry, whether it is alive, its end.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, flock, openat, renameat, statat};
use rustix::io::Errno;

use super::claim::is_id;
use super::entry::{Entry, MOST_BYTES};
use super::name;
use super::place::Place;
use super::process::{Handle, Now, Process, Signal, holders, wait_all};
use crate::error::{Error, Result};

/// What a machine's directory says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its lock is held.
    Alive,
    /// Its lock is free.
    Dead,
    /// Its lock is free, and the number of its process belongs to another now.
    Recycled,
    /// Its entry cannot be read: why. [`Vm::is_alive`] tells whether it lives.
    Unreadable(String),
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Its id.
    pub id: String,
    /// Its directory, absolute.
    pub dir: PathBuf,
    /// What is known of it; nothing where it cannot be read.
    pub entry: Entry,
    /// Whether it is alive.
    pub state: State,
    alive: bool,
}

/// How long a process that was sent SIGKILL may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long helpers may take to end by themselves.
const HELPER_LIMIT: Duration = Duration::from_secs(1);
/// Between two looks at a lock whose holder cannot be seen.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// All machines, the oldest first.
pub(super) fn list(place: &Place, root: &OwnedFd) -> Result<Vec<Vm>> {
    let mut vms: Vec<Vm> =
        names(place, root)?.iter().filter(|id| is_id(id)).filter_map(|id| look(place, root, id)).collect();
    vms.sort_by(|a, b| (a.entry.started_unix_ms, &a.id).cmp(&(b.entry.started_unix_ms, &b.id)));
    Ok(vms)
}

/// The names of what is in the registry's directory.
pub(super) fn names(place: &Place, root: &OwnedFd) -> Result<Vec<String>> {
    let read = || Dir::read_from(root)?.collect::<rustix::io::Result<Vec<_>>>();
    let entries = read().map_err(|cause| {
        Error::host("REGISTRY_DIRECTORY", format!("read directory {}", place.path().display()), cause)
    })?;
    Ok(entries.iter().filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned)).collect())
}

/// The names of what is in a machine's directory, in order; those that can be had.
pub(super) fn names_in(dir: &OwnedFd) -> Vec<String> {
    let entries = Dir::read_from(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| !is_dots(name)).collect();
    names.sort_unstable();
    names
}

fn is_dots(name: &str) -> bool {
    matches!(name, "." | "..")
}

/// The machine of this id; `None` when there is no such directory.
pub(super) fn look(place: &Place, root: &OwnedFd, id: &str) -> Option<Vm> {
    // The lock first: what it says of a dead one does not change any more.
    let lock = locked(root, Path::new(id));
    let (entry, mut why) = match read(root, id) {
        Ok(entry) => (entry, None),
        Err(why) => (Entry::default(), Some(why)),
    };
    let alive = match lock {
        Ok(alive) => alive,
        Err(Errno::NOTDIR | Errno::LOOP) => return None,
        Err(Errno::NOENT) => {
            statat(root, id, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            false
        }
        Err(error) => {
            // Nobody can tell, so nobody may clean up.
            why = Some(format!("lock: {error}"));
            true
        }
    };
    let is_another = |found: Process| Some(found) != entry.process() || entry.is_of_earlier_boot();
    let state = match why {
        Some(why) => State::Unreadable(why),
        None if alive => State::Alive,
        None if entry.pid.and_then(Process::of).is_some_and(is_another) => State::Recycled,
        None => State::Dead,
    };
    let entry = Entry { id: id.to_owned(), ..entry };
    Some(Vm { id: id.to_owned(), dir: place.path().join(id), entry, state, alive })
}

/// Whether the lock in the directory is held. Asking never makes it look held to others who ask.
pub(super) fn locked(root: impl AsFd, dir: &Path) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(root, dir.join("lock"), flags, Mode::empty())?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Reads `vm.json` in the directory `dir`.
pub(super) fn read(root: impl AsFd, dir: &str) -> std::result::Result<Entry, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = openat(root, format!("{dir}/vm.json"), flags, Mode::empty());
    let mut file = File::from(open.map_err(|error| format!("vm.json: {error}"))?);
    // One read and no allocation for nearly all: listing is made of this.
    let mut buffer = [0; 4096];
    let length = file.read(&mut buffer).map_err(|error| format!("vm.json: {error}"))?;
    let first = buffer.get(..length).unwrap_or_default();
    if length < buffer.len() {
        return Entry::parse(first).map_err(|why| format!("vm.json: {why}"));
    }
    let mut text = first.to_vec();
    let most = u64::try_from(MOST_BYTES).unwrap_or(u64::MAX);
    file.take(most).read_to_end(&mut text).map_err(|error| format!("vm.json: {error}"))?;
    if text.len() > MOST_BYTES {
        return Err("vm.json: it is too long".into());
    }
    Entry::parse(&text).map_err(|why| format!("vm.json: {why}"))
}

/// Opens a machine's directory.
pub(super) fn open_dir(dir: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

/// Writes `vm.json` in the directory, at once or not at all.
pub(super) fn write(dir: &OwnedFd, entry: &Entry) -> rustix::io::Result<()> {
    const TEMPORARY: &str = ".vm.json.new";
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(openat(dir, TEMPORARY, flags, Mode::RUSR | Mode::WUSR)?);
    let text = format!("{:#}\n", entry.to_value());
    file.write_all(text.as_bytes()).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    renameat(dir, TEMPORARY, dir, "vm.json")
}

impl Vm {
    /// Its lock is held, or cannot be looked at.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// Its name, or its id where it has none.
    pub fn label(&self) -> &str {
        self.entry.name.as_deref().unwrap_or(&self.id)
    }

    /// The process that runs it: that of the entry while it holds the lock, else the youngest that does. `None`: dead.
    pub fn process(&self) -> Option<Process> {
        if !self.alive {
            return None;
        }
        let lock = self.lock_identity();
        let is_it = |process: &Process| {
            process.now() == Now::Same && lock.is_none_or(|lock| process.holds(lock) != Some(false))
        };
        let found = self.entry.process().filter(is_it);
        found.or_else(|| lock.and_then(|lock| holders(lock).pop()))
    }

    /// The process's number and resident bytes, without the look at its descriptors that [`Vm::process`] takes: from there
    /// only where the entry's process is none.
    pub fn resident(&self) -> Option<(u32, u64)> {
        let written = self.entry.process().filter(|_| self.alive);
        let found = written.and_then(|written| Process::with_rss(written.pid).filter(|found| found.0 == written));
        let found = found.or_else(|| Process::with_rss(self.process()?.pid));
        found.map(|(process, bytes)| (process.pid, bytes))
    }

    /// Bytes that the guest gave back to the host since its start: of the file `stats`, whose layout is the monitor's.
    /// `None` where there is none.
    pub fn reclaimed(&self) -> Option<u64> {
        let file = File::open(self.dir.join("stats")).ok()?;
        let mut numbers = [[0; 8]; 3];
        file.read_exact_at(numbers.as_flattened_mut(), 0).ok()?;
        let [reported, inflated, _] = numbers.map(u64::from_le_bytes);
        reported.checked_add(inflated)
    }

    /// Ends it, without its guest's help: SIGTERM, after `limit` SIGKILL to everybody who holds its lock. Then its helpers.
    ///
    /// Returns whether SIGTERM was enough. One that is dead already has only its helpers ended.
    ///
    /// # Errors
    /// `REGISTRY_KILL`: it lives on.
    pub fn kill(&self, limit: Duration) -> Result<bool> {
        let mut gently = true;
        if self.alive && !self.has_ended() {
            if let Some(handle) = self.process().and_then(Process::open) {
                handle.signal(Signal::TERM);
            }
            gently = self.wait_dead(limit);
            if !gently {
                for handle in self.holders() {
                    handle.signal(Signal::KILL);
                }
                if !self.wait_dead(KILL_LIMIT) {
                    let message = format!("machine {}: it does not end", name::show(self.label()));
                    return Err(Error::new("REGISTRY_KILL", message).retry());
                }
            }
        }
        self.end_helpers();
        Ok(gently)
    }

    /// Waits until it is dead. False: not within `limit`.
    pub fn wait_dead(&self, limit: Duration) -> bool {
        let deadline = Instant::now().checked_add(limit);
        let left = || deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        while !self.has_ended() {
            let handles = match self.process().and_then(Process::open) {
                Some(handle) => vec![handle],
                None => self.holders(),
            };
            if left().is_zero() {
                return false;
            }
            if handles.is_empty() {
                // Its holder has just gone, or is another user's.
                std::thread::sleep(left().min(LOOK_AGAIN));
            } else if !wait_all(&handles, left()) {
                return self.has_ended();
            }
        }
        true
    }

    /// A handle of the process that runs it, for waiting beside other things.
    pub fn open(&self) -> Option<Handle> {
        self.process()?.open()
    }

    /// The helpers that are left of it, as its entry names them.
    pub fn helpers(&self) -> Vec<Process> {
        helpers(&self.entry)
    }

    /// Ends the helpers that are left. Returns those that were.
    pub fn end_helpers(&self) -> Vec<Process> {
        end_helpers(&self.entry)
    }

    /// Whether the lock is free by now. Not while it cannot be looked at.
    pub fn has_ended(&self) -> bool {
        match locked(CWD, &self.dir) {
            Ok(held) => !held,
            Err(error) => matches!(error, Errno::NOENT | Errno::NOTDIR),
        }
    }

    fn holders(&self) -> Vec<Handle> {
        let found = self.lock_identity().map(holders).unwrap_or_default();
        found.into_iter().filter_map(Process::open).collect()
    }

    fn lock_identity(&self) -> Option<(u64, u64)> {
        let found = std::fs::symlink_metadata(self.dir.join("lock")).ok()?;
        Some((found.dev(), found.ino()))
    }
}

/// The helpers in an entry that are still those processes.
pub(super) fn helpers(entry: &Entry) -> Vec<Process> {
    let of_now = !entry.helpers.is_empty() && !entry.is_of_earlier_boot();
    entry.helpers.iter().copied().filter(|helper| of_now && helper.now() == Now::Same).collect()
}

/// Ends them: SIGTERM, then SIGKILL. Returns those that were there.
pub(super) fn end_helpers(entry: &Entry) -> Vec<Process> {
    let found: Vec<(Process, Handle)> =
        helpers(entry).into_iter().filter_map(|helper| Some((helper, helper.open()?))).collect();
    let (processes, handles): (Vec<Process>, Vec<Handle>) = found.into_iter().unzip();
    for signal in [Signal::TERM, Signal::KILL] {
        for handle in &handles {
            handle.signal(signal);
        }
        if wait_all(&handles, HELPER_LIMIT) {
            break;
        }
    }
    processes
}

//! From a machine to a bundle.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use machinen_abi::body::Reason;
use machinen_abi::open::{Operation, Tag};
use serde_json::Value;

use super::meta::Meta;
use super::{Engine, LAYER, Tcp, ctl};
use crate::agent::relay::{Out, Over};
use crate::agent::request::Request;
use crate::agent::wire::Wire;
use crate::agent::{self, printable};
use crate::error::{Error, Result};
use crate::registry::Registry;
use crate::vm::{BUNDLE_TAG, Vm};

/// Another dump, or the memory of a lazy restore, is not through yet.
const BUSY: &str = "SNAPSHOT_BUSY";
/// How long that is waited for.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// How a machine is frozen.
#[derive(Clone, Debug, Default)]
pub struct SnapshotOptions {
    /// By what.
    pub engine: Engine,
    /// The processes go on; else they are gone, and the machine ends.
    pub leave_running: bool,
    /// TCP connections.
    pub tcp: Tcp,
    /// Instead of CRIU: a command of the guest's, with the number of the first process in `MACHINEN_DUMP_PID` and the directory
    /// for the images in `MACHINEN_DUMP_DIR`.
    pub command: Vec<OsString>,
    /// The most that the dump may take; without a limit as long as it needs.
    pub limit: Option<Duration>,
}

impl Vm {
    /// Freezes the main command and all its processes into `dir`, which must be empty or not there yet.
    ///
    /// # Errors
    /// `SNAPSHOT_BUSY` while another is being taken; `SNAPSHOT_DIRECTORY` when `dir` cannot be used; `SNAPSHOT_FAILED`, with the last
    /// words of CRIU, when the processes cannot be dumped: they go on, and the log is in `dir`. `CTL_…` and `EXEC_…` when the
    /// machine cannot be asked.
    pub fn snapshot(&self, dir: &Path, options: &SnapshotOptions) -> Result<Meta> {
        let begin = Instant::now();
        let entry = Registry::open()?.find(self.id())?.entry;
        // Until the end of this nobody else puts a directory on the share.
        let _turn = self.take_turn()?;
        let inner = Inner::make(dir)?;
        let mut steps = Steps { begin, done: Vec::new() };
        let dumped = self.dump_when_free(&inner, options, &mut steps);
        let saved = dumped.as_ref().map_or(Ok(()), |_| self.save_disk(dir));
        // A machine that has ended has let go of it; what a dump did is told first.
        let unshared = ctl::ask(self.dir(), &format!("unshare {BUNDLE_TAG}"), None);
        let given = inner.give(dir);
        let (workload, stream) = dumped.map_err(|error| with_log(error, dir))?;
        given?;
        saved?;
        // Without its processes the machine ends with this.
        drop(stream);
        if options.leave_running {
            unshared?;
        }
        steps.end("disk");
        let mut meta = Meta::of(&entry, self.label(), workload);
        meta.phases = steps.done;
        meta.write(dir)?;
        Ok(meta)
    }

    /// Puts what the guest has written to its root disk beside the images.
    fn save_disk(&self, dir: &Path) -> Result<()> {
        agent::sync(self.dir())?;
        let path = dir.join(LAYER);
        let failed = |cause| Error::host("SNAPSHOT_DIRECTORY", format!("make {}", path.display()), cause);
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        ctl::ask(self.dir(), "layer", Some(file.as_fd()))
    }

    /// One snapshot of a machine is taken at a time. What is given back ends with this process, however that ends.
    fn take_turn(&self) -> Result<File> {
        let failed =
            |cause| Error::host("SNAPSHOT_DIRECTORY", format!("lock directory {}", self.dir().display()), cause);
        let turn = File::open(self.dir()).map_err(failed)?;
        match turn.try_lock() {
            Ok(()) => Ok(turn),
            Err(TryLockError::WouldBlock) => {
                let message = format!("machine {}: another snapshot of it is being taken", self.label());
                Err(Error::new(BUSY, message).retry())
            }
            Err(TryLockError::Error(cause)) => Err(failed(cause)),
        }
    }

    /// Dumps into the directory, as soon as the guest has no other bundle: the dump of a tool that was killed goes on to its end,
    /// and a lazy restore has its own until all memory has come.
    fn dump_when_free(&self, inner: &Inner, options: &SnapshotOptions, steps: &mut Steps) -> Result<(Value, Wire)> {
        let patience = Instant::now() + options.limit.map_or(PATIENCE, |limit| limit.min(PATIENCE));
        loop {
            let shared = ctl::ask(self.dir(), &format!("share {BUNDLE_TAG}"), Some(inner.directory.as_fd()));
            let error = match shared.and_then(|()| self.dump(options, steps)) {
                Err(error) if [BUSY, ctl::SHARE_BUSY].contains(&error.code()) => error,
                done => return done,
            };
            // What another has begun to write there is not taken for one's own.
            let is_empty = fs::read_dir(&inner.path).is_ok_and(|mut items| items.next().is_none());
            if Instant::now() >= patience || !is_empty {
                let message = format!("machine {}: an earlier dump or lazy restore is not through yet", self.label());
                return Err(Error::new(BUSY, message).because(error).retry());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Has the agent dump; gives what it says of the main command, and the stream, with whose end a machine without processes
    /// ends.
    fn dump(&self, options: &SnapshotOptions, steps: &mut Steps) -> Result<(Value, Wire)> {
        let mut request = Request::new(Operation::Dump);
        for word in &options.command {
            request = request.with(Tag::Argument, word.as_bytes());
        }
        if options.leave_running {
            request = request.with(Tag::LeaveRunning, []);
        }
        request = options.tcp.ask(request);
        if let Some(limit) = options.limit {
            let seconds = u32::try_from(limit.as_secs().max(1)).unwrap_or(u32::MAX);
            request = request.with(Tag::Timeout, seconds.to_le_bytes());
        }
        steps.end("open");
        let relay = self.relay_request(&request, Out::Last(Vec::new()), Out::Last(Vec::new()))?;
        let (done, stream) = relay.run_holding()?;
        steps.guest(&done.marks);
        let said = String::from_utf8_lossy(&done.error);
        match done.over {
            Over::Exit(exit) if exit.status() == 0 => serde_json::from_slice(&done.output)
                .map(|workload| (workload, stream))
                .map_err(|_| failed(self.label(), "the agent did not say what it dumped".into())),
            Over::Exit(exit) => {
                Err(failed(self.label(), format!("exit code {}: {}", exit.status(), printable(said.trim()))))
            }
            Over::Refused(refusal) if refusal.reason == Reason::Busy => Err(Error::new(BUSY, refusal.message).retry()),
            Over::Refused(refusal) => Err(failed(self.label(), refusal.message)),
            _ => Err(failed(self.label(), "the machine ended meanwhile".into())),
        }
    }
}

fn failed(label: &str, why: String) -> Error {
    Error::new("SNAPSHOT_FAILED", format!("dump the processes of machine {label}: {why}"))
}

fn with_log(error: Error, dir: &Path) -> Error {
    let log = dir.join("dump.log");
    match log.is_file() {
        true => error.hint(format!("all of the log is in {}", log.display())),
        false => error,
    }
}

/// The directory in the bundle's that is the guest's. A guest that had the bundle's own could write its `meta.json`, and with that say
/// which of the host's directories a restored machine gets.
struct Inner {
    path: PathBuf,
    directory: File,
}

impl Inner {
    /// Makes the bundle's directory, where it is not there yet, and this one in it; both closed to others: memory holds secrets.
    fn make(dir: &Path) -> Result<Inner> {
        let failed = |cause| {
            let error = Error::host("SNAPSHOT_DIRECTORY", format!("make directory {}", dir.display()), cause);
            error.hint("DIR is made by the snapshot, in a directory that exists; one that is there must be empty, and this user's")
        };
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
                // Only its owner can.
                fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)?;
                if fs::read_dir(dir).map_err(failed)?.next().is_some() {
                    let message = format!("directory {}: it is not empty", dir.display());
                    return Err(
                        Error::new("SNAPSHOT_DIRECTORY", message).hint("give another, or one that is not there yet")
                    );
                }
            }
            made => made.map_err(failed)?,
        }
        let path = dir.join(".guest");
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let directory = File::open(&path).map_err(failed)?;
        Ok(Inner { path, directory })
    }

    /// Gives the bundle what the guest has made, and nothing else that it left. Looked at where the guest cannot exchange it any more.
    ///
    /// Errors: `SNAPSHOT_FAILED` when there are no images.
    fn give(self, dir: &Path) -> Result<()> {
        let place = |name: &str, is_right: fn(&fs::FileType) -> bool| {
            let path = dir.join(name);
            fs::rename(self.path.join(name), &path)?;
            let kind = fs::symlink_metadata(&path)?.file_type();
            if is_right(&kind) {
                return Ok(());
            }
            if kind.is_dir() {
                fs::remove_dir_all(&path)?
            } else {
                fs::remove_file(&path)?
            }
            Err(io::Error::from(io::ErrorKind::InvalidData))
        };
        let images = place("img", fs::FileType::is_dir);
        // Without CRIU there is none.
        let _ = place("dump.log", fs::FileType::is_file);
        let _ = fs::remove_dir_all(&self.path);
        images.map_err(|cause| {
            Error::host("SNAPSHOT_FAILED", format!("the guest has left no images in {}", dir.display()), cause)
        })
    }
}

/// How long each step took.
struct Steps {
    begin: Instant,
    done: Vec<(String, u64)>,
}

impl Steps {
    fn end(&mut self, name: &str) {
        let took = std::mem::replace(&mut self.begin, Instant::now()).elapsed();
        let ms = took.as_millis().try_into().unwrap_or(u64::MAX);
        match self.done.last_mut() {
            // Tried again.
            Some((last, sum)) if last == name => *sum = sum.saturating_add(ms),
            _ => self.done.push((name.to_owned(), ms)),
        }
    }

    /// What the guest names: each point is the end of a step.
    fn guest(&mut self, marks: &[(u64, String)]) {
        for ((from, _), (to, name)) in marks.iter().zip(marks.iter().skip(1)) {
            self.done.push((name.clone(), to.saturating_sub(*from) / 1_000_000));
        }
        self.begin = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("machinen-snapshot-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn the_guest_gives_images_and_a_log_and_nothing_else() {
        let top = scratch("inner");
        let dir = top.join("bundle");
        let names = || {
            let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|item| item.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let inner = Inner::make(&dir).unwrap();
        let guest = inner.path.clone();
        fs::create_dir(guest.join("img")).unwrap();
        for name in ["dump.log", "meta.json", "img/core-1.img"] {
            fs::write(guest.join(name), "").unwrap();
        }
        inner.give(&dir).unwrap();
        assert_eq!(names(), ["dump.log", "img"]);
        assert!(dir.join("img/core-1.img").is_file());
        assert_eq!(Inner::make(&dir).err().map(|error| error.code()), Some("SNAPSHOT_DIRECTORY"));
        fs::remove_dir_all(&dir).unwrap();

        // Links are not what they lead to.
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
        let inner = Inner::make(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        symlink("/", guest.join("img")).unwrap();
        symlink("/etc/passwd", guest.join("dump.log")).unwrap();
        assert_eq!(inner.give(&dir).unwrap_err().code(), "SNAPSHOT_FAILED");
        assert!(names().is_empty());
        let inner = Inner::make(&dir).unwrap();
        assert_eq!(inner.give(&dir).unwrap_err().code(), "SNAPSHOT_FAILED");
        fs::remove_dir_all(&top).unwrap();
    }
}

//! From a machine to a bundle.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use machinen_abi::body::{Exit, HELD, Reason, TAKEN};
use machinen_abi::open::{Operation, Tag};
use serde_json::Value;

use super::inner::Inner;
use super::meta::{self, Meta};
use super::{Engine, LAYER, LOWERS, Tcp, ctl, halves};
use crate::agent::relay::{Done, Over, Relay};
use crate::agent::request::Request;
use crate::agent::{self, printable};
use crate::error::{Error, Result};
use crate::registry::{Entry, Registry};
use crate::vm::{BUNDLE_TAG, Vm};

/// Another dump, or the memory of a lazy restore, is not through yet.
const BUSY: &str = "SNAPSHOT_BUSY";
/// How long that is waited for.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a guest is waited for that is told that its dump is not taken.
const LAST_PATIENCE: Duration = Duration::from_secs(5);
/// How long a machine without processes is waited for.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// The time of the snapshot was over.
const TIMEOUT: &str = "SNAPSHOT_TIMEOUT";
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
    /// The most that it may take, whatever is waited for; without a limit as long as it needs.
    pub limit: Option<Duration>,
}

/// A dump that is written.
struct Dump {
    /// What the agent says of the main command.
    workload: Value,
    /// Its stream: the processes stand still until the guest hears that it is taken, or that the stream has ended.
    relay: Relay,
    /// It was not held, and is over.
    is_over: bool,
}

impl Vm {
    /// Freezes the main command and all its processes into `dir`, which must be empty or not there yet. They stand still until the
    /// bundle is whole; when this process ends before that, whatever ends it, they go on. Where they are not to go on, the machine has
    /// ended when this returns: its name and its ports are free.
    ///
    /// # Errors
    /// `SNAPSHOT_BUSY` while another is being taken; `SNAPSHOT_DIRECTORY` when `dir` cannot be used, or written; `SNAPSHOT_FAILED`, with
    /// the last words of CRIU, when the processes cannot be dumped: the log is in `dir`. `SNAPSHOT_TIMEOUT`. `CTL_…` and `EXEC_…` when the
    /// machine cannot be asked. The processes go on, and `dir` is no bundle, unless the message says something else.
    pub fn snapshot(&self, dir: &Path, options: &SnapshotOptions) -> Result<Meta> {
        let mut steps = Steps { begin: Instant::now(), done: Vec::new() };
        let limit = options.limit.and_then(|limit| steps.begin.checked_add(limit));
        let registry = Registry::open()?;
        let vm = registry.find(self.id())?;
        // Until the end of this nobody else puts a directory on the share.
        let mut turn = Some(self.take_turn()?);
        let mut inner = Inner::make(dir)?;
        let dump = self.dump_when_free(&inner, options, &mut steps, limit);
        let made = dump.and_then(|dump| match self.keep(&mut inner, &vm.entry, &dump, options, &mut steps, limit) {
            Ok(meta) => Ok((dump, meta)),
            Err(error) => {
                refuse(dump, limit);
                Err(error)
            }
        });
        let made = made.map_err(|error| self.late(error, options, limit));
        let ended = match made {
            // From here on it is the guest's to say what becomes of the processes.
            Ok((dump, meta)) => {
                if !options.leave_running {
                    // Whoever is to remove the machine's directory when it has ended takes the same lock, and does not wait.
                    drop(turn.take());
                }
                self.take(dump, dir, &mut steps).map_or_else(End::Unknown, |()| End::Taken(Box::new(meta)))
            }
            Err(error) => End::Refused(error),
        };
        inner.give_log();
        // A machine that has ended has let go of it.
        let unshared = ctl::ask(self.dir(), &format!("unshare {BUNDLE_TAG}"), None, limit);
        let ended = match (ended, unshared) {
            (End::Taken(_), Err(error)) if options.leave_running && error.code() == ctl::SHARE_BUSY => {
                End::Refused(failed(self.label(), "the guest does not let go of the bundle".into()).because(error))
            }
            (ended, _) => ended,
        };
        match ended {
            End::Taken(mut meta) => {
                inner.remove();
                let left = limit.map_or(END_PATIENCE, |limit| limit.saturating_duration_since(Instant::now()));
                // A bundle that is whole is no failure, whatever becomes of the machine.
                if !options.leave_running && vm.wait_dead(left.min(END_PATIENCE)) {
                    vm.end_helpers();
                    if vm.entry.detached {
                        // Nobody else is there to do it, but for machinen gc.
                        let _ = registry.remove(&vm);
                    }
                }
                meta.phases = steps.done;
                Ok(*meta)
            }
            End::Unknown(error) => Err(error),
            End::Refused(error) => {
                inner.discard();
                Err(with_log(error, dir))
            }
        }
    }

    /// Puts into the bundle what belongs there, while the processes stand still; what describes it comes last.
    fn keep(
        &self,
        inner: &mut Inner,
        entry: &Entry,
        dump: &Dump,
        options: &SnapshotOptions,
        steps: &mut Steps,
        limit: Option<Instant>,
    ) -> Result<Meta> {
        self.save_disk(inner.bundle(), limit)?;
        let lowers = meta::strings(entry.other.get(LOWERS).unwrap_or(&Value::Null));
        halves::save(self.dir(), inner.bundle(), &lowers, limit)?;
        steps.end("disk");
        inner.give()?;
        if !options.leave_running {
            // What only this host's memory has would be all that is left of them.
            inner.sync()?;
        }
        steps.end("sync");
        if limit.is_some_and(|limit| Instant::now() >= limit) {
            return Err(failed(self.label(), "all is written, but too late".into()));
        }
        let mut meta = Meta::of(entry, self.label(), dump.workload.clone());
        meta.phases.clone_from(&steps.done);
        meta.write(inner.bundle())?;
        Ok(meta)
    }

    /// The error of a snapshot whose time was over is that.
    fn late(&self, error: Error, options: &SnapshotOptions, limit: Option<Instant>) -> Error {
        if limit.is_none_or(|limit| Instant::now() < limit) {
            return error;
        }
        let seconds = options.limit.unwrap_or_default().as_secs_f64();
        let message = format!("machine {}: it is not frozen after {seconds} s; its processes go on", self.label());
        Error::new(TIMEOUT, message).because(error).retry()
    }

    /// Tells the guest that the bundle is whole, and waits for the end of its dump.
    ///
    /// Errors: what became of the processes is not known.
    fn take(&self, dump: Dump, dir: &Path, steps: &mut Steps) -> Result<()> {
        if dump.is_over {
            return Ok(());
        }
        let mut relay = dump.relay;
        relay.answer(Some(TAKEN));
        let ended = relay.run_holding();
        steps.end("end");
        let (code, why) = match ended {
            // The stream is closed only now: without its processes the machine ends with that. One that has ended is in the bundle, too.
            Ok((Done { over: Over::Exit(Exit::Code(0)) | Over::Lost, .. }, _stream)) => return Ok(()),
            Ok((Done { over: Over::Refused(refusal), .. }, _)) => ("SNAPSHOT_FAILED", refusal.message),
            Ok((Done { over: Over::Exit(exit), .. }, _)) => ("SNAPSHOT_FAILED", format!("exit code {}", exit.status())),
            Ok(_) => (TIMEOUT, "the guest does not say".into()),
            Err(error) => ("SNAPSHOT_FAILED", error.to_string()),
        };
        // They may be gone: a bundle that is whole is not taken away then.
        let message = format!(
            "machine {}: bundle {} is whole, but it is not known whether its processes go on: {why}",
            self.label(),
            dir.display()
        );
        Err(Error::new(code, message).hint("machinen ls shows which machines live"))
    }

    /// Puts what the guest has written to its root disk beside the images.
    fn save_disk(&self, dir: &Path, limit: Option<Instant>) -> Result<()> {
        agent::sync(self.dir(), limit)?;
        let path = dir.join(LAYER);
        let failed = |cause| Error::host("SNAPSHOT_DIRECTORY", format!("make {}", path.display()), cause);
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let written = ctl::ask(self.dir(), "layer", Some(file.as_fd()), limit);
        written.map_err(|error| Error::new("SNAPSHOT_DIRECTORY", format!("write {}", path.display())).because(error))
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

    /// Dumps into the directory, as soon as the guest has no other bundle: the dump of a tool that was killed goes on until all is
    /// written, and a lazy restore has its own until all memory has come.
    fn dump_when_free(
        &self,
        inner: &Inner,
        options: &SnapshotOptions,
        steps: &mut Steps,
        limit: Option<Instant>,
    ) -> Result<Dump> {
        let patience = Instant::now() + PATIENCE;
        let patience = limit.map_or(patience, |limit| limit.min(patience));
        loop {
            let shared = ctl::ask(self.dir(), &format!("share {BUNDLE_TAG}"), Some(inner.as_fd()), limit);
            let error = match shared.and_then(|()| self.dump(options, steps, limit)) {
                Err(error) if [BUSY, ctl::SHARE_BUSY].contains(&error.code()) => error,
                done => return done,
            };
            // What another has begun to write there is not taken for one's own.
            if Instant::now() >= patience || !inner.is_empty() {
                let message = format!("machine {}: an earlier dump or lazy restore is not through yet", self.label());
                return Err(Error::new(BUSY, message).because(error).retry());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Has the agent dump, until all is written.
    fn dump(&self, options: &SnapshotOptions, steps: &mut Steps, limit: Option<Instant>) -> Result<Dump> {
        let mut request = Request::new(Operation::Dump).with(Tag::Hold, []);
        for word in &options.command {
            request = request.with(Tag::Argument, word.as_bytes());
        }
        if options.leave_running {
            request = request.with(Tag::LeaveRunning, []);
        }
        request = options.tcp.ask(request);
        if let Some(limit) = limit {
            // Whole seconds: this end gives up first.
            let left = limit.saturating_duration_since(Instant::now()).as_secs() + 1;
            request = request.with(Tag::Timeout, u32::try_from(left).unwrap_or(u32::MAX).to_le_bytes());
        }
        steps.end("open");
        let mut relay = self.relay_request(&request, limit)?;
        let Done { over, marks, output, error } = relay.run_until(HELD)?;
        steps.guest(&marks);
        let is_over = match over {
            Over::Marked => false,
            Over::Exit(exit) if exit.status() == 0 => true,
            Over::Exit(exit) => {
                let said = String::from_utf8_lossy(&error);
                let why = format!("exit code {}: {}", exit.status(), printable(said.trim()));
                return Err(failed(self.label(), why));
            }
            Over::Refused(refusal) if refusal.reason == Reason::Busy => {
                return Err(Error::new(BUSY, refusal.message).retry());
            }
            Over::Refused(refusal) => return Err(failed(self.label(), refusal.message)),
            Over::Limit => return Err(failed(self.label(), "it takes too long".into())),
            _ => return Err(failed(self.label(), "the machine ended meanwhile".into())),
        };
        match serde_json::from_slice(&output) {
            Ok(workload) => Ok(Dump { workload, relay, is_over }),
            Err(_) => Err(failed(self.label(), "the agent did not say what it dumped".into())),
        }
    }
}

/// What became of a dump that was written.
enum End {
    /// What was asked for.
    Taken(Box<Meta>),
    /// The processes go on.
    Refused(Error),
    /// The bundle is whole, and what became of the processes is not known.
    Unknown(Error),
}

/// Lets the processes go on, and waits for that where there is time: the guest's log is whole then, and the bundle free.
fn refuse(dump: Dump, limit: Option<Instant>) {
    if dump.is_over || limit.is_some_and(|limit| Instant::now() >= limit) {
        return;
    }
    let mut relay = dump.relay.limit(Some(Instant::now() + LAST_PATIENCE));
    relay.answer(None);
    // Whatever it says: the end of the stream says the same once more.
    let _ = relay.run();
}

fn failed(label: &str, why: String) -> Error {
    Error::new("SNAPSHOT_FAILED", format!("dump the processes of machine {label}: {why}"))
}

fn with_log(error: Error, dir: &Path) -> Error {
    let log = dir.join("dump.log");
    let is_full = error.to_string().contains("No space left on device");
    match std::fs::metadata(&log) {
        _ if is_full => {
            error.hint(format!("free some room in the file system of {}, or give another directory", dir.display()))
        }
        Ok(found) if found.len() > 0 => error.hint(format!("all of the log is in {}", log.display())),
        _ => error,
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

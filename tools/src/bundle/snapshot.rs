//! From a machine to a bundle.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use machinen_abi::body::Reason;
use machinen_abi::open::{Operation, Tag};
use serde_json::Value;

use super::meta::Meta;
use super::{Engine, Tcp, ctl};
use crate::agent::relay::{Out, Over};
use crate::agent::request::Request;
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
    /// `SNAPSHOT_DIRECTORY` when `dir` cannot be used; `SNAPSHOT_FAILED`, with the last words of CRIU, when the processes cannot be
    /// dumped: they go on, and the log is in `dir`. `SNAPSHOT_BUSY` while another is taken. `CTL_…` and `EXEC_…` when the machine
    /// cannot be asked.
    pub fn snapshot(&self, dir: &Path, options: &SnapshotOptions) -> Result<Meta> {
        let begin = Instant::now();
        let entry = Registry::open()?.find(self.id())?.entry;
        // Until the end of this nobody else puts a directory on the share.
        let _turn = self.take_turn()?;
        let directory = make(dir)?;
        let mut steps = Steps { begin, done: Vec::new() };
        let dumped = self.dump_when_free((dir, &directory), options, &mut steps);
        // A machine that has ended has let go of it; what a dump did is told first.
        let unshared = ctl::ask(self.dir(), &format!("unshare {BUNDLE_TAG}"), None);
        let workload = dumped.map_err(|error| with_log(error, dir))?;
        if options.leave_running {
            unshared?;
        }
        steps.end("close");
        let mut meta = Meta::of(&entry, self.label(), workload);
        meta.phases = steps.done;
        meta.write(dir)?;
        Ok(meta)
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
    fn dump_when_free(
        &self,
        (dir, directory): (&Path, &File),
        options: &SnapshotOptions,
        steps: &mut Steps,
    ) -> Result<Value> {
        let patience = Instant::now() + options.limit.map_or(PATIENCE, |limit| limit.min(PATIENCE));
        loop {
            let shared = ctl::ask(self.dir(), &format!("share {BUNDLE_TAG}"), Some(directory.as_fd()));
            let error = match shared.and_then(|()| self.dump(options, steps)) {
                Err(error) if [BUSY, ctl::SHARE_BUSY].contains(&error.code()) => error,
                done => return done,
            };
            // What another has begun to write there is not taken for one's own.
            let is_empty = fs::read_dir(dir).is_ok_and(|mut items| items.next().is_none());
            if Instant::now() >= patience || !is_empty {
                let message = format!("machine {}: an earlier dump or lazy restore is not through yet", self.label());
                return Err(Error::new(BUSY, message).because(error).retry());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Has the agent dump; gives what it says of the main command.
    fn dump(&self, options: &SnapshotOptions, steps: &mut Steps) -> Result<Value> {
        let mut request = Request::new(Operation::Dump);
        for word in &options.command {
            request = request.with(Tag::Argument, word.as_bytes());
        }
        if options.leave_running {
            request = request.with(Tag::LeaveRunning, []);
        }
        request = match options.tcp {
            Tcp::Refuse => request,
            Tcp::Close => request.with(Tag::TcpClose, []),
            Tcp::Keep => request.with(Tag::TcpKeep, []),
        };
        if let Some(limit) = options.limit {
            let seconds = u32::try_from(limit.as_secs().max(1)).unwrap_or(u32::MAX);
            request = request.with(Tag::Timeout, seconds.to_le_bytes());
        }
        steps.end("open");
        let done = self.relay_request(&request, Out::Keep(Vec::new()), Out::Keep(Vec::new()))?.run()?;
        steps.guest(&done.marks);
        let said = String::from_utf8_lossy(&done.error);
        match done.over {
            Over::Exit(exit) if exit.status() == 0 => serde_json::from_slice(&done.output)
                .map_err(|_| failed(self.label(), "the agent did not say what it dumped".into())),
            Over::Exit(exit) => Err(failed(self.label(), format!("exit code {}: {}", exit.status(), said.trim()))),
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
        true => error.hint(format!("the machine goes on as it was; all of the log is in {}", log.display())),
        false => error,
    }
}

/// The directory, empty, and closed to others: memory holds secrets.
fn make(dir: &Path) -> Result<File> {
    let failed = |cause| {
        let error = Error::host("SNAPSHOT_DIRECTORY", format!("make directory {}", dir.display()), cause);
        error.hint("DIR is made by the snapshot, in a directory that exists; one that is there must be empty")
    };
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {
            if fs::read_dir(dir).map_err(failed)?.next().is_some() {
                let message = format!("directory {}: it is not empty", dir.display());
                return Err(
                    Error::new("SNAPSHOT_DIRECTORY", message).hint("give another, or one that is not there yet")
                );
            }
        }
        made => made.map_err(failed)?,
    }
    File::open(dir).map_err(failed)
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

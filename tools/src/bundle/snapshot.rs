//! From a machine to a bundle.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use machinen_abi::open::{Operation, Tag};
use serde_json::Value;

use super::meta::Meta;
use super::{Engine, LAYER, Tcp, ctl};
use crate::agent;
use crate::agent::relay::{Out, Over};
use crate::agent::request::Request;
use crate::agent::wire::Wire;
use crate::error::{Error, Result};
use crate::registry::Registry;
use crate::vm::{BUNDLE_TAG, Vm};

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
    /// dumped: they go on, and the log is in `dir`. `CTL_…` and `EXEC_…` when the machine cannot be asked.
    pub fn snapshot(&self, dir: &Path, options: &SnapshotOptions) -> Result<Meta> {
        let begin = Instant::now();
        let entry = Registry::open()?.find(self.id())?.entry;
        let directory = make(dir)?;
        let mut steps = Steps { begin, done: Vec::new() };
        // Until the end of this nobody else puts a directory there: the monitor refuses a second.
        ctl::ask(self.dir(), &format!("share {BUNDLE_TAG}"), Some(directory.as_fd()))?;
        let dumped = self.dump(options, &mut steps);
        let saved = dumped.as_ref().map_or(Ok(()), |_| self.save_disk(dir));
        // A machine that has ended has let go of it; what a dump did is told first.
        let unshared = ctl::ask(self.dir(), &format!("unshare {BUNDLE_TAG}"), None);
        let (workload, stream) = dumped.map_err(|error| with_log(error, dir))?;
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
        let relay = self.relay_request(&request, Out::Keep(Vec::new()), Out::Keep(Vec::new()))?;
        let (done, stream) = relay.run_holding()?;
        steps.guest(&done.marks);
        let said = String::from_utf8_lossy(&done.error);
        match done.over {
            Over::Exit(exit) if exit.status() == 0 => serde_json::from_slice(&done.output)
                .map(|workload| (workload, stream))
                .map_err(|_| failed(self.label(), "the agent did not say what it dumped".into())),
            Over::Exit(exit) => Err(failed(self.label(), format!("exit code {}: {}", exit.status(), said.trim()))),
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
        self.done.push((name.to_owned(), took.as_millis().try_into().unwrap_or(u64::MAX)));
    }

    /// What the guest names: each point is the end of a step.
    fn guest(&mut self, marks: &[(u64, String)]) {
        for ((from, _), (to, name)) in marks.iter().zip(marks.iter().skip(1)) {
            self.done.push((name.clone(), to.saturating_sub(*from) / 1_000_000));
        }
        self.begin = Instant::now();
    }
}

//! Machines: booted from options, found by name, used, and ended.
//!
//! ```no_run
//! use machinen::agent::request::Command;
//! use machinen::vm::{BootOptions, boot};
//!
//! # fn main() -> machinen::error::Result<()> {
//! let options = BootOptions::new("debian.tar").name("worker").memory_mib(512).command(["sleep", "inf"]);
//! let vm = boot(&options)?;
//! let run = vm.exec(&Command::new(["uname", "-r"]), b"")?;
//! assert_eq!(run.exit.status(), 0);
//! println!("{}", String::from_utf8_lossy(&run.stdout));
//! vm.write_file("/etc/motd", b"hello\n", Default::default())?;
//! vm.stop(std::time::Duration::from_secs(10))
//! # }
//! ```

mod monitor;
mod mounts;
mod options;
mod resolve;
mod shares;
pub(crate) mod start;
pub mod trace;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use machinen_abi::body::{Exit, Size};
use machinen_abi::frame::Kind;
use machinen_abi::open::{Operation, Tag};
use rustix::fs::{MemfdFlags, memfd_create};

use self::monitor::Own;
pub use self::options::BootOptions;
pub(crate) use self::options::ShareOption;
pub use self::resolve::{Kernel, default_memory_mib, resolve_image, resolve_kernel, resolve_vmm};
pub(crate) use self::shares::BUNDLE_TAG;
use self::start::{BOOT_LOG, Outcome, Started, prepare};
use crate::agent;
use crate::agent::channel::Channel;
use crate::agent::relay::{Done, Out, Over, Pause, Relay};
use crate::agent::request::{Command, Request};
use crate::agent::signals::Signals;
use crate::agent::transfer::Transfer;
use crate::bootlog::{self, Broken};
use crate::bundle;
use crate::error::{Error, Result};
use crate::registry::{self, Claim, Registry, Removed};

/// A machine.
///
/// One that [`boot`] made and that is not detached ends when this is dropped, and its directory is removed. Others are left alone.
#[derive(Debug)]
pub struct Vm {
    id: String,
    name: Option<String>,
    dir: PathBuf,
    /// What is owned of a machine that this process has booted.
    own: Option<Own>,
    marks: Vec<(u64, String)>,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to standard output; of a terminal everything.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

/// How [`Vm::write_file`] writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Permission bits of the file afterwards; without them a new one gets 0644, and one that is there keeps its own.
    pub mode: Option<u32>,
    /// At its end, instead of in its place.
    pub append: bool,
    /// Makes the directories above where they are missing.
    pub parents: bool,
}

/// Memory of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The most that the guest can have.
    pub ceiling_bytes: u64,
    /// What the host has given to the monitor and its guest.
    pub resident_bytes: Option<u64>,
    /// What the guest has given back since its start.
    pub reclaimed_bytes: Option<u64>,
    /// Pages (4 KiB) that a lazy restore still has to bring; `None` without one, and where the guest does not say.
    pub lazy_pages_pending: Option<u64>,
}

/// Boots a machine and starts its main command, with no input; its output is thrown away unless [`Vm::relay_main`] takes it.
///
/// # Errors
/// `BOOT_…` when something is missing or the machine ends early, `ROOTFS_IMG_…` and `MOUNTDISK_…` of its disks, `NET_…` of its
/// ports, `REGISTRY_…` of its name, `EXEC_…` of its command where it is detached.
pub fn boot(options: &BootOptions) -> Result<Vm> {
    match prepare(options)?.start(None, None)? {
        Outcome::Started(claim, started) => {
            let mut vm = launch(claim, *started, options)?;
            match vm.detach_if_asked(options, None, None)? {
                None => Ok(vm),
                Some(Over::Refused(refusal)) => Err(refusal.error()),
                Some(_) => Err(vm.lost()),
            }
        }
        Outcome::Signal(_) | Outcome::Limit => Err(Error::new("BOOT_ENDED", "the start was given up")),
    }
}

/// Sends the main command.
pub(crate) fn launch(claim: Claim, started: Started, options: &BootOptions) -> Result<Vm> {
    let Started { child, monitor, mut main, marks } = started;
    let (id, name, dir) = (claim.id.clone(), claim.name().map(str::to_owned), claim.dir.clone());
    let keep = options.keep;
    let request = match &options.restore {
        Some(restore) => restore.request(&options.command),
        None => options.command.request(),
    };
    let payload = request.to_payload();
    if let Ok(payload) = &payload {
        main.send(Kind::Open, payload);
        main.flush();
    }
    let own = Own { claim: Some(claim), child, monitor, main: Some(main), keep, left: false };
    let vm = Vm { id, name, dir, own: Some(own), marks };
    payload.map(|_| vm)
}

/// The machine that lives under this name, id or process number.
///
/// # Errors
/// `REGISTRY_VM_NOT_FOUND`.
pub fn attach(key: &str) -> Result<Vm> {
    let registry::Vm { id, dir, entry, .. } = Registry::open()?.find(key)?;
    Ok(Vm { id, name: entry.name, dir, own: None, marks: Vec::new() })
}

/// All machines, dead ones that nobody has collected too.
///
/// # Errors
/// `REGISTRY_DIRECTORY`.
pub fn list() -> Result<Vec<registry::Vm>> {
    Registry::open()?.list()
}

/// Removes what dead machines left; with `dry_run` only tells.
///
/// # Errors
/// `REGISTRY_DIRECTORY`.
pub fn gc(dry_run: bool) -> Result<Vec<Removed>> {
    Registry::open()?.gc(dry_run)
}

impl Vm {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its name, or its id where it has none.
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.id)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Points of its start, in ns since 1970: those of this process, of the guest, and with
    /// [`BootOptions::trace`] of the monitor. In no order.
    pub fn marks(&self) -> Vec<(u64, String)> {
        self.marks.iter().cloned().chain(start::marks(&self.dir)).collect()
    }

    /// Where the main command is to be detached, waits until it has started and leaves the machine alone. `Some`: it
    /// has not, because of this.
    pub(crate) fn detach_if_asked(
        &mut self,
        options: &BootOptions,
        signals: Option<Signals>,
        limit: Option<Instant>,
    ) -> Result<Option<Over>> {
        if !options.command.detached {
            return Ok(None);
        }
        let Some(relay) = self.relay_main(None, Out::Nowhere, Out::Nowhere) else { return Ok(Some(Over::Lost)) };
        let mut relay = relay.until_started().limit(limit);
        if let Some(signals) = signals {
            relay = relay.signals(signals, Pause::Nothing);
        }
        let done = relay.run()?;
        self.marks.extend(done.marks);
        match done.over {
            // A command that is over at once has started, too.
            Over::Started | Over::Exit(_) => self.detach().map(|()| None),
            over => Ok(Some(over)),
        }
    }

    /// Runs a command with `stdin` as its input, to its end.
    ///
    /// # Errors
    /// `EXEC_…`.
    pub fn exec(&self, command: &Command, stdin: &[u8]) -> Result<Run> {
        let input = memory(stdin).map_err(|cause| Error::host("EXEC_INPUT", "keep the command's input", cause))?;
        let done = self.relay(command, Some(input), Out::Keep(Vec::new()), Out::Keep(Vec::new()))?.run()?;
        self.result(done)
    }

    /// [`Vm::exec`] with a terminal of this size; what is in `stdin` is typed.
    ///
    /// # Errors
    /// `EXEC_…`.
    pub fn exec_pty(&self, command: &Command, stdin: &[u8], rows: u16, columns: u16) -> Result<Run> {
        let command = Command { terminal: Some(Size { rows, columns }), ..command.clone() };
        self.exec(&command, stdin)
    }

    /// Starts a command whose streams are these.
    ///
    /// # Errors
    /// `EXEC_VSOCK_UNAVAILABLE`, `EXEC_TOO_LONG`, and as its agent refuses it.
    pub fn relay(&self, command: &Command, input: Option<Channel>, output: Out, error: Out) -> Result<Relay> {
        self.relay_of(&command.request(), input, output, error, None)
    }

    /// [`Vm::relay`], whose agent has to answer until `limit`.
    pub(crate) fn relay_within(
        &self,
        limit: Option<Instant>,
        command: &Command,
        (input, output, error): (Channel, Out, Out),
    ) -> Result<Relay> {
        Ok(self.relay_of(&command.request(), Some(input), output, error, limit)?.limit(limit))
    }

    /// Takes part in the main command: its input, output from now on, and end.
    ///
    /// # Errors
    /// As [`Vm::relay`].
    pub fn relay_attached(&self, input: Option<Channel>, output: Out, error: Out) -> Result<Relay> {
        self.relay_of(&Request::new(Operation::Attach), input, output, error, None)
    }

    /// An operation of the agent's, whose outputs are kept, as far as `limit` lets it come.
    pub(crate) fn relay_request(&self, request: &Request, limit: Option<Instant>) -> Result<Relay> {
        let kept = || Out::Last(Vec::new());
        self.relay_of(request, None, kept(), kept(), limit).map(|relay| relay.limit(limit))
    }

    fn relay_of(
        &self,
        request: &Request,
        input: Option<Channel>,
        output: Out,
        error: Out,
        limit: Option<Instant>,
    ) -> Result<Relay> {
        let (wire, first) = agent::ask(&self.dir, request, limit)?;
        let mut relay = Relay::new(wire, input, output, error);
        relay.begin_with(first);
        Ok(relay)
    }

    /// The main command of a machine that this process has booted, with these streams. `None`: it is taken already, or another's.
    pub fn relay_main(&mut self, input: Option<Channel>, output: Out, error: Out) -> Option<Relay> {
        let main = self.own.as_mut()?.main.take()?;
        Some(Relay::new(main, input, output, error))
    }

    fn result(&self, done: Done) -> Result<Run> {
        match done.over {
            Over::Exit(exit) => Ok(Run { exit, stdout: done.output, stderr: done.error }),
            Over::Refused(refusal) => Err(refusal.error()),
            _ => Err(self.lost()),
        }
    }

    /// Writes a file of the guest's; `path` is absolute.
    ///
    /// # Errors
    /// `EXEC_…`, as the guest's system refuses it.
    pub fn write_file(&self, path: impl AsRef<Path>, content: &[u8], options: WriteOptions) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let mut request = Request::new(Operation::WriteFile).with(Tag::Path, path.as_ref().as_os_str().as_bytes());
        if let Some(mode) = options.mode {
            request = request.with(Tag::Mode, mode.to_le_bytes());
        }
        if options.append {
            request = request.with(Tag::Append, []);
        }
        if options.parents {
            request = request.with(Tag::Parents, []);
        }
        let mut transfer = self.transfer(&request)?;
        // Where it fails the agent's own words are better.
        let _ = transfer.write_all(content);
        transfer.finish()
    }

    /// Starts an operation whose input is written and whose output is read.
    ///
    /// # Errors
    /// `EXEC_VSOCK_UNAVAILABLE`, `EXEC_TOO_LONG`.
    pub fn transfer(&self, request: &Request) -> Result<Transfer> {
        let (wire, first) = agent::ask(&self.dir, request, None)?;
        Ok(Transfer::new(wire, first))
    }

    /// Copies a file or tree of the host's to a path of the guest's, as `cp -a` would, without what matches `excludes`.
    ///
    /// # Errors
    /// `COPY_…` of the host's side, `EXEC_…` of the guest's.
    pub fn push(&self, host: impl AsRef<Path>, guest: impl AsRef<Path>, excludes: &[String]) -> Result<()> {
        crate::cp::push(self, host.as_ref(), guest.as_ref(), excludes)
    }

    /// Copies a file or tree of the guest's to a path of the host's, as `cp -a` would, without what matches `excludes`.
    ///
    /// # Errors
    /// `COPY_…` of the host's side, `EXEC_…` of the guest's.
    pub fn pull(&self, guest: impl AsRef<Path>, host: impl AsRef<Path>, excludes: &[String]) -> Result<()> {
        crate::cp::pull(self, guest.as_ref(), host.as_ref(), excludes)
    }

    /// Waits for the main command's end.
    ///
    /// # Errors
    /// `EXEC_…` when it could not be started, `BOOT_ENDED` when the machine is gone without a word.
    pub fn wait(&mut self) -> Result<Exit> {
        let relay = match self.relay_main(None, Out::Nowhere, Out::Nowhere) {
            Some(relay) => relay,
            None => self.relay_attached(None, Out::Nowhere, Out::Nowhere)?,
        };
        let done = relay.run()?;
        self.result(done).map(|run| run.exit)
    }

    /// Ends the machine at once.
    ///
    /// # Errors
    /// `REGISTRY_KILL`: it lives on.
    pub fn kill(mut self) -> Result<()> {
        self.kill_now()
    }

    /// Ends the main command and then the machine; what is still there after `limit` is killed.
    ///
    /// # Errors
    /// `REGISTRY_KILL`: it lives on.
    pub fn stop(mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        // A machine without a working agent is killed.
        if agent::power_off(&self.dir, deadline).is_ok_and(|answered| answered) {
            let left = deadline.saturating_duration_since(Instant::now());
            match &mut self.own {
                Some(own) => own.wait(left),
                None => {
                    if let Ok(vm) = Registry::open()?.find(&self.id) {
                        vm.wait_dead(left);
                    }
                }
            }
        }
        self.kill_now()
    }

    fn kill_now(&mut self) -> Result<()> {
        match self.own.take() {
            Some(own) => {
                drop(own);
                Ok(())
            }
            None => match Registry::open()?.find(&self.id) {
                Ok(vm) => vm.kill(Duration::ZERO).map(|_| ()),
                // Dead already.
                Err(_) => Ok(()),
            },
        }
    }

    /// Leaves the machine alone: it outlives this value, and this process unless it is bound to it.
    ///
    /// # Errors
    /// `BOOT_DIRECTORY` when the system refuses to copy a descriptor.
    pub fn detach(&mut self) -> Result<()> {
        let Some(mut own) = self.own.take() else { return Ok(()) };
        if let Some(claim) = own.claim.take() {
            claim.keep().map_err(|cause| Error::host("BOOT_DIRECTORY", "keep the machine's lock", cause))?;
        }
        own.left = true;
        Ok(())
    }

    /// What it takes of the host's memory.
    ///
    /// # Errors
    /// `REGISTRY_VM_NOT_FOUND` when it has ended.
    pub fn stats(&self) -> Result<Stats> {
        let vm = Registry::open()?.find(&self.id)?;
        Ok(Stats {
            ceiling_bytes: vm.entry.memory_mib << 20,
            resident_bytes: vm.resident().map(|(_, bytes)| bytes),
            reclaimed_bytes: vm.reclaimed(),
            lazy_pages_pending: bundle::pages_pending(&vm.dir, &vm.entry),
        })
    }

    /// Keeps what the processes of a lazy restore had to wait for, in the bundle. Until the host has closed the main command's
    /// stream its guest answers.
    pub(crate) fn record_faults(&self) {
        if let Ok(vm) = Registry::open().and_then(|registry| registry.find(&self.id)) {
            bundle::record_faults(&vm.dir, &vm.entry, Duration::MAX);
        }
    }

    /// What the guest and the monitor have printed so far. Of a long log the first and the last 8 MiB, and a line that says how many
    /// bytes are not kept.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn boot_log(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match bootlog::copy(&mut File::open(self.dir.join(BOOT_LOG))?, &mut bytes) {
            Ok(()) => Ok(bytes),
            Err(Broken::Log(error) | Broken::Output(error)) => Err(error),
        }
    }

    /// Number of the monitor's process, of a machine that this process has booted or that is in the registry.
    pub fn pid(&self) -> Option<u32> {
        match &self.own {
            Some(own) => Some(own.child.id()),
            None => Registry::open().ok()?.find(&self.id).ok()?.entry.pid,
        }
    }

    /// Whether its main command has a terminal.
    ///
    /// # Errors
    /// `REGISTRY_VM_NOT_FOUND` when it has ended.
    pub fn has_terminal(&self) -> Result<bool> {
        let entry = Registry::open()?.find(&self.id)?.entry;
        Ok(entry.other.get(start::TERMINAL).and_then(serde_json::Value::as_bool).unwrap_or(false))
    }

    /// Gives a machine that this process has booted time to end by itself.
    pub(crate) fn await_end(&mut self, limit: Duration) {
        if let Some(own) = &mut self.own {
            own.wait(limit);
        }
    }

    /// The monitor of a machine that this process has booted.
    pub(crate) fn monitor(&self) -> Option<std::io::Result<OwnedFd>> {
        self.own.as_ref().map(|own| own.monitor.try_clone())
    }

    /// It ended without a word.
    pub(crate) fn lost(&self) -> Error {
        let said = bootlog::tail(&self.dir.join(BOOT_LOG));
        let message = format!("machine {} has ended without its command's exit code", self.label());
        let error = Error::new("BOOT_ENDED", if said.is_empty() { message } else { format!("{message}: {said}") });
        error.hint("machinen run --keep keeps its console, and machinen logs shows it")
    }
}

/// A file in memory, to be read from its start.
fn memory(content: &[u8]) -> std::io::Result<Channel> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::from(memfd_create("machinen-input", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.seek(SeekFrom::Start(0))?;
    Channel::input(file.as_fd())
}

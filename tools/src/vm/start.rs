//! Starting a machine: its directory, its disks, its initramfs, its monitor, until its guest is ready for a command.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use machinen_abi::AGENT_PORT;
use machinen_abi::frame::Kind;
use machinen_initramfs::layout::config::Config;
use machinen_initramfs::layout::{self, Layout, Spec};
use machinen_initramfs::output::Output;
use machinen_initramfs::pack::pack;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::json;

use super::monitor::{Running, Waited};
use super::mounts;
use super::options::BootOptions;
use super::resolve::{Kernel, resolve_image, resolve_kernel, resolve_vmm};
use super::shares::{self, Shared};
use crate::agent::relay::now_ns;
use crate::agent::signals::Signals;
use crate::agent::wire::{Wire, protocol};
use crate::agent::{AGENT_SOCKET, MAIN_SOCKET, Refusal, add_mark};
use crate::bundle::{Halves, IMAGE_KEY, IMAGE_PATH, KERNEL_ID, LAZY, LOWERS, There};
use crate::error::{Error, Result};
use crate::registry::{Claim, Entry, Process, Registry};
use crate::{assets, bootlog, imagecache, kernel, net, rootfs_img};

/// The console of the guest, and what the monitor says.
pub const BOOT_LOG: &str = "boot.log";
/// The monitor's control socket.
pub(crate) const CTL_SOCKET: &str = "ctl.sock";
/// Marks of the monitor.
const TRACE: &str = "trace";

/// What the monitor takes from its environment and this tool decides.
const DECIDED: [&str; 19] = [
    "KERNEL",
    "INITRD",
    "MEMORY",
    "ROOTDISK",
    "ROOTLAYER",
    "DISK",
    "VSOCK",
    "SHARE",
    "STATS_FILE",
    "NET_SOCKET",
    "NET_MTU",
    "TTY",
    "LOG_LIMIT",
    "DETACH",
    "DIE_WITH_PARENT",
    "TRACE",
    "BOOT_TEST",
    "CTL",
    "DTB",
];

/// In an entry: the main command has a terminal.
pub(crate) const TERMINAL: &str = "terminal";

/// A machine whose guest waits for its main command.
#[derive(Debug)]
pub(crate) struct Started {
    pub child: Child,
    /// The monitor's pidfd.
    pub monitor: OwnedFd,
    /// The stream of the main command, `ready`.
    pub main: Wire,
    /// Points of time in ns since 1970.
    pub marks: Vec<(u64, String)>,
}

/// What became of a start.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The machine is there.
    Started(Claim, Box<Started>),
    /// This process was told to end.
    Signal(i32),
    /// The time was over.
    Limit,
}

/// The same, within a directory.
enum Step {
    Started(Box<Started>),
    Signal(i32),
    Limit,
}

/// What a machine is made of, all of it anonymous or in the cache: whoever ends here leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    options: &'a BootOptions,
    vmm: PathBuf,
    kernel: Kernel,
    /// Which one that is, for bundles.
    kernel_id: Option<String>,
    disk: PathBuf,
    mounts: Vec<Halves>,
    shares: Vec<Shared>,
    /// What another machine has written to the disk.
    layer: Option<File>,
    /// What is to be restored.
    bundle: Option<OwnedFd>,
    initrd: File,
    marks: Vec<(u64, String)>,
    warnings: Vec<String>,
}

/// Finds and makes what a machine is made of.
pub(crate) fn prepare(options: &BootOptions) -> Result<Prepared<'_>> {
    let mut marks = vec![(now_ns(), "tool".to_string())];
    let image = options.image.as_deref().ok_or_else(no_image)?;
    let shares = shares::open_all(options)?;
    let bundle = shares::open_bundle(options)?;
    let vmm = resolve_vmm(options.vmm.as_deref())?;
    let kernel = resolve_kernel(options.kernel.as_deref(), options.modules.as_deref())?;
    let init = assets::find_init(options.init.as_deref()).map_err(|tried| {
        Error::new("BOOT_INIT_MISSING", format!("find /init for the guest: tried {}", tried.join(", ")))
            .hint("put init beside this program, or set MACHINEN_INIT to its path")
    })?;
    let disk = resolve_image(image, options.verbose)?;
    let (restore, kernel_id) = (options.restore.as_ref(), kernel::identity::identity(&kernel.path));
    let mut warnings = Vec::new();
    let mut layer = None;
    if let Some(restore) = restore {
        let (image_key, criu) = (image_key(&disk), rootfs_img::criu_of(&disk));
        let there = There {
            image_key: &image_key,
            criu: criu.as_deref(),
            kernel: &kernel.path,
            kernel_id: kernel_id.as_deref(),
        };
        warnings = restore.compare(&there)?;
        layer = restore.layer(&image_key)?;
    }
    marks.push((now_ns(), "image ready".into()));
    let mounts = mounts::open_all(options)?;
    let initrd = initramfs(init, &kernel, options, &shares)?;
    Ok(Prepared { options, vmm, kernel, kernel_id, disk, mounts, shares, layer, bundle, initrd, marks, warnings })
}

impl Prepared<'_> {
    /// What may be wrong with it, a line each.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Starts the machine, until its guest asks for its command. SIGINT and its like end the start where `signals` are given.
    pub(crate) fn start(self, signals: Option<&mut Signals>, limit: Option<Instant>) -> Result<Outcome> {
        let keep = self.options.keep;
        let registry = Registry::open()?;
        ports_are_free(&registry, &self.options.publish)?;
        let claim = registry.create(self.options.name.as_deref())?;
        let started = self.start_in(&claim, signals, limit);
        if let Ok(Step::Started(started)) = started {
            return Ok(Outcome::Started(claim, started));
        }
        if keep {
            // Without its lock it is dead, and its directory is gc's.
            drop(claim.keep());
        }
        match started? {
            Step::Limit => Ok(Outcome::Limit),
            Step::Signal(signal) => Ok(Outcome::Signal(signal)),
            Step::Started(_) => Err(protocol("two starts")),
        }
    }

    fn start_in(self, claim: &Claim, mut signals: Option<&mut Signals>, limit: Option<Instant>) -> Result<Step> {
        let listener = claim.socket(MAIN_SOCKET).and_then(UnixListener::bind).map_err(|cause| {
            Error::host("BOOT_DIRECTORY", format!("make a socket in {}", claim.dir.display()), cause)
        })?;
        let mut marks = self.marks.clone();
        let mut running = self.spawn(claim)?;
        marks.push((now_ns(), "monitor started".into()));
        let mut entry = self.entry();
        // Its helpers are started by now.
        let helper = net::helper(&self.options.publish).and_then(Process::of);
        entry.helpers.extend(helper);
        let monitor = running.identify(&mut entry)?;
        claim.write(&entry)?;
        match running.wait(listener.as_fd(), &monitor, signals.as_deref_mut(), limit)? {
            Waited::Ready => {}
            Waited::Signal(signal) => return Ok(Step::Signal(signal)),
            Waited::Limit => return Ok(Step::Limit),
        }
        let accepted = listener.accept();
        let (stream, _) =
            accepted.map_err(|cause| Error::host("BOOT_DIRECTORY", "accept the guest's connection", cause))?;
        let mut main = Wire::new(stream)?;
        while !is_ready(&mut main, &mut marks)? {
            if main.is_over() {
                return Err(running.died());
            }
            match running.wait(main.as_fd(), &monitor, signals.as_deref_mut(), limit)? {
                Waited::Ready => main.fill(),
                Waited::Signal(signal) => return Ok(Step::Signal(signal)),
                Waited::Limit => return Ok(Step::Limit),
            }
        }
        marks.push((now_ns(), "guest ready".into()));
        let child = running.child.take().ok_or_else(|| protocol("no monitor"))?;
        Ok(Step::Started(Box::new(Started { child, monitor, main, marks })))
    }

    fn spawn<'a>(&self, claim: &'a Claim) -> Result<Running<'a>> {
        let mut command = Command::new(&self.vmm);
        for name in DECIDED {
            command.env_remove(format!("MACHINEN_{name}"));
        }
        self.arguments(&mut command)?;
        streams(&mut command, &claim.dir)?;
        let publish = &self.options.publish;
        // Held until the monitor has it.
        let network = if publish.is_empty() { None } else { Some(network(publish, &mut command)?) };
        let child = claim.lend(|| command.spawn()).map_err(|cause| {
            Error::host("BOOT_VMM_MISSING", format!("execute {}", self.vmm.display()), cause)
                .hint("put vmm-min beside this program, or set MACHINEN_VMM to its path")
        })?;
        drop(network);
        Ok(Running::new(child, &claim.dir))
    }

    fn entry(&self) -> Entry {
        let options = self.options;
        let mut entry = Entry::new();
        entry.other = options.other.clone();
        entry.image = options.image.clone().unwrap_or_default();
        entry.kernel = self.kernel.path.display().to_string();
        if let Some(id) = &self.kernel_id {
            entry.other.insert(KERNEL_ID.into(), id.clone().into());
        }
        entry.memory_mib = options.memory();
        entry.ports = options.publish.clone();
        // A bundle of it is restored from anywhere.
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mounted = |(host, guest): &(PathBuf, String)| format!("{}:{guest}", absolute(host).display());
        entry.mounts = options.mounts.iter().map(mounted).collect();
        let lowers =
            self.mounts.iter().map(|halves| halves.cached.as_deref().unwrap_or(Path::new("")).to_string_lossy());
        entry.other.insert(LOWERS.into(), lowers.collect());
        entry.shares = shares::entries(&self.shares);
        entry.detached = options.command.detached;
        entry.parent = std::env::var("MACHINEN_PARENT").ok().filter(|parent| !parent.is_empty());
        entry.forked_from = options.forked_from.clone();
        entry.other.insert(TERMINAL.into(), options.command.terminal.is_some().into());
        entry.other.insert(IMAGE_KEY.into(), image_key(&self.disk).into());
        // Standard input comes only once, and its image is in the cache.
        let image = if entry.image == "-" { self.disk.clone() } else { absolute(Path::new(&entry.image)) };
        entry.other.insert(IMAGE_PATH.into(), image.display().to_string().into());
        if options.restore.as_ref().is_some_and(|restore| restore.is_lazy()) {
            entry.other.insert(LAZY.into(), true.into());
        }
        entry
    }

    /// What the monitor is told.
    fn arguments(&self, command: &mut Command) -> Result<()> {
        // The monitor opens them while this process waits for it.
        let own = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        if self.disk.to_str().is_none_or(|path| path.contains(',')) {
            let message = format!("disk {}: its path has a comma, or is not UTF-8", self.disk.display());
            return Err(Error::new("BOOT_IMAGE_PATH", message).hint("give it another name, or set MACHINEN_CACHE_DIR"));
        }
        command.arg("--kernel").arg(&self.kernel.path).arg("--initrd").arg(own(&self.initrd));
        command.arg("--memory").arg(self.options.memory().to_string());
        // Told in full: a path that ends in :rw is not one to write to.
        command.arg("--root-disk").arg(format!("{}:cow", self.disk.display()));
        if let Some(layer) = &self.layer {
            command.arg("--root-layer").arg(own(layer));
        }
        for Halves { lower, upper, .. } in &self.mounts {
            command.arg("--disk").arg(format!("{}:ro", own(lower))).arg("--disk").arg(format!("{}:cow", own(upper)));
        }
        shares::arguments(&self.shares, self.bundle.as_ref(), command);
        // Relative: the monitor works in the machine's directory, whose path may hold anything.
        command.arg("--vsock").arg(format!("in:{AGENT_PORT}:{AGENT_SOCKET}"));
        command.arg("--vsock").arg(format!("out:{}:{MAIN_SOCKET}", machinen_abi::MAIN_PORT));
        command.args(["--ctl", CTL_SOCKET, "--stats-file", "stats", "--log-limit", bootlog::KEPT_MIB]);
        if self.options.trace {
            command.args(["--trace", TRACE]);
        }
        if self.options.command.detached {
            command.arg("--detach");
        } else {
            // Ctrl-C is for this tool, which passes it on.
            command.process_group(0);
            if !self.options.outlives_parent {
                command.arg("--die-with-parent").arg(std::process::id().to_string());
            }
        }
        Ok(())
    }
}

/// What identifies the content of a disk: its name in the cache, which is made from that; of others when they were changed.
fn image_key(disk: &Path) -> String {
    match (imagecache::holds(disk), disk.file_stem(), fs::metadata(disk)) {
        (true, Some(stem), _) => stem.to_string_lossy().into_owned(),
        (_, _, Ok(of)) => format!("{}-{}-{}.{}", of.ino(), of.len(), of.mtime(), of.mtime_nsec()),
        _ => String::new(),
    }
}

/// Refuses a port that a machine has, by its name; others who may have it are seen when it is forwarded.
pub(crate) fn ports_are_free(registry: &Registry, publish: &[String]) -> Result<()> {
    if publish.is_empty() {
        return Ok(());
    }
    for vm in registry.list()?.iter().filter(|vm| vm.is_alive()) {
        if let Some(port) = net::clash(publish, &vm.entry.ports)? {
            let name = vm.label();
            return Err(Error::new("NET_PORT_TAKEN", format!("port {port}: machine {name} has it"))
                .hint(format!("take another port of the host, or: machinen stop {name}")));
        }
    }
    Ok(())
}

/// Whether the guest has asked for its command, in what has come.
fn is_ready(main: &mut Wire, marks: &mut Vec<(u64, String)>) -> Result<bool> {
    while let Some((kind, payload)) = main.next_frame()? {
        match kind {
            Kind::Mark => add_mark(marks, &payload)?,
            Kind::Ready => {
                let version = payload.try_into().map(u16::from_le_bytes);
                let version = version.map_err(|_| protocol("a version that makes no sense"))?;
                if version == machinen_abi::VERSION {
                    return Ok(true);
                }
                let own = machinen_abi::VERSION;
                let message = format!("the guest's /init has version {version} of the protocol, this tool {own}");
                return Err(Error::new("EXEC_VERSION", message)
                    .hint("take /init and this tool from the same build; MACHINEN_INIT names another /init"));
            }
            Kind::Failed => return Err(Refusal::parse(&payload)?.error()),
            _ => return Err(protocol("a frame that has no place before the first")),
        }
    }
    Ok(false)
}

/// First use: what to type.
fn no_image() -> Error {
    Error::new("BOOT_IMAGE_MISSING", "no image is given").hint(
        "machinen run IMAGE [-- COMMAND...]; IMAGE is a tar file, a directory or an ext4 image, as of: \
        mmdebstrap --variant=minbase stable debian.tar, or docker export CONTAINER >image.tar",
    )
}

/// The initramfs: /init, modules, and which disks there are.
fn initramfs(init: PathBuf, kernel: &Kernel, options: &BootOptions, shares: &[Shared]) -> Result<File> {
    let device = |number: u8| format!("/dev/vd{}", char::from(b'a' + number));
    let overlays = options
        .mounts
        .iter()
        .zip(0_u8..)
        .map(|((_, at), index)| json!({"lower": device(1 + 2 * index), "upper": device(2 + 2 * index), "at": at}));
    let mut config = json!({"agent": true, "root": {"device": device(0)}});
    if !options.mounts.is_empty() {
        config["mounts"] = overlays.collect();
    }
    if !shares.is_empty() {
        config["shares"] = shares::configuration(shares);
    }
    let failed = |error: machinen_initramfs::error::Error| {
        let hint = error.hint().unwrap_or_default();
        Error::new(error.code(), format!("make an initramfs: {error}")).hint(hint)
    };
    let modules = match &kernel.modules {
        Some(dir) => kernel::modules::packed(dir)?,
        None => Vec::new(),
    };
    let spec = Spec {
        layout: Layout::Minimal,
        init,
        config_file: None,
        config: Config::parse(config.to_string().as_bytes(), "flags").map_err(failed)?,
        excludes: None,
        modules,
        keep_owners: false,
        epoch: None,
        output: None,
    };
    let (tree, plan) = layout::build(&spec).map_err(failed)?;
    let file = memfd_create("machinen-initramfs", MemfdFlags::CLOEXEC)
        .map_err(|cause| Error::host("BOOT_INITRAMFS", "make a file in memory", cause))?;
    let file = File::from(file);
    pack(&tree, &plan, &mut Output::new(&file)).map_err(failed)?;
    Ok(file)
}

fn streams(command: &mut Command, dir: &Path) -> Result<()> {
    let path = dir.join(BOOT_LOG);
    let failed = |cause| Error::host("BOOT_DIRECTORY", format!("open {}", path.display()), cause);
    let log = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    let copy = log.try_clone().map_err(failed)?;
    command.current_dir(dir).stdin(Stdio::null()).stdout(log).stderr(copy);
    Ok(())
}

fn network(publish: &[String], command: &mut Command) -> Result<std::os::unix::net::UnixStream> {
    let publish = publish.to_vec();
    let args = net::Args { publish, address: None, socket: None, passt: None, json: false, version: false };
    Ok(net::start(&args, command)?)
}

/// The monitor's marks.
pub(crate) fn marks(dir: &Path) -> Vec<(u64, String)> {
    let text = fs::read_to_string(dir.join(TRACE)).unwrap_or_default();
    let parse = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        Some((value["ns"].as_u64()?, value["mark"].as_str()?.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

//! What a machine is to be: a builder.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::agent::request::Command;
use crate::bundle::RestoreOptions;

/// A directory that host and guest share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShareOption {
    pub host: PathBuf,
    pub guest: String,
    pub read_only: bool,
}

impl ShareOption {
    /// Reads `HOST:GUEST`, `HOST:GUEST:ro` or `HOST:GUEST:rw`; `None` for what is none, with an absolute path of the guest below /.
    pub(crate) fn parse(text: &str) -> Option<ShareOption> {
        let forms = [(":ro", true), (":rw", false)];
        let stripped = forms.into_iter().find_map(|(form, read_only)| Some((text.strip_suffix(form)?, read_only)));
        let (places, read_only) = stripped.unwrap_or((text, false));
        let (host, guest) = places.rfind(":/").map(|at| (&places[..at], &places[at + 1..]))?;
        let guest = guest.strip_suffix('/').unwrap_or(guest);
        let names = guest.strip_prefix('/')?;
        let plain = names.split('/').all(|name| !["", ".", ".."].contains(&name));
        (plain && !host.is_empty()).then(|| ShareOption { host: host.into(), guest: guest.into(), read_only })
    }
}

/// How to boot a machine. Each setter replaces what was set, or adds one where it says so.
#[derive(Clone, Debug)]
pub struct BootOptions {
    pub(crate) image: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) modules: Option<PathBuf>,
    pub(crate) vmm: Option<PathBuf>,
    pub(crate) init: Option<PathBuf>,
    pub(crate) memory_mib: Option<u64>,
    pub(crate) publish: Vec<String>,
    pub(crate) mounts: Vec<(PathBuf, String)>,
    pub(crate) shares: Vec<ShareOption>,
    pub(crate) command: Command,
    pub(crate) keep: bool,
    pub(crate) outlives_parent: bool,
    pub(crate) trace: bool,
    pub(crate) verbose: bool,
    pub(crate) restore: Option<Box<RestoreOptions>>,
    pub(crate) forked_from: Option<String>,
    /// For the entry: keys of parts that the registry does not know.
    pub(crate) other: Map<String, Value>,
}

impl BootOptions {
    /// A machine from an image: a tar file (also compressed by gzip, zstd or xz), `-` for one on standard input, a directory,
    /// or an ext4 image. Nothing that the guest writes reaches it.
    pub fn new(image: impl Into<String>) -> BootOptions {
        BootOptions {
            image: Some(image.into()).filter(|image| !image.is_empty()),
            name: None,
            kernel: None,
            modules: None,
            vmm: None,
            init: None,
            memory_mib: None,
            publish: Vec::new(),
            mounts: Vec::new(),
            shares: Vec::new(),
            command: Command::default(),
            keep: false,
            outlives_parent: false,
            trace: false,
            verbose: false,
            restore: None,
            forked_from: None,
            other: Map::new(),
        }
    }

    /// Its name, unique among the machines that live: letters, digits, `.`, `_`, `-`, and `/` between parts.
    pub fn name(mut self, name: impl Into<String>) -> BootOptions {
        self.name = Some(name.into());
        self
    }

    /// The kernel, instead of the one that [`resolve_kernel`](super::resolve_kernel) finds.
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> BootOptions {
        self.kernel = Some(path.into());
        self
    }

    /// Directory of modules for the kernel, made by `machinen-kernel modules --out`.
    pub fn modules(mut self, path: impl Into<PathBuf>) -> BootOptions {
        self.modules = Some(path.into());
        self
    }

    /// The monitor, instead of `MACHINEN_VMM`, `vmm-min` beside this program or in PATH.
    pub fn vmm(mut self, path: impl Into<PathBuf>) -> BootOptions {
        self.vmm = Some(path.into());
        self
    }

    /// The program for /init, instead of `MACHINEN_INIT`, `init` beside this program or in `MACHINEN_ASSETS_DIR`.
    pub fn init(mut self, path: impl Into<PathBuf>) -> BootOptions {
        self.init = Some(path.into());
        self
    }

    /// The most RAM that the guest can have; without it half of the host's, at least 512 and at most 16384 MiB.
    pub fn memory_mib(mut self, mib: u64) -> BootOptions {
        self.memory_mib = Some(mib);
        self
    }

    /// Adds a port of the host that leads to one of the guest: `[IP:]HOST:GUEST[/tcp|udp]`, of 127.0.0.1 without an IP. With
    /// any, the guest has a network.
    pub fn publish(mut self, port: impl Into<String>) -> BootOptions {
        self.publish.push(port.into());
        self
    }

    /// Adds a directory of the host at an absolute path of the guest. What the guest writes there is gone with it.
    pub fn mount(mut self, host: impl Into<PathBuf>, guest: impl Into<String>) -> BootOptions {
        self.mounts.push((host.into(), guest.into()));
        self
    }

    /// Adds a directory of the host at an absolute path of the guest, as it is and as it changes: what one side writes the other
    /// reads. At most 5.
    pub fn share(self, host: impl Into<PathBuf>, guest: impl Into<String>) -> BootOptions {
        self.add_share(host.into(), guest.into(), false)
    }

    /// The same, for a guest that cannot change it.
    pub fn share_read_only(self, host: impl Into<PathBuf>, guest: impl Into<String>) -> BootOptions {
        self.add_share(host.into(), guest.into(), true)
    }

    fn add_share(mut self, host: PathBuf, mut guest: String, read_only: bool) -> BootOptions {
        // One form, by which a bundle's is found.
        guest.truncate(guest.trim_end_matches('/').len().max(1));
        self.shares.push(ShareOption { host, guest, read_only });
        self
    }

    /// The main command: its words, the program first, instead of the image's. The machine ends with it.
    pub fn command(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> BootOptions {
        self.command.words = Command::new(words).words;
        self
    }

    /// Adds a variable for the main command: `NAME=value` over the image's, or `NAME` to take that away.
    pub fn env(mut self, item: impl Into<OsString>) -> BootOptions {
        self.command.env.push(item.into());
        self
    }

    /// Working directory of the main command, instead of the image's.
    pub fn cwd(mut self, path: impl Into<OsString>) -> BootOptions {
        self.command.cwd = Some(path.into());
        self
    }

    /// The main command gets a terminal of so many lines and characters a line.
    pub fn terminal(mut self, rows: u16, columns: u16) -> BootOptions {
        self.command.terminal = Some(machinen_abi::body::Size { rows, columns });
        self
    }

    /// The machine outlives this process; its main command has no input, and its output goes to the boot log.
    pub fn detached(mut self) -> BootOptions {
        self.command.detached = true;
        self
    }

    /// The machine's directory stays when it has ended, with its boot log, until `gc`.
    pub fn keep(mut self) -> BootOptions {
        self.keep = true;
        self
    }

    /// The machine does not end with the thread that boots it. Without this it does, whatever ends that, unless it is
    /// [detached](BootOptions::detached).
    pub fn outlives_parent(mut self) -> BootOptions {
        self.outlives_parent = true;
        self
    }

    /// Collects the marks of the monitor: [`Vm::marks`](super::Vm::marks).
    pub fn trace(mut self) -> BootOptions {
        self.trace = true;
        self
    }

    /// Tells on standard error how long the image took.
    pub fn verbose(mut self) -> BootOptions {
        self.verbose = true;
        self
    }

    /// RAM in MiB.
    pub(crate) fn memory(&self) -> u64 {
        self.memory_mib.unwrap_or_else(super::default_memory_mib)
    }
}

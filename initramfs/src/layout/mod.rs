//! The layouts: which sources make up an initramfs, and what every one of them gets besides.
//!
//! Every layout has /init, /dev, /proc, /sys, /run, /tmp and /dev/console. The guest's configuration is merged, later
//! over earlier, from the one that the root file system or bundle brings, the one given as a file, and the flags. With
//! the root on a disk, /init puts all of that over the configuration on the disk.

pub mod config;
#[cfg(test)]
mod tests;

use std::borrow::ToOwned;
use std::format;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use machinen_abi::glob::{self, Slash};

use crate::error::{Error, Result, show, show_path};
use crate::newc::Device;
use crate::pack::{Plan, check_length, largest_below};
use crate::tree::{Body, Found, Id, Meta, Node, PathFault, Tree};
use crate::{tarball, walk};
use config::Config;

/// Name of the configuration, in a guest and in a bundle.
pub const CONFIG_NAME: &str = "machinen-config.json";
const CONFIG_PATH: &[u8] = b"machinen-config.json";
const MODULES_LIST: &[u8] = b"machinen-modules";
const MODULES_DIR: &str = "lib/modules-machinen";
const MODULE_ENDINGS: [&str; 4] = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"];
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What a workspace leaves out unless told otherwise: what tools can make again, and what is private to the host.
pub const WORKSPACE_EXCLUDES: [&str; 16] = [
    ".DS_Store",
    ".cache",
    ".direnv",
    ".git",
    ".gradle",
    ".hg",
    ".mypy_cache",
    ".next",
    ".pytest_cache",
    ".svn",
    ".terraform",
    ".tox",
    ".venv",
    "__pycache__",
    "node_modules",
    "target",
];

/// Default limit of a workspace's archive.
pub const WORKSPACE_MAX_MIB: u64 = 500;

/// A root file system to start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A tar file or a directory.
    Path(PathBuf),
    /// A tar stream on standard input.
    Stdin,
}

/// Which sources make up an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Nothing but what every layout has.
    Minimal,
    /// The configuration of a bundle, not its rootfs, which comes on a disk.
    Tiny {
        /// Directory with [`CONFIG_NAME`].
        bundle: PathBuf,
    },
    /// A root file system.
    Rootfs {
        /// Where it is.
        source: Source,
    },
    /// A bundle: `rootfs/` and [`CONFIG_NAME`] over an optional base.
    Bundle {
        /// The directory.
        bundle: PathBuf,
        /// A root file system that the bundle's files go over.
        base: Option<Source>,
    },
    /// A working directory.
    Workspace {
        /// The directory.
        dir: PathBuf,
        /// Where it goes in the guest.
        mountpoint: String,
        /// Limit of the archive's size.
        max_mib: u64,
    },
}

/// Everything that determines an archive.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The layout.
    pub layout: Layout,
    /// The program for /init.
    pub init: PathBuf,
    /// Configuration file, over what the layout brings.
    pub config_file: Option<PathBuf>,
    /// Configuration from flags, over all.
    pub config: Config,
    /// Patterns of what to leave out: of paths from the root, in a workspace of names anywhere. `None` is the default.
    pub excludes: Option<Vec<String>>,
    /// Kernel modules for the guest, in the order to load them.
    pub modules: Vec<PathBuf>,
    /// Keep the owners of directories; tar files always keep theirs.
    pub keep_owners: bool,
    /// `SOURCE_DATE_EPOCH`: the time of all files that bring none, and a limit to that of others. Without it 0 and none.
    pub epoch: Option<u32>,
    /// The output, by device and inode, so that it does not become part of itself.
    pub output: Option<(u64, u64)>,
}

/// Collects the tree of `spec` and its plan. Nothing but metadata, configuration, and a tar stream has been read then;
/// the bodies are when the tree is packed.
pub fn build(spec: &Spec) -> Result<(Tree, Plan)> {
    let mut build = Build { spec, tree: Tree::new(spec.epoch.unwrap_or(0)) };
    let baked = build.sources()?;
    let mut config = baked.unwrap_or_default();
    if let Some(path) = &spec.config_file {
        config.merge(read_config(path)?);
    }
    config.merge(spec.config.clone());
    if config.has_root() && !matches!(spec.layout, Layout::Minimal | Layout::Tiny { .. }) {
        let why = "a root disk takes the place of all files here; use the layout minimal or tiny with it";
        return Err(Error::Usage(why.to_string()));
    }
    if !config.is_empty() && !config.has_command() && !config.has_root() && !config.has_agent() {
        return Err(Error::Config(
            "flags and files together".to_string(),
            "there is no cmd; give one with --cmd".to_string(),
        ));
    }
    build.common(&config)?;
    let tree = build.tree;
    let plan = Plan::new(&tree)?;
    if let Layout::Workspace { dir, mountpoint, max_mib } = &spec.layout
        && plan.bytes > max_mib.saturating_mul(1 << 20)
    {
        let mut top = largest_below(&tree, mountpoint.trim_matches('/').as_bytes());
        top.truncate(3);
        return Err(Error::TooLarge { path: dir.clone(), bytes: plan.bytes, max_mib: *max_mib, top });
    }
    Ok((tree, plan))
}

struct Build<'a> {
    spec: &'a Spec,
    tree: Tree,
}

impl Build<'_> {
    /// Fills the tree; returns the configuration that the sources bring.
    fn sources(&mut self) -> Result<Option<Config>> {
        let spec = self.spec;
        match &spec.layout {
            Layout::Minimal => Ok(None),
            Layout::Tiny { bundle } => self.bundle_config(bundle),
            Layout::Rootfs { source } => {
                self.rootfs(source)?;
                self.baked_config()
            }
            Layout::Bundle { bundle, base } => {
                let mut config = None;
                if let Some(base) = base {
                    self.rootfs(base)?;
                    config = self.baked_config()?;
                }
                self.directory(self.tree.root(), &bundle.join("rootfs"))?;
                match (config, self.bundle_config(bundle)?) {
                    (Some(mut base), Some(over)) => {
                        base.merge(over);
                        Ok(Some(base))
                    }
                    (base, over) => Ok(over.or(base)),
                }
            }
            Layout::Workspace { dir, mountpoint, .. } => {
                let meta = self.meta(0o755);
                let at = self.tree.directory(mountpoint.as_bytes(), meta);
                let at = at.map_err(|fault| at_fault("--mountpoint", mountpoint, fault))?;
                if at == self.tree.root() {
                    let why = "--mountpoint must not be the root; use the rootfs layout";
                    return Err(Error::Usage(why.to_string()));
                }
                let excludes: Vec<&[u8]> = match &spec.excludes {
                    Some(list) => list.iter().map(|p| p.trim_end_matches('/').as_bytes()).collect(),
                    None => WORKSPACE_EXCLUDES.iter().map(|p| p.as_bytes()).collect(),
                };
                let options = self.walk_options();
                walk::add_directory(&mut self.tree, at, dir, &options, |path| {
                    let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
                    excludes.iter().any(|pattern| glob::matches(pattern, name, Slash::Ordinary))
                })?;
                Ok(None)
            }
        }
    }

    fn rootfs(&mut self, source: &Source) -> Result<()> {
        let latest = self.spec.epoch.unwrap_or(u32::MAX);
        match source {
            Source::Path(path) => {
                let found = fs::metadata(path).map_err(|e| Error::host("open", path, e))?;
                if found.is_dir() {
                    return self.directory(self.tree.root(), path);
                }
                tarball::add_file(&mut self.tree, path, latest)?;
            }
            Source::Stdin => {
                let stdin = io::stdin().as_fd().try_clone_to_owned();
                let stdin = stdin.map_err(|e| Error::host("open", Path::new("-"), e))?;
                tarball::add_stdin(&mut self.tree, File::from(stdin), latest)?;
            }
        }
        // After all is read, so that a name that stays keeps the body it shares with one that goes.
        let patterns = self.patterns();
        if !patterns.is_empty() {
            self.tree.prune(|path| excluded(&patterns, path));
        }
        Ok(())
    }

    fn directory(&mut self, at: Id, dir: &Path) -> Result<()> {
        let patterns = self.patterns();
        let options = self.walk_options();
        walk::add_directory(&mut self.tree, at, dir, &options, |path| excluded(&patterns, path))
    }

    /// Patterns of root-relative paths, without the slashes that people put around them.
    fn patterns(&self) -> Vec<String> {
        let given = self.spec.excludes.iter().flatten();
        given.map(|p| p.trim_matches('/').to_owned()).collect()
    }

    fn walk_options(&self) -> walk::Options {
        walk::Options {
            keep_owners: self.spec.keep_owners,
            mtime: self.spec.epoch.unwrap_or(0),
            skip: self.spec.output,
        }
    }

    /// A bundle's configuration; it may be missing if another source has the command.
    fn bundle_config(&self, bundle: &Path) -> Result<Option<Config>> {
        let path = bundle.join(CONFIG_NAME);
        let given = self.spec.config_file.is_some() || self.spec.config.has_command();
        if given && !path.exists() {
            // A mistyped bundle is still an error.
            fs::read_dir(bundle).map_err(|e| Error::host("open directory", bundle, e))?;
            return Ok(None);
        }
        read_config(&path).map(Some)
    }

    /// The configuration in the tree.
    fn baked_config(&self) -> Result<Option<Config>> {
        let source = "/machinen-config.json of the root file system";
        let Some(id) = self.tree.lookup(CONFIG_PATH) else {
            return Ok(None);
        };
        let Found::Node(Node::File(body, len_bytes)) = self.tree.found(id) else {
            return Err(Error::Config(source.to_string(), "is not a file".to_string()));
        };
        let bytes = match body {
            Body::Bytes(bytes) => bytes.clone(),
            _ if *len_bytes > MAX_CONFIG_BYTES => {
                return Err(Error::Config(source.to_string(), "is too large".to_string()));
            }
            Body::Host(dir, name) => {
                use std::ffi::OsStr;
                read_small(&dir.path.join(OsStr::from_bytes(name)), MAX_CONFIG_BYTES)?
            }
            Body::Range(file, offset_bytes) => {
                let mut bytes = vec![0; usize::try_from(*len_bytes).unwrap_or(0)];
                file.read_exact_at(&mut bytes, *offset_bytes).map_err(|e| Error::host("read", Path::new(source), e))?;
                bytes
            }
        };
        // A root file system goes from machine to machine and cannot know their disks.
        Ok(Some(Config::parse(&bytes, source)?.without_disks()))
    }

    /// What every layout has.
    fn common(&mut self, config: &Config) -> Result<()> {
        for (dir, mode) in [("dev", 0o755), ("proc", 0o755), ("sys", 0o755), ("run", 0o755), ("tmp", 0o1777)] {
            let found = self.tree.lookup(dir.as_bytes()).map(|id| self.tree.found(id));
            if !matches!(found, Some(Found::Directory)) {
                let meta = self.meta(mode);
                self.put(dir, |tree| tree.directory(dir.as_bytes(), meta).map(drop))?;
            }
        }
        let (major, minor) = (5, 1);
        let console = Node::Char(Device { major, minor });
        self.add("dev/console", 0o600, console)?;
        let init = host_file(&self.spec.init, "read")?;
        self.add("init", 0o755, init)?;
        if !config.is_empty() {
            self.add(CONFIG_NAME, 0o644, Node::bytes(config.to_file()))?;
        }
        self.modules()
    }

    fn modules(&mut self) -> Result<()> {
        let mut list = Vec::new();
        for path in &self.spec.modules {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let usable = MODULE_ENDINGS.iter().any(|end| name.ends_with(end))
                && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\u{fffd}');
            if !usable {
                return Err(Error::Usage(format!(
                    "--module: {}: not the name of a kernel module (.ko, .ko.xz, .ko.zst or .ko.gz, no spaces)",
                    show_path(path)
                )));
            }
            let line = format!("/{MODULES_DIR}/{name}\n");
            if list.contains(&line) {
                return Err(Error::Usage(format!("--module: {name}: given twice")));
            }
            let node = host_file(path, "read")?;
            self.add(&format!("{MODULES_DIR}/{name}"), 0o644, node)?;
            list.push(line);
        }
        if !list.is_empty() {
            let list_path = String::from_utf8_lossy(MODULES_LIST);
            self.add(&list_path, 0o644, Node::bytes(list.concat()))?;
        }
        Ok(())
    }

    fn meta(&self, mode: u16) -> Meta {
        let mtime = self.spec.epoch.unwrap_or(0);
        Meta { mode, uid: 0, gid: 0, mtime }
    }

    fn add(&mut self, path: &str, mode: u16, node: Node) -> Result<()> {
        let meta = self.meta(mode);
        self.put(path, |tree| tree.add(path.as_bytes(), meta, node).map(drop))
    }

    fn put(&mut self, path: &str, put: impl FnOnce(&mut Tree) -> core::result::Result<(), PathFault>) -> Result<()> {
        put(&mut self.tree).map_err(|fault| at_fault("root file system", path, fault))
    }
}

fn at_fault(source: &str, path: &str, fault: PathFault) -> Error {
    Error::Path(source.to_string(), show(path.as_bytes()), fault.why())
}

fn excluded(patterns: &[String], path: &[u8]) -> bool {
    let mut patterns = patterns.iter();
    patterns.any(|pattern| glob::matches(pattern.as_bytes(), path, Slash::Ordinary))
}

fn read_config(path: &Path) -> Result<Config> {
    let bytes = read_small(path, MAX_CONFIG_BYTES)?;
    Config::parse(&bytes, &show_path(path))
}

fn read_small(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let failed = |e| Error::host("read", path, e);
    let file = File::open(path).map_err(failed)?;
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max_bytes {
        let why = format!("is larger than {max_bytes} bytes");
        return Err(Error::Config(show_path(path), why));
    }
    Ok(bytes)
}

/// A regular file of the host, opened now and read when it is packed.
fn host_file(path: &Path, operation: &'static str) -> Result<Node> {
    let failed = |e| Error::host(operation, path, e);
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    check_length(path.as_os_str().as_bytes(), found.len())?;
    Ok(Node::File(Body::Range(std::rc::Rc::new(file), 0), found.len()))
}

//! What a new machine needs for a bundle, compared with what there is.

use std::path::{Path, PathBuf};

use machinen_abi::open::{Operation, Tag};

use super::Tcp;
use super::meta::{Meta, host_features};
use crate::agent::request::{Command, Request};
use crate::error::{Error, Result};
use crate::vm::{BootOptions, ShareOption};

/// How processes are restored from a bundle into a machine.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    bundle: PathBuf,
    meta: Meta,
    lazy: bool,
    tcp: Tcp,
    force: bool,
    /// What is worth a word before the start.
    warnings: Vec<String>,
}

impl RestoreOptions {
    /// Of the bundle in `dir`.
    ///
    /// # Errors
    /// Those of [`Meta::read`].
    pub fn new(dir: impl AsRef<Path>) -> Result<RestoreOptions> {
        let dir = dir.as_ref();
        let meta = Meta::read(dir)?;
        let bundle = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        Ok(RestoreOptions { bundle, meta, lazy: false, tcp: Tcp::Refuse, force: false, warnings: Vec::new() })
    }

    /// Memory comes page by page when it is needed.
    pub fn lazy(mut self, on: bool) -> RestoreOptions {
        self.lazy = on;
        self
    }

    /// TCP connections in it are closed, or go on.
    pub fn tcp(mut self, tcp: Tcp) -> RestoreOptions {
        self.tcp = tcp;
        self
    }

    /// Differences that would be refused are not.
    pub fn force(mut self, on: bool) -> RestoreOptions {
        self.force = on;
        self
    }

    /// What is known of the bundle.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Completes what a machine is to be with what the bundle says: image, memory, shared directories, where `options` has none.
    /// Then compares.
    ///
    /// # Errors
    /// `RESTORE_SHARES`: directories are missing. `RESTORE_CPU`: the processor lacks what the processes have seen.
    pub fn boot_options(mut self, mut options: BootOptions) -> Result<BootOptions> {
        let meta = &self.meta;
        if options.image.is_none() {
            options.image = Some(meta.image.clone()).filter(|image| !image.is_empty());
        }
        if options.memory_mib.is_none() && meta.memory_mib > 0 {
            options.memory_mib = Some(meta.memory_mib);
        }
        let missing: Vec<String> = meta.shares.iter().filter_map(|share| add_share(&mut options, share)).collect();
        if !missing.is_empty() {
            let message = format!(
                "bundle {}: its shared directories are not here: {}",
                self.bundle.display(),
                missing.join(", ")
            );
            return Err(Error::new("RESTORE_SHARES", message).hint("say where they are: -v HOST:GUEST for each"));
        }
        for mount in &meta.mounts {
            let Some((host, guest)) = mount.rsplit_once(':') else { continue };
            if options.mounts.iter().all(|(_, own)| own != guest) {
                options = options.mount(host, guest);
            }
        }
        self.compare_processor()?;
        options.command =
            Command { terminal: options.command.terminal, detached: options.command.detached, ..Command::default() };
        options.restore = Some(Box::new(self));
        Ok(options)
    }

    /// Programs choose their code by the processor's features when they start.
    fn compare_processor(&mut self) -> Result<()> {
        let here = host_features();
        let lacks = |feature: &&String| !here.contains(*feature);
        let missing: Vec<&str> = self.meta.cpu_features.iter().filter(lacks).map(String::as_str).collect();
        if missing.is_empty() || here.is_empty() {
            return Ok(());
        }
        let message = format!(
            "bundle {}: its processes have seen processor features that this host lacks: {}",
            self.bundle.display(),
            missing.join(" ")
        );
        if !self.force {
            return Err(
                Error::new("RESTORE_CPU", message).hint("restore it on a host that has them, or try it with --force")
            );
        }
        self.warnings.push(message);
        Ok(())
    }

    /// Differences between where it came from and where it goes, a line each; `key` is of the image that the machine is to have.
    pub(crate) fn warnings(&self, key: &str) -> Vec<String> {
        let (before, mut all) = (&self.meta.image_key, self.warnings.clone());
        if !before.is_empty() && before != key {
            all.push(format!(
                "the image is another ({key}) than the bundle's ({before}); a file that is open and differs is refused by name"
            ));
        }
        all
    }

    /// Whether memory comes page by page.
    pub(crate) fn is_lazy(&self) -> bool {
        self.lazy
    }

    /// The directory of the bundle.
    pub(crate) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// What the agent is asked for.
    pub(crate) fn request(&self, command: &Command) -> Request {
        let mut request = Request::new(Operation::Restore);
        if self.lazy {
            request = request.with(Tag::Lazy, []);
        }
        request = match self.tcp {
            Tcp::Refuse => request,
            Tcp::Close => request.with(Tag::TcpClose, []),
            Tcp::Keep => request.with(Tag::TcpKeep, []),
        };
        if let Some(size) = command.terminal {
            request = request.with(Tag::Size, size.to_bytes());
        }
        if command.detached {
            request = request.with(Tag::Detached, []);
        }
        request
    }
}

/// Adds a share of the bundle's to the machine, unless it has one at that place. Gives it back when its directory is not here.
fn add_share(options: &mut BootOptions, share: &str) -> Option<String> {
    let (places, read_only) = share.strip_suffix(":ro").map_or((share, false), |places| (places, true));
    let (host, guest) = places.rsplit_once(":/")?;
    let guest = format!("/{guest}");
    if options.shares.iter().any(|own| own.guest == guest) {
        return None;
    }
    if !Path::new(host).is_dir() {
        return Some(share.to_owned());
    }
    options.shares.push(ShareOption { host: host.into(), guest, read_only });
    None
}

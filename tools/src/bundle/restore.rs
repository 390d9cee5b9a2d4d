//! What a new machine needs for a bundle, compared with what there is.

use std::fs::File;
use std::path::{Path, PathBuf};

use machinen_abi::open::{Operation, Tag};

use super::halves::{self, Halves};
use super::meta::{self, LINEAGE, Meta, RESTORED_FROM, host_features, open_part};
use super::{LAYER, Tcp};
use crate::agent::printable;
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
    trusted: bool,
    /// What is worth a word before the start.
    warnings: Vec<String>,
    /// Where the guest has the directories whose halves are in the bundle, and their numbers.
    halves: Vec<(String, usize)>,
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
        let (lazy, tcp, force, trusted) = (false, Tcp::Refuse, false, false);
        Ok(RestoreOptions { bundle, meta, lazy, tcp, force, trusted, warnings: Vec::new(), halves: Vec::new() })
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

    /// The image and the directories that it names are used, even where this user has not made it here.
    pub fn trust(mut self, on: bool) -> RestoreOptions {
        self.trusted = on;
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
    /// `BUNDLE_INVALID`: it names what makes no sense. `RESTORE_UNTRUSTED`: somebody else made it, and it names what is here.
    /// `RESTORE_SHARES`: directories are missing. `RESTORE_CPU`: the processor lacks what the processes have seen.
    pub fn boot_options(mut self, mut options: BootOptions) -> Result<BootOptions> {
        let meta = &self.meta;
        let needed = self.needed(&options)?;
        if !self.trusted && !meta.is_own && !needed.is_nothing() {
            return Err(self.untrusted(&needed));
        }
        if options.memory_mib.is_none() && meta.memory_mib > 0 {
            options.memory_mib = Some(meta.memory_mib);
        }
        options.image = options.image.or(needed.image);
        let missing: Vec<String> = needed.shares.iter().filter(|share| !share.host.is_dir()).map(share_text).collect();
        if !missing.is_empty() {
            let message =
                format!("bundle {}: its shared directories are not here: {}", self.name(), missing.join(", "));
            return Err(Error::new("RESTORE_SHARES", message).hint("say where they are: -v HOST:GUEST for each"));
        }
        options.shares.extend(needed.shares);
        options.mounts.extend(needed.mounts);
        options.mounts.extend(self.take_halves(&options));
        self.compare_processor()?;
        options.command =
            Command { terminal: options.command.terminal, detached: options.command.detached, ..Command::default() };
        options.other.insert(LINEAGE.into(), meta::lineage(&self.meta.source, &self.meta.lineage).into());
        options.other.insert(RESTORED_FROM.into(), self.bundle.to_string_lossy().into());
        options.restore = Some(Box::new(self));
        Ok(options)
    }

    /// What the bundle names and `options` has not.
    fn needed(&self, options: &BootOptions) -> Result<Needed> {
        let invalid = |what: &str, text: &str| {
            let message = format!("bundle {}: meta.json: {what} {text:?}: not HOST:GUEST", self.name());
            Error::new("BUNDLE_INVALID", message)
        };
        let mut needed = Needed::default();
        if options.image.is_none() {
            needed.image = Some(self.meta.image.clone()).filter(|image| !image.is_empty());
        }
        for text in &self.meta.mounts {
            let (host, guest) = text
                .rsplit_once(':')
                .filter(|(host, guest)| host.starts_with('/') && guest.starts_with('/'))
                .ok_or_else(|| invalid("mount", text))?;
            if self.meta.halves.is_empty() && options.mounts.iter().all(|(_, own)| own != guest) {
                needed.mounts.push((host.into(), guest.into()));
            }
        }
        for text in &self.meta.shares {
            let share = ShareOption::parse(text).ok_or_else(|| invalid("share", text))?;
            if options.shares.iter().all(|own| own.guest != share.guest) {
                needed.shares.push(share);
            }
        }
        Ok(needed)
    }

    /// The mounts whose halves are in the bundle: they need nothing of the host. Those that `options` has are another directory's.
    fn take_halves(&mut self, options: &BootOptions) -> Vec<(PathBuf, String)> {
        let mut taken = Vec::new();
        if self.meta.halves.is_empty() {
            return taken;
        }
        for (number, text) in self.meta.mounts.iter().enumerate() {
            let Some((host, guest)) = text.rsplit_once(':') else { continue };
            if options.mounts.iter().any(|(_, own)| own == guest) {
                self.warnings.push(format!(
                    "{}: it is another directory than the bundle's: what was written there is left out",
                    printable(guest)
                ));
            } else {
                self.halves.push((guest.to_owned(), number));
                taken.push((host.into(), guest.to_owned()));
            }
        }
        taken
    }

    /// Both halves of what the guest has at `guest`, where they come from the bundle.
    ///
    /// # Errors
    /// `BUNDLE_INVALID`.
    pub(crate) fn halves(&self, guest: &str) -> Result<Option<Halves>> {
        let number = self.halves.iter().find(|(at, _)| at == guest).map(|(_, number)| *number);
        number.map(|number| halves::open_both(&self.bundle, number)).transpose()
    }

    /// Whoever made it may have named any directory of this user's, and the processes in it would have that.
    fn untrusted(&self, needed: &Needed) -> Error {
        let mounts = needed.mounts.iter().map(|(host, guest)| printable(&format!("{}:{guest}", host.display())));
        let image = needed.image.iter().map(|image| printable(image));
        let all: Vec<String> = image.chain(mounts).chain(needed.shares.iter().map(share_text)).collect();
        let message = format!(
            "bundle {}: it was copied, or this user has not made it here, and it names what its processes would get of this host: {}",
            self.name(),
            all.join(", ")
        );
        Error::new("RESTORE_UNTRUSTED", message)
            .hint("give your own by --image, --mount and -v for each; or, if you know who made it, --trust")
    }

    /// What would be refused is to be tried.
    pub(super) fn is_forced(&self) -> bool {
        self.force
    }

    pub(super) fn name(&self) -> std::path::Display<'_> {
        self.bundle.display()
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
            self.name(),
            printable(&missing.join(" "))
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
    pub(super) fn warnings(&self, key: &str) -> Vec<String> {
        let (before, mut all) = (&self.meta.image_key, self.warnings.clone());
        if !before.is_empty() && before != key {
            all.push(format!(
                "the image is another ({key}) than the bundle's ({}): what was written to the disk is left out, and a file that is \
                open and differs is refused by name",
                printable(before)
            ));
        }
        all
    }

    /// What was written to the root disk, if that is of this image.
    ///
    /// # Errors
    /// `BUNDLE_INVALID`.
    pub(crate) fn layer(&self, key: &str) -> Result<Option<File>> {
        let path = self.bundle.join(LAYER);
        match open_part(&self.bundle, LAYER) {
            Ok(file) => Ok(Some(file).filter(|_| self.meta.image_key == key)),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(Error::host("BUNDLE_INVALID", format!("open {}", path.display()), cause)),
        }
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
        request = self.tcp.ask(request);
        if let Some(size) = command.terminal {
            request = request.with(Tag::Size, size.to_bytes());
        }
        if command.detached {
            request = request.with(Tag::Detached, []);
        }
        request
    }
}

/// What a bundle names of the host and the machine has not been given otherwise.
#[derive(Debug, Default)]
struct Needed {
    image: Option<String>,
    mounts: Vec<(PathBuf, String)>,
    shares: Vec<ShareOption>,
}

impl Needed {
    fn is_nothing(&self) -> bool {
        self.image.is_none() && self.mounts.is_empty() && self.shares.is_empty()
    }
}

fn share_text(share: &ShareOption) -> String {
    let text = format!("{}:{}{}", share.host.display(), share.guest, if share.read_only { ":ro" } else { "" });
    printable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn restore(is_own: bool) -> RestoreOptions {
        let meta = Meta {
            image: "/images/i.tar".into(),
            mounts: vec!["/etc:/m".into()],
            shares: vec!["/:/work".into(), "/usr:/u:ro".into()],
            is_own,
            ..Meta::default()
        };
        let (lazy, tcp, force, trusted) = (false, Tcp::Refuse, false, false);
        RestoreOptions {
            bundle: "/b".into(),
            meta,
            lazy,
            tcp,
            force,
            trusted,
            warnings: Vec::new(),
            halves: Vec::new(),
        }
    }

    fn nothing() -> BootOptions {
        BootOptions::new("")
    }

    #[test]
    fn what_another_has_made_gets_nothing_of_the_host() {
        let refused = |options: BootOptions| restore(false).boot_options(options).unwrap_err();
        let error = refused(nothing());
        assert_eq!(error.code(), "RESTORE_UNTRUSTED");
        for named in ["/images/i.tar", "/etc:/m", "/:/work", "/usr:/u:ro"] {
            assert!(error.to_string().contains(named), "{error}");
        }
        // Each that is given is the user's own word; one that is not is enough.
        let all = nothing().mount("/tmp", "/m").share("/tmp", "/work/").share_read_only("/tmp", "/u");
        assert!(refused(all.clone()).to_string().contains("/images/i.tar"));
        let with_image = BootOptions { image: Some("i".into()), ..all };
        let options = restore(false).boot_options(with_image.clone()).unwrap();
        assert_eq!((options.shares.len(), options.mounts.len()), (2, 1));
        assert!(options.shares.iter().all(|share| share.host == Path::new("/tmp")));
        let without = BootOptions { shares: Vec::new(), ..with_image };
        assert!(refused(without).to_string().contains("/:/work"));
        // A bundle that names nothing needs no trust.
        let mut plain = restore(false);
        plain.meta = Meta::default();
        assert!(plain.boot_options(nothing()).is_ok());
    }

    #[test]
    fn what_a_bundle_brings_itself_needs_nothing_of_the_host() {
        let with_halves = || {
            let mut restore = restore(false);
            restore.meta.halves = vec![("0.lower".into(), 1), ("0.upper".into(), 1)];
            restore.meta.shares.clear();
            restore
        };
        let options = |options| with_halves().boot_options(options).unwrap();
        let plain = options(BootOptions::new("i"));
        assert_eq!(plain.mounts, [("/etc".into(), "/m".to_owned())]);
        let restore = plain.restore.unwrap();
        assert_eq!(restore.halves, [("/m".to_owned(), 0)]);
        assert_eq!(restore.halves("/m").unwrap_err().code(), "BUNDLE_INVALID");
        assert!(restore.halves("/n").unwrap().is_none() && restore.warnings.is_empty());
        let other = options(BootOptions::new("i").mount("/tmp", "/m"));
        assert_eq!(other.mounts, [("/tmp".into(), "/m".to_owned())]);
        let restore = other.restore.unwrap();
        assert!(restore.halves("/m").unwrap().is_none() && restore.warnings[0].starts_with("/m: "));
    }

    #[test]
    fn what_is_ones_own_gets_what_it_names() {
        for restore in [restore(true), restore(false).trust(true)] {
            let options = restore.boot_options(nothing().share("/tmp", "/work/")).unwrap();
            assert_eq!(options.image.as_deref(), Some("/images/i.tar"));
            assert_eq!(options.mounts, [("/etc".into(), "/m".to_owned())]);
            let shares: Vec<String> = options.shares.iter().map(share_text).collect();
            assert_eq!(shares, ["/tmp:/work", "/usr:/u:ro"]);
        }
        let mut elsewhere = restore(true);
        elsewhere.meta.shares.push("/not/here:/x".into());
        assert_eq!(elsewhere.boot_options(nothing()).unwrap_err().code(), "RESTORE_SHARES");
    }

    #[test]
    fn a_layer_is_a_file_of_the_bundle() {
        let bundle = std::env::temp_dir().join(format!("machinen-layer-{}", std::process::id()));
        fs::create_dir_all(&bundle).unwrap();
        let mut restore = restore(true);
        (restore.bundle, restore.meta.image_key) = (bundle.clone(), "key".into());
        assert!(restore.layer("key").unwrap().is_none());
        fs::write(bundle.join("other"), "").unwrap();
        symlink("other", bundle.join(LAYER)).unwrap();
        let error = restore.layer("key").unwrap_err();
        assert!(error.code() == "BUNDLE_INVALID" && error.to_string().contains("root.layer"), "{error}");
        fs::rename(bundle.join("other"), bundle.join(LAYER)).unwrap();
        assert!(restore.layer("key").unwrap().is_some() && restore.layer("of another image").unwrap().is_none());
        fs::remove_dir_all(&bundle).unwrap();
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for share in ["", "/a", "/a:/b/../c", ":/b"] {
            let mut bad = restore(true);
            bad.meta.shares = vec![share.into()];
            assert_eq!(bad.boot_options(nothing()).unwrap_err().code(), "BUNDLE_INVALID", "{share}");
        }
        for mount in ["/a", "/a:b", ":/b", "a:/b"] {
            let mut bad = restore(true);
            bad.meta.mounts = vec![mount.into()];
            assert_eq!(bad.boot_options(nothing()).unwrap_err().code(), "BUNDLE_INVALID", "{mount}");
        }
    }
}

//! `meta.json`: what a bundle came from, and what it needs.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use serde_json::{Value, json};

use super::Engine;
use super::halves::HALVES;
use super::seal::{Key, is_own};
use crate::agent::printable;
use crate::error::{Error, Result};
use crate::outfile::Outfile;
use crate::registry::Entry;

/// Name of the file.
pub(super) const NAME: &str = "meta.json";
/// In it: the code of [`Key::seal`].
const SEAL: &str = "seal";
/// Name of the directory of the engine's images.
pub(super) const IMAGES: &str = "img";
/// Another layout has another number.
const VERSION: u64 = 1;
/// Most bytes of the file: it names some images for each process.
const MOST_BYTES: u64 = 16 << 20;

/// What is known of a bundle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    /// How it was frozen.
    pub engine: Engine,
    /// Name or id of the machine that it was.
    pub source: String,
    /// Those that the machine was a copy of, or came from by a restore, the nearest first.
    pub lineage: Vec<String>,
    /// The bundle that the machine was restored from, where it was then; empty for one that was booted.
    pub restored_from: String,
    /// The image, as it was given.
    pub image: String,
    /// What identifies its content.
    pub image_key: String,
    /// Path of the kernel.
    pub kernel: String,
    /// What identifies its content; empty where that is not known.
    pub kernel_id: String,
    /// MiB of RAM that the guest could have.
    pub memory_mib: u64,
    /// The main command has a terminal.
    pub terminal: bool,
    /// Directories as `HOST:GUEST`, of which the guest had a copy.
    pub mounts: Vec<String>,
    /// Directories as `HOST:GUEST[:ro]`, shared with the host.
    pub shares: Vec<String>,
    /// Forwarded ports; they are not inherited.
    pub ports: Vec<String>,
    /// Features of the processor that the processes have seen.
    pub cpu_features: Vec<String>,
    /// What the agent says of the main command.
    pub workload: Value,
    /// The engine's images, and how long each is.
    pub images: Vec<(String, u64)>,
    /// The halves of the mounts, likewise; none where the guest's copies were not kept.
    pub halves: Vec<(String, u64)>,
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Milliseconds of each step.
    pub phases: Vec<(String, u64)>,
    /// This user made it, here: what it names of the host is theirs to give.
    pub is_own: bool,
}

impl Meta {
    /// Of a machine that is to be frozen now.
    pub(crate) fn of(entry: &Entry, source: &str, workload: Value) -> Meta {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = |key: &str| entry.other.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        // What the guest's kernel made up is not the processor's.
        let here = host_features();
        let features = workload["cpuFeatures"].as_str().unwrap_or_default().split_whitespace().map(str::to_owned);
        Meta {
            engine: Engine::Criu,
            source: source.to_owned(),
            lineage: strings(entry.other.get(LINEAGE).unwrap_or(&Value::Null)),
            restored_from: text(RESTORED_FROM),
            image: text(IMAGE_PATH),
            image_key: text(IMAGE_KEY),
            kernel: entry.kernel.clone(),
            kernel_id: text(KERNEL_ID),
            memory_mib: entry.memory_mib,
            terminal: entry.other.get("terminal").and_then(Value::as_bool).unwrap_or(false),
            mounts: entry.mounts.clone(),
            shares: entry.shares.clone(),
            ports: entry.ports.clone(),
            cpu_features: features.filter(|feature| here.contains(feature)).collect(),
            workload,
            images: Vec::new(),
            halves: Vec::new(),
            created_unix_ms: now.as_millis().try_into().unwrap_or(u64::MAX),
            phases: Vec::new(),
            is_own: true,
        }
    }

    /// Reads that of the bundle in `dir`.
    ///
    /// # Errors
    /// `BUNDLE_MISSING` when there is nothing, `BUNDLE_PARTIAL` when it is not whole, `BUNDLE_INVALID` when it makes no sense,
    /// `BUNDLE_VERSION` when it is of a later version.
    pub fn read(dir: &Path) -> Result<Meta> {
        Meta::read_with(dir, Key::of_user)
    }

    fn read_with(dir: &Path, key: impl FnOnce() -> Option<Key>) -> Result<Meta> {
        let name = dir.display();
        let path = dir.join(NAME);
        let failed = |cause: std::io::Error| match (cause.kind(), dir.is_dir()) {
            (std::io::ErrorKind::NotFound, true) => {
                Error::new("BUNDLE_PARTIAL", format!("bundle {name}: it is not whole: there is no {NAME} in it"))
                    .hint("its snapshot failed or was interrupted: take another one")
            }
            _ => Error::host("BUNDLE_MISSING", format!("open bundle {name}"), cause)
                .hint("DIR is a directory that machinen snapshot made"),
        };
        let invalid = |why: &str| Error::new("BUNDLE_INVALID", format!("bundle {name}: {NAME}: {why}"));
        let file = open(&path).map_err(failed)?;
        let mut bytes = Vec::new();
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(invalid("no file"));
        }
        (&file).take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(invalid("too large to be one"));
        }
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| invalid("no JSON"))?;
        match value["version"].as_u64() {
            Some(VERSION) => {}
            Some(newer) if newer > VERSION => {
                let message = format!("bundle {name}: it is of version {newer}, this program knows {VERSION}");
                return Err(Error::new("BUNDLE_VERSION", message).hint("use the machinen that made it, or a later one"));
            }
            _ => return Err(invalid("no version")),
        }
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let engine = Engine::parse(value["engine"].as_str().ok_or_else(|| invalid("no engine"))?)?;
        if !value["workload"].is_object() {
            return Err(invalid("no workload"));
        }
        let files = |key: &str| -> Vec<(String, u64)> {
            let files = value[key].as_object().into_iter().flatten();
            files.map(|(name, bytes)| (name.clone(), bytes.as_u64().unwrap_or_default())).collect()
        };
        let (images, halves) = (files("images"), files("halves"));
        let missing = what_is_missing(dir, IMAGES, &images);
        if let Some(why) = missing.or_else(|| what_is_missing(dir, HALVES, &halves).filter(|_| !halves.is_empty())) {
            let message = format!("bundle {name}: it is not whole: {why}");
            return Err(Error::new("BUNDLE_PARTIAL", message).hint("copy all of it, or take another snapshot"));
        }
        let is_sealed = |key: Key| {
            let dir = File::open(dir)?;
            let own = is_own(&dir.metadata()?) && is_own(&file.metadata()?);
            Ok::<_, io::Error>(own && value[SEAL] == *key.seal(&dir, &value)?)
        };
        let is_own = value[SEAL].is_string() && key().is_some_and(|key| is_sealed(key).unwrap_or(false));
        Ok(Meta {
            engine,
            source: text("source"),
            lineage: strings(&value["lineage"]),
            restored_from: text("restoredFrom"),
            image: text("image"),
            image_key: text("imageKey"),
            kernel: text("kernel"),
            kernel_id: text("kernelId"),
            memory_mib: value["memoryMib"].as_u64().unwrap_or_default(),
            terminal: value["terminal"].as_bool().unwrap_or(false),
            mounts: strings(&value["mounts"]),
            shares: strings(&value["shares"]),
            ports: strings(&value["ports"]),
            cpu_features: strings(&value["cpuFeatures"]),
            workload: value["workload"].clone(),
            images,
            halves,
            created_unix_ms: value["createdUnixMs"].as_u64().unwrap_or_default(),
            phases: Vec::new(),
            is_own,
        })
    }

    /// Writes it, with the images that are there, to the bundle in `dir`, which is whole then, whatever becomes of the host.
    ///
    /// # Errors
    /// `SNAPSHOT_DIRECTORY`.
    pub(crate) fn write(&mut self, dir: &Path) -> Result<()> {
        self.write_with(dir, Key::of_user())
    }

    fn write_with(&mut self, dir: &Path, key: Option<Key>) -> Result<()> {
        let path: PathBuf = dir.join(NAME);
        let write = || {
            self.images = lengths(&dir.join(IMAGES))?;
            let halves = dir.join(HALVES);
            self.halves = if halves.is_dir() { lengths(&halves)? } else { Vec::new() };
            let mut value = self.to_json();
            if let Some(key) = key {
                value[SEAL] = key.seal(&File::open(dir)?, &value)?.into();
            }
            let text = format!("{value:#}\n");
            if text.len() as u64 > MOST_BYTES {
                // Nobody would read it.
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            let file = Outfile::create_new(&path)?;
            file.file().set_permissions(Permissions::from_mode(0o600))?;
            file.file().write_all(text.as_bytes())?;
            file.commit_durably()
        };
        write().map_err(|cause| Error::host("SNAPSHOT_DIRECTORY", format!("write {}", path.display()), cause))
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let files = |files: &[(String, u64)]| files.iter().cloned().collect::<BTreeMap<String, u64>>();
        let phases: Vec<Value> = self.phases.iter().map(|(name, ms)| json!({"name": name, "ms": ms})).collect();
        json!({
            "version": VERSION,
            "machinen": env!("CARGO_PKG_VERSION"),
            "engine": self.engine.name(),
            "source": self.source,
            "lineage": self.lineage,
            "restoredFrom": self.restored_from,
            "image": self.image,
            "imageKey": self.image_key,
            "kernel": self.kernel,
            "kernelId": self.kernel_id,
            "memoryMib": self.memory_mib,
            "terminal": self.terminal,
            "mounts": self.mounts,
            "shares": self.shares,
            "ports": self.ports,
            "cpuFeatures": self.cpu_features,
            "workload": self.workload,
            "images": files(&self.images),
            "halves": files(&self.halves),
            "createdUnixMs": self.created_unix_ms,
            "phases": phases,
        })
    }
}

/// Opens what is to be a file, whatever it is.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// Opens what is to be a file of the bundle in `dir`, for the guest: a pipe would have this program wait for somebody who writes to it, and a
/// link give the guest another file of this user's.
pub(super) fn open_part(dir: &Path, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(File::open(dir)?, name, flags, Mode::empty(), resolve)?.into())
}

/// In an entry: where the image is, from wherever it is asked for.
pub(crate) const IMAGE_PATH: &str = "image_path";
/// In an entry: what identifies the content of the image.
pub(crate) const IMAGE_KEY: &str = "image_key";
/// In an entry: what identifies the content of the kernel.
pub(crate) const KERNEL_ID: &str = "kernel_id";
/// In an entry: where the cache has the read-only images of its mounts; empty for one from a bundle.
pub(crate) const LOWERS: &str = "lowers";
/// In an entry: the machines that it came from, the nearest first.
pub(crate) const LINEAGE: &str = "lineage";
/// Most of them.
const MOST_LINEAGE: usize = 64;
/// Most bytes of each; a name has fewer.
const MOST_NAME_BYTES: usize = 256;

/// That of a machine that comes from this one and those that it came from. A bundle is anybody's: bounded.
pub(super) fn lineage(source: &str, before: &[String]) -> Vec<String> {
    let all = std::iter::once(source).chain(before.iter().map(String::as_str));
    all.filter(|name| (1..=MOST_NAME_BYTES).contains(&name.len())).take(MOST_LINEAGE).map(str::to_owned).collect()
}

/// In an entry: the bundle that it was restored from.
pub(crate) const RESTORED_FROM: &str = "restored_from";

/// The features of this host's processor, as the kernel calls them.
pub(crate) fn host_features() -> HashSet<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    line.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// The files of a directory and how long each is, in order.
fn lengths(dir: &Path) -> std::io::Result<Vec<(String, u64)>> {
    let item = |item: std::io::Result<fs::DirEntry>| {
        let item = item?;
        let metadata = item.metadata()?;
        Ok(metadata.is_file().then(|| (item.file_name().to_string_lossy().into_owned(), metadata.len())))
    };
    let mut all =
        fs::read_dir(dir)?.filter_map(|found| item(found).transpose()).collect::<std::io::Result<Vec<_>>>()?;
    all.sort();
    Ok(all)
}

/// The first file of a directory of the bundle in `bundle` that is not there as it was written.
fn what_is_missing(bundle: &Path, directory: &str, files: &[(String, u64)]) -> Option<String> {
    let dir = bundle.join(directory);
    if !dir.is_dir() {
        return Some(format!("there is no {directory} in it"));
    }
    files.iter().find_map(|(name, bytes)| match (fs::metadata(dir.join(name)), printable(name)) {
        (Ok(found), _) if found.len() == *bytes => None,
        (Ok(found), name) => Some(format!("{directory}/{name} has {} bytes, not {bytes}", found.len())),
        (Err(_), name) => Some(format!("there is no {directory}/{name} in it")),
    })
}

/// The texts of an array.
pub(super) fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lineage_is_bounded() {
        let before: Vec<String> = (0..100).map(|n| n.to_string()).chain(["x".repeat(257), String::new()]).collect();
        let all = lineage("web", &before);
        assert_eq!((all.len(), &*all[0], &*all[63]), (64, "web", "62"));
        assert_eq!(lineage("", &before[99..]), ["99"]);
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = std::env::temp_dir().join(format!("machinen-meta-{}", std::process::id()));
        fs::create_dir_all(dir.join("img")).unwrap();
        assert_eq!(Meta::read(&dir).unwrap_err().code(), "BUNDLE_PARTIAL");
        let mut meta = Meta {
            source: "web/1".into(),
            lineage: vec!["web".into()],
            restored_from: "/b".into(),
            image: "i.tar".into(),
            image_key: "k".into(),
            kernel_id: "i".into(),
            memory_mib: 7,
            terminal: true,
            shares: vec!["/a:/b:ro".into()],
            cpu_features: vec!["sse".into()],
            workload: json!({"pid": 1000}),
            created_unix_ms: 5,
            ..Meta::default()
        };
        let key = |byte| move || Some(Key([byte; 32]));
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
        meta.write_with(&dir, key(1)()).unwrap();
        let own = |key: &dyn Fn() -> Option<Key>| Meta::read_with(&dir, key).unwrap().is_own;
        assert_eq!(Meta::read_with(&dir, key(1)).unwrap(), Meta { is_own: true, ..meta.clone() });
        // Another's, by the key, or by what somebody has changed, or could.
        assert!(!own(&key(2)) && !own(&|| None));
        let text = fs::read_to_string(dir.join(NAME)).unwrap();
        fs::write(dir.join(NAME), text.replace("/a:/b:ro", "/a:/b")).unwrap();
        assert!(!own(&key(1)));
        fs::write(dir.join(NAME), &text).unwrap();
        assert!(own(&key(1)));
        fs::set_permissions(&dir, Permissions::from_mode(0o770)).unwrap();
        assert!(!own(&key(1)));
        // One that was copied elsewhere.
        let copy = dir.join("copy");
        fs::create_dir_all(copy.join("img")).unwrap();
        fs::write(copy.join(NAME), &text).unwrap();
        assert_eq!(Meta::read_with(&copy, key(1)).unwrap(), meta);
        meta.write_with(&dir, None).unwrap();
        fs::remove_dir_all(&copy).unwrap();
        fs::write(dir.join("img/pages-1.img"), "1234").unwrap();
        meta.write_with(&dir, None).unwrap();
        assert_eq!(meta.images, [("pages-1.img".to_owned(), 4)]);
        assert_eq!(Meta::read(&dir).unwrap(), meta);
        fs::write(dir.join("img/pages-1.img"), "123").unwrap();
        let error = Meta::read(&dir).unwrap_err();
        assert!(error.to_string().ends_with("img/pages-1.img has 3 bytes, not 4"), "{error}");
        fs::write(dir.join("img/pages-1.img"), "1234").unwrap();
        fs::create_dir(dir.join("mounts")).unwrap();
        fs::write(dir.join("mounts/0.upper"), "12").unwrap();
        fs::remove_file(dir.join(NAME)).unwrap();
        meta.write_with(&dir, None).unwrap();
        assert_eq!(Meta::read(&dir).unwrap().halves, [("0.upper".to_owned(), 2)]);
        fs::write(dir.join("mounts/0.upper"), "1").unwrap();
        let error = Meta::read(&dir).unwrap_err();
        assert!(error.to_string().ends_with("mounts/0.upper has 1 bytes, not 2"), "{error}");
        fs::remove_file(dir.join("img/pages-1.img")).unwrap();
        let error = Meta::read(&dir).unwrap_err();
        assert!(error.to_string().ends_with("there is no img/pages-1.img in it"), "{error}");
        // What nobody would read is not written.
        let mut large = Meta { source: "x".repeat(16 << 20), ..meta.clone() };
        assert_eq!(large.write_with(&dir, None).unwrap_err().code(), "SNAPSHOT_DIRECTORY");
        // A name that would steer the terminal.
        let name = r#"{"version": 1, "engine": "criu", "workload": {}, "images": {"\u001b[2J": 1}}"#;
        fs::write(dir.join(NAME), name).unwrap();
        assert!(Meta::read(&dir).unwrap_err().to_string().ends_with("there is no img/\u{fffd}[2J in it"));
        for (text, code) in [
            ("", "BUNDLE_INVALID"),
            ("{}", "BUNDLE_INVALID"),
            (r#"{"version": 2}"#, "BUNDLE_VERSION"),
            (r#"{"version": 1}"#, "BUNDLE_INVALID"),
            (r#"{"version": 1, "engine": "other"}"#, "SNAPSHOT_ENGINE"),
            (r#"{"version": 1, "engine": "criu"}"#, "BUNDLE_INVALID"),
        ] {
            fs::write(dir.join(NAME), text).unwrap();
            assert_eq!(Meta::read(&dir).unwrap_err().code(), code, "{text}");
        }
        // What is no file is not waited for, and has no end that is too far away.
        fs::remove_file(dir.join(NAME)).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, dir.join(NAME), fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert_eq!(Meta::read(&dir).unwrap_err().code(), "BUNDLE_INVALID");
        fs::remove_file(dir.join(NAME)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.join(NAME)).unwrap();
        assert_eq!(Meta::read(&dir).unwrap_err().code(), "BUNDLE_INVALID");
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(Meta::read(&dir).unwrap_err().code(), "BUNDLE_MISSING");
        fs::create_dir_all(dir.join(IMAGES)).unwrap();
        meta.write(&dir).unwrap();
        fs::remove_dir(dir.join(IMAGES)).unwrap();
        assert_eq!(Meta::read(&dir).unwrap_err().code(), "BUNDLE_PARTIAL");
        fs::remove_dir_all(&dir).unwrap();
    }
}

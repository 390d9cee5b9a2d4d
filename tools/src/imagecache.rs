//! Images in the cache: whole and marked, or not there. Names are keys of what the image is made from.
//!
//! An entry is `KEY.SUFFIX`, and `KEY.mark`, which says of which length and time the file is, and how long it has to be for
//! whoever names no length. The mark is written last and
//! removed first, so a file without it, or with another length or time than it says, was cut short or written to, and is
//! made again. Files are nameless until they are whole: a kill leaves nothing. One builder holds the lock of a key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::fault::{Fault, Result};
use crate::outfile::Outfile;

/// `MACHINEN_CACHE_DIR`, `XDG_CACHE_HOME/machinen` or `HOME/.cache/machinen`. `None`: none of them is set.
pub fn directory() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("MACHINEN_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("machinen")))
        .or_else(|| variable("HOME").map(|dir| dir.join(".cache/machinen")))
}

/// Whether the file of this path, in which no name is a link's, is in the cache.
pub fn holds(path: &Path) -> bool {
    directory().is_some_and(|cache| is_below(&cache, path))
}

fn is_below(directory: &Path, path: &Path) -> bool {
    fs::canonicalize(directory).is_ok_and(|directory| path.starts_with(directory))
}

/// Images of one kind.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    suffix: &'static str,
    /// What made them: a change of the program that changes images changes this.
    format: &'static str,
}

/// A file that belongs to an image: suffix, content.
pub type Beside<'a> = (&'a str, Option<&'a [u8]>);

/// Holds off other builders of a key until it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its lock")] File);

impl Store {
    /// The directory `name` of the cache, made if it is not there.
    pub fn open(name: &str, suffix: &'static str, format: &'static str) -> Result<Self> {
        let cache = directory().ok_or(Fault::NoCache)?;
        let dir = cache.join(name);
        fs::create_dir_all(&dir).map_err(|e| Fault::host("make directory", &dir, e))?;
        // Paths are printed for programs that run elsewhere.
        let dir = fs::canonicalize(&dir).map_err(|e| Fault::host("open", &dir, e))?;
        Ok(Store { dir, suffix, format })
    }

    /// Its directory, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the image of `key` is or will be.
    pub fn path(&self, key: &str) -> PathBuf {
        self.beside(key, self.suffix)
    }

    /// A file that belongs to the image of `key`.
    pub fn beside(&self, key: &str, suffix: &str) -> PathBuf {
        self.dir.join(format!("{key}.{suffix}"))
    }

    /// Waits until no other process builds `key`. A few files serve all keys, so that none has to be removed.
    pub fn lock(&self, key: &str) -> Result<Lock> {
        let path = self.dir.join(format!(".lock-{}", key.get(..1).unwrap_or("0")));
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = opened.map_err(|e| Fault::host("open", &path, e))?;
        file.lock().map_err(|e| Fault::host("lock", &path, e))?;
        Ok(Lock(file))
    }

    /// The length in bytes of the image of `key`, if it is there and as it was when it was marked.
    pub fn intact_bytes(&self, key: &str) -> Option<u64> {
        let mark = self.read_mark(key)?;
        let least_bytes = mark["least_bytes"].as_u64()?;
        let found = fs::symlink_metadata(self.path(key)).ok()?;
        (found.is_file() && mark == self.mark(&found, least_bytes)).then_some(found.len())
    }

    /// The length in bytes that the image of `key` has at least for whoever names none; 0 if there is no such image.
    pub fn least_bytes(&self, key: &str) -> u64 {
        self.read_mark(key).and_then(|mark| mark["least_bytes"].as_u64()).unwrap_or(0)
    }

    fn read_mark(&self, key: &str) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.beside(key, "mark")).ok()?).ok()
    }

    fn mark(&self, image: &fs::Metadata, least_bytes: u64) -> Value {
        let mtime = [image.mtime(), image.mtime_nsec()];
        json!({ "format": self.format, "bytes": image.len(), "least_bytes": least_bytes, "mtime": mtime })
    }

    /// A new image, without its name until [`Store::commit`].
    pub fn create(&self) -> Result<Outfile> {
        self.sweep();
        let path = self.dir.join("new");
        let created = path.to_str().ok_or(io::ErrorKind::InvalidFilename.into()).and_then(Outfile::create_new);
        created.map_err(|e| Fault::host("create", &path, e))
    }

    /// Puts an image in place of the one before, with files that belong to it (suffix, content; `None`: there is none), and
    /// its [`Store::least_bytes`]. The caller holds the lock.
    pub fn commit(&self, key: &str, image: Outfile, least_bytes: u64, beside: &[Beside<'_>]) -> Result<()> {
        let path = self.path(key);
        // A host that crashes leaves no marked image without its content.
        image.file().sync_all().map_err(|e| Fault::host("write", &path, e))?;
        let suffixes = beside.iter().map(|(suffix, _)| *suffix);
        for suffix in ["mark", self.suffix].into_iter().chain(suffixes) {
            remove(&self.beside(key, suffix))?;
        }
        image.commit_as(&path).map_err(|e| Fault::host("name", &path, e))?;
        for (suffix, content) in beside {
            if let Some(content) = content {
                self.put(&self.beside(key, suffix), content)?;
            }
        }
        self.put_mark(key, least_bytes)
    }

    /// Makes the image of `key` longer, without content. The caller holds the lock.
    pub fn grow(&self, key: &str, bytes: u64) -> Result<()> {
        let path = self.path(key);
        let opened = OpenOptions::new().write(true).open(&path);
        let file = opened.map_err(|e| Fault::host("open", &path, e))?;
        let least_bytes = self.least_bytes(key);
        remove(&self.beside(key, "mark"))?;
        let grown = file.set_len(bytes).and_then(|()| file.sync_all());
        grown.map_err(|e| Fault::host("grow", &path, e))?;
        self.put_mark(key, least_bytes)
    }

    fn put_mark(&self, key: &str, least_bytes: u64) -> Result<()> {
        let path = self.path(key);
        let found = fs::metadata(&path).map_err(|e| Fault::host("stat", &path, e))?;
        self.put(&self.beside(key, "mark"), format!("{}\n", self.mark(&found, least_bytes)).as_bytes())
    }

    fn put(&self, path: &Path, content: &[u8]) -> Result<()> {
        remove(path)?;
        let created = path.to_str().ok_or(io::ErrorKind::InvalidFilename.into()).and_then(Outfile::create_new);
        let written = created.and_then(|file| {
            file.file().write_all(content)?;
            file.commit()
        });
        written.map_err(|e| Fault::host("write", path, e))
    }

    /// The key that was remembered for `slot`, if its fingerprint is still the same.
    pub fn recall(&self, slot: &str, fingerprint: &str) -> Option<String> {
        let text = fs::read_to_string(self.beside(slot, "seen")).ok()?;
        let (seen, key) = text.trim_end().split_once(' ')?;
        let is_key = key.len() == KEY_DIGITS && key.bytes().all(|b| b.is_ascii_hexdigit());
        (seen == fingerprint && is_key).then(|| key.to_string())
    }

    /// Remembers the key of `slot` with a fingerprint of one word. A failure costs time later, nothing else.
    pub fn remember(&self, slot: &str, fingerprint: &str, key: &str) {
        let _ = self.put(&self.beside(slot, "seen"), format!("{fingerprint} {key}\n").as_bytes());
    }

    /// Removes temporary files of killed builders, which there are only where files cannot be nameless.
    fn sweep(&self) {
        let Ok(listing) = fs::read_dir(&self.dir) else { return };
        for item in listing.flatten() {
            let is_temporary = item.file_name().to_str().is_some_and(Outfile::is_temporary);
            if is_temporary {
                Outfile::remove_stale(&item.path());
            }
        }
    }
}

/// Length of a key: SHA-256 in hexadecimal.
const KEY_DIGITS: usize = 64;

/// A hash as a key.
pub fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a file that changed at this time (seconds since 1970, nanoseconds) would show a further change: file times
/// advance in steps, and two changes within one look the same.
pub fn is_settled(changed: (i64, i64)) -> bool {
    const STEP_MS: i128 = 1000;
    let Ok(now) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) else { return false };
    let changed_ms = i128::from(changed.0) * 1000 + i128::from(changed.1 / 1_000_000);
    i128::try_from(now.as_millis()).is_ok_and(|now| now - changed_ms > STEP_MS)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Fault::host("remove", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_may_be_reached_by_a_link() {
        let top = std::env::temp_dir().join(format!("machinen-imagecache-{}", std::process::id()));
        fs::create_dir_all(top.join("real")).unwrap();
        std::os::unix::fs::symlink("real", top.join("link")).unwrap();
        let image = fs::canonicalize(&top).unwrap().join("real/rootfs/KEY.img");
        assert!(is_below(&top.join("link"), &image) && is_below(&top.join("real"), &image));
        assert!(!is_below(&top.join("other"), &image) && !is_below(&top.join("link"), &top.join("real2/x")));
        fs::remove_dir_all(&top).unwrap();
    }
}

//! Directories in the cache for bundles that nobody keeps.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::imagecache;

/// In the cache.
const DIRECTORY: &str = "bundles";

/// A directory that goes with this value; of one that was killed, with the next that is made.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    /// Locked: somebody uses it.
    _lock: File,
}

impl Scratch {
    /// Makes one.
    ///
    /// # Errors
    /// `FORK_DIRECTORY`.
    pub fn new() -> Result<Scratch> {
        let cache = imagecache::directory().ok_or_else(|| {
            Error::new(
                "FORK_DIRECTORY",
                "find a place for the bundle: MACHINEN_CACHE_DIR, XDG_CACHE_HOME and HOME are not set",
            )
            .hint("set MACHINEN_CACHE_DIR, or say where the bundle shall stay: --out DIR")
        })?;
        Scratch::below(&cache.join(DIRECTORY))
    }

    fn below(parent: &Path) -> Result<Scratch> {
        let failed = |cause| Error::host("FORK_DIRECTORY", format!("make a directory in {}", parent.display()), cause);
        fs::create_dir_all(parent).map_err(failed)?;
        sweep(parent, false);
        for number in 0.. {
            let path = parent.join(format!("{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(failed)?,
            }
            // Swept meanwhile by somebody who found it without its lock: another one.
            match File::open(&path) {
                Ok(lock) if lock.try_lock().is_ok() && is_at(&lock, &path) => return Ok(Scratch { path, _lock: lock }),
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(failed(cause)),
                _ => {}
            }
        }
        Err(failed(std::io::ErrorKind::AlreadyExists.into()))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is tried again by the next.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes bundles that nobody keeps any more; with `dry_run` only tells which those are.
pub(crate) fn collect(dry_run: bool) -> Vec<PathBuf> {
    imagecache::directory().map(|cache| sweep(&cache.join(DIRECTORY), dry_run)).unwrap_or_default()
}

/// Removes what nobody uses.
fn sweep(parent: &Path, dry_run: bool) -> Vec<PathBuf> {
    let items = fs::read_dir(parent).into_iter().flatten().flatten().map(|item| item.path());
    // Locked until it is gone: its maker may be about to use it. What is there by then may be somebody else's.
    let is_swept = |path: &PathBuf| {
        let is_unused = |dir: &File| dir.try_lock().is_ok() && is_at(dir, path);
        File::open(path).is_ok_and(|dir| is_unused(&dir) && (dry_run || fs::remove_dir_all(path).is_ok()))
    };
    items.filter(is_swept).collect()
}

/// Whether the open directory is the one of this path.
fn is_at(dir: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (dir.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_at_once_each_have_their_own() {
        let parent = std::env::temp_dir().join(format!("machinen-scratches-{}", std::process::id()));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let scratch = Scratch::below(&parent).unwrap();
                        fs::write(scratch.path().join("mine"), "").unwrap();
                        assert!(scratch.path().join("mine").is_file());
                    }
                });
            }
        });
        fs::remove_dir(&parent).unwrap();
    }

    #[test]
    fn what_nobody_uses_is_swept() {
        let parent = std::env::temp_dir().join(format!("machinen-scratch-{}", std::process::id()));
        let left = parent.join("1-0");
        fs::create_dir_all(left.join("img")).unwrap();
        let one = Scratch::below(&parent).unwrap();
        assert!(!left.exists());
        let other = Scratch::below(&parent).unwrap();
        assert!(one.path().is_dir() && other.path().is_dir() && one.path() != other.path());
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists());
        fs::create_dir(&left).unwrap();
        assert_eq!((sweep(&parent, true), left.exists()), (vec![left.clone()], true));
        assert_eq!((sweep(&parent, false), left.exists()), (vec![left.clone()], false));
        assert_eq!(sweep(&parent, false), [] as [PathBuf; 0]);
        drop(other);
        fs::remove_dir(&parent).unwrap();
    }
}

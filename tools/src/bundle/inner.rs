//! The directory of a bundle that is the guest's, and how what it leaves there becomes the bundle's.

use std::fs::{self, DirBuilder, File, FileType, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::LAYER;
use super::halves::HALVES;
use super::meta::{IMAGES, NAME};
use crate::error::{Error, Result};

/// The engine's log.
const LOG: &str = "dump.log";

/// The directory in the bundle's that is the guest's. A guest that had the bundle's own could write its `meta.json`, and with that say
/// which of the host's directories a restored machine gets.
pub(super) struct Inner {
    bundle: PathBuf,
    path: PathBuf,
    directory: File,
    has_log: bool,
}

impl Inner {
    /// Makes the bundle's directory, where it is not there yet, and this one in it; both closed to others: memory holds secrets.
    pub fn make(dir: &Path) -> Result<Inner> {
        let failed = |cause| {
            let error = Error::host("SNAPSHOT_DIRECTORY", format!("make directory {}", dir.display()), cause);
            error.hint("DIR is made by the snapshot, in a directory that exists; one that is there must be empty, and this user's")
        };
        let check_empty = || match fs::read_dir(dir).map_err(failed)?.next() {
            None => Ok(()),
            Some(_) => {
                let error = Error::new("SNAPSHOT_DIRECTORY", format!("directory {}: it is not empty", dir.display()));
                Err(error.hint("give another, or one that is not there yet"))
            }
        };
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
                // One that is refused stays as it is.
                check_empty()?;
                // Only its owner can.
                fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed)?;
                // Others could have put something there up to now.
                check_empty()?;
            }
            made => made.map_err(failed)?,
        }
        let path = dir.join(".guest");
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let directory = File::open(&path).map_err(failed)?;
        Ok(Inner { bundle: dir.to_owned(), path, directory, has_log: false })
    }

    /// The directory of the bundle.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// The guest has left nothing in it.
    pub fn is_empty(&self) -> bool {
        fs::read_dir(&self.path).is_ok_and(|mut items| items.next().is_none())
    }

    /// Gives the bundle what the guest has made, and nothing else that it left. It may have that open still, and what it writes there
    /// belongs to the bundle, but no name that leads elsewhere: what is moved is looked at where the guest cannot exchange it.
    ///
    /// Errors: `SNAPSHOT_FAILED` when there are no images.
    pub fn give(&mut self) -> Result<()> {
        let images = self.place(IMAGES, FileType::is_dir);
        self.give_log();
        images.map_err(|cause| {
            let message = format!("the guest has left no images in {}", self.bundle.display());
            Error::host("SNAPSHOT_FAILED", message, cause)
        })
    }

    /// Gives it the log alone, if there is one: without CRIU there is none.
    pub fn give_log(&mut self) {
        self.has_log = self.has_log || self.place(LOG, FileType::is_file).is_ok();
    }

    fn place(&self, name: &str, is_right: fn(&FileType) -> bool) -> io::Result<()> {
        let path = self.bundle.join(name);
        fs::rename(self.path.join(name), &path)?;
        let kind = fs::symlink_metadata(&path)?.file_type();
        if is_right(&kind) {
            return Ok(());
        }
        if kind.is_dir() {
            fs::remove_dir_all(&path)?
        } else {
            fs::remove_file(&path)?
        }
        Err(io::Error::from(io::ErrorKind::InvalidData))
    }

    /// What the bundle has survives the host. Of the whole file system: the guest's names are not looked up for that.
    ///
    /// Errors: `SNAPSHOT_DIRECTORY`.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.directory)
            .map_err(|cause| Error::host("SNAPSHOT_DIRECTORY", format!("write out {}", self.bundle.display()), cause))
    }

    /// The guest's directory goes, and what is left in it.
    pub fn remove(self) {
        let _ = fs::remove_dir_all(&self.path);
    }

    /// The bundle is none: only its log stays.
    pub fn discard(self) {
        // Something that is not there is as good as removed, and what cannot be is without what describes it.
        let _ = fs::remove_file(self.bundle.join(NAME));
        let _ = fs::remove_file(self.bundle.join(LAYER));
        let _ = fs::remove_dir_all(self.bundle.join(IMAGES));
        let _ = fs::remove_dir_all(self.bundle.join(HALVES));
        self.remove();
    }
}

impl AsFd for Inner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("machinen-snapshot-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn the_guest_gives_images_and_a_log_and_nothing_else() {
        let top = scratch("inner");
        let dir = top.join("bundle");
        let names = || {
            let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|item| item.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let mut inner = Inner::make(&dir).unwrap();
        let guest = inner.path.clone();
        assert!(inner.is_empty());
        fs::create_dir(guest.join("img")).unwrap();
        for name in ["dump.log", "meta.json", "img/core-1.img"] {
            fs::write(guest.join(name), "").unwrap();
        }
        assert!(!inner.is_empty());
        inner.give().unwrap();
        // A second log is not what was looked at.
        fs::write(guest.join("dump.log"), "other").unwrap();
        inner.give_log();
        inner.sync().unwrap();
        inner.remove();
        assert_eq!(names(), ["dump.log", "img"]);
        assert!(dir.join("img/core-1.img").is_file());
        assert_eq!(fs::read(dir.join("dump.log")).unwrap(), b"");
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Inner::make(&dir).err().map(|error| error.code()), Some("SNAPSHOT_DIRECTORY"));
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o755, "it is somebody's");
        fs::remove_dir_all(&dir).unwrap();

        // Links are not what they lead to.
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
        let mut inner = Inner::make(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        symlink("/", guest.join("img")).unwrap();
        symlink("/etc/passwd", guest.join("dump.log")).unwrap();
        assert_eq!(inner.give().unwrap_err().code(), "SNAPSHOT_FAILED");
        inner.discard();
        assert!(names().is_empty());
        let mut inner = Inner::make(&dir).unwrap();
        assert_eq!(inner.give().unwrap_err().code(), "SNAPSHOT_FAILED");
        inner.discard();
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn of_what_is_no_bundle_the_log_stays() {
        let top = scratch("discard");
        let dir = top.join("bundle");
        let mut inner = Inner::make(&dir).unwrap();
        fs::create_dir(inner.path.join("img")).unwrap();
        fs::write(inner.path.join("dump.log"), "log").unwrap();
        inner.give().unwrap();
        fs::create_dir(dir.join(HALVES)).unwrap();
        for name in ["meta.json", "root.layer", "img/a", ".guest/b", "mounts/0.upper"] {
            fs::write(dir.join(name), "").unwrap();
        }
        inner.discard();
        let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|item| item.unwrap().file_name()).collect();
        assert_eq!(left, ["dump.log"]);
        fs::remove_dir_all(&top).unwrap();
    }
}

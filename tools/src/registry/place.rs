//! Where the registry is, and opening it without following anybody else.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::error::{Error, Result};

/// The registry's directory, which may not be there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
    /// Named by the user: made with its parents, and may be a symlink.
    named: bool,
}

impl Place {
    /// `MACHINEN_REGISTRY_DIR`, else `machinen` in `XDG_RUNTIME_DIR` where that is the caller's, else /tmp/machinen-UID.
    pub fn of_environment() -> Place {
        Place::choose(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// A directory of the caller's choice.
    pub fn named(path: impl AsRef<Path>) -> Place {
        // Paths are printed and handed to programs that run elsewhere.
        let path = std::path::absolute(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_owned());
        Place { path, named: true }
    }

    fn choose(variable: impl Fn(&str) -> Option<OsString>) -> Place {
        if let Some(path) = variable("MACHINEN_REGISTRY_DIR") {
            return Place::named(PathBuf::from(path));
        }
        let user = geteuid().as_raw();
        // After su or sudo it may be another user's, or gone.
        let is_own = |dir: &PathBuf| {
            dir.is_absolute() && fs::metadata(dir).is_ok_and(|found| found.is_dir() && found.uid() == user)
        };
        let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from).filter(is_own);
        let path = runtime.map_or_else(|| format!("/tmp/machinen-{user}").into(), |dir| dir.join("machinen"));
        Place { path, named: false }
    }

    /// Where it is, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it; `None` when it is not there.
    ///
    /// # Errors
    /// `REGISTRY_DIRECTORY`: it is another user's, others may write to it, it is no directory, or cannot be opened.
    pub fn open(&self) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let flags = if self.named { flags } else { flags | OFlags::NOFOLLOW };
        let dir = match openat(CWD, &self.path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.failed("open", error)),
        };
        let found = fstat(&dir).map_err(|error| self.failed("look at", error))?;
        let user = geteuid().as_raw();
        if found.st_uid != user {
            let message = format!("directory {} belongs to user {}, not to user {user}", self.show(), found.st_uid);
            return Err(elsewhere(Error::new("REGISTRY_DIRECTORY", message)));
        }
        let forbidden = if self.named { 0o022 } else { 0o077 };
        if found.st_mode & forbidden != 0 {
            let message =
                format!("directory {} is open to other users: mode {:03o}", self.show(), found.st_mode & 0o777);
            return Err(Error::new("REGISTRY_DIRECTORY", message).hint(format!("chmod 700 {}", self.show())));
        }
        Ok(Some(dir))
    }

    /// Opens it, and makes it before where it is not there, for the caller alone.
    ///
    /// # Errors
    /// As [`Place::open`].
    pub fn make(&self) -> Result<OwnedFd> {
        if let Some(dir) = self.open()? {
            return Ok(dir);
        }
        match DirBuilder::new().mode(0o700).recursive(self.named).create(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(elsewhere(self.failed("make", error))),
            _ => self.open()?.ok_or_else(|| self.failed("open", Errno::NOENT)),
        }
    }

    /// Holds off everybody else who changes names or removes directories, until it is dropped or the caller dies.
    ///
    /// # Errors
    /// `REGISTRY_DIRECTORY`: the registry cannot be written.
    pub fn lock(&self, dir: &OwnedFd) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat(dir, ".lock", flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| elsewhere(self.failed("open .lock in", error)))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed("lock .lock in", error)),
            }
        }
    }

    fn show(&self) -> impl std::fmt::Display {
        self.path.display().to_string()
    }

    fn failed(&self, operation: &str, cause: impl Into<io::Error>) -> Error {
        Error::host("REGISTRY_DIRECTORY", format!("{operation} directory {}", self.show()), cause)
    }
}

fn elsewhere(error: Error) -> Error {
    error.hint("set MACHINEN_REGISTRY_DIR to a directory of your own that you can write to")
}

/// A path to something in a directory that stays usable, for connect(2) and bind(2) too, however long the directory's is.
#[derive(Debug)]
pub struct ShortPath {
    path: PathBuf,
    /// The path leads through it.
    _dir: OwnedFd,
}

impl ShortPath {
    /// A path to `name` in `dir`, for this process only.
    ///
    /// # Errors
    /// `dir` cannot be opened.
    pub fn new(dir: &Path, name: &str) -> io::Result<ShortPath> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = openat(CWD, dir, flags, Mode::empty())?;
        let path = format!("/proc/self/fd/{}/{name}", fd.as_raw_fd()).into();
        Ok(ShortPath { path, _dir: fd })
    }
}

impl AsRef<Path> for ShortPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::testing::Scratch;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn order_of_the_places() {
        let scratch = Scratch::new();
        let runtime = scratch.path().to_owned();
        let user = geteuid().as_raw();
        let choose = |registry: &str, runtime: &Path| {
            let value = |name: &str| match name {
                "MACHINEN_REGISTRY_DIR" => Some(registry).filter(|value| !value.is_empty()).map(OsString::from),
                _ => Some(runtime.as_os_str().to_owned()).filter(|value| !value.is_empty()),
            };
            Place::choose(value).path
        };
        let fallback = PathBuf::from(format!("/tmp/machinen-{user}"));
        assert_eq!(choose("/r", &runtime), Path::new("/r"));
        assert_eq!(choose("", &runtime), runtime.join("machinen"));
        assert_eq!(choose("", Path::new("")), fallback);
        assert_eq!(choose("", Path::new("relative")), fallback);
        assert_eq!(choose("", &runtime.join("no")), fallback);
        // Of another user, unless this one is root's own.
        assert_eq!(choose("", Path::new("/proc/self")) == fallback, user != 0);
        assert!(choose("r", &runtime).is_absolute());
    }

    #[test]
    fn only_a_directory_of_the_callers_own_is_used() {
        let scratch = Scratch::new();
        let private = |name: &str| Place { path: scratch.path().join(name), named: false };
        assert!(private("new").open().unwrap().is_none());
        private("new").make().unwrap();
        private("new").make().unwrap();
        assert_eq!(fs::metadata(scratch.path().join("new")).unwrap().mode() & 0o777, 0o700);
        symlink("new", scratch.path().join("link")).unwrap();
        assert_eq!(private("link").open().unwrap_err().code(), "REGISTRY_DIRECTORY");
        assert_eq!(private("link").make().unwrap_err().code(), "REGISTRY_DIRECTORY");
        assert!(Place::named(scratch.path().join("link")).open().unwrap().is_some());
        fs::set_permissions(scratch.path().join("new"), fs::Permissions::from_mode(0o755)).unwrap();
        let error = private("new").open().unwrap_err();
        assert!(error.what_to_do().unwrap().starts_with("chmod 700 "), "{error}");
        assert!(Place::named(scratch.path().join("new")).open().unwrap().is_some());
        fs::set_permissions(scratch.path().join("new"), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Place::named(scratch.path().join("new")).open().is_err());
        fs::write(scratch.path().join("file"), "").unwrap();
        assert!(private("file").open().is_err() && private("file/below").make().is_err());
    }

    #[test]
    fn long_paths_are_bound_and_reached() {
        let scratch = Scratch::new();
        let dir = scratch.path().join("d".repeat(200)).join("e".repeat(200));
        fs::create_dir_all(&dir).unwrap();
        let path = ShortPath::new(&dir, "s").unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(dir.join("s").exists());
        UnixStream::connect(ShortPath::new(&dir, "s").unwrap()).unwrap();
    }
}

//! Socket files: one that is listened on, from its making to its removal, and connections to others.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::socket::{connect, through};
use crate::sys;

/// Connections that may wait to be accepted. Fewer than [`Listener::accept`] is called for in one go, so that whoever came
/// too late for that has sent a signal of its own.
pub const BACKLOG: i32 = 128;
/// How long another monitor may take to replace a socket in the same directory.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a socket is for, in messages.
#[derive(Debug)]
pub struct Use {
    what: &'static str,
    code: &'static str,
    taken: &'static str,
}

/// A bridge of vsock.
pub const VSOCK: Use = Use { what: "vsock socket", code: "VSOCK_SOCKET", taken: "VSOCK_SOCKET_TAKEN" };
/// The control socket.
pub const CTL: Use = Use { what: "control socket", code: "CTL_SOCKET", taken: "CTL_SOCKET_TAKEN" };

/// A socket with a name, which goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the name.
    identity: (u64, u64),
    /// A connection may be waiting.
    pub ready: bool,
}

impl Listener {
    /// Listens at `path`, of any length. A socket there that nobody listens on any more is replaced. Signals tell of new
    /// connections.
    ///
    /// Errors, by their codes for this use: taken when somebody listens there, or it is no socket; the other when it cannot be made.
    pub fn open(socket: &Use, path: &str) -> Result<Listener> {
        let path = PathBuf::from(path);
        let failed = |cause: io::Error| {
            let hint = match cause.kind() {
                ErrorKind::NotFound => "does its directory exist?",
                ErrorKind::PermissionDenied => "may this user write to its directory?",
                _ => "",
            };
            let operation = format!("{} {}", socket.what, path.display());
            Error::Host { code: socket.code, operation, cause, hint: hint.into() }
        };
        let (directory, listener, temporary) = bind(&path).map_err(failed)?;
        let named = name(socket, &directory, &temporary, &path);
        // The temporary name has done its work, or been renamed.
        let _: io::Result<()> = fs::remove_file(&temporary);
        named?.map_err(failed)?;
        let finish = || {
            let metadata = fs::symlink_metadata(&path)?;
            if !sys::notify_by_signal(listener.as_fd(), true)? {
                return Err(io::Error::from(ErrorKind::Unsupported));
            }
            Ok((metadata.dev(), metadata.ino()))
        };
        let identity = finish().map_err(failed)?;
        Ok(Listener { socket: listener, path, identity, ready: true })
    }

    /// Takes a connection that waits. Errors: of accept(2), among them `WouldBlock`.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept().map(|(stream, _)| stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    /// Removes the name, unless it is somebody else's by now.
    fn drop(&mut self) {
        let own = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(own) {
            // Whoever finds it finds out that nobody listens.
            let _: io::Result<()> = fs::remove_file(&self.path);
        }
    }
}

/// A listening socket in the directory of `path`, by a name of its own that any address has room for.
fn bind(path: &Path) -> io::Result<(File, UnixListener, PathBuf)> {
    if path.file_name().is_none() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "not the name of a file"));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(parent)?;
    let temporary = through(&directory).join(format!(".machinen-socket-{}", std::process::id()));
    match fs::remove_file(&temporary) {
        // Of a process that had our number.
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = sys::listen_unix(&temporary, BACKLOG)?;
    Ok((directory, socket, temporary))
}

/// Gives the socket at `temporary` its real name. Only a socket that listens ever has that name.
fn name(socket: &Use, directory: &File, temporary: &Path, path: &Path) -> Result<io::Result<()>> {
    match fs::hard_link(temporary, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        done => return Ok(done),
    }
    let taken = |why: &str, hint: &str| {
        let cause = io::Error::new(ErrorKind::AddrInUse, why.to_owned());
        let operation = format!("{} {}", socket.what, path.display());
        Err(Error::Host { code: socket.taken, operation, cause, hint: hint.into() })
    };
    // Two monitors that find the same dead socket must not replace each other's.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match sys::lock(directory, true) {
            Ok(true) => break,
            Ok(false) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(false) => return taken("its directory is locked", "does another VM start here?"),
            Err(error) => return Ok(Err(error)),
        }
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return taken("a file that is not a socket", "remove it, or give another name");
        }
        Ok(_) => {}
        Err(error) => return Ok(Err(error)),
    }
    match connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(fs::rename(temporary, path)),
        // Full is alive too.
        Ok(_) => taken("somebody listens there", "is another VM running with it?"),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            taken("somebody listens there", "is another VM running with it?")
        }
        Err(error) => Ok(Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> String {
        sys::ignore_sigio();
        let directory = std::env::temp_dir().join(format!("machinen-listener-{}-{}", std::process::id(), name.len()));
        fs::create_dir_all(&directory).expect("a directory");
        directory.join(name).display().to_string()
    }

    #[test]
    fn a_socket_lives_as_long_as_its_listener() {
        for name in ["s", "long".repeat(50).as_str()] {
            let path = path(name);
            let listener = Listener::open(&VSOCK, &path).expect("listens");
            let code = Listener::open(&VSOCK, &path).expect_err("taken").code();
            assert_eq!(code, "VSOCK_SOCKET_TAKEN");
            let _client = connect(Path::new(&path)).expect("connects");
            // The first is the one that found out that it is taken.
            assert!(listener.accept().is_ok() && listener.accept().is_ok());
            assert_eq!(listener.accept().expect_err("no more").kind(), ErrorKind::WouldBlock);
            drop(listener);
            assert!(!Path::new(&path).exists());
            let directory = Path::new(&path).parent().expect("a directory");
            fs::remove_dir(directory).expect("nothing is left in it");
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_file_is_not() {
        let path = path("dead");
        drop(sys::listen_unix(Path::new(&path), 1).expect("listens"));
        let listener = Listener::open(&VSOCK, &path).expect("replaces");
        // Its successor's name stays.
        fs::remove_file(&path).expect("removed");
        fs::write(&path, "mine").expect("written");
        drop(listener);
        assert_eq!(Listener::open(&VSOCK, &path).expect_err("a file").code(), "VSOCK_SOCKET_TAKEN");
        assert_eq!(fs::read(&path).expect("still there"), b"mine");
        let directory = Path::new(&path).parent().expect("a directory");
        fs::remove_dir_all(directory).expect("removed");
        assert_eq!(Listener::open(&VSOCK, &path).expect_err("no directory").code(), "VSOCK_SOCKET");
    }
}

//! Connections to Unix stream sockets, by paths of any length.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::sys;

/// Connects to the socket at `path`, by way of /proc as an address has room for 107 bytes only, and without waiting, then or
/// later.
///
/// Errors: `NotFound`, `PermissionDenied`, `ConnectionRefused` when nobody listens or it is no socket, `WouldBlock` when too
/// many wait there already.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let place = sys::open_place(path)?;
    sys::connect_unix(&through(&place))
}

/// A short path to what `file` refers to.
pub fn through(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn long_paths_are_reached() {
        let directory = std::env::temp_dir().join(format!("machinen-socket-{}", std::process::id()));
        let deep = directory.join("d".repeat(100));
        std::fs::create_dir_all(&deep).expect("a writable temporary directory");
        let short = directory.join("s");
        let listener = UnixListener::bind(&short).expect("a socket");
        let long = deep.join("s".repeat(200));
        std::fs::rename(&short, &long).expect("moved");
        assert!(connect(&long).is_ok());
        drop(listener);
        assert_eq!(connect(&long).expect_err("nobody listens").kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect(&deep.join("no")).expect_err("not there").kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(&directory).expect("clean up");
    }
}

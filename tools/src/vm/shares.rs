//! Directories that a machine shares with the host: opened before it starts, and under which tags it has them.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, open, readlinkat};
use serde_json::{Value, json};

use super::options::{BootOptions, ShareOption};
use crate::error::{Error, Result};

/// Most that one machine can have.
pub(crate) const MOST: usize = 5;
/// The tag of the share that every machine has, without a directory at first: a snapshot's is put there.
const BUNDLE: &str = "bundle";

/// A directory, open.
#[derive(Debug)]
pub(crate) struct Shared {
    directory: OwnedFd,
    guest: String,
    read_only: bool,
    /// For people and the registry.
    host: String,
}

/// Opens the directories.
///
/// Errors: `BOOT_SHARE`.
pub(crate) fn open_all(options: &BootOptions) -> Result<Vec<Shared>> {
    let count = options.shares.len();
    if count > MOST {
        return Err(Error::new("BOOT_SHARE", format!("{count} shared directories: at most {MOST} are possible")));
    }
    options.shares.iter().map(open_one).collect()
}

fn open_one(share: &ShareOption) -> Result<Shared> {
    let name = share.host.display();
    // Not read: whoever may use it may share it.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(&share.host, flags, Mode::empty()).map_err(|cause| {
        let error = Error::host("BOOT_SHARE", format!("open shared directory {name}"), cause);
        error.hint("-v HOST:GUEST shares the directory HOST, which has to be there")
    })?;
    let host = readlinkat(CWD, own(&directory), Vec::new());
    let host = host.map_or_else(|_| name.to_string(), |path| path.to_string_lossy().into_owned());
    Ok(Shared { directory, guest: share.guest.clone(), read_only: share.read_only, host })
}

/// Where another process finds it, for as long as this one has it.
fn own(directory: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), directory.as_raw_fd())
}

/// Tells the monitor.
pub(crate) fn arguments(shares: &[Shared], command: &mut Command) {
    for (number, share) in shares.iter().enumerate() {
        // By the descriptor: a path may hold anything.
        let form = if share.read_only { ":ro" } else { "" };
        command.arg("--share").arg(format!("share{number}={}{form}", own(&share.directory)));
    }
    command.arg("--share").arg(format!("{BUNDLE}="));
}

/// What /init is told.
pub(crate) fn configuration(shares: &[Shared]) -> Value {
    let shares = shares.iter().enumerate().map(
        |(number, share)| json!({"tag": format!("share{number}"), "path": share.guest, "readOnly": share.read_only}),
    );
    shares.collect()
}

/// What the registry is told.
pub(crate) fn entries(shares: &[Shared]) -> Vec<String> {
    let text = |share: &Shared| format!("{}:{}{}", share.host, share.guest, if share.read_only { ":ro" } else { "" });
    shares.iter().map(text).collect()
}

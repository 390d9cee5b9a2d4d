//! Directories that a machine shares with the host: opened before it starts, and under which tags it has them.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, open, readlinkat};
use serde_json::{Value, json};

use super::options::{BootOptions, ShareOption};
use crate::error::{Error, Result};

/// Most that one machine can have.
pub(crate) const MOST: usize = 5;
/// The tag of the share that every machine has, without a directory at first: a snapshot's is put there.
pub(crate) const BUNDLE_TAG: &str = "bundle";

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

/// Opens the directory of the bundle that is to be restored.
///
/// Errors: `BUNDLE_MISSING`.
pub(crate) fn open_bundle(options: &BootOptions) -> Result<Option<OwnedFd>> {
    let Some(restore) = &options.restore else { return Ok(None) };
    let dir = restore.bundle();
    let opened = open_directory(dir);
    opened.map(Some).map_err(|cause| Error::host("BUNDLE_MISSING", format!("open bundle {}", dir.display()), cause))
}

/// Not read: whoever may use it may share it.
fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn open_one(share: &ShareOption) -> Result<Shared> {
    let name = share.host.display();
    let directory = open_directory(&share.host).map_err(|cause| {
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

/// Tells the monitor. A bundle that is to be restored is there from the start, and stays as it is.
pub(crate) fn arguments(shares: &[Shared], bundle: Option<&OwnedFd>, command: &mut Command) {
    for (number, share) in shares.iter().enumerate() {
        // By the descriptor: a path may hold anything.
        let form = if share.read_only { ":ro" } else { "" };
        command.arg("--share").arg(format!("share{number}={}{form}", own(&share.directory)));
    }
    let bundle = bundle.map_or_else(String::new, |directory| format!("{}:ro", own(directory)));
    command.arg("--share").arg(format!("{BUNDLE_TAG}={bundle}"));
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
    let form = |share: &Shared| match share.read_only {
        true => ":ro",
        // In full where a name ends like a form.
        false if share.guest.ends_with(":ro") || share.guest.ends_with(":rw") => ":rw",
        false => "",
    };
    shares.iter().map(|share| format!("{}:{}{}", share.host, share.guest, form(share))).collect()
}

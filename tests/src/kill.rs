//! What tests have in common that kill at random moments.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::asset;
use crate::cli::Cli;

/// A time below the limit, which no other run will have.
///
/// # Panics
/// When the system has no random numbers.
#[must_use]
pub fn moment(limit_ms: u64) -> Duration {
    let mut bytes = [0; 8];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    Duration::from_millis(u64::from_le_bytes(bytes) % limit_ms)
}

/// Processes, by number and name, that were started with this registry.
///
/// # Panics
/// When there is no /proc.
#[must_use]
pub fn processes(registry: &Path) -> Vec<(u32, String)> {
    let variable = format!("MACHINEN_REGISTRY_DIR={}\0", registry.display()).into_bytes();
    let of = |dir: PathBuf| {
        let pid = dir.file_name()?.to_str()?.parse().ok()?;
        let environment = fs::read(dir.join("environ")).ok()?;
        let ours = environment.windows(variable.len()).any(|window| window == variable);
        // What has ended and is not waited for yet has no command line.
        let name = fs::read_to_string(dir.join("comm")).ok().filter(|_| ours)?;
        Some((pid, name.trim_end().to_string()))
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| of(entry.unwrap().path())).collect()
}

/// SIGKILL.
///
/// # Panics
/// When it cannot be sent.
pub fn kill(pid: u32) {
    let status = Command::new(asset("busybox")).args(["kill", "-9", &pid.to_string()]).stderr(Stdio::null()).status();
    // It may have been faster.
    let _ = status.unwrap();
}

/// SIGKILL for one of the processes of the test's machines whose name begins so, if there is any.
pub fn kill_named(machines: &Cli, name: &str) {
    let found = processes(&machines.registry()).into_iter().find(|(_, other)| other.starts_with(name));
    found.iter().for_each(|(pid, _)| kill(*pid));
}

/// Starts a program without input, whose output nobody reads.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn start(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

//! Starting passt: a user-mode network that needs no privilege. It ends when its socket is closed.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::address::Address;
use super::failure;
use super::forward::{Forward, Protocol};
use crate::assets::{PASST, find_program};
use crate::diagnostic::Diagnostic;
use crate::fault::Fault;

/// The guest's address when the user names none.
pub const ADDRESS: &str = "10.0.2.15/24,10.0.2.2,10.0.2.3";
/// Largest packet that passt takes, a multiple of 4: TCP then moves in as few pieces as can be.
pub const MTU: u16 = 65520;

/// Its hardware address. Locally administered; without one it would take that of an interface of the host's.
const MAC: &str = "02:00:0a:00:02:02";
/// It is ready in some ten milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// Starts passt and waits until it is ready, in the background. Returns the other end of its socket.
pub fn start(given: Option<&str>, address: &Address, forwards: &[Forward]) -> Result<UnixStream, Diagnostic> {
    let program = find_program(&PASST, given.map(Path::new)).map_err(missing)?;
    let failed = |what: String| failure("NET_PASST_FAILED", format!("{}: {what}", program.display()));
    let system = |what: &'static str| move |error: io::Error| failed_call(what, &error);
    let (ours, theirs) = UnixStream::pair().map_err(system("make a socket for passt"))?;
    fcntl_setfd(&theirs, FdFlags::empty()).map_err(|error| system("hand a socket to passt")(error.into()))?;
    let said =
        memfd_create("passt", MemfdFlags::CLOEXEC).map_err(|error| system("make a file in memory")(error.into()))?;
    let mut said = File::from(said);

    let mut command = Command::new(&program);
    command.args(arguments(theirs.as_raw_fd(), address, forwards));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(said.try_clone().map_err(system("make a file in memory"))?);
    let mut child = command.spawn().map_err(|error| failed(format!("execute: {error}")))?;
    drop(theirs);
    // It ends when its child in the background is ready.
    let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
        .and_then(|pidfd| wait(&pidfd))
        .map_err(|error| system("wait for passt")(error.into()));
    if !matches!(ended, Ok(true)) {
        // It may have ended meanwhile, and then there is nothing to kill.
        let _ = child.kill();
    }
    let status = child.wait().map_err(system("wait for passt"))?;
    let hint = "passt wants user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone";
    match ended? {
        false => Err(failed(format!("not ready within {} s", LIMIT.as_secs())).hint(hint)),
        true if status.success() => Ok(ours),
        true => Err(failed(format!("{status}: {}", words(&mut said))).hint(hint)),
    }
}

fn missing(fault: Fault) -> Diagnostic {
    match fault {
        Fault::Missing(name, package, flag, tried) => {
            let hint = format!("apt-get install {package}, or give the program with {flag} PATH");
            failure("NET_PASST_MISSING", format!("find {name}: tried {}", tried.join(", "))).hint(hint)
        }
        other => failure("NET_PASST_FAILED", format!("find passt: {other:?}")),
    }
}

fn failed_call(what: &str, error: &io::Error) -> Diagnostic {
    failure("NET_PASST_FAILED", format!("{what}: {error}"))
}

fn arguments(fd: i32, address: &Address, forwards: &[Forward]) -> Vec<String> {
    let mut words: Vec<String> = ["--quiet", "--ipv4-only", "--fd"].map(String::from).to_vec();
    // The loopback interface only fills in what is not given below: so a host without a network has one, too.
    words.extend([fd.to_string(), "--interface".into(), "lo".into(), "--mac-addr".into(), MAC.into()]);
    words.extend(["--address".into(), address.own.to_string(), "--netmask".into(), address.prefix.to_string()]);
    words.extend(["--gateway".into(), address.gateway.to_string()]);
    let near = address.resolvers.iter().find_map(|resolver| match resolver {
        IpAddr::V4(resolver) if address.is_near(*resolver) && *resolver != address.gateway => Some(resolver),
        _ => None,
    });
    words.extend(near.into_iter().flat_map(|resolver| ["--dns-forward".into(), resolver.to_string()]));
    for forward in forwards {
        let option = if forward.protocol == Protocol::Tcp { "--tcp-ports" } else { "--udp-ports" };
        words.extend([option.into(), forward.to_passt()]);
    }
    words
}

/// Whether the process ended before the limit.
fn wait(process: &impl AsFd) -> rustix::io::Result<bool> {
    let limit = Timespec { tv_sec: i64::try_from(LIMIT.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            count => return Ok(count? > 0),
        }
    }
}

/// What it said, in one line; without its complaints about a system log that is not there.
fn words(said: &mut File) -> String {
    let mut bytes = Vec::new();
    // Without its words the status still says that it failed.
    let _ = said.rewind().and_then(|()| said.read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Failed to send "));
    lines.collect::<Vec<_>>().join("; ")
}

//! The monitor's process: under way, and then this process' own.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::start::BOOT_LOG;
use crate::agent::signals::{ENDING, Signals};
use crate::agent::wire::Wire;
use crate::bootlog;
use crate::error::{Error, Result};
use crate::registry::{Claim, Entry, Process};

/// What a start waited for.
pub(super) enum Waited {
    Ready,
    Signal(i32),
    Limit,
}

/// A monitor under way: killed when dropped.
pub(super) struct Running<'a> {
    pub child: Option<Child>,
    pub dir: &'a Path,
    /// When to tell a person that the guest is silent.
    notice: Option<Instant>,
}

/// What a guest may take to its first word before a person is told.
const SILENCE: Duration = Duration::from_secs(10);

impl<'a> Running<'a> {
    /// Has just been started for the machine in `dir`.
    pub fn new(child: Child, dir: &'a Path) -> Self {
        let notice = std::io::stderr().is_terminal().then(|| Instant::now() + SILENCE);
        Running { child: Some(child), dir, notice }
    }

    /// Writes its process into the entry; gives its pidfd.
    pub fn identify(&mut self, entry: &mut Entry) -> Result<OwnedFd> {
        let failed = |cause| Error::host("BOOT_VMM", "look at the monitor", cause);
        let Some(child) = &self.child else { return Err(self.died()) };
        let process = Process::of(child.id());
        let pidfd =
            pidfd_open(Pid::from_child(child), PidfdFlags::empty()).map_err(|cause| failed(io::Error::from(cause)))?;
        if let Some(process) = process {
            entry.set_process(process);
        }
        Ok(pidfd)
    }

    /// Waits until there is something to read from the guest.
    pub fn wait(
        &mut self,
        guest: BorrowedFd<'_>,
        monitor: &OwnedFd,
        mut signals: Option<&mut Signals>,
        limit: Option<Instant>,
    ) -> Result<Waited> {
        loop {
            let left = limit.map(|limit| limit.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Waited::Limit);
            }
            if self.notice.is_some_and(|notice| notice <= Instant::now()) {
                self.notice = None;
                eprintln!(
                    "machinen: nothing from the guest for {} s; machinen-probe says whether this host's KVM can boot Linux",
                    SILENCE.as_secs()
                );
            }
            let notice = self.notice.map(|notice| notice.saturating_duration_since(Instant::now()));
            let left = left.into_iter().chain(notice).min();
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = vec![PollFd::from_borrowed_fd(guest, PollFlags::IN), PollFd::new(monitor, PollFlags::IN)];
            if let Some(signals) = signals.as_deref() {
                fds.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
            }
            match poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return Err(Error::host("BOOT_VMM", "wait for the guest", cause)),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                return Ok(Waited::Ready);
            }
            if ready[1] {
                return Err(self.died());
            }
            let pending = signals.as_deref_mut().map(Signals::pending).unwrap_or_default();
            let ends = |signal: &&i32| ENDING.contains(signal);
            if let Some(signal) = pending.iter().find(ends) {
                return Ok(Waited::Signal(*signal));
            }
        }
    }

    /// The monitor has ended, or its guest has, before there was a command: why.
    pub fn died(&mut self) -> Error {
        let status = self.child.take().and_then(|mut child| {
            let _ = child.kill();
            child.wait().ok()
        });
        let status = status.map_or_else(|| "ended".to_string(), |status| status.to_string());
        let said = bootlog::tail(&self.dir.join(BOOT_LOG));
        let message = format!("the machine ended before its command started ({status})");
        let error = Error::new("BOOT_ENDED", if said.is_empty() { message } else { format!("{message}: {said}") });
        error.hint("machinen run --keep -v shows its console")
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended, and then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// That of a machine that this process has booted: killed when dropped, unless it is left alone.
#[derive(Debug)]
pub(super) struct Own {
    pub claim: Option<Claim>,
    pub child: Child,
    pub monitor: OwnedFd,
    /// The main command's stream.
    pub main: Option<Wire>,
    pub keep: bool,
    /// It is left alone.
    pub left: bool,
}

impl Own {
    /// Waits for the monitor's end.
    pub fn wait(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&self.monitor, PollFlags::IN)], left.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                _ => return,
            }
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        // It may have ended, and then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(claim) = self.claim.take().filter(|_| self.keep) {
            // Without its lock it is dead, and its directory is gc's.
            drop(claim.keep());
        }
    }
}

//! Processes that are told from later ones of the same number, and signals that reach no other.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::read;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

pub use rustix::process::Signal;

/// A process, and since when it has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in ticks since the host did: field 22 of /proc/PID/stat.
    pub start_time: u64,
}

/// What a number stands for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Now {
    /// The process.
    Same,
    /// A later one.
    Other,
    /// None, or one that has ended and is not waited for.
    Gone,
}

impl Process {
    /// The process that has this number now and has not ended.
    pub fn of(pid: u32) -> Option<Process> {
        Some(Process::with_rss(pid)?.0)
    }

    /// [`Process::of`], and the bytes of its memory that are there (resident set). One read, as `ls` makes hundreds; the
    /// kernel counts some hundred KiB late.
    pub fn with_rss(pid: u32) -> Option<(Process, u64)> {
        let mut buffer = [0; 1024];
        let file = openat(CWD, format!("/proc/{pid}/stat"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let length = read(&file, &mut buffer).ok()?;
        let stat = parse_stat(buffer.get(..length)?)?;
        let page_bytes = u64::try_from(rustix::param::page_size()).ok()?;
        let has_ended = matches!(stat.state, b'Z' | b'X');
        (!has_ended)
            .then_some((Process { pid, start_time: stat.start_time }, stat.rss_pages.saturating_mul(page_bytes)))
    }

    /// What its number stands for now.
    pub fn now(self) -> Now {
        match Process::of(self.pid) {
            None => Now::Gone,
            Some(found) if found == self => Now::Same,
            Some(_) => Now::Other,
        }
    }

    /// The path of its program; of a program that was replaced meanwhile, the path that it had.
    pub fn executable(self) -> Option<PathBuf> {
        let path = fs::read_link(format!("/proc/{}/exe", self.pid)).ok()?;
        let shown = path.to_str().and_then(|path| path.strip_suffix(" (deleted)"));
        Some(shown.map(PathBuf::from).unwrap_or(path))
    }

    /// A handle that stays the process's, also when its number is given away. `None`: it has ended.
    pub fn open(self) -> Option<Handle> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Looked at after the open: if the number is this process's now, then either the handle is, or it is that of an
        // earlier one that has ended.
        (self.now() == Now::Same).then_some(Handle { fd })
    }

    /// Whether one of its descriptors is this file (device, inode). `None`: the system does not say.
    pub fn holds(self, file: (u64, u64)) -> Option<bool> {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid)).ok()?;
        let is_it = |path: PathBuf| fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == file);
        Some(descriptors.flatten().any(|entry| is_it(entry.path())))
    }
}

/// The processes that have this file (device, inode) open, but this one, in the order of their starts.
pub fn holders(file: (u64, u64)) -> Vec<Process> {
    let own = std::process::id();
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| *pid != own);
    let mut found: Vec<Process> =
        numbers.filter_map(Process::of).filter(|process| process.holds(file) == Some(true)).collect();
    found.sort_unstable_by_key(|process| (process.start_time, process.pid));
    found
}

/// A process, whatever becomes of its number.
#[derive(Debug)]
pub struct Handle {
    fd: OwnedFd,
}

impl Handle {
    /// Sends a signal. False: it has ended, or may not be sent one.
    pub fn signal(&self, signal: Signal) -> bool {
        pidfd_send_signal(&self.fd, signal).is_ok()
    }

    /// Waits for its end. False: it has not ended within `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        wait_all(std::slice::from_ref(self), limit)
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until all have ended. False: not within `limit`.
pub fn wait_all(handles: &[Handle], limit: Duration) -> bool {
    let deadline = Instant::now().checked_add(limit);
    handles.iter().all(|handle| {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(handle, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    })
}

/// Fields 3, 22 and 24 of /proc/PID/stat.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: u8,
    start_time: u64,
    rss_pages: u64,
}

/// Source: proc_pid_stat(5); the name, field 2, may have blanks and parentheses of its own.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_time, rss_pages: fields.nth(1)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::testing::spawning;
    use std::process::{Command, Stdio};

    fn cat() -> std::process::Child {
        let _alone = spawning();
        Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn stat_with_a_difficult_name() {
        let rest = (4..=21).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("12 (a) R 7 (x)) S {rest} 4711 23 24 25");
        assert_eq!(parse_stat(stat.as_bytes()), Some(Stat { state: b'S', start_time: 4711, rss_pages: 24 }));
        let whole = stat.len() - " 25".len();
        assert!((0..whole - 1).all(|cut| parse_stat(&stat.as_bytes()[..cut]).is_none()));
    }

    #[test]
    fn a_process_and_its_end() {
        let mut child = cat();
        let process = Process::of(child.id()).unwrap();
        assert_eq!(process.now(), Now::Same);
        assert!(Process::with_rss(std::process::id()).unwrap().1 > 0);
        assert!(process.executable().unwrap().is_absolute());
        let recycled = Process { start_time: process.start_time + 1, ..process };
        assert_eq!(recycled.now(), Now::Other);
        assert!(recycled.open().is_none());
        let handle = process.open().unwrap();
        assert!(!handle.wait(Duration::ZERO));
        assert!(handle.signal(Signal::TERM) && handle.wait(Duration::from_secs(60)));
        // It has not been waited for.
        assert_eq!(process.now(), Now::Gone);
        assert!(process.open().is_none());
        child.wait().unwrap();
        assert!(!handle.signal(Signal::TERM));
        assert_eq!(Process::of(0), None);
    }

    #[test]
    fn holders_are_found() {
        let path = std::env::temp_dir().join(format!("machinen-holders-{}", std::process::id()));
        let file = fs::File::create(&path).unwrap();
        let found = file.metadata().unwrap();
        let identity = (found.dev(), found.ino());
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(file).spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert_eq!(holders(identity), [process]);
        assert_eq!(process.holds(identity), Some(true));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(holders(identity), []);
        fs::remove_file(path).unwrap();
    }
}

//! What tests see of a process from outside: the flags of its descriptors, its processor time, whether it sleeps.

use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest::Scratch;
use crate::{Run, sys};

/// Makes the command ignore `signal` from its start, as nohup(1) does.
pub fn ignore(command: &mut Command, signal: libc::c_int) {
    // SAFETY: signal is async-signal-safe, and SIG_IGN runs no code.
    unsafe {
        command.pre_exec(move || {
            libc::signal(signal, libc::SIG_IGN);
            Ok(())
        });
    }
}

/// The flags (`F_GETFL`) of an open file description.
pub fn flags(fd: &impl AsFd) -> libc::c_int {
    // SAFETY: fcntl with this command takes integers.
    unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETFL) }
}

/// A pipe that holds one page, so that it is full soon.
///
/// # Panics
/// When the system has none.
#[must_use]
pub fn small_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().expect("a pipe");
    // SAFETY: fcntl with this command takes integers.
    let bytes = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert!(bytes > 0, "F_SETPIPE_SZ: {}", io::Error::last_os_error());
    (reader, writer)
}

/// Clock ticks that the process has run for, in user and in system mode.
///
/// # Panics
/// When it does not exist.
#[must_use]
pub fn cpu_ticks(process: u32) -> u64 {
    ticks(&stat(process))
}

/// The same, and 0 when there is no such process.
#[must_use]
pub fn processor_ticks(process: u32) -> u64 {
    fields(process).map_or(0, |fields| ticks(&fields))
}

fn ticks(fields: &[String]) -> u64 {
    // utime and stime; fields after the name are numbered from 3 (proc_pid_stat(5)).
    [14, 15].map(|number| fields[number - 3].parse::<u64>().expect("a number")).iter().sum()
}

/// Its state, as in proc_pid_stat(5): `R`, `S` for asleep, `T` for stopped, `Z` for ended.
///
/// # Panics
/// When it does not exist.
#[must_use]
pub fn state(process: u32) -> char {
    stat(process)[0].chars().next().expect("a letter")
}

/// The process sleeps, waiting for something.
#[must_use]
pub fn is_asleep(process: u32) -> bool {
    state(process) == 'S'
}

fn stat(process: u32) -> Vec<String> {
    fields(process).expect("the process exists")
}

/// What comes after the name, which is in parentheses and may hold spaces.
fn fields(process: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Kilobytes of a process that are in memory.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn rss_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the process exists");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process with memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Everything in a file that is no hole: where it is, and the bytes.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn without_holes(path: &Path) -> Vec<(u64, Vec<u8>)> {
    let file = File::open(path).unwrap();
    let extents = sys::data_extents(&file).unwrap();
    let read = |(at, bytes): &(u64, u64)| {
        let mut content = vec![0; usize::try_from(*bytes).unwrap()];
        file.read_exact_at(&mut content, *at).unwrap();
        (*at, content)
    };
    extents.iter().map(read).collect()
}

/// A small file system; unmounted with its owner.
#[derive(Debug)]
pub struct Small(Scratch);

impl Small {
    /// Of so many MiB. `None`: this machine has no right to mount.
    #[must_use]
    pub fn mount(mib: u32) -> Option<Small> {
        let scratch = Scratch::new();
        let mount = Run::new("/bin/mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "small"]);
        let mounted = mount.arg(scratch.path("")).outcome().is_ok_and(|finished| finished.code() == 0);
        mounted.then_some(Small(scratch))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.0.path("")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // What cannot be unmounted any more is the lab's to forget.
        let _ = Run::new("/bin/umount").arg(self.path()).outcome();
    }
}

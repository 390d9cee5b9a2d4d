//! What tests see of a process from outside: the flags of its descriptors, its processor time, whether it sleeps.

use std::fs;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

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
    // The name, in parentheses, may hold spaces; the fields after it are numbered from 3 (proc_pid_stat(5)).
    let fields = stat(process);
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
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("the process exists");
    let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
    rest.split_whitespace().map(str::to_owned).collect()
}

/// Processor time that a process has used, in hundredths of a second; 0 when there is none of this number.
#[must_use]
pub fn processor_ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // After the name, which may contain anything: utime and stime are fields 14 and 15 (proc_pid_stat(5)).
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

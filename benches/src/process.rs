//! A program's start on the clock.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A program that has said something.
pub struct Started {
    /// The process. Its stdout is closed, its stderr a pipe.
    pub child: Child,
    /// When it called execve, by [`now_ns`].
    pub exec_ns: u64,
    /// When its first byte on stdout was read; `None` when that ended without one.
    pub first_byte_ns: Option<u64>,
}

impl Started {
    /// Starts `command` without stdin and waits for its first byte on stdout, `limit` at most.
    ///
    /// Errors: it cannot be started; `TimedOut`, then it has been killed.
    pub fn new(command: &mut Command, limit: Duration) -> io::Result<Started> {
        Started::with_input(command, Stdio::null(), limit)
    }

    /// The same with `input` as stdin.
    pub fn with_input(command: &mut Command, input: Stdio, limit: Duration) -> io::Result<Started> {
        let (mut exec_time, sender) = io::pipe()?;
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec the hook reads the clock and writes to a pipe, which signal-safety(7) allows.
        unsafe { command.pre_exec(move || (&sender).write_all(&now_ns().to_ne_bytes())) };
        let mut child = command.spawn()?;
        let mut stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        if !readable(&stdout, limit)? {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no byte in {} s", limit.as_secs())));
        }
        let read = stdout.read_exact(&mut [0]);
        let now = now_ns();
        let mut begin = [0; 8];
        exec_time.read_exact(&mut begin)?;
        Ok(Started { child, exec_ns: u64::from_ne_bytes(begin), first_byte_ns: read.ok().map(|()| now) })
    }

    /// Microseconds from execve to `ns`, a time of [`now_ns`].
    pub fn us(&self, ns: u64) -> f64 {
        Duration::from_nanos(ns - self.exec_ns).as_secs_f64() * 1e6
    }

    /// What is left on stderr, to its end.
    ///
    /// Errors: of read.
    pub fn messages(&mut self) -> io::Result<String> {
        let mut messages = String::new();
        self.child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?.read_to_string(&mut messages)?;
        Ok(messages)
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, which all processes share.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is live and writable; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Whether there is something to read, or the end, before `limit` is over.
fn readable(from: &impl AsRawFd, limit: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let ms = limit.as_millis().try_into().unwrap_or(i32::MAX);
    // SAFETY: one live entry.
    match unsafe { libc::poll(&raw mut entry, 1, ms) } {
        ..0 => Err(io::Error::last_os_error()),
        count => Ok(count > 0),
    }
}

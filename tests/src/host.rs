//! What tests do to a process from outside: signals, terminals, the flags of its descriptors, its processor time.

use std::fs;
use std::io::{self, PipeReader, PipeWriter};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Sends `signal` to the child, which must not have been waited for.
///
/// # Panics
/// When the system refuses.
pub fn send(child: &Child, signal: libc::c_int) {
    // SAFETY: kill takes no pointers.
    let result = unsafe { libc::kill(child.id().cast_signed(), signal) };
    assert_eq!(result, 0, "kill: {}", io::Error::last_os_error());
}

/// A pseudo-terminal: the end of the user, and the end of the programs.
///
/// # Panics
/// When the system has none.
#[must_use]
pub fn pty() -> (OwnedFd, OwnedFd) {
    let (mut user, mut programs): (RawFd, RawFd) = (-1, -1);
    let nothing = std::ptr::null_mut();
    // SAFETY: both descriptors are written to live integers, and null pointers ask for the defaults.
    let result = unsafe { libc::openpty(&raw mut user, &raw mut programs, nothing, nothing.cast(), nothing.cast()) };
    assert_eq!(result, 0, "openpty: {}", io::Error::last_os_error());
    for fd in [user, programs] {
        // SAFETY: fcntl with this command takes integers. A child must not hold the user's end open.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: openpty just returned both descriptors and nothing else owns them.
    unsafe { (OwnedFd::from_raw_fd(user), OwnedFd::from_raw_fd(programs)) }
}

/// Input, output, control and local modes of a terminal.
///
/// # Panics
/// When `terminal` is none.
pub fn terminal_mode(terminal: &impl AsFd) -> [u32; 4] {
    let mut mode = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr fills the whole structure when it succeeds, and only then is it read.
    let mode = unsafe {
        let result = libc::tcgetattr(terminal.as_fd().as_raw_fd(), mode.as_mut_ptr());
        assert_eq!(result, 0, "tcgetattr: {}", io::Error::last_os_error());
        mode.assume_init()
    };
    [mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag]
}

/// The terminal hands over every byte at once, as a raw one does.
pub fn is_raw(terminal: &impl AsFd) -> bool {
    terminal_mode(terminal)[3] & libc::ICANON == 0
}

/// Makes the command the leader of a session of its own on the terminal that is its stdin, so in its foreground. It
/// dies with the thread that spawns it.
pub fn lead_session(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            let failed = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                || libc::setsid() < 0
                || libc::ioctl(0, libc::TIOCSCTTY, 0) != 0;
            if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}

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

/// The process sleeps, waiting for something.
#[must_use]
pub fn is_asleep(process: u32) -> bool {
    stat(process)[0] == "S"
}

fn stat(process: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("the process exists");
    let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
    rest.split_whitespace().map(str::to_owned).collect()
}

//! The system calls that the standard library has no safe function for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Makes the command a process group of its own that dies (`SIGKILL`) with the thread that spawns it, so that
/// nothing stays behind when this process is killed, and lets it inherit `fds` under their numbers.
pub fn confine(command: &mut Command, fds: Vec<RawFd>) {
    command.process_group(0);
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the call: then nobody will send the signal.
            if libc::getppid().cast_unsigned() != parent {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            for &fd in &fds {
                if libc::fcntl(fd, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// The rate of the processor's time-stamp counter in kHz, from 20 ms of it; `None` where there is none.
#[must_use]
pub fn tsc_khz() -> Option<u64> {
    // A moment, and the counter at most a microsecond from it: nothing came between, or it is tried again.
    let read = || {
        let moments = std::iter::repeat_with(|| {
            let before = Instant::now();
            time_stamp().map(|ticks| (before, ticks, before.elapsed()))
        });
        moments.take(1000).map_while(|moment| moment).min_by_key(|(.., width)| *width)
    };
    let (begin, first, _) = read()?;
    std::thread::sleep(Duration::from_millis(20));
    let (end, last, _) = read()?;
    let nanoseconds = u64::try_from((end - begin).as_nanos()).ok()?;
    last.checked_sub(first)?.checked_mul(1_000_000)?.checked_div(nanoseconds)
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::unnecessary_wraps, reason = "other architectures have none")]
fn time_stamp() -> Option<u64> {
    // SAFETY: every x86_64 has the instruction, and Linux lets programs use it.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn time_stamp() -> Option<u64> {
    None
}

/// Kills (`SIGKILL`) every process of the group that a confined child leads. The child must not have been waited
/// for with success before: its number could belong to somebody else.
pub fn kill_group(child: &Child) {
    let group = child.id().cast_signed();
    // SAFETY: kill takes no pointers.
    unsafe { libc::kill(-group, libc::SIGKILL) };
}

/// Sends a signal to a child, which must not have been waited for with success before.
pub fn signal(child: &Child, signal: i32) {
    // SAFETY: kill takes no pointers.
    unsafe { libc::kill(child.id().cast_signed(), signal) };
}

/// Waits until one of `fds` can be read (or has ended) or the time is over. Returns, for each, whether it can.
///
/// # Errors
/// Those of poll(2), apart from `EINTR`, which counts as nothing to read.
pub fn wait_readable(fds: &[BorrowedFd], limit: Duration) -> io::Result<Vec<bool>> {
    let mut polls: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    // Rounded up: a wait of 0 would spin through the last millisecond.
    let ms = i32::try_from(limit.as_millis() + 1).unwrap_or(i32::MAX);
    let count = libc::nfds_t::try_from(polls.len()).unwrap_or(0);
    // SAFETY: `polls` is an array of that many pollfd.
    if unsafe { libc::poll(polls.as_mut_ptr(), count, ms) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(polls.iter().map(|poll| poll.revents != 0).collect())
}

/// A descriptor that can be read from when the child has ended, whether or not somebody has waited for it.
///
/// # Errors
/// Those of pidfd_open(2).
pub fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(child.id()), 0) };
    match RawFd::try_from(fd) {
        // SAFETY: a new descriptor that nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The parts of `file` that are not holes: offset and length. Source: lseek(2), SEEK_DATA.
///
/// # Errors
/// When the file system cannot tell.
pub fn data_extents(file: &std::fs::File) -> io::Result<Vec<(u64, u64)>> {
    use std::os::fd::AsRawFd;
    let seek = |at: libc::off_t, whence| {
        // SAFETY: lseek takes and returns integers.
        match unsafe { libc::lseek(file.as_raw_fd(), at, whence) } {
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                error => Err(error),
            },
            place => Ok(Some(place)),
        }
    };
    let mut extents = Vec::new();
    let mut at = 0;
    while let Some(start) = seek(at, libc::SEEK_DATA)? {
        at = seek(start, libc::SEEK_HOLE)?.unwrap_or(start);
        extents.push((start.unsigned_abs(), (at - start).unsigned_abs()));
    }
    Ok(extents)
}

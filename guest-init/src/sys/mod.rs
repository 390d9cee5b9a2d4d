//! The system calls, each a safe function of a few lines.

pub mod at;
pub mod files;
pub mod net;
mod process;
pub mod terminal;
pub mod vsock;

use alloc::vec::Vec;
use core::ffi::{CStr, c_int};
use core::fmt;
use core::mem::{MaybeUninit, size_of};
use core::ptr::null_mut;

use guest_init::cmdline::Time;

pub use self::process::{
    be_nice, become_worker, can_handle_faults, close_from, execute, exit_now, fork, kernel, kill, leave, new_session,
    number_from, own_pid, pass_as, process, reap, reap_all, try_wait, variable, wait,
};

/// Result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

/// Why a system call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub c_int);

impl Errno {
    fn last() -> Errno {
        // SAFETY: the location is this thread's own and always valid.
        Errno(unsafe { *libc::__errno_location() })
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: musl's strerror returns a constant, terminated string for every number.
        let text = unsafe { CStr::from_ptr(libc::strerror(self.0)) };
        f.write_str(text.to_str().unwrap_or("unknown error"))
    }
}

fn check(result: c_int) -> Result<c_int> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

fn check_size(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| Errno::last())
}

/// An open descriptor, closed when dropped.
#[derive(Debug)]
pub struct Fd(c_int);

impl Fd {
    /// open(2), close-on-exec.
    pub fn open(path: &CStr, flags: c_int) -> Result<Fd> {
        // SAFETY: the path is terminated.
        check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) }).map(Fd)
    }

    /// A pipe: its reading and its writing end.
    pub fn pipe() -> Result<(Fd, Fd)> {
        let mut ends = [0; 2];
        // SAFETY: the array has room for two descriptors.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
        Ok((Fd(ends[0]), Fd(ends[1])))
    }

    /// A queue of `signals`, which are blocked from now on.
    pub fn signals(signals: &[c_int]) -> Result<Fd> {
        let set = signal_set(signals);
        // SAFETY: the set is initialised and live during the calls.
        unsafe {
            check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, null_mut()))?;
            check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)).map(Fd)
        }
    }

    /// The next signal of a queue; `None` when there is none now.
    pub fn next_signal(&self) -> Option<c_int> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.read(&mut info).ok()?;
        // ssi_signo is the first field (signalfd(2)).
        Some(c_int::from_ne_bytes([info[0], info[1], info[2], info[3]]))
    }

    /// The number, for poll and dup.
    pub fn number(&self) -> c_int {
        self.0
    }

    /// Reads and writes of this description do not wait from now on.
    pub fn set_nonblocking(&self) -> Result<()> {
        // SAFETY: integers in, integer out.
        unsafe {
            let flags = check(libc::fcntl(self.0, libc::F_GETFL))?;
            check(libc::fcntl(self.0, libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
        }
    }

    /// read(2).
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        // SAFETY: pointer and length describe the live, writable buffer.
        check_size(unsafe { libc::read(self.0, buffer.as_mut_ptr().cast(), buffer.len()) })
    }

    /// write(2).
    pub fn write(&self, bytes: &[u8]) -> Result<usize> {
        // SAFETY: pointer and length describe the live bytes.
        check_size(unsafe { libc::write(self.0, bytes.as_ptr().cast(), bytes.len()) })
    }

    /// Another descriptor for the same description.
    pub fn copy(&self) -> Result<Fd> {
        // SAFETY: integers in, a new descriptor out.
        check(unsafe { libc::fcntl(self.0, libc::F_DUPFD_CLOEXEC, 3) }).map(Fd)
    }

    /// Another descriptor for the standard error.
    pub fn standard_error() -> Result<Fd> {
        // SAFETY: integers in, a new descriptor out.
        check(unsafe { libc::fcntl(2, libc::F_DUPFD_CLOEXEC, 8) }).map(Fd)
    }

    /// Bytes that a pipe holds now.
    pub fn held_bytes(&self) -> usize {
        let mut count: c_int = 0;
        // SAFETY: FIONREAD writes one int.
        let result = unsafe { libc::ioctl(self.0, libc::FIONREAD as _, &raw mut count) };
        if result < 0 { 0 } else { usize::try_from(count).unwrap_or(0) }
    }

    /// A pipe holds this many bytes, or more.
    pub fn make_room(&self, bytes: usize) -> Result<()> {
        let bytes = c_int::try_from(bytes).map_err(|_| Errno(libc::EINVAL))?;
        // SAFETY: integers in.
        unsafe {
            let room = check(libc::fcntl(self.0, libc::F_GETPIPE_SZ))?;
            if room < bytes { check(libc::fcntl(self.0, libc::F_SETPIPE_SZ, bytes)).map(drop) } else { Ok(()) }
        }
    }

    /// Terminal attributes changed by `change`.
    pub fn change_terminal(&self, change: impl FnOnce(&mut libc::termios)) -> Result<()> {
        let mut mode = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr fills the structure when it succeeds, and only then is it used.
        unsafe {
            check(libc::tcgetattr(self.0, mode.as_mut_ptr()))?;
            let mut mode = mode.assume_init();
            change(&mut mode);
            check(libc::tcsetattr(self.0, libc::TCSANOW, &raw const mode)).map(drop)
        }
    }

    /// Sets the modem output `line` (`TIOCM_*`).
    pub fn set_line(&self, line: c_int, on: bool) -> Result<()> {
        let request = if on { libc::TIOCMBIS } else { libc::TIOCMBIC };
        // SAFETY: both requests read one int.
        check(unsafe { libc::ioctl(self.0, request as _, &raw const line) }).map(drop)
    }

    /// finit_module(2).
    pub fn load_module(&self, parameters: &CStr, flags: c_int) -> Result<()> {
        // SAFETY: the parameters are terminated.
        let result = unsafe { libc::syscall(libc::SYS_finit_module, self.0, parameters.as_ptr(), flags) };
        if result < 0 { Err(Errno::last()) } else { Ok(()) }
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { libc::close(self.0) };
    }
}

/// No file that PID 1 reads is larger.
const MAX_FILE_BYTES: usize = 16 << 20;

/// The whole content of a file; files of /proc say no size. A pipe or a device without end is refused, not waited for.
pub fn read_file(path: &CStr) -> Result<Vec<u8>> {
    let file = Fd::open(path, libc::O_RDONLY | libc::O_NONBLOCK)?;
    let mut content = Vec::new();
    loop {
        let start = content.len();
        content.resize(start + 4096, 0);
        let count = file.read(&mut content[start..])?;
        content.truncate(start + count);
        if count == 0 {
            return Ok(content);
        }
        if content.len() > MAX_FILE_BYTES {
            return Err(Errno(libc::EFBIG));
        }
    }
}

/// The descriptors 0, 1 and 2 become copies of these.
pub fn set_stdio(stdin: c_int, stdout: c_int, stderr: c_int) -> Result<()> {
    for (from, to) in [(stdin, 0), (stdout, 1), (stderr, 2)] {
        // SAFETY: integers in.
        check(unsafe { libc::dup2(from, to) })?;
    }
    Ok(())
}

/// mkdir(2) with this mode whatever the umask is; a directory that exists is fine and stays as it is.
pub fn make_directory(path: &CStr, mode: libc::mode_t) -> Result<()> {
    // SAFETY: the path is terminated; the mask, which the command inherits, is put back.
    let result = unsafe {
        let mask = libc::umask(0);
        let result = check(libc::mkdir(path.as_ptr(), mode));
        libc::umask(mask);
        result
    };
    match result {
        Err(Errno(libc::EEXIST)) | Ok(_) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// symlink(2); a name that exists stays as it is.
pub fn symlink(target: &CStr, name: &CStr) {
    // SAFETY: both paths are terminated. A missing link is a program's trouble, not a reason to refuse to boot.
    unsafe { libc::symlink(target.as_ptr(), name.as_ptr()) };
}

/// Reads a clock.
pub fn clock(id: libc::clockid_t) -> Result<Time> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is live and writable.
    check(unsafe { libc::clock_gettime(id, &raw mut time) })?;
    Ok(Time { seconds: time.tv_sec, nanoseconds: u32::try_from(time.tv_nsec).unwrap_or(0) })
}

/// Milliseconds since some point before the start.
pub fn now_ms() -> i64 {
    clock(libc::CLOCK_MONOTONIC).map_or(i64::MAX, |time| time.seconds * 1000 + i64::from(time.nanoseconds) / 1_000_000)
}

/// A clock in nanoseconds; 0 where it does not run.
pub fn clock_ns(id: libc::clockid_t) -> u64 {
    let time = clock(id).map_or((0, 0), |time| (time.seconds, time.nanoseconds));
    u64::try_from(time.0).unwrap_or(0).wrapping_mul(1_000_000_000).wrapping_add(time.1.into())
}

/// Sets the wall clock.
pub fn set_clock(time: Time) -> Result<()> {
    let time = libc::timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    // SAFETY: the structure is live.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }).map(drop)
}

/// What to wait for: a descriptor (negative: none) and `POLL*` events.
pub fn poll<const N: usize>(wanted: [(c_int, i16); N]) -> Result<[i16; N]> {
    let mut set = wanted.map(|(fd, events)| libc::pollfd { fd, events, revents: 0 });
    // SAFETY: pointer and length describe the live array.
    check(unsafe { libc::poll(set.as_mut_ptr(), N as libc::nfds_t, -1) })?;
    Ok(set.map(|entry| entry.revents))
}

/// The same for any number of descriptors; `limit_ms` is negative for no limit. A signal ends it early.
pub fn poll_all(set: &mut [libc::pollfd], limit_ms: c_int) -> Result<()> {
    let count = libc::nfds_t::try_from(set.len()).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: pointer and length describe the live slice.
    match check(unsafe { libc::poll(set.as_mut_ptr(), count, limit_ms) }) {
        Ok(_) | Err(Errno(libc::EINTR)) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Makes `terminal` the controlling terminal of this session.
pub fn take_terminal(terminal: &Fd) -> Result<()> {
    // SAFETY: integers in.
    check(unsafe { libc::ioctl(terminal.0, libc::TIOCSCTTY as _, 0) }).map(drop)
}

/// chdir(2).
pub fn change_directory(path: &CStr) -> Result<()> {
    // SAFETY: the path is terminated.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// The path names something.
pub fn exists(path: &CStr) -> bool {
    // SAFETY: the path is terminated.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
}

/// Tries every millisecond until `attempt` gives something; `None` when it has not after `limit_ms`.
pub fn within<T>(limit_ms: i64, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline_ms = now_ms().saturating_add(limit_ms);
    loop {
        if let Some(found) = attempt() {
            return Some(found);
        }
        if now_ms() >= deadline_ms {
            return None;
        }
        // SAFETY: no descriptors, so the array is not looked at.
        unsafe { libc::poll(null_mut(), 0, 1) };
    }
}

/// Sets the name of the machine.
pub fn set_host_name(name: &[u8]) {
    // SAFETY: pointer and length describe the live bytes. A name that is too long is refused and not ours to mend.
    unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
}

/// Waits until the terminal behind the standard error has sent everything.
pub fn drain_stderr() {
    // SAFETY: an integer in. There is nobody to tell about a failure, and nothing to do about it.
    unsafe { libc::tcdrain(2) };
}

/// Ctrl-Alt-Del becomes SIGINT for PID 1 instead of a reset.
pub fn disable_reset_key() {
    // SAFETY: an integer in. A kernel without the key refuses, and that is as good.
    unsafe { libc::reboot(libc::RB_DISABLE_CAD) };
}

/// Writes out what file systems hold.
pub fn sync() {
    // SAFETY: takes nothing.
    unsafe { libc::sync() };
}

/// Switches the machine off; waits for ever if that fails.
pub fn power_off() -> ! {
    // SAFETY: integers in.
    unsafe {
        libc::reboot(libc::RB_POWER_OFF);
        loop {
            libc::pause();
        }
    }
}

fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set before it is used; wrong numbers are refused, not misread.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Writes to the standard error of this process.
pub fn write_stderr(bytes: &[u8]) -> Result<usize> {
    // SAFETY: pointer and length describe the live bytes.
    check_size(unsafe { libc::write(2, bytes.as_ptr().cast(), bytes.len()) })
}

//! The system calls about processes.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::{CStr, c_int};
use core::mem::MaybeUninit;
use core::ptr::{null, null_mut};

use super::{Errno, Fd, Result, check, read_file, set_stdio, signal_set};

/// This process' number.
pub fn own_pid() -> c_int {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getpid() }
}

/// fork(2): the child's number, or `None` in the child.
pub fn fork() -> Result<Option<c_int>> {
    // SAFETY: this process has one thread, so the child may go on as if it were the parent.
    let pid = check(unsafe { libc::fork() })?;
    Ok((pid != 0).then_some(pid))
}

/// The next processes have numbers from this one on, when they have lower ones so far and the kernel lets them.
pub fn number_from(first: u32) {
    let path = c"/proc/sys/kernel/ns_last_pid";
    let last = read_file(path).ok().and_then(|text| core::str::from_utf8(&text).ok()?.trim().parse::<u32>().ok());
    if last.is_some_and(|last| last < first)
        && let Ok(file) = Fd::open(path, libc::O_WRONLY)
    {
        // A kernel without it numbers as it likes.
        match file.write(alloc::format!("{}", first - 1).as_bytes()) {
            Ok(_) | Err(_) => {}
        }
    }
}

/// In a child: a session of its own, no blocked signals.
pub fn new_session() -> Result<()> {
    let none = signal_set(&[]);
    // SAFETY: the set is initialised and live.
    unsafe {
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, null_mut()))?;
        check(libc::setsid()).map(drop)
    }
}

/// This process and its children leave the processor to others: by `steps` of nice(2).
pub fn be_nice(steps: c_int) -> Result<()> {
    // SAFETY: integers only; this one may always raise its own.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, steps) }).map(drop)
}

/// A child becomes a worker: these are all its descriptors from now on, but for the standard error where it has none of its
/// own. `more` get the numbers from 4 on, and programs that it starts have them, too. Returns input, output and report.
pub fn become_worker(input: &Fd, output: &Fd, error: Option<&Fd>, report: &Fd, more: &[&Fd]) -> Result<(Fd, Fd, Fd)> {
    const REPORT: c_int = 3;
    new_session()?;
    // Out of the way of the numbers that they are to have.
    let high = |fd: &Fd| {
        // SAFETY: integers in, a new descriptor out.
        check(unsafe { libc::fcntl(fd.0, libc::F_DUPFD_CLOEXEC, 64) })
    };
    let (input, output, report) = (high(input)?, high(output)?, high(report)?);
    let error = error.map_or(Ok(2), high)?;
    let mut next = REPORT + 1;
    let mut from = Vec::new();
    for fd in more {
        from.push(high(fd)?);
    }
    set_stdio(input, output, error)?;
    // SAFETY: integers in. The descriptors that are closed belong to copies of what the parent has, which this process never
    // comes to again: it only calls what ends it.
    unsafe {
        check(libc::dup3(report, REPORT, libc::O_CLOEXEC))?;
        for fd in from {
            check(libc::dup2(fd, next))?;
            next += 1;
        }
    }
    close_from(next)?;
    Ok((Fd(0), Fd(1), Fd(REPORT)))
}

/// In a child that never comes back to what had them: closes all descriptors from this one on.
pub fn close_from(first: c_int) -> Result<()> {
    // SAFETY: integers in; nothing of this process uses what is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) };
    if result < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// In a child, before execve(2): the program has `fd` as `number`.
pub fn pass_as(fd: &Fd, number: c_int) -> Result<()> {
    // SAFETY: integers in.
    check(unsafe { libc::dup2(fd.0, number) }).map(drop)
}

/// In a child, before execve(2): the program does not have `number`.
pub fn leave(number: c_int) {
    // SAFETY: integers in. A number that nothing is open under is as good.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Waits for the end of this child; returns its wait status.
pub fn wait(pid: c_int) -> Result<c_int> {
    let mut status = 0;
    loop {
        // SAFETY: waitpid writes one int.
        match check(unsafe { libc::waitpid(pid, &raw mut status, 0) }) {
            Ok(_) => return Ok(status),
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// A descriptor that can be read from, as poll(2) says, when this child has ended.
pub fn process(pid: c_int) -> Result<Fd> {
    // SAFETY: integers in, a new descriptor out, which is closed by execve(2).
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 { Err(Errno::last()) } else { c_int::try_from(fd).map(Fd).map_err(|_| Errno(libc::EBADF)) }
}

/// A variable of this process's environment.
pub fn variable(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: the name is terminated; nothing changes the environment of this program, so what is found stays.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value))
    }
}

/// The wait status of this child if it has ended.
pub fn try_wait(pid: c_int) -> Option<c_int> {
    let mut status = 0;
    // SAFETY: waitpid writes one int.
    (unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == pid).then_some(status)
}

/// Whether this process may handle page faults of others.
pub fn can_handle_faults() -> Result<()> {
    // SAFETY: an integer in, a descriptor out, which is closed.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    let fd = c_int::try_from(fd).map_err(|_| Errno(libc::EBADF))?;
    check(fd).map(Fd).map(drop)
}

/// Release and version of the kernel, and the machine, as uname(2) has them.
pub fn kernel() -> (String, String) {
    let mut names = MaybeUninit::<libc::utsname>::uninit();
    // SAFETY: uname fills the structure when it succeeds, and only then is it used; its strings are terminated.
    unsafe {
        if libc::uname(names.as_mut_ptr()) < 0 {
            return (String::new(), String::new());
        }
        let names = names.assume_init();
        let text = |name: &[libc::c_char]| CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
        (alloc::format!("{} {}", text(&names.release), text(&names.version)), text(&names.machine))
    }
}

/// execve(2): why it failed.
pub fn execute(path: &CStr, argv: &[impl AsRef<CStr>], env: &[impl AsRef<CStr>]) -> Errno {
    fn pointers(strings: &[impl AsRef<CStr>]) -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ref().as_ptr()).chain([null()]).collect()
    }
    // SAFETY: path and strings are terminated and live, the arrays end with a null pointer.
    unsafe { libc::execve(path.as_ptr(), pointers(argv).as_ptr(), pointers(env).as_ptr()) };
    Errno::last()
}

/// Ends this process without running anything else.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: an integer in.
    unsafe { libc::_exit(code.into()) }
}

/// kill(2).
pub fn kill(pid: c_int, signal: c_int) -> Result<()> {
    // SAFETY: integers in.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// The next child that has ended: its number and wait status. `None` when there is none now.
pub fn reap() -> Option<(c_int, c_int)> {
    let mut status = 0;
    // SAFETY: waitpid writes one int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Reaps the children that have ended; true when none is left.
pub fn reap_all() -> bool {
    while reap().is_some() {}
    // SAFETY: with WNOWAIT and no place for it, nothing is written and nothing is reaped.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, null_mut(), libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) };
    result < 0
}

//! Signals as the doorbell: blocked everywhere except inside KVM_RUN.
//!
//! A blocked signal stays pending, so nothing that happens between a look at the world and KVM_RUN is lost:
//! KVM_RUN opens the mask, sees the pending signal and returns EINTR at once. No handler ever runs. The order
//! that makes this correct is [`Kick::drain`], then look at every descriptor, then KVM_RUN.
//!
//! Source: KVM API documentation, 4.30 KVM_SET_SIGNAL_MASK.

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

use kvm_ioctls::VcpuFd;

use crate::error::{Error, Result};
use crate::sys::{self, Ready};

/// Signals whose default action ends a process, apart from those of its own faults: they end the monitor, after the
/// terminal was given back.
const ENDING: [libc::c_int; 13] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`; kvm-ioctls has no wrapper for it.
const KVM_SET_SIGNAL_MASK: u32 = 0x4004_ae8b;

/// The kernel's signal set is 8 bytes, whatever the C library's is.
const KERNEL_SIGSET_BYTES: u32 = 8;

#[repr(C)]
struct SignalMask {
    len: u32,
    sigset: [u8; KERNEL_SIGSET_BYTES as usize],
}

/// A signal that ends the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(pub libc::c_int);

/// The signals that were pending, apart from SIGIO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// The first that ends the monitor.
    pub end: Option<Signal>,
    /// SIGTSTP.
    pub stop: bool,
    /// SIGCONT.
    pub resumed: bool,
}

/// The set of blocked signals and where they are read.
pub struct Kick {
    queue: File,
}

impl Kick {
    /// Blocks the signals that the monitor handles and opens their queue.
    ///
    /// A signal that the parent had ignored (nohup, a background job) stays ignored.
    pub fn new() -> Result<Kick> {
        let failed = |call: &'static str| move |cause| Error::host("HOST_SIGNALS", call, cause);
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set; the other calls get valid signal numbers and live pointers.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in ENDING.into_iter().chain([libc::SIGIO, libc::SIGTSTP, libc::SIGCONT]) {
                if signal == libc::SIGIO || !ignored(signal) {
                    libc::sigaddset(set.as_mut_ptr(), signal);
                }
            }
            let blocked = libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            if blocked != 0 {
                return Err(failed("sigprocmask")(io::Error::last_os_error()));
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(failed("signalfd")(io::Error::last_os_error()));
        }
        // SAFETY: signalfd just returned this descriptor and nothing else owns it.
        Ok(Kick { queue: unsafe { File::from_raw_fd(fd) } })
    }

    /// Opens all signals while `vcpu` is inside KVM_RUN.
    pub fn arm(&self, vcpu: &VcpuFd) -> Result<()> {
        let mask = SignalMask { len: KERNEL_SIGSET_BYTES, sigset: [0; KERNEL_SIGSET_BYTES as usize] };
        // SAFETY: the structure has the layout that the call reads: a length and that many bytes.
        let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), ioctl_request(KVM_SET_SIGNAL_MASK), &raw const mask) };
        if result < 0 {
            return Err(Error::Kvm { call: "KVM_SET_SIGNAL_MASK", cause: kvm_ioctls::Error::last() });
        }
        Ok(())
    }

    /// Takes every pending signal.
    pub fn drain(&mut self) -> Result<Pending> {
        let mut pending = Pending::default();
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        loop {
            match self.queue.read(&mut info) {
                // ssi_signo is the first field (signalfd(2)).
                Ok(_) => match i32::from_ne_bytes([info[0], info[1], info[2], info[3]]) {
                    libc::SIGIO => {}
                    libc::SIGTSTP => pending.stop = true,
                    libc::SIGCONT => pending.resumed = true,
                    number => pending.end = pending.end.or(Some(Signal(number))),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(pending),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::host("HOST_SIGNALS", "read of the signal queue", error)),
            }
        }
    }

    /// Sleeps until `fd` is ready or a signal is pending.
    pub fn wait(&self, fd: BorrowedFd<'_>, ready: Ready) -> Result<()> {
        match sys::poll([(self.queue.as_raw_fd(), Ready::Read), (fd.as_raw_fd(), ready)], -1) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(Error::host("HOST_POLL", "poll", error)),
        }
    }
}

/// The second argument of ioctl is an int in musl and an unsigned long in glibc.
#[cfg(target_env = "musl")]
fn ioctl_request(request: u32) -> libc::c_int {
    i32::from_ne_bytes(request.to_ne_bytes())
}

#[cfg(not(target_env = "musl"))]
fn ioctl_request(request: u32) -> libc::c_ulong {
    request.into()
}

fn ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; the old one is written to a live structure whose zeroes are valid.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Stops this process, and returns when it is continued. By SIGSTOP: the default course of SIGTSTP would be to go on
/// where no shell watches (an orphaned process group), and whoever sends it there can also send SIGCONT.
pub fn stop_self() {
    // SAFETY: raise takes a signal number; SIGSTOP has no handler to run.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Ends this process by `signal`, as its sender asked, so that the parent sees the true cause.
pub fn die_by(signal: Signal) {
    // SAFETY: the default action is restored and the signal unblocked before it is raised; all arguments are
    // valid, and no handler of ours is left to run.
    unsafe {
        libc::signal(signal.0, libc::SIG_DFL);
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal.0);
        libc::sigprocmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::raise(signal.0);
    }
}

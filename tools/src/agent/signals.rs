//! Signals as something to poll(2) for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// Those that a guest's command gets, too.
pub const FORWARDED: [i32; 6] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];

/// Those that end who is only waiting.
pub const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// Signals of this process that wait to be looked at, instead of their usual effect.
#[derive(Debug)]
pub struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    /// Takes [`FORWARDED`], SIGTSTP, SIGCONT and SIGWINCH, apart from those that the parent had this process ignore
    /// (nohup, a job in the background): these stay ignored.
    ///
    /// # Errors
    /// Those of socketpair(2) and sigaction(2).
    pub fn take() -> io::Result<Signals> {
        let (read, write) = UnixStream::pair()?;
        let ignored = ignored();
        let wanted = FORWARDED.into_iter().chain([SIGTSTP, SIGCONT, SIGWINCH]);
        let wanted: Vec<i32> = wanted.filter(|signal| ignored >> (signal - 1) & 1 == 0).collect();
        SignalDelivery::with_pipe(read, write, SignalOnly, wanted).map(Signals)
    }

    /// Those that came.
    pub fn pending(&mut self) -> Vec<i32> {
        self.0.pending().collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}

/// The mask of ignored signals, from bit 0 for signal 1 on (proc_pid_status(5)).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{Signal, getpid, kill_process};

    #[test]
    fn a_signal_wakes_poll_and_is_told() {
        let mut signals = Signals::take().unwrap();
        kill_process(getpid(), Signal::USR1).unwrap();
        poll(&mut [PollFd::new(&signals, PollFlags::IN)], None).unwrap();
        assert_eq!(signals.pending(), [SIGUSR1]);
        // The standard library ignores SIGPIPE.
        assert_eq!(ignored() >> 12 & 1, 1);
    }
}

//! A program under way: what it prints is waited for, what it reads is typed, and signals reach it.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::pty::Pty;
use crate::sys;

/// For each thing that is waited for.
const LIMIT: Duration = Duration::from_secs(60);

/// A started program. It is killed when dropped.
#[derive(Debug)]
pub struct Session {
    child: Child,
    output: File,
    input: Option<File>,
    printed: Vec<u8>,
    /// What `expect` has passed over.
    read: usize,
}

impl Session {
    /// Starts a program with pipes: its stdout and stderr in one, its stdin left open.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn on_pipes(mut command: Command) -> Self {
        let (output, theirs) = io::pipe().unwrap();
        command.stderr(theirs.try_clone().unwrap()).stdout(theirs).stdin(Stdio::piped());
        sys::confine(&mut command, Vec::new());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().map(|stdin| OwnedFd::from(stdin).into());
        Self { child, output: OwnedFd::from(output).into(), input, printed: Vec::new(), read: 0 }
    }

    /// Starts a program on a terminal.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn on_terminal(mut command: Command, pty: &Pty) -> Self {
        pty.attach(&mut command).unwrap();
        let child = command.spawn().unwrap();
        let user = || pty.user.try_clone().unwrap();
        Self { child, output: user(), input: Some(user()), printed: Vec::new(), read: 0 }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its stdin.
    ///
    /// # Panics
    /// When that fails.
    pub fn type_in(&mut self, text: &str) {
        self.input.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Ends its stdin.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits until it has printed the text, after what was waited for before.
    ///
    /// # Panics
    /// When it ends or prints nothing more before that.
    pub fn expect(&mut self, text: &str) {
        self.expect_within(LIMIT, text);
    }

    /// The same with a limit of its own, for what takes long.
    ///
    /// # Panics
    /// As [`Session::expect`].
    pub fn expect_within(&mut self, limit: Duration, text: &str) {
        let deadline = Instant::now() + limit;
        loop {
            let new = &self.printed[self.read..];
            if let Some(at) = new.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.read += at + text.len();
                return;
            }
            assert!(!self.wait(deadline), "it ended before {text:?}, after printing {:?}", self.printed());
        }
    }

    /// Waits until the condition holds.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !condition(self) {
            assert!(Instant::now() < deadline, "not {what}, after printing {:?}", self.printed());
            // Nothing tells when a process is stopped or a terminal changes its modes: it is asked again and again.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        sys::signal(&self.child, signal);
    }

    /// Its state, as in proc_pid_stat(5): `R`, `S`, `T` for stopped, `Z` for ended.
    ///
    /// # Panics
    /// When it has been waited for.
    #[must_use]
    pub fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        let (_, after_name) = stat.rsplit_once(") ").unwrap();
        after_name.chars().next().unwrap()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        while !self.wait(deadline) {}
        self.child.wait().unwrap()
    }

    /// Everything that it has printed.
    #[must_use]
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.printed).into_owned()
    }

    /// Waits for output or the end; says whether it has ended, and all of its output been read.
    fn wait(&mut self, deadline: Instant) -> bool {
        let left = deadline.checked_duration_since(Instant::now());
        let left = left.unwrap_or_else(|| panic!("nothing happens any more, after printing {:?}", self.printed()));
        let pidfd = sys::pidfd(&self.child).unwrap();
        let ready = sys::wait_readable(&[self.output.as_fd(), pidfd.as_fd()], left).unwrap();
        let mut buffer = [0; 4096];
        let length = if ready[0] { self.output.read(&mut buffer).unwrap() } else { 0 };
        self.printed.extend_from_slice(&buffer[..length]);
        length == 0 && ready[1]
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended already, and then there is nothing to kill.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

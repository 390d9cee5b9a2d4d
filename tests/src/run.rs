//! Running a program to its end, with a limit.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::sys;

/// A program to run. Its process group dies with the thread that runs it, at the limit, and when it has ended.
#[derive(Debug)]
pub struct Run {
    command: Command,
    stdin: Option<Vec<u8>>,
    limit: Duration,
    merged: bool,
}

/// What a program did.
#[derive(Debug)]
pub struct Finished {
    /// Everything it wrote to stdout.
    pub stdout: Vec<u8>,
    /// Everything it wrote to stderr; empty when that went to stdout.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub status: ExitStatus,
    /// From its start to its end, and the end of its output.
    pub elapsed: Duration,
    /// It was killed at its limit.
    pub killed: bool,
}

impl Run {
    /// A program (a path, or a name to search in `PATH`) without arguments and stdin, with a limit of 60 seconds.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { command: Command::new(program), stdin: None, limit: Duration::from_mins(1), merged: false }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts from an empty environment.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Gives it these bytes, then the end of its stdin.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Sets the time after which it is killed.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends its stderr where its stdout goes, in the order of the writes.
    #[must_use]
    pub fn merged(mut self) -> Self {
        self.merged = true;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started, or is killed at its limit; then with what it had printed.
    #[must_use]
    pub fn finish(self) -> Finished {
        let (name, limit) = (format!("{:?}", self.command), self.limit);
        let finished = self.outcome().unwrap_or_else(|error| panic!("cannot run {name}: {error}"));
        assert!(
            !finished.killed,
            "{name} was killed at its limit of {limit:?}, after printing\n{}",
            finished.printed()
        );
        finished
    }

    /// Runs it to its end, or its limit.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn outcome(mut self) -> io::Result<Finished> {
        let start = Instant::now();
        let (stdout, theirs) = io::pipe()?;
        let stderr = if self.merged {
            self.command.stderr(theirs.try_clone()?);
            None
        } else {
            let (stderr, theirs) = io::pipe()?;
            self.command.stderr(theirs);
            Some(stderr)
        };
        self.command.stdout(theirs);
        self.command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        sys::confine(&mut self.command, Vec::new());
        let mut child = self.command.spawn()?;
        // It holds our copies of the pipes' other ends.
        drop(self.command);
        if let (Some(bytes), Some(mut pipe)) = (self.stdin, child.stdin.take()) {
            // A program that ends without reading its stdin is no error, and the thread ends with it.
            std::thread::spawn(move || pipe.write_all(&bytes));
        }

        let pidfd = sys::pidfd(&child)?;
        let (mut stdout, mut stderr) = (Output::new(Some(stdout)), Output::new(stderr));
        let (mut running, mut killed, mut deadline) = (true, false, start + self.limit);
        while running || stdout.pipe.is_some() || stderr.pipe.is_some() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                if killed {
                    break; // A process outside the group holds a pipe.
                }
                killed = true;
                sys::kill_group(&child);
                deadline = Instant::now() + Duration::from_secs(1);
                continue;
            };
            let mut fds = Vec::new();
            fds.extend(running.then(|| pidfd.as_fd()));
            fds.extend(stdout.pipe.as_ref().map(AsFd::as_fd));
            fds.extend(stderr.pipe.as_ref().map(AsFd::as_fd));
            let mut ready = sys::wait_readable(&fds, left)?.into_iter();
            if running && ready.next() == Some(true) {
                running = false;
                // Before it is waited for: its number is still its own.
                sys::kill_group(&child);
            }
            for output in [&mut stdout, &mut stderr] {
                if output.pipe.is_some() && ready.next() == Some(true) {
                    output.read()?;
                }
            }
        }
        let status = child.wait()?;
        Ok(Finished { stdout: stdout.bytes, stderr: stderr.bytes, status, elapsed: start.elapsed(), killed })
    }
}

impl Finished {
    /// The exit code, as a shell gives it: 128+n when signal n ended the program.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().or(self.status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
    }

    /// Both outputs as text.
    #[must_use]
    pub fn printed(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout), String::from_utf8_lossy(&self.stderr))
    }
}

/// One pipe and what came out of it; no pipe after its end.
struct Output {
    pipe: Option<PipeReader>,
    bytes: Vec<u8>,
}

impl Output {
    fn new(pipe: Option<PipeReader>) -> Self {
        Self { pipe, bytes: Vec::new() }
    }

    fn read(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        let mut buffer = [0; 1 << 16];
        let length = pipe.read(&mut buffer)?;
        self.bytes.extend_from_slice(&buffer[..length]);
        if length == 0 {
            self.pipe = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Run;

    fn shell(script: &str) -> Run {
        Run::new("sh").args(["-c", script])
    }

    #[test]
    fn stdin_outputs_and_code_are_kept_apart() {
        let run = shell("cat; echo to-stderr >&2; exit 3").stdin(b"\x00\xff".to_vec()).finish();
        assert_eq!((run.stdout, run.stderr), (b"\x00\xff".to_vec(), b"to-stderr\n".to_vec()));
        assert_eq!(run.status.code(), Some(3));
    }

    #[test]
    fn merged_outputs_keep_their_order() {
        let run = shell("echo 1; echo 2 >&2; echo 3").merged().finish();
        assert_eq!(run.stdout, b"1\n2\n3\n");
    }

    #[test]
    fn an_unread_stdin_does_not_block() {
        assert_eq!(shell("exit 0").stdin(vec![0; 1 << 20]).finish().code(), 0);
    }

    #[test]
    fn the_limit_kills_the_whole_group_and_keeps_the_output() {
        let run = shell("echo before; sleep 100 & sleep 100").limit(Duration::from_millis(300)).outcome().unwrap();
        assert!(run.killed);
        assert_eq!(run.stdout, b"before\n");
        assert_eq!(run.code(), 128 + 9);
        assert!(run.elapsed < Duration::from_secs(50));
    }

    #[test]
    fn what_a_program_leaves_behind_does_not_hold_the_caller() {
        let run = shell("sleep 100 & echo done").finish();
        assert_eq!(run.stdout, b"done\n");
        assert!(run.elapsed < Duration::from_secs(50));
    }
}

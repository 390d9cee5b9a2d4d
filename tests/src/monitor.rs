//! The monitor under test: running a fixture guest to its end, or alive in a test's hands.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use machinen_fixtures::{Guest, LOAD_ADDRESS, TempFile, elf};

use crate::pty::Pty;
use crate::{Finished, Run, bin, cache_dir, host, sys};

/// No monitor in a test runs longer, and the runner waits a little longer still. In the arm64 lab a byte on the console takes 250 µs and
/// more, and several times that when the host has other work.
pub const LIMIT: Duration = Duration::from_secs(100);

/// A kernel file.
#[derive(Debug)]
pub struct Kernel(TempFile);

impl Kernel {
    /// The kernel file of a guest.
    #[must_use]
    pub fn new(guest: Guest) -> Self {
        Self::of_bytes(&guest.elf())
    }

    /// The kernel file of a guest of this machine code.
    #[must_use]
    pub fn of_code(code: &[u8]) -> Self {
        Self::of_bytes(&elf(code, LOAD_ADDRESS, code.len() as u64))
    }

    /// A kernel file of this content.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(TempFile::new("kernel", bytes).expect("a writable temporary directory"))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The monitor with this kernel and 64 MiB of RAM, to run to its end.
    #[must_use]
    pub fn run(&self) -> Run {
        vmm_min().args(["-m", "64", "--kernel"]).arg(self.path())
    }

    /// The same, to be started with descriptors of the test's choice.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(bin("vmm-min"));
        command.env_clear().env("MACHINEN_CACHE_DIR", cache_dir());
        command.args(["-m", "64", "--kernel"]).arg(self.path());
        command
    }
}

/// A bzImage with this ELF kernel inside. Source: Documentation/arch/x86/boot.rst.
///
/// # Panics
/// When it is too large.
#[must_use]
pub fn bzimage(kernel: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gzip.write_all(kernel).unwrap();
    // Its own last word is the decompressed size: the kernel's build appends none to this format.
    let payload = gzip.finish().unwrap();
    // One sector of setup after the boot sector; then the payload at once.
    let mut file = vec![0; 1024];
    file[0x1f1] = 1;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    file.extend_from_slice(&payload);
    file
}

/// The monitor without arguments, and without any variable of the caller's.
#[must_use]
pub fn vmm_min() -> Run {
    Run::new(bin("vmm-min")).env_clear().env("MACHINEN_CACHE_DIR", cache_dir()).limit(LIMIT)
}

/// A monitor that runs. It is killed when its owner goes.
#[derive(Debug)]
pub struct Live {
    /// The process; its pipes may be taken.
    pub child: Child,
}

impl Live {
    /// Starts it in a process group of its own.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(mut command: Command) -> Self {
        sys::confine(&mut command, Vec::new());
        Self { child: command.spawn().expect("the monitor starts") }
    }

    /// Starts it as the leader of a session on a terminal, which is its stdin, stdout and stderr, apart from those that
    /// `streams` then sets.
    ///
    /// # Panics
    /// When it does not start.
    pub fn on_terminal(mut command: Command, pty: &Pty, streams: impl FnOnce(&mut Command)) -> Self {
        pty.attach(&mut command).expect("descriptors");
        streams(&mut command);
        Self { child: command.spawn().expect("the monitor starts") }
    }

    /// Sends it a signal.
    pub fn send(&self, signal: libc::c_int) {
        sys::signal(&self.child, signal);
    }

    /// Waits until it sleeps, and not just for a moment.
    ///
    /// # Panics
    /// When it does not within [`LIMIT`].
    pub fn until_asleep(&self) {
        let mut in_a_row = 0;
        wait_until("the monitor sleeps", || {
            in_a_row = if host::is_asleep(self.child.id()) { in_a_row + 1 } else { 0 };
            in_a_row == 10
        });
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within [`LIMIT`].
    pub fn wait(&mut self) -> ExitStatus {
        assert!(self.ends_within(LIMIT), "the monitor should have ended");
        self.child.wait().expect("a child")
    }

    /// Whether it ends before `limit` is over. It can still be waited for.
    ///
    /// # Panics
    /// When the system cannot tell.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        if self.child.try_wait().expect("a child").is_some() {
            return true;
        }
        let pidfd = sys::pidfd(&self.child).expect("a descriptor");
        sys::wait_readable(&[pidfd.as_fd()], limit).expect("poll")[0]
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            sys::kill_group(&self.child);
            // Killed: this does not take long, and there is no one to tell.
            let _: io::Result<ExitStatus> = self.child.wait();
        }
    }
}

/// A guest that prints `r` runs on after that, until a signal ends its monitor.
///
/// # Panics
/// When it does not.
pub fn runs_until_a_signal(guest: Guest) {
    let kernel = Kernel::new(guest);
    let mut command = kernel.command();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut live = Live::start(command);
    assert_eq!(read_bytes(live.child.stdout.as_mut().expect("a pipe"), 1), b"r");
    // That it has not ended cannot be waited for.
    assert!(!live.ends_within(Duration::from_millis(100)));
    live.send(libc::SIGTERM);
    assert_eq!(live.wait().signal(), Some(libc::SIGTERM));
}

/// Reads `count` bytes, or less when `from` ends before.
///
/// # Panics
/// When they do not come within [`LIMIT`].
pub fn read_bytes(from: &mut (impl Read + AsFd), count: usize) -> Vec<u8> {
    let deadline = Instant::now() + LIMIT;
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let left = deadline.saturating_duration_since(Instant::now());
        let last = &bytes[bytes.len().saturating_sub(64)..];
        assert!(!left.is_zero(), "{count} bytes expected, {} came, at last {}", bytes.len(), last.escape_ascii());
        if sys::wait_readable(&[from.as_fd()], left).expect("poll")[0] {
            let mut buffer = vec![0; (count - bytes.len()).min(1 << 16)];
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => bytes.extend_from_slice(&buffer[..length]),
                // The other end of a terminal has gone.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
                Err(error) => panic!("read: {error}"),
            }
        }
    }
    bytes
}

/// Waits until `condition` holds, looking every millisecond.
///
/// # Panics
/// When it does not within [`LIMIT`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Asserts that the monitor refused with this code as its design says: exit status 125, nothing on stdout, on stderr one
/// block of a message and perhaps a hint.
///
/// # Panics
/// When it did anything else.
pub fn assert_refused(finished: &Finished, code: &str) {
    let printed = finished.printed();
    assert_eq!(finished.code(), 125, "{code} expected: {printed}");
    assert!(finished.stdout.is_empty(), "nothing belongs on stdout: {printed}");
    let stderr = String::from_utf8_lossy(&finished.stderr);
    let mut lines = stderr.lines();
    let message = lines.next().unwrap_or_default();
    assert!(message.starts_with(&format!("vmm-min: {code}: ")), "{code} expected: {printed}");
    assert!(lines.next().is_none_or(|hint| hint.starts_with("  hint: ")), "{printed}");
    assert_eq!(lines.next(), None, "one block expected: {printed}");
    assert!(stderr.ends_with('\n'), "a whole line expected: {printed}");
}

/// A directory that is removed at the end.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new directory; `name` is part of its name.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machinen-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a writable temporary directory");
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where `name` in it is.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Every file in it, at any depth, relative to it.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let (mut files, mut open) = (Vec::new(), vec![self.0.clone()]);
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry")) {
                if entry.file_type().expect("a type").is_dir() {
                    open.push(entry.path());
                } else {
                    files.push(entry.path().strip_prefix(&self.0).expect("below it").to_owned());
                }
            }
        }
        files.sort();
        files
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody is left to tell, and the directory is temporary.
        let _: io::Result<()> = fs::remove_dir_all(&self.0);
    }
}

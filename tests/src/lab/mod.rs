//! The lab: a QEMU machine without acceleration, with a real `/dev/kvm` inside, for hosts that have none.
//!
//! It is of this host's architecture, or of another one. [`Lab::run`] boots it, runs one command in it as root and ends it. `fixtures/lab/prepare` makes what it boots;
//! `fixtures/lab/init` is its PID 1 and describes the wire.

#![forbid(unsafe_code)]

mod arch;
mod error;
mod job;
pub mod program;
mod stream;
mod terminal;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub use arch::Arch;
pub use error::Error;
pub use job::{Job, Outcome};
use stream::Marked;
use terminal::Terminal;

use crate::{host, sys};

const ACCEL: &[&str] = &["-accel", "tcg,thread=multi"];
/// A nanosecond for each instruction, and no waiting: times that depend on nothing but the work.
const COUNTING: &[&str] = &["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"];

/// The virtio ports, in the order of the descriptors.
const PORTS: [&str; 4] = ["stdout", "stderr", "files", "end"];
const END: usize = 3;

/// A lab that `make lab` has made.
#[derive(Debug)]
pub struct Lab {
    arch: Arch,
    dir: PathBuf,
}

impl Lab {
    /// Finds the architecture's lab in the cache.
    ///
    /// # Errors
    /// [`Error::NotMade`] when it is not there.
    pub fn open(arch: Arch) -> Result<Self, Error> {
        let dir = arch.assets_dir();
        match ["vmlinux", "lab.cpio"].iter().map(|name| dir.join(name)).find(|path| !path.exists()) {
            Some(path) => Err(Error::NotMade { path, arch: arch.name() }),
            None => Ok(Self { arch, dir }),
        }
    }

    /// Boots the lab, runs the job, ends the lab. The command's output goes to `stdout` and `stderr` as it comes.
    ///
    /// # Errors
    /// When there was no exit code: the host could not start the lab, the lab refused or died, the limit was
    /// reached, a writer failed. Nothing is left running.
    pub fn run(&self, job: &Job, stdout: &mut dyn Write, stderr: &mut dyn Write) -> Result<Outcome, Error> {
        let deadline = Instant::now() + job.limit;
        let mark = job::mark().map_err(Error::host("read", Path::new("/dev/urandom")))?;
        let disk = anonymous_file()?;
        job.write_disk(&disk, &mark, self.arch)?;
        let (terminal, line) = if job.terminal { Some(Terminal::open()?).unzip() } else { (None, None) };
        let mut machine = Machine::start(self, job, &disk, line)?;
        let mut files = anonymous_file()?;
        let code = machine.serve(deadline, job.silence, &mark, [stdout, stderr, &mut files]);
        machine.stop();
        drop(terminal);
        let code = code.map_err(|end| end.into_error(job, machine.log_tail()))?;
        files.seek(SeekFrom::Start(0)).map_err(Error::host("seek", Path::new("files")))?;
        Ok(Outcome { code, missing: job.unpack(files)? })
    }
}

/// A running QEMU; dropping it kills it.
struct Machine {
    qemu: Child,
    ports: [UnixStream; PORTS.len()],
    /// The serial console and QEMU's own messages.
    log: File,
    /// Its clock counts instructions, of which an interrupt is some.
    counting: bool,
}

/// A machine that says nothing for so long is interrupted. QEMU 7.2 loses the wake-up of a processor that halts after it ran a
/// guest: its local APIC then has a timer interrupt pending, interrupts are on, and it waits all the same, until any other
/// interrupt comes.
const NAP: Duration = Duration::from_secs(2);

/// Why a machine was of no more use.
enum End {
    Limit,
    Silence,
    Died,
    Refused(String),
    Io(&'static str, io::Error),
}

impl End {
    fn into_error(self, job: &Job, log: String) -> Error {
        match self {
            Self::Limit => Error::Limit { limit: job.limit, log },
            Self::Silence => Error::Limit { limit: job.silence, log },
            Self::Died => Error::Died { log },
            Self::Refused(why) => Error::Refused { why, log },
            Self::Io(operation, error) => Error::Host { operation, path: "the lab's output".into(), error },
        }
    }
}

impl Machine {
    fn start(lab: &Lab, job: &Job, disk: &File, line: Option<UnixStream>) -> Result<Self, Error> {
        let (arch, dir, qemu) = (lab.arch, &lab.dir, lab.arch.qemu());
        let host = Error::host("start", Path::new(qemu));
        let (ours, theirs) = (|| {
            let [a, b, c, d] = [UnixStream::pair()?, UnixStream::pair()?, UnixStream::pair()?, UnixStream::pair()?];
            io::Result::Ok(([a.0, b.0, c.0, d.0], [a.1, b.1, c.1, d.1]))
        })()
        .map_err(Error::host("make a socket for", Path::new(qemu)))?;
        let log = anonymous_file()?;
        let log_of_qemu = || log.try_clone().map(Stdio::from);
        let (stdout, stderr) = match (log_of_qemu(), log_of_qemu()) {
            (Ok(stdout), Ok(stderr)) => (stdout, stderr),
            (Err(error), _) | (_, Err(error)) => return Err(host(error)),
        };

        let mut command = Command::new(qemu);
        command.args(arch.machine()).args(if job.counting { COUNTING } else { ACCEL });
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-m", &job.memory_mib.to_string(), "-append", &arch.cmdline(job.counting)]);
        command.arg("-kernel").arg(dir.join("vmlinux")).arg("-initrd").arg(dir.join("lab.cpio"));
        command.args(["-chardev", "file,id=log,append=on,path=/proc/self/fd/1", "-serial", "chardev:log"]);
        let disk_path = format!("/proc/self/fd/{}", disk.as_raw_fd());
        command.args(["-drive", &format!("if=none,id=job,format=raw,read-only=on,file={disk_path}")]);
        command.args(["-device", "virtio-blk-pci,drive=job", "-device", "virtio-serial-pci"]);
        if let Some(line) = &line {
            command.args(["-chardev", &format!("socket,id=line,fd={}", line.as_raw_fd())]).args(arch.line());
        }
        for (name, port) in PORTS.iter().zip(&theirs) {
            command.args(["-chardev", &format!("socket,id={name},fd={}", port.as_raw_fd())]);
            command.args(["-device", &format!("virtserialport,chardev={name},name={name}")]);
        }
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let inherited = theirs
            .iter()
            .map(AsRawFd::as_raw_fd)
            .chain([disk.as_raw_fd()])
            .chain(line.as_ref().map(AsRawFd::as_raw_fd))
            .collect();
        sys::confine(&mut command, inherited);
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoQemu { program: qemu },
            _ => host(error),
        })?;
        Ok(Self { qemu: child, ports: ours, log, counting: job.counting })
    }

    /// Copies the streams to their sinks until all have ended; returns the command's exit code.
    fn serve(
        &mut self,
        deadline: Instant,
        silence: Duration,
        mark: &[u8],
        sinks: [&mut dyn Write; END],
    ) -> Result<u8, End> {
        let mut heard = Instant::now();
        let mut streams = sinks.map(|sink| Marked::new(mark, sink));
        let mut end = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        let mut ticks = 0;
        loop {
            if end.ends_with(b"\n") && (end.starts_with(b"fail") || streams.iter().all(Marked::ended)) {
                return verdict(&end);
            }
            let left = deadline.checked_duration_since(Instant::now()).ok_or(End::Limit)?;
            let fds = self.ports.each_ref().map(AsFd::as_fd);
            let ready = sys::wait_readable(&fds, left.min(NAP)).map_err(|error| End::Io("poll", error))?;
            let before = std::mem::replace(&mut ticks, host::processor_ticks(self.qemu.id()));
            // That its processor stands still does not always show: QEMU itself uses some time.
            if ready.contains(&true) {
                heard = Instant::now();
            } else if heard.elapsed() > silence {
                return Err(End::Silence);
            } else if ticks == before || !self.counting {
                self.wake();
            }
            for (index, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
                let length = match (&self.ports[index]).read(&mut buffer) {
                    Ok(0) => return Err(End::Died),
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(End::Died),
                    Err(error) => return Err(End::Io("read", error)),
                };
                match streams.get_mut(index) {
                    Some(stream) => stream.push(&buffer[..length]).map_err(|error| End::Io("write", error))?,
                    None => end.extend_from_slice(&buffer[..length]),
                }
            }
        }
    }

    /// Has the machine's processor interrupted: by a byte to a port whose bytes nobody there minds.
    fn wake(&self) {
        let mut port = &self.ports[END];
        let written = port.set_write_timeout(Some(Duration::from_millis(10))).and_then(|()| port.write(b"\n"));
        // A machine that takes no more bytes will not be helped by another one.
        let _: io::Result<usize> = written;
    }

    fn stop(&mut self) {
        sys::kill_group(&self.qemu);
        // It has been killed: the only error is that it has been waited for already.
        let _ = self.qemu.wait();
    }

    /// The last lines of the console, or an empty string.
    fn log_tail(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.log.seek(SeekFrom::Start(0)).and_then(|_| self.log.read_to_end(&mut bytes));
        let text = if read.is_ok() { String::from_utf8_lossy(&bytes) } else { return String::new() };
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(None) = self.qemu.try_wait() {
            self.stop();
        }
    }
}

/// Reads the line on the `end` port.
fn verdict(line: &[u8]) -> Result<u8, End> {
    let line = String::from_utf8_lossy(line);
    let (word, rest) = line.trim_end().split_once(' ').unwrap_or((&line, ""));
    match (word, rest.parse()) {
        ("exit", Ok(code)) => Ok(code),
        _ => Err(End::Refused(rest.to_owned())),
    }
}

/// A file without a name, opened for reading and appending.
fn anonymous_file() -> Result<File, Error> {
    let nonce = OsString::from(format!(".machinen-lab-{}-{:?}", std::process::id(), std::thread::current().id()));
    let path = std::env::temp_dir().join(nonce);
    let file = OpenOptions::new().create_new(true).read(true).append(true).open(&path);
    let file = file.map_err(Error::host("create", &path))?;
    fs::remove_file(&path).map_err(Error::host("remove", &path))?;
    Ok(file)
}

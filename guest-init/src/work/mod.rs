//! What a child of PID 1's own program does for a stream: work with files, which may wait for disks.

mod bundle;
pub mod dump;
mod hold;
mod keeper;
mod program;
pub mod restore;
mod stats;
mod tar_in;
mod tar_out;
mod write_file;

use alloc::format;

use guest_init::tar::read::Input;
use guest_init::wire::report::{BEGUN, Failed, Restored, mark};
use guest_init::wire::request::Request;
use machinen_abi::body::Reason;

use crate::sys::{self, Errno, Fd};

/// The pipes of such a child.
pub struct Worker {
    pub input: Fd,
    pub output: Fd,
    report: Fd,
}

/// Its ends of the pipes, and what else it shall have open from number 4 on.
pub struct Ends<'a> {
    pub input: &'a Fd,
    pub output: &'a Fd,
    /// The standard error; without it that is this process's.
    pub error: Option<&'a Fd>,
    pub report: &'a Fd,
    pub more: &'a [&'a Fd],
}

/// What needs nothing but the request.
pub fn serve(worker: &Worker, request: &Request<'_>) -> Result<(), Failed> {
    match request {
        Request::TarIn { path, no_owner, name } => tar_in::run(worker, path, *no_owner, *name),
        Request::TarOut { path, exclude, name } => tar_out::run(worker, path, exclude, *name),
        Request::WriteFile { path, mode, append, parents } => write_file::run(worker, path, *mode, *append, *parents),
        Request::Stats { faults } => stats::run(worker, *faults),
        _ => {
            worker.begin();
            sys::sync();
            Ok(())
        }
    }
}

impl Worker {
    /// Does the work and ends this process.
    pub fn run(ends: &Ends<'_>, work: impl FnOnce(&Worker) -> Result<(), Failed>) -> ! {
        let Ok((input, output, report)) =
            sys::become_worker(ends.input, ends.output, ends.error, ends.report, ends.more)
        else {
            sys::exit_now(guest_init::status::REFUSED)
        };
        let worker = Worker { input, output, report };
        let done = work(&worker);
        let code = done.is_err().into();
        if let Err(failed) = done {
            worker.report(&failed.to_bytes());
        }
        sys::exit_now(code)
    }

    /// It has come to the point of this name.
    pub fn mark(&self, name: &str) {
        self.report(&mark(sys::clock_ns(libc::CLOCK_REALTIME), name));
    }

    /// This is about to be restored.
    pub fn restores(&self, restored: Restored) {
        self.report(&restored.to_bytes());
    }

    /// What had to be there is there; now the input is read.
    pub fn begin(&self) {
        self.report(&[BEGUN]);
    }

    fn report(&self, bytes: &[u8]) {
        match self.report.write(bytes) {
            // With nobody there to hear it this process is killed.
            Ok(_) | Err(_) => {}
        }
    }
}

/// The input of a worker, from its pipe.
pub struct Pipe<'a>(&'a Fd);

impl Input for Pipe<'_> {
    type Error = Errno;

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match self.0.read(buffer) {
                Err(Errno(libc::EINTR)) => {}
                result => return result,
            }
        }
    }
}

/// Writes all bytes.
fn write_all(file: &Fd, mut bytes: &[u8]) -> sys::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(Errno(libc::ENOSPC)),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// A system call failed on this.
fn system(path: &[u8], Errno(errno): Errno) -> Failed {
    Failed { reason: Reason::System, errno, message: format!("{}: {}", path.escape_ascii(), Errno(errno)) }
}

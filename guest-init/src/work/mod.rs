//! What a child of PID 1's own program does for a stream: work with files, which may wait for disks.

mod tar_in;
mod tar_out;
mod write_file;

use alloc::format;

use guest_init::tar::read::Input;
use guest_init::wire::report::{BEGUN, Failed};
use guest_init::wire::request::Request;
use machinen_abi::body::Reason;

use crate::sys::{self, Errno, Fd};

/// The pipes of such a child.
pub struct Worker {
    pub input: Fd,
    pub output: Fd,
    report: Fd,
}

impl Worker {
    /// Does the work and ends this process.
    pub fn run(input: &Fd, output: &Fd, report: &Fd, request: &Request<'_>) -> ! {
        let Ok((input, output, report)) = sys::become_worker(input, output, report) else {
            sys::exit_now(guest_init::status::REFUSED)
        };
        let worker = Worker { input, output, report };
        let done = match request {
            Request::TarIn { path, no_owner, name } => tar_in::run(&worker, path, *no_owner, *name),
            Request::TarOut { path, exclude, name } => tar_out::run(&worker, path, exclude, *name),
            Request::WriteFile { path, mode, append, parents } => {
                write_file::run(&worker, path, *mode, *append, *parents)
            }
            _ => {
                worker.begin();
                sys::sync();
                Ok(())
            }
        };
        let code = done.is_err().into();
        if let Err(failed) = done {
            worker.report(&failed.to_bytes());
        }
        sys::exit_now(code)
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

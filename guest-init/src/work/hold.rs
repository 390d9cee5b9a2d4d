//! A dump that is held: from CRIU's gate to the host, and back with its word.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::c_int;

use guest_init::criu;
use guest_init::criu::gate::{self, ANSWER, TOLD};
use guest_init::wire::report::Failed;
use libc::{POLLIN, pollfd};
use machinen_abi::body::{Reason, TAKEN};

use super::bundle::Bundle;
use super::{system, write_all};
use crate::sys::{self, Errno, Fd, files};

/// Read at a time.
const BUFFER_BYTES: usize = 64 << 10;

/// Two pipes between the worker and the action script ([`gate`]).
pub struct Gate {
    told: Fd,
    tell: Fd,
    answered: Fd,
    answer: Fd,
}

impl Gate {
    /// A gate that nobody has come to.
    pub fn new() -> Result<Gate, Failed> {
        let failed = |errno| system(b"pipe", errno);
        let (told, tell) = Fd::pipe().map_err(failed)?;
        let (answered, answer) = Fd::pipe().map_err(failed)?;
        Ok(Gate { told, tell, answered, answer })
    }

    /// What the script has to know.
    pub fn variables(&self) -> Vec<String> {
        let own = |name, fd: &Fd| gate::variable(name, sys::own_pid(), fd.number());
        Vec::from([own(TOLD, &self.tell), own(ANSWER, &self.answered)])
    }

    /// Waits until CRIU has come to it. `false`: CRIU has ended before.
    pub fn is_reached(&self, criu: c_int) -> Result<bool, Failed> {
        let criu = process(criu)?;
        Ok(wait([self.told.number(), criu.number()], None)?[0])
    }

    /// Lets CRIU go on, as if the dump had failed unless it is taken.
    pub fn answer(&self, taken: bool) {
        match self.answer.write(&[if taken { TAKEN } else { b'n' }]) {
            // Of a script that has ended CRIU knows more.
            Ok(_) | Err(_) => {}
        }
    }
}

/// Waits for the host's word; the end of its stream is one, and so is the end of `criu`.
pub fn ask(host: &Fd, criu: Option<c_int>, limit_ms: Option<i64>) -> Result<(), Failed> {
    let refused = |errno, message: &str| Failed { reason: Reason::System, errno, message: message.to_string() };
    let criu = criu.map(process).transpose()?;
    let [said, ended] = wait([host.number(), criu.as_ref().map_or(-1, Fd::number)], limit_ms)?;
    if !said && !ended {
        return Err(refused(libc::ETIMEDOUT, "nobody has taken the dump in its time"));
    }
    let mut word = [0];
    // What is not there yet is not waited for any more.
    let count = if said { host.read(&mut word).unwrap_or(0) } else { 0 };
    match gate::is_taken((count > 0).then_some(word[0])) {
        true => Ok(()),
        false if ended => Err(refused(0, "criu has ended before the dump was taken")),
        false => Err(refused(libc::ECANCELED, "the host has not taken the dump")),
    }
}

fn process(pid: c_int) -> Result<Fd, Failed> {
    sys::process(pid).map_err(|errno| system(b"pidfd", errno))
}

/// Waits until one of these can be read from; says which. Neither: the time is over.
fn wait(numbers: [c_int; 2], limit_ms: Option<i64>) -> Result<[bool; 2], Failed> {
    loop {
        let left = limit_ms.map(|limit| (limit - sys::now_ms()).max(0));
        let left = left.map_or(-1, |left| c_int::try_from(left).unwrap_or(c_int::MAX));
        let mut set = numbers.map(|fd| pollfd { fd, events: POLLIN, revents: 0 });
        sys::poll_all(&mut set, left).map_err(|errno: Errno| system(b"poll", errno))?;
        let ready = set.map(|entry| entry.revents != 0);
        if ready.contains(&true) || left == 0 {
            return Ok(ready);
        }
    }
}

/// The copy of CRIU's log in the bundle. It is opened once: the host may have moved it, and what comes later belongs to it.
#[derive(Default)]
pub struct Log {
    files: Option<(Fd, Fd)>,
    /// How it begins.
    pub start: Vec<u8>,
}

impl Log {
    /// Brings it up to date; without a log there is no copy.
    pub fn copy(&mut self, bundle: &Bundle) -> Result<(), Failed> {
        let path = criu::path(criu::WORK, criu::DUMP_LOG);
        if self.files.is_none() {
            let Ok(from) = Fd::open(&path, libc::O_RDONLY) else { return Ok(()) };
            let to = bundle.file(criu::DUMP_LOG);
            let opened = files::open_or_create(&to, libc::O_WRONLY | libc::O_TRUNC, 0o644);
            self.files = Some((from, opened.map_err(|errno| system(to.to_bytes(), errno))?));
        }
        let Some((from, to)) = &self.files else { return Ok(()) };
        let failed = |errno| system(path.to_bytes(), errno);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    if self.start.is_empty() {
                        self.start.extend_from_slice(&buffer[..count]);
                    }
                    write_all(to, &buffer[..count]).map_err(failed)?;
                }
                Err(Errno(libc::EINTR)) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}

//! This program as CRIU's action script: holds a dump until the worker that began it has the host's word.

use core::ffi::{CStr, c_int};

use guest_init::criu::gate::{ACTION, ANSWER, TOLD, holds, is_taken};

use crate::sys::{self, Errno, Fd};

/// CRIU goes on as if the dump had failed.
const REFUSED: c_int = 1;

/// Does what CRIU waits for; gives the exit code. `None` when CRIU has not started this.
pub fn pass() -> Option<c_int> {
    let action = sys::variable(ACTION).filter(|_| sys::own_pid() != 1)?;
    if !holds(action.to_bytes()) {
        return Some(0);
    }
    let taken = open(TOLD, libc::O_WRONLY).and_then(|told| told.write(b"h")).and_then(|_| answer());
    Some(if taken.is_ok_and(is_taken) { 0 } else { REFUSED })
}

fn open(name: &CStr, flags: c_int) -> sys::Result<Fd> {
    Fd::open(sys::variable(name).ok_or(Errno(libc::ENOENT))?, flags)
}

/// The end of the worker is one, too.
fn answer() -> sys::Result<Option<u8>> {
    let (pipe, mut word) = (open(ANSWER, libc::O_RDONLY)?, [0]);
    loop {
        match pipe.read(&mut word) {
            Ok(count) => return Ok((count > 0).then_some(word[0])),
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(errno),
        }
    }
}

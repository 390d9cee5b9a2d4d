//! Writes the input to a file.

use alloc::ffi::CString;
use alloc::vec;
use core::ffi::CStr;

use guest_init::tar::read::Input;
use guest_init::wire::report::Failed;

use super::{Pipe, Worker, system, write_all};
use crate::sys::{self, Errno, at, files};

/// Writes to `path` from its start or its end; `mode` is that of the file afterwards, whether it is new or not.
pub fn run(worker: &Worker, path: &CStr, mode: Option<u32>, append: bool, parents: bool) -> Result<(), Failed> {
    let failed = |errno: Errno| system(path.to_bytes(), errno);
    if parents {
        make_parents(path)?;
    }
    let start = if append { libc::O_APPEND } else { libc::O_TRUNC };
    let file =
        files::open_or_create(path, libc::O_WRONLY | libc::O_NOCTTY | start, mode.unwrap_or(0o644)).map_err(failed)?;
    if let Some(mode) = mode {
        at::set_mode(&file, mode).map_err(failed)?;
    }
    worker.begin();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match Pipe(&worker.input).read(&mut buffer).map_err(failed)? {
            0 => return Ok(()),
            count => write_all(&file, &buffer[..count]).map_err(failed)?,
        }
    }
}

fn make_parents(path: &CStr) -> Result<(), Failed> {
    let bytes = path.to_bytes();
    for (at, _) in bytes.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/') {
        let parent = CString::new(&bytes[..at]).unwrap_or_default();
        sys::make_directory(&parent, 0o755).map_err(|errno| system(&bytes[..at], errno))?;
    }
    Ok(())
}

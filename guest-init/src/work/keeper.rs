//! Keeps the bundle as long as memory comes from it: the parent of CRIU's server of memory.

use alloc::ffi::CString;
use alloc::vec;

use guest_init::config::Config;
use guest_init::criu::{self, LAZY_LOG, STATUS_FD, WORK, lazy};
use guest_init::wire::report::Failed;

use super::bundle::Bundle;
use super::{program, system};
use crate::sys::{self, Errno, Fd};

/// How far the server stands back (nice(2)): a process that waits for a page does not run meanwhile, and one that runs is not
/// to wait for pages that nobody has asked for.
const NICE: i32 = 10;
/// Read at a time.
const BUFFER_BYTES: usize = 64 << 10;

/// Is there when the server has ended.
pub fn over() -> CString {
    criu::path(WORK, "lazy.over")
}

/// Starts the server, and waits until it can be used.
pub fn start(config: &Config, images: &str, bundle: &Bundle) -> Result<(), Failed> {
    let log = criu::path(WORK, LAZY_LOG);
    let printed = criu::path(WORK, "lazy.out");
    program::write(&log, b"")?;
    let failed = |errno| system(b"lazy-pages", errno);
    let (ready, theirs) = Fd::pipe().map_err(failed)?;
    if sys::fork().map_err(failed)?.is_none() {
        keep(config, images, bundle, &theirs, &printed);
    }
    drop(theirs);
    loop {
        match ready.read(&mut [0]) {
            Ok(1..) => return Ok(()),
            Err(Errno(libc::EINTR)) => {}
            Ok(0) | Err(_) => {
                return Err(program::criu_failed("criu lazy-pages", "it has ended", &log, Some(&printed)));
            }
        }
    }
}

/// In a process of its own: serves to the end, and lets the bundle go.
fn keep(config: &Config, images: &str, bundle: &Bundle, ready: &Fd, printed: &CString) -> ! {
    let code = match serve(config, images, ready, printed) {
        Ok(()) => 0,
        Err(failed) => {
            // For whoever waits for the server, and reads this.
            match program::write(printed, failed.message.as_bytes()) {
                Ok(()) | Err(_) => 1,
            }
        }
    };
    bundle.close();
    match program::write(&over(), b"") {
        Ok(()) | Err(_) => sys::exit_now(code),
    }
}

fn serve(config: &Config, images: &str, ready: &Fd, printed: &CString) -> Result<(), Failed> {
    let output = program::output_file(printed)?;
    let failed = |errno| system(b"lazy-pages", errno);
    sys::new_session().map_err(failed)?;
    let pid = program::start_criu(config, &criu::lazy_pages(images), &[], &output, &|| {
        sys::be_nice(NICE)?;
        sys::pass_as(ready, STATUS_FD)?;
        criu::STDIO_FDS.into_iter().filter(|fd| *fd != STATUS_FD).for_each(sys::leave);
        Ok(())
    })?;
    // Nothing that the restored processes talk to stays open here.
    sys::close_from(0).map_err(failed)?;
    sys::wait(pid).map_err(failed)?;
    let mut sum = lazy::Sum::default();
    read_log(|line| sum.add(line))?;
    // With the server gone the kernel gives zeros for what has not come: better no process than one that goes on with those,
    // though it may have come upon some by now.
    for pid in sum.unserved() {
        match sys::kill(pid, libc::SIGKILL) {
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Gives each line of the server's log, which may be long.
pub fn read_log(mut line: impl FnMut(&[u8])) -> Result<(), Failed> {
    let path = criu::path(WORK, LAZY_LOG);
    let failed = |errno| system(path.to_bytes(), errno);
    let log = match Fd::open(&path, libc::O_RDONLY) {
        Err(Errno(libc::ENOENT)) => return Ok(()),
        log => log.map_err(failed)?,
    };
    let (mut buffer, mut held) = (vec![0; BUFFER_BYTES], 0);
    loop {
        let count = log.read(&mut buffer[held..]).map_err(failed)?;
        let bytes = &buffer[..held + count];
        // A last line without an end is being written.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        bytes[..whole].split(|byte| *byte == b'\n').for_each(&mut line);
        let rest = whole..held + count;
        // No line is so long; one that is tells nothing.
        held = if rest.len() == BUFFER_BYTES { 0 } else { rest.len() };
        buffer.copy_within(rest, 0);
        if count == 0 {
            return Ok(());
        }
    }
}

//! Keeps the bundle as long as memory comes from it: the parent of CRIU's server of memory.

use alloc::ffi::CString;

use guest_init::config::Config;
use guest_init::criu::{self, LAZY_LOG, STATUS_FD, WORK, lazy};
use guest_init::wire::report::Failed;

use super::bundle::Bundle;
use super::{program, system};
use crate::sys::{self, Errno, Fd};

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
    sys::exit_now(code)
}

fn serve(config: &Config, images: &str, ready: &Fd, printed: &CString) -> Result<(), Failed> {
    let output = program::output_file(printed)?;
    let failed = |errno| system(b"lazy-pages", errno);
    sys::new_session().map_err(failed)?;
    let pid = program::start_criu(config, &criu::lazy_pages(images), &output, &|| {
        sys::pass_as(ready, STATUS_FD)?;
        criu::STDIO_FDS.into_iter().filter(|fd| *fd != STATUS_FD).for_each(sys::leave);
        Ok(())
    })?;
    // Nothing that the restored processes talk to stays open here.
    sys::close_from(0).map_err(failed)?;
    sys::wait(pid).map_err(failed)?;
    let log = sys::read_file(&criu::path(WORK, LAZY_LOG)).unwrap_or_default();
    program::write(&criu::path(WORK, "faults"), lazy::faults(&log).as_bytes())?;
    program::write(&over(), b"")
}

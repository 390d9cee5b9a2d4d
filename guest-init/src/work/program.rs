//! Programs that a worker runs.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ffi::{CStr, c_int};

use guest_init::config::{Changes, Config};
use guest_init::criu::log;
use guest_init::wire::report::{Failed, Report};
use machinen_abi::body::Reason;

use super::{system, write_all};
use crate::child;
use crate::sys::{self, Errno, Fd, files};

/// Starts a program with the image's environment and more variables, in a session of its own; `attach` gives it its
/// descriptors. Returns its number.
pub fn start(
    config: &Config,
    words: &[&[u8]],
    variables: Vec<&[u8]>,
    attach: &dyn Fn() -> sys::Result<()>,
) -> Result<c_int, Failed> {
    let name = String::from_utf8_lossy(words.first().copied().unwrap_or_default()).into_owned();
    let changes = Changes { words: words.to_vec(), variables, directory: Some(b"/") };
    let command = config.command_with(&changes, false).map_err(|refusal| Failed {
        reason: Reason::Invalid,
        errno: 0,
        message: format!("{name}: {refusal}"),
    })?;
    let failed = |errno| system(name.as_bytes(), errno);
    let (pid, pipe) = child::start_reporting(&command, attach).map_err(failed)?;
    let (mut report, mut buffer) = (Report::default(), [0; 512]);
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => report.add(&buffer[..count]),
            Err(Errno(libc::EINTR)) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    match report.failed() {
        Some(failed) => {
            sys::wait(pid).map_err(|errno| system(name.as_bytes(), errno))?;
            Err(failed)
        }
        None => Ok(pid),
    }
}

/// CRIU with these words and more variables, and its stdout and stderr on `output`.
pub fn start_criu(
    config: &Config,
    words: &[String],
    variables: &[String],
    output: &Fd,
    attach: &dyn Fn() -> sys::Result<()>,
) -> Result<c_int, Failed> {
    let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
    start(config, &words, variables.iter().map(String::as_bytes).collect(), &|| {
        let null = Fd::open(c"/dev/null", libc::O_RDONLY)?;
        sys::set_stdio(null.number(), output.number(), output.number())?;
        attach()
    })
}

/// How a program ended, when not well.
pub fn ill(status: c_int) -> Option<String> {
    match status {
        0 => None,
        _ if libc::WIFSIGNALED(status) => Some(format!("killed by signal {}", libc::WTERMSIG(status))),
        _ => Some(format!("exit code {}", libc::WEXITSTATUS(status))),
    }
}

/// CRIU has failed: its own last words, from its log or from what it printed.
pub fn criu_failed(what: &str, ill: &str, log: &CStr, printed: Option<&CStr>) -> Failed {
    let mut errors = log::last_errors(&sys::read_file(log).unwrap_or_default());
    if errors.is_empty()
        && let Some(printed) = printed
    {
        errors = String::from_utf8_lossy(&sys::read_file(printed).unwrap_or_default()).trim().replace('\n', "; ");
    }
    let why = if errors.is_empty() { ill.to_string() } else { format!("{ill}: {errors}") };
    Failed { reason: Reason::System, errno: 0, message: format!("{what}: {why}") }
}

/// An empty file for what a program prints.
pub fn output_file(path: &CStr) -> Result<Fd, Failed> {
    let flags = libc::O_WRONLY | libc::O_TRUNC | libc::O_APPEND;
    files::open_or_create(path, flags, 0o600).map_err(|errno| system(path.to_bytes(), errno))
}

/// Writes a file, whole.
pub fn write(path: &CStr, bytes: &[u8]) -> Result<(), Failed> {
    let failed = |errno| system(path.to_bytes(), errno);
    let file = files::open_or_create(path, libc::O_WRONLY | libc::O_TRUNC, 0o644).map_err(failed)?;
    write_all(&file, bytes).map_err(failed)
}

/// Copies a small file; one that is not there is not copied.
pub fn copy(from: &CStr, to: &CString) -> Result<(), Failed> {
    sys::read_file(from).map_or(Ok(()), |bytes| write(to, &bytes))
}

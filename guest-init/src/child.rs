//! The command's process.

use alloc::format;
use core::ffi::c_int;

use guest_init::config::Command;
use guest_init::lookup::{Attempts, candidates};
use guest_init::status::REFUSED;
use guest_init::wire::report::Failed;
use machinen_abi::body::Reason;

use crate::sys::{self, Errno, Fd};
use crate::{prepare, say};

/// Starts `command` in a session of its own; `attach` gives the child its stdin, stdout and stderr. Returns its
/// number, which is also that of its process group. What goes wrong in the child is said on its stderr.
pub fn start(command: &Command, attach: &dyn Fn() -> sys::Result<()>) -> sys::Result<c_int> {
    match sys::fork()? {
        Some(pid) => Ok(pid),
        None => {
            let (failed, code) = become_command(command, attach);
            say(format_args!("{}", failed.message));
            sys::exit_now(code);
        }
    }
}

/// The same, but what goes wrong is told on a pipe ([`guest_init::wire::report`]), whose reading end is returned too.
pub fn start_reporting(command: &Command, attach: &dyn Fn() -> sys::Result<()>) -> sys::Result<(c_int, Fd)> {
    let (report, theirs) = Fd::pipe()?;
    match sys::fork()? {
        Some(pid) => Ok((pid, report)),
        None => {
            let (failed, code) = become_command(command, attach);
            match theirs.write(&failed.to_bytes()) {
                // Nobody listens any more, or it has been said.
                Ok(_) | Err(_) => sys::exit_now(code),
            }
        }
    }
}

/// Returns only when that does not work: why, and the exit code that says so.
fn become_command(command: &Command, attach: &dyn Fn() -> sys::Result<()>) -> (Failed, u8) {
    let system = |what: &str, Errno(errno): Errno| {
        (Failed { reason: Reason::System, errno, message: format!("{what}: {}", Errno(errno)) }, REFUSED)
    };
    if let Err(errno) = sys::new_session().and_then(|()| attach()) {
        return system("console", errno);
    }
    if let Err(errno) = sys::change_directory(&command.cwd) {
        return system(&format!("cwd {}", prepare::show(&command.cwd)), errno);
    }
    let program = &command.argv[0];
    let mut attempts = Attempts::default();
    for path in candidates(program, &command.path) {
        let Errno(errno) = sys::execute(&path, &command.argv, &command.env);
        attempts.add(errno, sys::exists(&path));
    }
    let name = prepare::show(program);
    let (reason, errno, message) = match attempts {
        Attempts::NotFound => (Reason::NotFound, libc::ENOENT, format!("{name}: not found")),
        Attempts::NoInterpreter => {
            (Reason::CannotExecute, libc::ENOENT, format!("{name}: its interpreter or loader is not found"))
        }
        Attempts::Failed(errno) => (Reason::CannotExecute, errno, format!("{name}: {}", Errno(errno))),
    };
    (Failed { reason, errno, message }, attempts.exit_code())
}

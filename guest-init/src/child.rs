//! The command's process.

use core::ffi::c_int;

use guest_init::config::Command;
use guest_init::lookup::{Attempts, candidates};
use guest_init::status::REFUSED;

use crate::sys::{self, Errno};
use crate::{prepare, say};

/// Starts `command` in a session of its own; `attach` gives the child its stdin, stdout and stderr. Returns its
/// number, which is also that of its process group.
pub fn start(command: &Command, attach: impl FnOnce() -> sys::Result<()>) -> sys::Result<c_int> {
    match sys::fork()? {
        Some(pid) => Ok(pid),
        None => become_command(command, attach),
    }
}

fn become_command(command: &Command, attach: impl FnOnce() -> sys::Result<()>) -> ! {
    if let Err(errno) = sys::new_session().and_then(|()| attach()) {
        say(format_args!("console: {errno}"));
        sys::exit_now(REFUSED);
    }
    if let Err(errno) = sys::change_directory(&command.cwd) {
        say(format_args!("cwd {}: {errno}", prepare::show(&command.cwd)));
        sys::exit_now(REFUSED);
    }
    let program = &command.argv[0];
    let mut attempts = Attempts::default();
    for path in candidates(program, &command.path) {
        let Errno(errno) = sys::execute(&path, &command.argv, &command.env);
        attempts.add(errno, sys::exists(&path));
    }
    let name = prepare::show(program);
    match attempts {
        Attempts::NotFound => say(format_args!("{name}: not found")),
        Attempts::NoInterpreter => say(format_args!("{name}: its interpreter or loader is not found")),
        Attempts::Failed(errno) => say(format_args!("{name}: {}", Errno(errno))),
    }
    sys::exit_now(attempts.exit_code())
}

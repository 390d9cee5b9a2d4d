//! The work of `machinen-logs`: a machine's console, as its monitor wrote it down.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use argh::FromArgs;
use machinen_initramfs::error::reason;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use crate::args::plain;
use crate::bootlog::{self, Broken};
use crate::diagnostic::{Diagnostic, EXIT_FAILURE};
use crate::program::Tool;
use crate::registry::{Registry, Vm};
use crate::vm::start::BOOT_LOG;

/// Name and codes of the program.
pub const TOOL: Tool = Tool { name: "machinen-logs", usage: "LOGS_USAGE", output: "LOGS_OUTPUT" };

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Print the console of a machine, also of one that has ended and was not collected.",
    note = "NAME is a name, an id or a process number. Of a long log the first and the last 8 MiB are\n  \
        kept; a line says how many bytes are not.",
    note = "Exit codes: 0 printed, 1 failed, 2 bad usage.",
    example = "{command_name} -f web | grep --line-buffered error"
)]
pub struct Args {
    /// go on with what comes, until the machine ends
    #[argh(switch, short = 'f')]
    pub follow: bool,
    /// report an error as one line of JSON
    #[argh(switch)]
    pub json: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// the machine
    #[argh(positional, arg_name = "NAME")]
    pub name: Vec<String>,
}

/// Between two looks at a machine whose process cannot be waited for.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Prints it.
pub fn run(args: Args) -> Result<(), Diagnostic> {
    let [name] = args.name.as_slice() else {
        let message = format!("one name is needed, {} are given", args.name.len());
        return Err(Diagnostic::new(TOOL.usage, message).hint("see machinen-logs --help").usage());
    };
    let name = &plain(name.clone());
    let vm = Registry::open().and_then(|registry| registry.find_any(name));
    let vm = vm.map_err(|error| error.diagnostic(EXIT_FAILURE))?;
    let path = vm.dir.join(BOOT_LOG);
    let failed = |what: &str, error: &io::Error| {
        Diagnostic::new("LOGS_HOST", format!("{what} {}: {}", path.display(), reason(error)))
    };
    let mut log = File::open(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Diagnostic::new("LOGS_MISSING", format!("machine {name:?}: it has written no console")),
        _ => failed("open", &error),
    })?;
    let done = if args.follow { follow(&vm, &path, &mut log) } else { print(&mut log) };
    match done {
        Err(Broken::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(Broken::Output(error)) => {
            Err(Diagnostic::new(TOOL.output, format!("write: standard output: {}", reason(&error))))
        }
        Err(Broken::Log(error)) => Err(failed("read", &error)),
        Ok(()) => Ok(()),
    }
}

/// Prints from where the file is read to its end.
fn print(log: &mut File) -> Result<(), Broken> {
    // Not through the buffer of the standard library, which holds back the rest of a line.
    let output = io::stdout().as_fd().try_clone_to_owned().map_err(Broken::Output)?;
    bootlog::copy(log, &mut File::from(output))
}

/// Prints what comes until the machine has ended, or nobody reads the output any more.
fn follow(vm: &Vm, path: &Path, log: &mut File) -> Result<(), Broken> {
    // Both before the first read: what happens after it is told by them.
    let watch = watch(path).map_err(Broken::Log)?;
    let process = vm.open();
    loop {
        let ended = vm.has_ended();
        print(log)?;
        if ended {
            return Ok(());
        }
        let output = io::stdout();
        let mut polls = vec![PollFd::new(&watch, PollFlags::IN), PollFd::new(&output, PollFlags::empty())];
        polls.extend(process.as_ref().map(|process| PollFd::new(process, PollFlags::IN)));
        // After the process the lock may be held for a moment, or by the tool that started it.
        let process_lives = match process.as_ref().map(|process| process.wait(std::time::Duration::ZERO)) {
            Some(false) => true,
            Some(true) => polls.pop().is_none(),
            None => false,
        };
        match poll(&mut polls, (!process_lives).then_some(&LOOK_AGAIN)) {
            Err(Errno::INTR) | Ok(0) => continue,
            Err(error) => return Err(Broken::Log(error.into())),
            Ok(_) => {}
        }
        if polls.get(1).is_some_and(|output| output.revents().intersects(PollFlags::ERR | PollFlags::HUP)) {
            return Ok(());
        }
        drain(&watch).map_err(Broken::Log)?;
    }
}

/// A descriptor that can be read when the file has been written to.
fn watch(path: &Path) -> io::Result<OwnedFd> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY)?;
    Ok(watch)
}

fn drain(watch: &OwnedFd) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(watch, &mut buffer) {
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) | Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

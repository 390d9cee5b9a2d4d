//! The work of `machinen-snapshot`: a machine's processes become a bundle.

use std::ffi::OsString;
use std::path::Path;

use argh::FromArgs;
use serde_json::json;

use crate::args::plain;
use crate::bundle::{Engine, SnapshotOptions, Tcp};
use crate::diagnostic::{Diagnostic, EXIT_FAILURE};
use crate::guestio::seconds;
use crate::program::Tool;
use crate::vm;

/// Name and codes of the program.
pub const TOOL: Tool = Tool { name: "machinen-snapshot", usage: "SNAPSHOT_USAGE", output: "SNAPSHOT_OUTPUT" };

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Freeze the main command of a machine, with all its processes, into a bundle: the\n\
        directory DIR, from which machinen restore lets them go on in other machines.\n\n\
        Without --leave-running they are gone then, and the machine ends. They stand still until\n\
        the bundle is whole; where it does not come to that, they go on.",
    note = "NAME is a name, an id or a process number. DIR must be empty, or is made.",
    note = "The image needs the program criu (in Debian the package criu). What it refuses is said in\n  \
        its own words; all of its log is in DIR/dump.log, and the machine goes on.",
    note = "Exit codes: 0 done, 1 failed, 2 bad usage.",
    example = "{command_name} web web.bundle && machinen restore web.bundle",
    example = "{command_name} --leave-running --tcp-close web web.bundle"
)]
pub struct Args {
    /// let the processes go on
    #[argh(switch, short = 'l')]
    pub leave_running: bool,
    /// dump processes with TCP connections; they are closed where they are restored
    #[argh(switch)]
    pub tcp_close: bool,
    /// dump TCP connections with their state
    #[argh(switch)]
    pub tcp_keep: bool,
    /// what freezes: criu, by which processes go on under other kernels and images (default)
    #[argh(option, arg_name = "name", default = "String::from(\"criu\")")]
    pub engine: String,
    /// a command of the guest's instead of criu, as words of a shell; it finds the number of the
    /// first process in MACHINEN_DUMP_PID, and in MACHINEN_DUMP_DIR where images go
    #[argh(option, arg_name = "command")]
    pub dump_cmd: Option<String>,
    /// give up after so many seconds, whatever is waited for: the processes go on; 0 is no limit,
    /// as without it
    #[argh(option, arg_name = "seconds")]
    pub timeout: Option<String>,
    /// print how long each step took, on standard error
    #[argh(switch, short = 'v')]
    pub verbose: bool,
    /// print what is known of the bundle as one line of JSON; an error, too
    #[argh(switch)]
    pub json: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// the machine, and the directory
    #[argh(positional, arg_name = "NAME DIR")]
    pub operands: Vec<String>,
}

/// Makes the bundle; gives what is to be printed.
pub fn run(args: Args) -> Result<String, Diagnostic> {
    let usage = |message: String| Diagnostic::new(TOOL.usage, message).hint("see machinen-snapshot --help").usage();
    let operands: Vec<String> = args.operands.iter().cloned().map(plain).collect();
    let [name, dir] = operands.as_slice() else {
        return Err(usage(format!("a machine and a directory are needed, {} words are given", operands.len())));
    };
    let trouble = |error: crate::error::Error| error.diagnostic(EXIT_FAILURE);
    let options = SnapshotOptions {
        engine: Engine::parse(&args.engine).map_err(|error| trouble(error).usage())?,
        leave_running: args.leave_running,
        tcp: Tcp::of_switches(args.tcp_close, args.tcp_keep).map_err(usage)?,
        command: words(args.dump_cmd.as_deref()).map_err(usage)?,
        limit: args.timeout.as_deref().map(seconds).transpose().map_err(usage)?.flatten(),
    };
    let meta = vm::attach(name).and_then(|vm| vm.snapshot(Path::new(dir), &options)).map_err(trouble)?;
    if args.verbose {
        for (step, ms) in &meta.phases {
            eprintln!("{}: {step}: {ms} ms", TOOL.name);
        }
    }
    Ok(if args.json { format!("{}\n", json!({"bundle": dir, "meta": meta.to_json()})) } else { String::new() })
}

fn words(command: Option<&str>) -> Result<Vec<OsString>, String> {
    let Some(command) = command else { return Ok(Vec::new()) };
    let words = shlex::split(command).filter(|words| !words.is_empty());
    let words = words.ok_or_else(|| format!("--dump-cmd {command:?}: no words of a shell"))?;
    Ok(words.into_iter().map(OsString::from).collect())
}

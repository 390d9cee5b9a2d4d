//! The work of `machinen-exec`: one more command in a machine that runs.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use argh::FromArgs;

use crate::agent::relay::{Done, Over, Pause};
use crate::agent::request::Command;
use crate::agent::signals::Signals;
use crate::args::plain;
use crate::diagnostic::Diagnostic;
use crate::error::{Error, Result};
use crate::guestio::{Stdio, channels, deadline, end, env_item, seconds};
use crate::program::{EXIT_TOOL, Said, Tool};
use crate::vm::{Vm, attach};

/// The program.
pub const TOOL: Tool = Tool { name: "machinen-exec", usage: "EXEC_USAGE", output: "EXEC_OUTPUT" };
/// Switches that may be given together.
pub const SHORT: &str = "tTi";

const LIMIT: Duration = Duration::from_secs(300);

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Run a command in a machine that runs, as if it were a process here.\n\n\
        NAME is a machine's name, id or process number.",
    note = "Standard input, output and error are the command's. It gets a terminal when standard\n  \
        input and output are one. INT, TERM, HUP, QUIT, USR1, USR2 and TSTP go to the command; a\n  \
        second INT or TERM ends this program, and the command gets HUP.",
    note = "Exit codes: the command's; 128+n when signal n killed it; 124 time limit; 125 this\n  \
        program or the machine failed; 126 the command cannot be executed; 127 not found.",
    example = "{command_name} web -- cat /etc/hostname",
    example = "{command_name} -it web -- bash"
)]
pub struct Args {
    /// variable for the command: NAME=VALUE, or NAME for its value here; repeatable
    #[argh(option, short = 'e', arg_name = "name[=value]")]
    pub env: Vec<String>,
    /// working directory of the command
    #[argh(option, short = 'w', arg_name = "dir")]
    pub workdir: Option<String>,
    /// end after so many seconds, with 124 (default: 300; with a terminal 0, which is no limit)
    #[argh(option, arg_name = "seconds")]
    pub timeout: Option<String>,
    /// give the command a terminal
    #[argh(switch, short = 't')]
    pub tty: bool,
    /// give it none
    #[argh(switch, short = 'T')]
    pub no_tty: bool,
    /// pass standard input on, which is done anyway
    #[argh(switch, short = 'i')]
    pub interactive: bool,
    /// report an error as one line of JSON
    #[argh(switch)]
    pub json: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// name, id or process number of a machine
    #[argh(positional)]
    pub name: Vec<String>,
}

/// Runs the command; gives its exit code.
pub fn run(args: Args, command: Option<Vec<OsString>>) -> std::result::Result<Said, Diagnostic> {
    if args.tty && args.no_tty {
        return Err(usage("-t and -T contradict each other".into()));
    }
    let name = match &args.name[..] {
        [name] => plain(name.clone()),
        [] => return Err(usage("no machine is given".into())),
        [_, more, ..] => return Err(usage(format!("{more}: more than one machine; a command comes after --"))),
    };
    let words =
        command.filter(|words| !words.is_empty()).ok_or_else(|| usage("no command: it comes after --".into()))?;
    let stdio = Stdio::look(args.tty, args.no_tty);
    let mut env = stdio.env();
    for item in args.env.into_iter().map(plain) {
        env.push(env_item(&item).map_err(usage)?);
    }
    let cwd = args.workdir.map(|dir| plain(dir).into());
    let command = Command { words, env, cwd, terminal: stdio.size(), detached: false };
    let usual = if stdio.terminal { None } else { Some(LIMIT) };
    let limit = args.timeout.as_deref().map(seconds).transpose().map_err(usage)?.unwrap_or(usual);
    let vm = attach(&name).map_err(|error| error.diagnostic(EXIT_TOOL))?;
    let done = relay(&vm, &command, &stdio, limit).map_err(|error| error.diagnostic(EXIT_TOOL))?;
    end(done.over, limit, || vm.lost()).map(|exit| Said { text: String::new(), exit })
}

fn relay(vm: &Vm, command: &Command, stdio: &Stdio, limit: Option<Duration>) -> Result<Done> {
    let until = deadline(limit);
    let relay = match vm.relay_within(until, command, channels()?) {
        Err(_) if until.is_some_and(|until| until <= Instant::now()) => return Ok(Done::nothing(Over::Limit)),
        relay => relay?,
    };
    let signals = Signals::take().map_err(|cause| Error::host("RUN_SIGNALS", "take signals", cause))?;
    let relay = relay.signals(signals, Pause::Command);
    match stdio.raw()? {
        Some(raw) => relay.terminal(raw).run(),
        None => relay.run(),
    }
}

fn usage(message: String) -> Diagnostic {
    let diagnostic = Diagnostic::new(TOOL.usage, message).hint("see machinen-exec --help");
    Diagnostic { exit: EXIT_TOOL, ..diagnostic }
}

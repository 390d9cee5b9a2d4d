//! The work of `machinen-attach`: the main command of a machine that runs, from here on.

use std::io::IsTerminal;

use argh::FromArgs;

use crate::agent::relay::{Done, Over, Pause};
use crate::agent::signals::Signals;
use crate::agent::terminal::Raw;
use crate::args::plain;
use crate::diagnostic::Diagnostic;
use crate::error::{Error, Result};
use crate::guestio::{channels, end};
use crate::program::{EXIT_TOOL, Said, Tool};
use crate::vm::{Vm, attach};

/// The program.
pub const TOOL: Tool = Tool { name: "machinen-attach", usage: "ATTACH_USAGE", output: "ATTACH_OUTPUT" };

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Take part in the main command of a machine that runs: its input, its output from now\n\
        on, signals, its end and exit code.\n\n\
        NAME is a machine's name, id or process number.",
    note = "On a terminal Ctrl-] Ctrl-] leaves the command alone, and its machine. Without a\n  \
        terminal of its own the command's input is a line at a time: Enter after them.",
    note = "Exit codes: the command's; 128+n when signal n killed it; 0 when it is left alone; 125\n  \
        this program or the machine failed.",
    example = "{command_name} web"
)]
pub struct Args {
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

/// Takes part until the command's end; gives its exit code.
pub fn run(args: Args, command: Option<Vec<std::ffi::OsString>>) -> std::result::Result<Said, Diagnostic> {
    let usage = |message: &str| {
        let diagnostic = Diagnostic::new(TOOL.usage, message).hint("see machinen-attach --help");
        Diagnostic { exit: EXIT_TOOL, ..diagnostic }
    };
    let name = match (&args.name[..], command) {
        ([name], None) => plain(name.clone()),
        (_, Some(_)) => return Err(usage("a command is for machinen-exec")),
        ([], None) => return Err(usage("no machine is given")),
        (_, None) => return Err(usage("more than one machine is given")),
    };
    let vm = attach(&name).map_err(|error| error.diagnostic(EXIT_TOOL))?;
    let done = relay(&vm).map_err(|error| error.diagnostic(EXIT_TOOL))?;
    if done.over == Over::Left {
        // On a line of its own: the cursor is wherever the command left it.
        eprintln!("\nmachinen-attach: left {}, which goes on", vm.label());
    }
    end(done.over, None, || vm.lost()).map(|exit| Said { text: String::new(), exit })
}

fn relay(vm: &Vm) -> Result<Done> {
    let stdin = std::io::stdin();
    let (input, output, error) = channels()?;
    let relay = vm.relay_attached(Some(input), output, error)?;
    let signals = Signals::take().map_err(|cause| Error::host("RUN_SIGNALS", "take signals", cause))?;
    let mut relay = relay.signals(signals, Pause::Nothing);
    if stdin.is_terminal() {
        relay = relay.can_leave();
        if vm.has_terminal()? {
            let mut relay = relay.terminal(Raw::enter(&stdin)?);
            relay.resize();
            return relay.run();
        }
    }
    relay.run()
}

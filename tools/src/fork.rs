//! The work of `machinen-fork`: a machine's copy goes on beside it.

use argh::FromArgs;

use crate::args::plain;
use crate::bundle::{DEFAULT_MIN_FREE_PERCENT, Engine, ForkOptions};
use crate::diagnostic::Diagnostic;
use crate::guestio::Stdio;
use crate::program::{EXIT_TOOL, Said, Tool};
use crate::run::{Life, live};
use crate::vm::{self, BootOptions};

/// Name and codes of the program.
pub const TOOL: Tool = Tool { name: "machinen-fork", usage: "FORK_USAGE", output: "FORK_OUTPUT" };
/// Switches that may be given together.
pub const SHORT: &str = "dv";

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Copy a machine while it runs: the processes of its main command go on in it, and, from\n\
        the same point, in a second machine, which is a process here.",
    note = "NAME is a name, an id or a process number. Ports are not inherited; -p gives the copy its own.",
    note = "TCP connections of the machine go on; in the copy they are closed, unless --tcp-keep.",
    note = "Exit codes: as of machinen run; 125 it cannot be copied.",
    example = "{command_name} -d web",
    example = "for i in 1 2 3; do {command_name} -d --name web/$i -p 808$i:80 web; done"
)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct Args {
    /// leave the copy running: prints its name once its processes go on
    #[argh(switch, short = 'd')]
    pub detach: bool,
    /// name of the copy (default: NAME/PROCESS, with the number of this process)
    #[argh(option)]
    pub name: Option<String>,
    /// port of the host that leads to the copy's: [IP:]HOST:GUEST[/tcp|udp]; repeatable
    #[argh(option, short = 'p', arg_name = "ports")]
    pub publish: Vec<String>,
    /// keep the bundle between the two there
    #[argh(option, arg_name = "dir")]
    pub out: Option<String>,
    /// let the copy's TCP connections go on, as if it were the machine
    #[argh(switch)]
    pub tcp_keep: bool,
    /// what freezes: criu (default)
    #[argh(option, arg_name = "name", default = "String::from(\"criu\")")]
    pub engine: String,
    /// refuse where less than so much of the host's memory would stay free (default: 1)
    /// [MACHINEN_MIN_FREE]
    #[argh(option, arg_name = "percent")]
    pub min_free: Option<String>,
    /// write a trace of the copy's start (Chrome trace JSON, for ui.perfetto.dev)
    #[argh(option, arg_name = "file")]
    pub trace: Option<String>,
    /// at the end print the times of the copy's start and its console on standard error
    #[argh(switch, short = 'v')]
    pub verbose: bool,
    /// report an error, and with -d the machine, as one line of JSON
    #[argh(switch)]
    pub json: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// the machine
    #[argh(positional, arg_name = "NAME")]
    pub source: Vec<String>,
}

/// Copies; gives the exit code of the copy's main command, and what is to be printed.
pub fn run(args: Args) -> std::result::Result<Said, Diagnostic> {
    let usage = |message: String| Diagnostic::new(TOOL.usage, message).hint("see machinen-fork --help").usage();
    let [source] = args.source.as_slice() else {
        return Err(usage(format!("one machine is needed, {} are given", args.source.len())));
    };
    let trouble = |error: crate::error::Error| error.diagnostic(EXIT_TOOL);
    let variable = std::env::var("MACHINEN_MIN_FREE").ok().filter(|text| !text.is_empty());
    let min_free = args.min_free.map(plain).or(variable).map(|text| percent(&text).map_err(usage)).transpose()?;
    let fork = ForkOptions {
        engine: Engine::parse(&args.engine).map_err(trouble)?,
        tcp_keep: args.tcp_keep,
        out: args.out.map(|dir| plain(dir).into()),
        min_free_percent: min_free.unwrap_or(DEFAULT_MIN_FREE_PERCENT),
    };
    let vm = vm::attach(&plain(source.clone())).map_err(trouble)?;
    let terminal = vm.has_terminal().map_err(trouble)?;
    let stdio = Stdio::look(terminal && !args.detach, !terminal || args.detach);
    let mut options = BootOptions::new("");
    options.name = args.name.map(plain);
    options.publish = args.publish.into_iter().map(plain).collect();
    options.command.terminal = stdio.size();
    options.command.detached = args.detach;
    options.trace = args.trace.is_some() || args.verbose;
    options.verbose = args.verbose;
    let (options, place) = vm.fork_options(&fork, options).map_err(trouble)?;
    let life =
        Life { tool: TOOL.name, limit: None, trace: args.trace.map(plain), verbose: args.verbose, json: args.json };
    // The copy has read the bundle when its processes go on.
    live(&options, &stdio, &life, Some(Box::new(place)))
}

/// Reads a share of something in percent.
fn percent(text: &str) -> std::result::Result<f64, String> {
    // What is no number would be more than there is, always.
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| format!("--min-free {text}: not a number of percent"))
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn a_share_is_a_number() {
        assert_eq!((percent("1"), percent("0.5"), percent("100.1")), (Ok(1.0), Ok(0.5), Ok(100.1)));
        for bad in ["", "NaN", "inf", "1e999", "1 %", "x"] {
            assert!(percent(bad).is_err_and(|why| why.contains(bad)), "{bad}");
        }
    }
}

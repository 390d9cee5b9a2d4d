//! The work of `machinen-stop`: ending machines, with their guests' help where that is to be had.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use argh::FromArgs;
use serde_json::json;

use crate::agent;
use crate::args::plain;
use crate::bundle;
use crate::diagnostic::{Diagnostic, EXIT_FAILURE};
use crate::error::{Error, Result};
use crate::program::{Said, Tool};
use crate::registry::{Registry, Vm};
use crate::table::printable;

/// Name and codes of the program.
pub const TOOL: Tool = Tool { name: "machinen-stop", usage: "STOP_USAGE", output: "STOP_OUTPUT" };

/// How long a guest has without -t.
const DEFAULT_LIMIT: Duration = Duration::from_secs(10);
/// How long a monitor has after SIGTERM, which makes it end at once.
const TERM_LIMIT: Duration = Duration::from_secs(2);
/// How long a machine whose agent has hung up may take to be seen dead.
const HANG_UP_LIMIT: Duration = Duration::from_secs(1);

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Stop machines: the guest ends its command and switches off; then their helpers end,\n\
        and what they left is removed.",
    note = "A guest that does not, or has no agent, is cut off: SIGTERM to its monitor, then SIGKILL.",
    note = "NAME is a name, an id or a process number.",
    note = "Exit codes: 0 all are stopped, 1 one was not, or not found; 2 bad usage.",
    example = "{command_name} -t 2 web worker/1",
    example = "{command_name} $(machinen ls -q)"
)]
pub struct Args {
    /// how long the guest has (default: 10; 0: it is not asked)
    #[argh(option, short = 't', arg_name = "seconds")]
    pub time: Option<String>,
    /// leave the directory with the console's log for machinen-logs, until machinen-gc
    #[argh(switch, short = 'k')]
    pub keep: bool,
    /// print a line of JSON for each; an error, too
    #[argh(switch)]
    pub json: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// the machines
    #[argh(positional, arg_name = "NAME")]
    pub names: Vec<String>,
}

/// What ended a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
enum By {
    /// The guest itself.
    Guest,
    /// SIGTERM, or SIGKILL where that was not enough, and why the guest did not.
    Signal(&'static str, String),
}

/// Stops them, all at once.
pub fn run(args: Args) -> std::result::Result<Said, Diagnostic> {
    let usage = |message: String| Diagnostic::new(TOOL.usage, message).hint("see machinen-stop --help").usage();
    let seconds = |text: String| {
        let limit = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        limit
            .filter(|limit| limit.as_secs() < 1 << 30)
            .ok_or_else(|| usage(format!("-t {text}: not a number of seconds")))
    };
    let limit = args.time.map(plain).map_or(Ok(DEFAULT_LIMIT), seconds)?;
    if args.names.is_empty() {
        return Err(usage("no machine is named".into()));
    }
    let registry = Registry::open().map_err(|error| error.diagnostic(EXIT_FAILURE))?;
    let mut said = Said::default();
    let mut fail = |error: Error| {
        error.diagnostic(EXIT_FAILURE).report(TOOL.name, args.json);
        said.exit = EXIT_FAILURE;
    };
    let mut vms: Vec<Vm> = Vec::new();
    for name in args.names.into_iter().map(plain) {
        match registry.find(&name) {
            Ok(vm) if vms.iter().any(|known| known.id == vm.id) => {}
            Ok(vm) => vms.push(vm),
            Err(error) => fail(error),
        }
    }
    let outcomes: Vec<Result<By>> = thread::scope(|scope| {
        let registry = &registry;
        let stop = |vm| scope.spawn(move || stop(registry, vm, limit, args.keep));
        let threads: Vec<_> = vms.iter().map(stop).collect();
        let panicked = |_| Err(Error::new("STOP_INTERNAL", "a thread ended too early"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    let mut text = String::new();
    for (vm, outcome) in vms.iter().zip(outcomes) {
        match outcome {
            Ok(by) if args.json => text.push_str(&as_json(vm, &by)),
            // No failure: it is stopped. But a guest that was cut off is worth a word, unless that was asked for.
            Ok(By::Signal(signal, why)) if !limit.is_zero() => {
                let line = format!("{}: {}: ended by {signal}: {why}\n", TOOL.name, printable(vm.label()));
                let _: io::Result<()> = io::stderr().write_all(line.as_bytes());
            }
            Ok(_) => {}
            Err(error) => fail(error),
        }
    }
    said.text = text;
    Ok(said)
}

/// Stops one, and removes what it leaves.
fn stop(registry: &Registry, vm: &Vm, limit: Duration, keep: bool) -> Result<By> {
    let by = match ask(vm, limit) {
        Ok(()) => {
            vm.end_helpers();
            By::Guest
        }
        Err(why) => By::Signal(if vm.kill(TERM_LIMIT)? { "SIGTERM" } else { "SIGKILL" }, why),
    };
    if !keep {
        registry.remove(vm)?;
    }
    Ok(by)
}

/// Has the guest end the machine. Fails with the reason why it did not.
fn ask(vm: &Vm, limit: Duration) -> std::result::Result<(), String> {
    if limit.is_zero() {
        return Err("the guest was not asked".into());
    }
    let deadline = Instant::now() + limit;
    bundle::record_faults(&vm.dir, &vm.entry, limit);
    let answer = agent::power_off(&vm.dir, deadline);
    let left = deadline.saturating_duration_since(Instant::now());
    let (left, why) = match answer {
        Ok(true) => (left, format!("the guest did not switch off within {} s", limit.as_secs_f64())),
        // Either it has just gone, or its agent is not there.
        Ok(false) => (left.min(HANG_UP_LIMIT), "the guest agent hung up".to_owned()),
        Err(error) => (Duration::ZERO, error.diagnostic(EXIT_FAILURE).message),
    };
    if vm.wait_dead(left) { Ok(()) } else { Err(why) }
}

fn as_json(vm: &Vm, by: &By) -> String {
    let (by, why) = match by {
        By::Guest => ("guest", None),
        By::Signal(signal, why) => (*signal, Some(why)),
    };
    format!("{}\n", json!({"id": vm.id, "name": vm.entry.name, "by": by, "why": why}))
}

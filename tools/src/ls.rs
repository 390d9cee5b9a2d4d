//! The work of `machinen-ls`: which machines there are.

use argh::FromArgs;
use serde_json::Value;

use crate::diagnostic::{Diagnostic, EXIT_FAILURE};
use crate::program::Tool;
use crate::registry::{Registry, State, Vm};
use crate::table::{Table, age, mib, printable};

/// Name and codes of the program.
pub const TOOL: Tool = Tool { name: "machinen-ls", usage: "LS_USAGE", output: "LS_OUTPUT" };

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "List the machines that run.",
    note = "MEMORY is the most that the guest can have, RSS what its process takes of the host now.",
    note = "They are those in MACHINEN_REGISTRY_DIR, XDG_RUNTIME_DIR/machinen or /tmp/machinen-UID.",
    note = "Exit codes: 0 listed, 1 failed, 2 bad usage.",
    example = "{command_name} --json | jq -r 'select(.memory_mib > 1024).name'",
    example = "machinen stop $({command_name} -q)"
)]
pub struct Args {
    /// also those that have ended and were not collected (machinen gc)
    #[argh(switch, short = 'a')]
    pub all: bool,
    /// print names only; the id of one without a name
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// print a line of JSON for each; an error, too
    #[argh(switch)]
    pub json: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
}

/// The list.
pub fn run(args: Args) -> Result<String, Diagnostic> {
    if args.quiet && args.json {
        return Err(Diagnostic::new(TOOL.usage, "-q and --json exclude each other")
            .hint("see machinen-ls --help")
            .usage());
    }
    let vms = Registry::open().and_then(|registry| registry.list());
    let mut vms = vms.map_err(|error| error.diagnostic(EXIT_FAILURE))?;
    vms.retain(|vm| args.all || vm.is_alive());
    if args.quiet {
        return Ok(vms.iter().map(|vm| format!("{}\n", printable(vm.label()))).collect());
    }
    if args.json {
        return Ok(vms.iter().map(|vm| json(vm) + "\n").collect());
    }
    let mut heads = vec!["NAME", "PID", "IMAGE", "MEMORY", "RSS", "PORTS", "AGE", "PARENT"];
    heads.extend(args.all.then_some("STATE"));
    let mut table = Table::new(&heads, &["PID", "MEMORY", "RSS", "AGE"]);
    for vm in &vms {
        let resident = vm.resident();
        let mut row = vec![
            vm.label().to_owned(),
            resident.map(|found| found.0.to_string()).unwrap_or_default(),
            vm.entry.image.rsplit('/').find(|part| !part.is_empty()).unwrap_or(&vm.entry.image).to_owned(),
            if vm.entry.memory_mib > 0 { format!("{}M", vm.entry.memory_mib) } else { String::new() },
            resident.map(|found| mib(found.1)).unwrap_or_default(),
            vm.entry.ports.join(","),
            age(vm.entry.started_unix_ms),
            vm.entry.parent.clone().unwrap_or_default(),
        ];
        row.extend(args.all.then(|| state(vm)));
        table.add(row);
    }
    let text = table.to_string();
    // The process ends now: giving memory back piece by piece is a tenth of its time.
    std::mem::forget((vms, table));
    Ok(text)
}

/// The state in a word, with the reason of one that cannot be read.
fn state(vm: &Vm) -> String {
    match &vm.state {
        State::Alive => "alive".into(),
        State::Dead | State::Recycled => "dead".into(),
        State::Unreadable(why) => format!("{}, {why}", if vm.is_alive() { "alive" } else { "dead" }),
    }
}

/// The entry as it is written, with what is known beyond it.
fn json(vm: &Vm) -> String {
    let resident = vm.resident();
    let mut value = vm.entry.to_value();
    if let Value::Object(map) = &mut value {
        let problem = if let State::Unreadable(why) = &vm.state { Some(why.clone()) } else { None };
        let recycled = vm.state == State::Recycled;
        map.insert("state".into(), if vm.is_alive() { "alive" } else { "dead" }.into());
        map.insert("pid".into(), resident.map(|found| found.0).or(vm.entry.pid.filter(|_| !recycled)).into());
        map.insert("rss_bytes".into(), resident.map(|found| found.1).into());
        map.insert("dir".into(), vm.dir.display().to_string().into());
        map.insert("problem".into(), problem.into());
    }
    serde_json::to_string(&value).unwrap_or_default()
}

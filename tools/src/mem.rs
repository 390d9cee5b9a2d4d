//! The work of `machinen-mem`: what machines take of the host's memory.

use argh::FromArgs;
use serde_json::json;

use crate::args::plain;
use crate::bundle;
use crate::diagnostic::{Diagnostic, EXIT_FAILURE};
use crate::program::{Said, Tool};
use crate::registry::memory::{self, Memory};
use crate::registry::{Registry, Vm};
use crate::table::{Table, mib};

/// Name and codes of the program.
pub const TOOL: Tool = Tool { name: "machinen-mem", usage: "MEM_USAGE", output: "MEM_OUTPUT" };

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Print what machines take of the host's memory: those that are named, or all.",
    note = "CEILING is the most that the guest can have. RSS are the pages that its process has; in PSS each\n  \
        is divided by the number of processes that share it. MONITOR is PSS without the guest's RAM.\n  \
        RECLAIMED is what the guest has given back since its start.",
    note = "lazy_pages_pending, with --json, is the number of pages (4 KiB) that are still to come from the\n  \
        bundle of a machine that was restored with --lazy; null for others.",
    note = "NAME is a name, an id or a process number.",
    note = "Exit codes: 0 printed, 1 failed or one of them was not found, 2 bad usage.",
    example = "{command_name} --json web | jq .monitor_bytes"
)]
pub struct Args {
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

/// Prints it.
pub fn run(args: Args) -> Result<Said, Diagnostic> {
    let registry = Registry::open().map_err(|error| error.diagnostic(EXIT_FAILURE))?;
    let mut said = Said::default();
    let mut vms = Vec::new();
    if args.names.is_empty() {
        vms = registry.list().map_err(|error| error.diagnostic(EXIT_FAILURE))?;
        vms.retain(Vm::is_alive);
    }
    for name in args.names.into_iter().map(plain) {
        match registry.find(&name) {
            Ok(vm) => vms.push(vm),
            Err(error) => {
                error.diagnostic(EXIT_FAILURE).report(TOOL.name, args.json);
                said.exit = EXIT_FAILURE;
            }
        }
    }
    let heads = ["NAME", "CEILING", "RSS", "PSS", "MONITOR", "RECLAIMED"];
    let mut table = Table::new(&heads, heads.get(1..).unwrap_or_default());
    for vm in &vms {
        let process = vm.process();
        let memory = process.and_then(|process| memory::of(process, vm.entry.memory_mib));
        if args.json {
            said.text.push_str(&as_json(vm, process.map(|process| process.pid), memory));
            continue;
        }
        let monitor = memory.and_then(|memory| memory.overhead_bytes);
        table.add(vec![
            vm.label().to_owned(),
            if vm.entry.memory_mib > 0 { format!("{}M", vm.entry.memory_mib) } else { String::new() },
            memory.map(|memory| mib(memory.rss_bytes)).unwrap_or_default(),
            memory.map(|memory| mib(memory.pss_bytes)).unwrap_or_default(),
            monitor.map(|bytes| format!("{}K", bytes.div_ceil(1024))).unwrap_or_default(),
            vm.reclaimed().map(mib).unwrap_or_default(),
        ]);
    }
    if !args.json {
        said.text = table.to_string();
    }
    Ok(said)
}

fn as_json(vm: &Vm, pid: Option<u32>, memory: Option<Memory>) -> String {
    let ceiling = Some(vm.entry.memory_mib).filter(|mib| *mib > 0).and_then(|mib| mib.checked_mul(1 << 20));
    let value = json!({
        "id": vm.id, "name": vm.entry.name, "pid": pid, "ceiling_bytes": ceiling,
        "rss_bytes": memory.map(|memory| memory.rss_bytes), "pss_bytes": memory.map(|memory| memory.pss_bytes),
        "monitor_bytes": memory.and_then(|memory| memory.overhead_bytes),
        "reclaimed_bytes": vm.reclaimed(), "lazy_pages_pending": bundle::pages_pending(&vm.dir, &vm.entry),
    });
    format!("{value}\n")
}

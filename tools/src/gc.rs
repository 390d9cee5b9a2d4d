//! The work of `machinen-gc`: removing what dead machines left, and saying so.

use argh::FromArgs;
use serde_json::json;

use crate::bundle;
use crate::diagnostic::{Diagnostic, EXIT_FAILURE};
use crate::program::{Said, Tool};
use crate::registry::{Registry, Removed, What};
use crate::table::printable;

/// Name and codes of the program.
pub const TOOL: Tool = Tool { name: "machinen-gc", usage: "GC_USAGE", output: "GC_OUTPUT" };

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Remove what machines left that have ended: directories with sockets and logs,\n\
        helpers, and bundles of forks that were killed.",
    note = "A machine has ended when nobody holds the lock in its directory. A helper is a process that\n  \
        was started for it, as passt; it is told from others by number and start time.",
    note = "Exit codes: 0 nothing is left, 1 something could not be removed, 2 bad usage.",
    example = "{command_name} --dry-run"
)]
pub struct Args {
    /// only say what would be removed
    #[argh(switch, short = 'n')]
    pub dry_run: bool,
    /// print a line of JSON for each; an error, too
    #[argh(switch)]
    pub json: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
}

/// Removes it.
pub fn run(args: Args) -> Result<Said, Diagnostic> {
    let removed = Registry::open().and_then(|registry| registry.gc(args.dry_run));
    let removed = removed.map_err(|error| error.diagnostic(EXIT_FAILURE))?;
    let mut said = Said::default();
    for one in &removed {
        if let What::Left(path, why) = &one.what {
            let message = format!("remove {}: {why}", printable(&path.display().to_string()));
            Diagnostic::new("REGISTRY_DIRECTORY", message).report(TOOL.name, args.json);
            said.exit = EXIT_FAILURE;
        } else if args.json {
            said.text.push_str(&as_json(one, args.dry_run));
        } else {
            said.text.push_str(&as_text(one, args.dry_run));
        }
    }
    for path in bundle::collect(args.dry_run) {
        let path = path.display().to_string();
        said.text.push_str(&if args.json {
            format!("{}\n", json!({"what": "bundle", "path": path, "dry_run": args.dry_run}))
        } else {
            let verb = if args.dry_run { "would remove" } else { "removed" };
            format!("{verb} {}, of a fork\n", printable(&path))
        });
    }
    Ok(said)
}

fn as_text(removed: &Removed, dry_run: bool) -> String {
    let of = match &removed.name {
        Some(name) => printable(name),
        None => removed.id.clone(),
    };
    match &removed.what {
        What::Directory(path, _) => {
            let verb = if dry_run { "would remove" } else { "removed" };
            format!("{verb} {}, of {of}\n", printable(&path.display().to_string()))
        }
        What::Helper(process, program) => {
            let program = program.as_ref().and_then(|path| path.file_name()).unwrap_or_default();
            let verb = if dry_run { "would end" } else { "ended" };
            format!("{verb} process {} ({}), of {of}\n", process.pid, printable(&program.to_string_lossy()))
        }
        What::Left(..) => String::new(),
    }
}

fn as_json(removed: &Removed, dry_run: bool) -> String {
    let (id, name) = (&removed.id, &removed.name);
    let value = match &removed.what {
        What::Directory(path, content) => json!({
            "what": "directory", "id": id, "name": name, "path": path.display().to_string(), "content": content,
            "dry_run": dry_run,
        }),
        What::Helper(process, program) => json!({
            "what": "helper", "id": id, "name": name, "pid": process.pid, "dry_run": dry_run,
            "program": program.as_ref().map(|path| path.display().to_string()),
        }),
        What::Left(..) => return String::new(),
    };
    format!("{value}\n")
}

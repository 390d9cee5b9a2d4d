//! `tools.ls`: how long machinen-ls takes, from its start to its end, for 100 and for 1000 machines; beside it /bin/true.
//!
//! The machines are entries whose locks this process holds, and whose process it is.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use machinen::registry::{Entry, Process, Registry};
use machinen_benches::corpus::Scratch;
use machinen_benches::{Order, Report, Samples, program};

const WARM_UP: usize = 20;
const ROUNDS: usize = 300;
/// Entries of each registry; no machine at all is what the start of the program costs.
const ENTRIES: [usize; 3] = [0, 100, 1000];
/// Machines in one registry, and then the name of a row and the flags.
const KINDS: [(usize, &str, &[&str]); 6] = [
    (0, "tools.ls_none", &[]),
    (1, "tools.ls", &[]),
    (1, "tools.ls_names", &["-q"]),
    (1, "tools.ls_json", &["--json"]),
    (2, "tools.ls_1000", &[]),
    (0, "tools.ls_true", &["true"]),
];
/// The last kind is another program, which does nothing.
const NOTHING: &str = "/bin/true";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let scratch = Scratch::new(64 << 20)?;
    let mut locks = Vec::new();
    let registries: Vec<_> = ENTRIES.iter().map(|count| scratch.path().join(count.to_string())).collect();
    for (dir, count) in registries.iter().zip(ENTRIES) {
        let registry = Registry::at(dir)?;
        for number in 0..count {
            locks.push(machine(&registry, number)?);
        }
    }
    let rounds = std::env::var("MACHINEN_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let mut samples: [Samples; KINDS.len()] = Default::default();
    let mut order = Order::<{ KINDS.len() }>::default();
    for round in 0..WARM_UP + rounds {
        for index in order.shuffled() {
            let (registry, name, flags) = KINDS[index];
            let mut command = match flags {
                ["true"] => Command::new(NOTHING),
                flags => {
                    let mut command = Command::new(program("machinen-ls"));
                    command.args(flags);
                    command
                }
            };
            command.env("MACHINEN_REGISTRY_DIR", &registries[registry]).stdin(Stdio::null()).stdout(Stdio::null());
            let begin = Instant::now();
            let status = command.status()?;
            let ms = begin.elapsed().as_secs_f64() * 1e3;
            if !status.success() {
                return Err(format!("{name}: {status}").into());
            }
            if round >= WARM_UP {
                samples[index].push(ms);
            }
        }
    }
    let mut report = Report::default();
    for ((_, name, _), samples) in KINDS.iter().zip(&samples) {
        report.measured(name, "ms", samples);
    }
    let p50 = |wanted: &str| {
        let index = KINDS.iter().position(|kind| kind.1 == wanted);
        index.map_or(f64::NAN, |index| samples[index].percentile(50))
    };
    report.value("tools.ls / ls_true", "ratio", p50("tools.ls") / p50("tools.ls_true"));
    report.value("tools.ls_1000 / ls", "ratio", p50("tools.ls_1000") / p50("tools.ls"));
    Ok(report.finish()?)
}

/// A machine that lives as long as what is returned.
fn machine(registry: &Registry, number: usize) -> Result<OwnedFd> {
    let claim = registry.create(None)?;
    let mut entry = Entry::new();
    entry.image = format!("/images/image-{number}.tar.zst");
    entry.kernel = "/cache/machinen/kernel/vmlinux".into();
    entry.memory_mib = 512;
    entry.ports = vec![format!("127.0.0.1:{}:80", 10000 + number)];
    entry.set_process(Process::of(std::process::id()).ok_or("no process")?);
    claim.write(&entry)?;
    Ok(claim.keep()?)
}

//! `start.*`: from the start of vmm-min to the first byte of a guest and to the end of the process.
//!
//! Beside it, in the same rounds, the same KVM calls without a monitor around them (machinen-bare).

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use machinen_benches::process::{Started, now_ns};
use machinen_benches::{Order, Report, Samples, program};
use machinen_fixtures::{TempFile, guests};

const WARM_UP: usize = 10;
const ROUNDS: usize = 200;
const LIMIT: Duration = Duration::from_mins(1);
const MIB: [&str; 2] = ["128", "8192"];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Microseconds from execve to the program's first byte on stdout, and to its end; then what it said on stderr.
fn first_byte_and_exit(command: &mut Command) -> Result<(f64, f64, String)> {
    let mut started = Started::new(command, LIMIT)?;
    let status = started.child.wait()?;
    let exit = now_ns();
    let messages = started.messages()?;
    match started.first_byte_ns {
        Some(first_byte) if status.success() => Ok((started.us(first_byte), started.us(exit), messages)),
        _ => Err(format!("{command:?}: {status}: {messages}").into()),
    }
}

/// The kinds of process, in the order of the rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vmm,
    Vmm8g,
    /// Without what earlier starts have kept in the cache.
    VmmCold,
    Bare,
    Bare8g,
    BareIrqchip,
}

const KINDS: [Kind; 6] = [Kind::Vmm, Kind::Vmm8g, Kind::VmmCold, Kind::Bare, Kind::Bare8g, Kind::BareIrqchip];
/// Why some figures are not there on aarch64.
const X86_ONLY: &str = "there is no CPUID, and one kind of interrupt controller";

impl Kind {
    fn command(self, kernel: &Path) -> Command {
        let vmm = |mib: &str| {
            let mut command = Command::new(program("vmm-min"));
            command.arg("--kernel").arg(kernel).args(["--memory", mib]);
            command
        };
        let bare = |arguments: &[&str]| {
            let mut command = Command::new(program("machinen-bare"));
            command.args(arguments);
            command
        };
        match self {
            Kind::Vmm => vmm(MIB[0]),
            Kind::Vmm8g => vmm(MIB[1]),
            Kind::VmmCold => {
                let mut command = vmm(MIB[0]);
                // Nothing can be kept there.
                command.env("MACHINEN_CACHE_DIR", "/dev/null");
                command
            }
            Kind::Bare => bare(&[MIB[0]]),
            Kind::Bare8g => bare(&[MIB[1]]),
            Kind::BareIrqchip => bare(&[MIB[0], "irqchip"]),
        }
    }
}

/// Samples of one kind, in microseconds.
#[derive(Default)]
struct Times {
    first_byte: Samples,
    exit: Samples,
    /// What machinen-bare says of itself: all its calls, and, on x86_64, without KVM_GET_SUPPORTED_CPUID.
    calls: Samples,
    calls_without_cpuid: Samples,
}

impl Times {
    fn add(&mut self, first_byte: f64, exit: f64, messages: &str) -> Result<()> {
        self.first_byte.push(first_byte);
        self.exit.push(exit);
        let mut words = messages.split_whitespace();
        if let Some(total) = words.next() {
            let total: f64 = total.parse()?;
            self.calls.push(total);
            if let Some(cpuid) = words.skip_while(|word| *word != "get_supported_cpuid").nth(1) {
                self.calls_without_cpuid.push(total - cpuid.parse::<f64>()?);
            }
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let kernel = TempFile::new("start", &guests::hello().elf())?;
    let mut times: [Times; KINDS.len()] = Default::default();
    let mut order = Order::<{ KINDS.len() }>::default();
    for round in 0..WARM_UP + ROUNDS {
        for index in order.shuffled() {
            if KINDS[index] == Kind::BareIrqchip && !cfg!(target_arch = "x86_64") {
                continue;
            }
            match first_byte_and_exit(&mut KINDS[index].command(kernel.path())) {
                Ok((first_byte, exit, messages)) if round >= WARM_UP => {
                    times[index].add(first_byte, exit, &messages)?
                }
                Ok(_) => {}
                Err(why) => return not_run(&why.to_string()),
            }
        }
    }
    report(&times)
}

fn not_run(why: &str) -> Result<()> {
    let mut report = Report::default();
    for (name, _) in rows(&Default::default()) {
        report.missing(name, why);
    }
    Ok(report.finish()?)
}

/// The sampled figures by name, in microseconds.
fn rows(times: &[Times; KINDS.len()]) -> [(&'static str, &Samples); 13] {
    let [vmm, vmm_8g, vmm_cold, bare, bare_8g, in_kernel] = times;
    [
        ("start.first_byte", &vmm.first_byte),
        ("start.first_byte_8g", &vmm_8g.first_byte),
        ("start.first_byte_cold", &vmm_cold.first_byte),
        ("start.exit", &vmm.exit),
        ("start.exit_8g", &vmm_8g.exit),
        ("start.bare_calls", &bare.calls),
        ("start.bare_calls_no_cpuid", &bare.calls_without_cpuid),
        ("start.bare_calls_8g", &bare_8g.calls),
        ("start.bare_process", &bare.first_byte),
        ("start.bare_process_8g", &bare_8g.first_byte),
        ("start.bare_exit", &bare.exit),
        ("start.bare_irqchip_calls", &in_kernel.calls),
        ("start.bare_irqchip_exit", &in_kernel.exit),
    ]
}

fn report(times: &[Times; KINDS.len()]) -> Result<()> {
    let mut report = Report::default();
    for (name, samples) in rows(times) {
        match samples.count() {
            0 => report.missing(name, X86_ONLY),
            _ => report.measured(name, "us", samples),
        }
    }
    let [vmm, vmm_8g, vmm_cold, bare, bare_8g, _] = times;
    let ratio = |over: &Samples, under: &Samples| over.percentile(50) / under.percentile(50);
    report.value("first_byte / bare_calls", "ratio", ratio(&vmm.first_byte, &bare.calls));
    report.value("first_byte_cold / bare_calls", "ratio", ratio(&vmm_cold.first_byte, &bare.calls));
    let name = "first_byte / bare_calls_no_cpuid";
    match bare.calls_without_cpuid.count() {
        0 => report.missing(name, X86_ONLY),
        _ => report.value(name, "ratio", ratio(&vmm.first_byte, &bare.calls_without_cpuid)),
    }
    report.value("first_byte_cold / bare_process", "ratio", ratio(&vmm_cold.first_byte, &bare.first_byte));
    report.value("first_byte_8g / first_byte", "ratio", ratio(&vmm_8g.first_byte, &vmm.first_byte));
    report.value("bare_calls_8g / bare_calls", "ratio", ratio(&bare_8g.calls, &bare.calls));
    for (name, file) in [("size.vmm_min", "vmm-min"), ("size.init", "init")] {
        match size_kib(&program(file)) {
            Ok(kib) => report.value(name, "KiB", kib),
            Err(why) => report.missing(name, &why.to_string()),
        }
    }
    Ok(report.finish()?)
}

fn size_kib(path: &Path) -> Result<f64> {
    Ok(f64::from(u32::try_from(fs::metadata(path)?.len())?) / 1024.0)
}

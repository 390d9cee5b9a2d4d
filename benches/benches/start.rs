//! `start.*`: from the start of vmm-min to the first byte of a guest and to the end of the process.
//!
//! Beside it, in the same rounds, the same KVM calls without a monitor around them (machinen-bare).

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use machinen_benches::{Report, Samples, program};
use machinen_fixtures::{TempFile, guests};

const WARM_UP: usize = 10;
const ROUNDS: usize = 200;
const MIB: [usize; 2] = [128, 8192];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Microseconds from execve to the program's first byte on stdout, and to its end; then what it said on stderr.
fn first_byte_and_exit(command: &mut Command) -> Result<(f64, f64, String)> {
    let (mut exec_time, sender) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: between fork and exec the hook reads the clock and writes to a pipe, which signal-safety(7) allows.
    unsafe { command.pre_exec(move || (&sender).write_all(&now_ns().to_ne_bytes())) };
    let mut child = command.spawn()?;
    let mut byte = [0];
    let read = child.stdout.take().ok_or("no stdout")?.read_exact(&mut byte);
    let first_byte = now_ns();
    let status = child.wait()?;
    let exit = now_ns();
    let mut begin = [0; 8];
    exec_time.read_exact(&mut begin)?;
    let us = |time: u64| std::time::Duration::from_nanos(time - u64::from_ne_bytes(begin)).as_secs_f64() * 1e6;
    let mut messages = String::new();
    child.stderr.take().ok_or("no stderr")?.read_to_string(&mut messages)?;
    if read.is_err() || !status.success() {
        return Err(format!("{command:?}: {status}: {messages}").into());
    }
    Ok((us(first_byte), us(exit), messages))
}

/// CLOCK_MONOTONIC, which all processes share.
fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is live and writable; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// One kind of process that is timed.
#[derive(Default)]
struct Timed {
    first_byte: Samples,
    exit: Samples,
}

impl Timed {
    fn round(&mut self, command: &mut Command, count: bool) -> Result<String> {
        let (first_byte, exit, messages) = first_byte_and_exit(command)?;
        if count {
            self.first_byte.push(first_byte);
            self.exit.push(exit);
        }
        Ok(messages)
    }
}

fn main() -> Result<()> {
    let kernel = TempFile::new("start", &guests::hello().elf())?;
    let vmm = |mib: usize| {
        let mut command = Command::new(program("vmm-min"));
        command.arg("--kernel").arg(kernel.path()).args(["--memory", &mib.to_string()]);
        command
    };
    let bare = |mib: usize, irqchip: &[&str]| {
        let mut command = Command::new(program("machinen-bare"));
        command.arg(mib.to_string()).args(irqchip);
        command
    };
    if let Err(why) = first_byte_and_exit(&mut vmm(MIB[0])) {
        let mut report = Report::default();
        for name in ["start.first_byte", "start.first_byte_8g", "start.exit", "start.bare_calls"] {
            report.missing(name, &why.to_string());
        }
        return Ok(report.finish()?);
    }
    let (mut vmm_times, mut bare_times) = ([Timed::default(), Timed::default()], [Timed::default(), Timed::default()]);
    let (mut calls, mut in_kernel) = ([Samples::default(), Samples::default()], Timed::default());
    for round in 0..WARM_UP + ROUNDS {
        let count = round >= WARM_UP;
        for (index, mib) in MIB.into_iter().enumerate() {
            vmm_times[index].round(&mut vmm(mib), count)?;
            let messages = bare_times[index].round(&mut bare(mib, &[]), count)?;
            let total = messages.split(' ').next().ok_or("machinen-bare said nothing")?;
            if count {
                calls[index].push(total.trim().parse()?);
            }
        }
        in_kernel.round(&mut bare(MIB[0], &["irqchip"]), count)?;
    }
    report(&vmm_times, &bare_times, &calls, &in_kernel)
}

fn report(vmm: &[Timed; 2], bare: &[Timed; 2], calls: &[Samples; 2], in_kernel: &Timed) -> Result<()> {
    let mut report = Report::default();
    report.measured("start.first_byte", "us", &vmm[0].first_byte);
    report.measured("start.first_byte_8g", "us", &vmm[1].first_byte);
    report.measured("start.exit", "us", &vmm[0].exit);
    report.measured("start.exit_8g", "us", &vmm[1].exit);
    report.measured("start.bare_calls", "us", &calls[0]);
    report.measured("start.bare_calls_8g", "us", &calls[1]);
    report.measured("start.bare_process", "us", &bare[0].first_byte);
    report.measured("start.bare_process_8g", "us", &bare[1].first_byte);
    report.measured("start.bare_exit", "us", &bare[0].exit);
    report.measured("start.bare_irqchip_process", "us", &in_kernel.first_byte);
    report.measured("start.bare_irqchip_exit", "us", &in_kernel.exit);
    let ratio = |over: &Samples, under: &Samples| over.percentile(50) / under.percentile(50);
    report.value("start.first_byte / bare calls", "ratio", ratio(&vmm[0].first_byte, &calls[0]));
    report.value("start.first_byte / bare process", "ratio", ratio(&vmm[0].first_byte, &bare[0].first_byte));
    report.value("start.first_byte_8g / 128 MiB", "ratio", ratio(&vmm[1].first_byte, &vmm[0].first_byte));
    report.value("bare calls 8g / 128 MiB", "ratio", ratio(&calls[1], &calls[0]));
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

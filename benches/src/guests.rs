//! machinen-guests: times whole commands in guests, and messages to a guest, through the library.
//!
//! usage: machinen-guests RUN ROUNDS SECONDS IMAGE INITRD
//!
//! RUN is machinen-run, INITRD an initramfs whose command prints a line; the kernel is MACHINEN_KERNEL. Prints one object a line:
//! `name` and `value`, in the unit of its name's end, or `name` and `error`. It is static, so that it also runs in the lab.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use machinen::agent;
use machinen::agent::request;
use machinen::registry::{Process, memory};
use machinen::vm::{BootOptions, Vm, boot, resolve_kernel, resolve_vmm};
use machinen_abi::frame::Kind;
use machinen_benches::process::Started;
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const LIMIT: Duration = Duration::from_mins(2);
const WARM_UP: u32 = 3;
const MIB: u64 = 512;
/// Messages are many, and a round trip is short.
const MESSAGES: u32 = 500;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("machinen-guests: {why}");
            ExitCode::FAILURE
        }
    }
}

fn say(name: &str, value: f64) {
    println!("{}", json!({ "name": name, "value": value }));
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [run, rounds, seconds, image, initrd] = &words[..] else {
        return Err("usage: machinen-guests RUN ROUNDS SECONDS IMAGE INITRD".into());
    };
    let (rounds, budget) = (rounds.parse()?, Duration::from_secs(seconds.parse()?));
    commands(run, rounds, budget, image, initrd)?;
    let options = BootOptions::new(image).memory_mib(MIB).command(["sleep", "inf"]);
    let vm = boot(&options)?;
    execs(&vm, rounds)?;
    messages(&vm)?;
    overhead(&vm)?;
    Ok(vm.kill()?)
}

/// `machinen-run IMAGE -- true` from its start to its end, and the bare boot of the same kernel to its first byte.
fn commands(run: &str, rounds: u32, budget: Duration, image: &str, initrd: &str) -> Result<()> {
    let (vmm, kernel) = (resolve_vmm(None)?, resolve_kernel(None, None)?.path);
    let begin = Instant::now();
    for round in 0..WARM_UP + rounds {
        let mut bare = Command::new(&vmm);
        bare.arg("--memory").arg(MIB.to_string()).arg("--kernel").arg(&kernel).arg("--initrd").arg(initrd);
        let mut started = Started::new(&mut bare, LIMIT)?;
        let first_byte_ns = started.first_byte_ns.ok_or("the bare boot printed nothing")?;
        let boot_ms = started.us(first_byte_ns) / 1e3;
        started.child.kill()?;
        started.child.wait()?;
        let start = Instant::now();
        let mut whole = Command::new(run);
        whole.args(["-m", &MIB.to_string(), image, "--", "true"]).stdin(Stdio::null());
        let status = whole.status()?;
        let run_ms = start.elapsed().as_secs_f64() * 1e3;
        if !status.success() {
            return Err(format!("{run} IMAGE -- true: {status}").into());
        }
        if round >= WARM_UP {
            say("run.true_boot ms", boot_ms);
            say("run.true ms", run_ms);
        }
        if round >= WARM_UP && begin.elapsed() > budget {
            break;
        }
    }
    Ok(())
}

/// Whole commands in a machine that is up, and the same command here.
fn execs(vm: &Vm, rounds: u32) -> Result<()> {
    let command = request::Command::new(["true"]);
    for round in 0..WARM_UP + rounds {
        let start = Instant::now();
        vm.exec(&command, b"")?;
        let guest_ms = start.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        Command::new("true").status()?;
        if round >= WARM_UP {
            say("exec.true ms", guest_ms);
            say("exec.true_here ms", start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(())
}

/// A byte to a `cat` and back: in the guest over its vsock, and in a process here over a socket pair.
fn messages(vm: &Vm) -> Result<()> {
    let (mut wire, _) = agent::ask(vm.dir(), &request::Command::new(["cat"]).request(), None)?;
    let limit = Instant::now() + LIMIT;
    let mut before = None;
    for round in 0..WARM_UP + MESSAGES {
        if round == WARM_UP {
            before = exits(vm);
        }
        let start = Instant::now();
        wire.send(Kind::Input, b"x");
        wire.flush();
        while let Some((kind, _)) = wire.receive(Some(limit))? {
            if kind == Kind::Output {
                break;
            }
        }
        if round >= WARM_UP {
            say("exec.rtt us", start.elapsed().as_secs_f64() * 1e6);
        }
    }
    match before.zip(exits(vm)) {
        // A round trip is two messages.
        Some((before, after)) => say("exec.exits_per_message exits", (after - before) / f64::from(2 * MESSAGES)),
        None => println!("{}", json!({ "name": "exec.exits_per_message exits", "error": "no counters of KVM here" })),
    }
    let (mut ours, theirs) = UnixStream::pair()?;
    let input = std::os::fd::OwnedFd::from(theirs.try_clone()?);
    let mut cat = Command::new("cat").stdin(input).stdout(std::os::fd::OwnedFd::from(theirs)).spawn()?;
    for round in 0..WARM_UP + MESSAGES {
        let start = Instant::now();
        ours.write_all(b"x")?;
        ours.read_exact(&mut [0])?;
        if round >= WARM_UP {
            say("exec.rtt_here us", start.elapsed().as_secs_f64() * 1e6);
        }
    }
    drop(ours);
    cat.wait()?;
    Ok(())
}

/// Exits of the guest that the monitor had to serve, so far: KVM's counters in debugfs.
fn exits(vm: &Vm) -> Option<f64> {
    let pid = vm.pid()?;
    let mut dirs = std::fs::read_dir("/sys/kernel/debug/kvm").ok()?.filter_map(std::result::Result::ok);
    let dir = dirs.find(|dir| dir.file_name().to_string_lossy().starts_with(&format!("{pid}-")))?.path();
    let count = |name| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse::<f64>().ok();
    Some(count("mmio_exits")? + count("signal_exits")? + count("io_exits")?)
}

/// What the monitor takes beside its guest's memory, when the guest does nothing.
fn overhead(vm: &Vm) -> Result<()> {
    let pid = vm.pid().ok_or("no process")?;
    let process = Process::of(pid).ok_or("no such process")?;
    let memory = memory::of(process, MIB).ok_or("its memory is not to be seen")?;
    let bytes = memory.overhead_bytes.ok_or("the guest's memory cannot be told from the monitor's")?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    say("mem.overhead KiB", bytes as f64 / 1024.0);
    Ok(())
}

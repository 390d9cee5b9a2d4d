//! Dumps the main command's processes into the bundle.

use alloc::format;
use alloc::string::{String, ToString};
use core::ffi::c_int;

use guest_init::config::Config;
use guest_init::criu::workload::{self, Workload};
use guest_init::criu::{self, log};
use guest_init::wire::report::Failed;
use guest_init::wire::request::Dump;
use machinen_abi::body::{HELD, Reason};

use super::bundle::Bundle;
use super::hold::{Gate, Log};
use super::{Worker, keeper, program, system, write_all};
use crate::sys::{self, Errno, Fd};

/// What CRIU has found out about the kernel.
pub const PROBES: &core::ffi::CStr = c"/run/criu.kdat";
/// Its copy among the images.
pub const PROBES_NAME: &str = "criu.kdat";
/// For the memory of a lazy restore, when nobody says.
const MEMORY_MS: i64 = 60_000;

/// A dump, as far as it is.
struct Dumping<'a> {
    worker: &'a Worker,
    config: &'a Config,
    dump: &'a Dump<'a>,
    workload: Workload,
    bundle: &'a Bundle,
    log: Log,
    /// It is given up at this time, as far as that can be.
    limit_ms: Option<i64>,
}

/// Dumps; prints what the bundle says of the main command.
pub fn run(worker: &Worker, config: &Config, dump: &Dump<'_>, mut workload: Workload) -> Result<(), Failed> {
    worker.mark("dump");
    (workload.kernel, workload.machine) = sys::kernel();
    workload.cpu_features = workload::cpu_features(&sys::read_file(c"/proc/cpuinfo").unwrap_or_default());
    let limit_ms = dump.timeout_s.map(|seconds| sys::now_ms() + i64::from(seconds) * 1000);
    await_memory(dump)?;
    let bundle = Bundle::open(dump.directory.as_deref(), false)?;
    worker.mark("bundle");
    let log = Log::default();
    let mut dumping = Dumping { worker, config, dump, workload, bundle: &bundle, log, limit_ms };
    let result = dumping.run();
    // Beside the images, whatever came of it; what CRIU says after the hold is in it, too.
    let kept = if dump.words.is_empty() { dumping.log.copy(&bundle) } else { Ok(()) };
    drop(dumping);
    bundle.close();
    result?;
    if !dump.hold {
        kept?;
    }
    // Else the processes may be gone, and the bundle is whole with the log up to the hold.
    worker.mark("dumped");
    Ok(())
}

/// What a lazy restore still has to bring comes first.
fn await_memory(dump: &Dump<'_>) -> Result<(), Failed> {
    let (log, over) = (criu::path(criu::WORK, criu::LAZY_LOG), keeper::over());
    let limit_ms = dump.timeout_s.map_or(MEMORY_MS, |seconds| i64::from(seconds) * 1000);
    sys::within(limit_ms, || (!sys::exists(&log) || sys::exists(&over)).then_some(())).ok_or_else(|| {
        let message = "memory of the restore is still to come".to_string();
        Failed { reason: Reason::Busy, errno: 0, message }
    })
}

impl Dumping<'_> {
    fn run(&mut self) -> Result<(), Failed> {
        let images = self.bundle.images();
        let in_images = criu::path(&images, "");
        sys::make_directory(&in_images, 0o700).map_err(|errno| system(images.as_bytes(), errno))?;
        self.describe()?;
        self.worker.begin();
        self.worker.mark("criu");
        if !self.dump.words.is_empty() {
            by_command(self.config, self.dump, self.workload.pid, &images)?;
            self.finish()?;
            // What it has left running runs meanwhile.
            return if self.dump.hold { self.ask_host(None) } else { Ok(()) };
        }
        self.by_criu(&images)
    }

    /// By CRIU, which waits at the gate until the host has said that the dump is taken.
    fn by_criu(&mut self, images: &str) -> Result<(), Failed> {
        let log_path = criu::path(criu::WORK, criu::DUMP_LOG);
        program::write(&log_path, b"")?;
        let gate = if self.dump.hold { Some(Gate::new()?) } else { None };
        let Dump { leave_running, timeout_s, hold, .. } = *self.dump;
        let words = criu::dump(&self.workload, images, leave_running, timeout_s, hold);
        let error = Fd::standard_error().map_err(|errno| system(b"standard error", errno))?;
        let variables = gate.as_ref().map(Gate::variables).unwrap_or_default();
        let pid = program::start_criu(self.config, &words, &variables, &error, &|| Ok(()))?;
        let mut held = None;
        if let Some(gate) = &gate
            && gate.is_reached(pid)?
        {
            let taken = self.finish().and_then(|()| self.ask_host(Some(pid)));
            gate.answer(taken.is_ok());
            held = Some(taken);
        }
        let ill = program::ill(wait(pid)?);
        match held {
            Some(Err(failed)) => Err(failed),
            held => {
                if let Some(ill) = ill {
                    return Err(program::criu_failed("criu dump", &ill, &log_path, None));
                }
                if held.is_none() { self.finish() } else { Ok(()) }
            }
        }
    }

    /// All is written: what is known only now is added, and the host gets the description.
    fn finish(&mut self) -> Result<(), Failed> {
        if self.dump.words.is_empty() {
            self.log.copy(self.bundle)?;
            self.workload.criu = log::version(&self.log.start);
            self.describe()?;
            program::copy(PROBES, &criu::path(&self.bundle.images(), PROBES_NAME))?;
        }
        write_all(&self.worker.output, &self.workload.to_json()).map_err(|errno| system(b"output", errno))
    }

    fn describe(&self) -> Result<(), Failed> {
        program::write(&criu::path(&self.bundle.images(), workload::NAME), &self.workload.to_json())
    }

    /// Tells the host that all is written; succeeds when it says that the dump is taken.
    fn ask_host(&self, criu: Option<c_int>) -> Result<(), Failed> {
        self.worker.mark(HELD);
        super::hold::ask(&self.worker.input, criu, self.limit_ms)
    }
}

/// The command that dumps instead of CRIU. It is killed when its time is over.
fn by_command(config: &Config, dump: &Dump<'_>, main: c_int, images: &str) -> Result<(), Failed> {
    let (main, images) = (format!("MACHINEN_DUMP_PID={main}"), format!("MACHINEN_DUMP_DIR={images}"));
    let error = Fd::standard_error().map_err(|errno| system(b"standard error", errno))?;
    let variables = [main.as_bytes(), images.as_bytes()].to_vec();
    let pid = program::start(config, &dump.words, variables, &|| {
        let null = Fd::open(c"/dev/null", libc::O_RDONLY)?;
        sys::set_stdio(null.number(), error.number(), error.number())
    })?;
    let status = match dump.timeout_s {
        None => wait(pid)?,
        Some(seconds) => match sys::within(i64::from(seconds) * 1000, || sys::try_wait(pid)) {
            Some(status) => status,
            None => {
                sys::kill(-pid, libc::SIGKILL).map_err(|errno| system(b"kill", errno))?;
                wait(pid)?;
                let message = format!("the dump command has not ended after {seconds} s");
                return Err(Failed { reason: Reason::System, errno: libc::ETIMEDOUT, message });
            }
        },
    };
    let name = String::from_utf8_lossy(dump.words[0]);
    program::ill(status)
        .map_or(Ok(()), |ill| Err(Failed { reason: Reason::System, errno: 0, message: format!("{name}: {ill}") }))
}

fn wait(pid: c_int) -> Result<c_int, Failed> {
    sys::wait(pid).map_err(|errno: Errno| system(b"wait", errno))
}

//! Dumps the main command's processes into the bundle.

use alloc::format;
use alloc::string::{String, ToString};
use core::ffi::c_int;

use guest_init::config::Config;
use guest_init::criu::workload::{self, Workload};
use guest_init::criu::{self, log};
use guest_init::wire::report::Failed;
use guest_init::wire::request::Dump;
use machinen_abi::body::Reason;

use super::bundle::Bundle;
use super::{Worker, keeper, program, system, write_all};
use crate::sys::{self, Errno, Fd};

/// What CRIU has found out about the kernel.
pub const PROBES: &core::ffi::CStr = c"/run/criu.kdat";
/// Its copy among the images.
pub const PROBES_NAME: &str = "criu.kdat";
/// For the memory of a lazy restore, when nobody says.
const MEMORY_MS: i64 = 60_000;

/// Dumps; prints what the bundle says of the main command.
pub fn run(worker: &Worker, config: &Config, dump: &Dump<'_>, mut workload: Workload) -> Result<(), Failed> {
    worker.mark("dump");
    (workload.kernel, workload.machine) = sys::kernel();
    workload.cpu_features = workload::cpu_features(&sys::read_file(c"/proc/cpuinfo").unwrap_or_default());
    await_memory(dump)?;
    let bundle = Bundle::open(dump.directory.as_deref(), false)?;
    worker.mark("bundle");
    let result = dump_into(worker, config, dump, &mut workload, &bundle);
    // Beside the images, whatever came of it.
    let kept = match dump.words[..] {
        [] => program::copy(&criu::path(criu::WORK, criu::DUMP_LOG), &bundle.file(criu::DUMP_LOG)),
        _ => Ok(()),
    };
    bundle.close();
    result.and(kept)?;
    worker.mark("dumped");
    write_all(&worker.output, &workload.to_json()).map_err(|errno| system(b"output", errno))
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

fn dump_into(
    worker: &Worker,
    config: &Config,
    dump: &Dump<'_>,
    workload: &mut Workload,
    bundle: &Bundle,
) -> Result<(), Failed> {
    let images = bundle.images();
    let description = criu::path(&images, workload::NAME);
    let in_images = criu::path(&images, "");
    sys::make_directory(&in_images, 0o700).map_err(|errno| system(images.as_bytes(), errno))?;
    // Before the processes may be gone.
    program::write(&description, &workload.to_json())?;
    worker.begin();
    worker.mark("criu");
    if !dump.words.is_empty() {
        return by_command(config, dump, workload.pid, &images);
    }
    let log_path = criu::path(criu::WORK, criu::DUMP_LOG);
    program::write(&log_path, b"")?;
    let words = criu::dump(workload, &images, dump.leave_running, dump.timeout_s);
    let error = Fd::standard_error().map_err(|errno| system(b"standard error", errno))?;
    let pid = program::start_criu(config, &words, &error, &|| Ok(()))?;
    if let Some(ill) = program::ill(wait(pid)?) {
        return Err(program::criu_failed("criu dump", &ill, &log_path, None));
    }
    workload.criu = log::version(&sys::read_file(&log_path).unwrap_or_default());
    program::write(&description, &workload.to_json())?;
    program::copy(PROBES, &criu::path(&images, PROBES_NAME))
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

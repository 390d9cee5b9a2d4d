//! Restores the main command from the bundle. What is restored becomes a child of PID 1 when CRIU has ended.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ffi::CStr;

use guest_init::config::Config;
use guest_init::criu;
use guest_init::criu::workload::{self, Workload};
use guest_init::criu::{FAULTS, images, lazy};
use guest_init::wire::report::{Failed, Restored};
use guest_init::wire::request::Restore;
use machinen_abi::body::Reason;

use super::bundle::Bundle;
use super::dump::{PROBES, PROBES_NAME};
use super::{Worker, keeper, program, system, write_all};
use crate::sys::{self, Errno, Fd, files};

/// Restores, with the descriptors from 4 on in the place of the old stdin, stdout, stderr and terminal.
pub fn run(worker: &Worker, config: &Config, restore: &Restore) -> Result<(), Failed> {
    worker.mark("restore");
    let bundle = Bundle::open(restore.directory.as_deref(), true)?;
    worker.mark("bundle");
    let images = bundle.images();
    let workload = read(&images)?;
    worker.restores(Restored {
        pid: workload.pid,
        terminal: workload.terminal.is_some(),
        pipes: workload.pipes.map(|pipe| pipe.is_some()),
    });
    take_probes(&workload, &images)?;
    give_input(&workload, &images)?;
    let huge_pages = if restore.lazy { bring_first(&bundle, &images) } else { None };
    let lazy = restore.lazy && is_lazy(worker, config, &workload, &images, &bundle);
    worker.mark("criu");
    let log = criu::path(criu::WORK, criu::RESTORE_LOG);
    let printed = criu::path(criu::WORK, "restore.out");
    program::write(&log, b"")?;
    let output = program::output_file(&printed)?;
    let words = criu::restore(&workload, &images, restore.tcp, lazy);
    let pid = program::start_criu(config, &words, &[], &output, &|| Ok(()))?;
    let status = sys::wait(pid).map_err(|errno| system(b"wait", errno))?;
    if let Some(ill) = program::ill(status) {
        let failed = program::criu_failed("criu restore", &ill, &log, Some(&printed));
        if !lazy {
            bundle.close();
        }
        return Err(failed);
    }
    worker.mark("restored");
    if let Some(huge_pages) = huge_pages {
        // Without them the processes are slower at worst.
        match program::write(HUGE_PAGES, &huge_pages) {
            Ok(()) | Err(_) => {}
        }
    }
    worker.begin();
    if !lazy {
        bundle.close();
    }
    Ok(())
}

/// What the bundle says of the main command.
fn read(images: &str) -> Result<Workload, Failed> {
    let path = criu::path(images, workload::NAME);
    let json = sys::read_file(&path).map_err(|errno| system(path.to_bytes(), errno))?;
    let invalid = |why: &str| {
        let message = format!("bundle: img/{}: {why}", workload::NAME);
        Failed { reason: Reason::Invalid, errno: 0, message }
    };
    let workload = Workload::parse(&json).ok_or_else(|| invalid("not what this agent writes"))?;
    let (_, machine) = sys::kernel();
    if workload.machine != machine {
        return Err(invalid(&format!("dumped on {}, and this is {machine}", workload.machine)));
    }
    Ok(workload)
}

/// Saves CRIU the time to find out about a kernel that it knows, on a processor that it knows.
fn take_probes(workload: &Workload, images: &str) -> Result<(), Failed> {
    let (kernel, _) = sys::kernel();
    let features = workload::cpu_features(&sys::read_file(c"/proc/cpuinfo").unwrap_or_default());
    if workload.kernel != kernel || workload.cpu_features != features || sys::exists(PROBES) {
        return Ok(());
    }
    program::copy(&criu::path(images, PROBES_NAME), &PROBES.into())
}

/// What was in the pipe of its stdin is in the new one: CRIU fills only pipes that it makes itself.
fn give_input(workload: &Workload, images: &str) -> Result<(), Failed> {
    let Some(inode) = workload.pipes[0] else { return Ok(()) };
    let path = criu::path(images, images::PIPES);
    let image =
        sys::read_file(&path).or_else(|errno| if errno == Errno(libc::ENOENT) { Ok(Vec::new()) } else { Err(errno) });
    let image = image.map_err(|errno| system(path.to_bytes(), errno))?;
    let bytes = images::pipe_bytes(&image, inode);
    if bytes.is_empty() {
        return Ok(());
    }
    let pipe = format!("/proc/self/fd/{}", criu::STDIO_FDS[0]);
    let failed = |errno| system(b"stdin", errno);
    // All of it fits, or nobody would ever take it.
    let pipe = Fd::open(&CString::new(pipe).unwrap_or_default(), libc::O_WRONLY | libc::O_NONBLOCK).map_err(failed)?;
    pipe.make_room(bytes.len()).and_then(|()| write_all(&pipe, bytes)).map_err(failed)
}

/// Which of CRIU's memory is in huge pages.
const HUGE_PAGES: &CStr = c"/sys/kernel/mm/transparent_hugepage/enabled";

/// What the processes had to wait for when they were restored before comes with them: its pages are none that come later, in a
/// changed map of pages in the place of the bundle's. A hint only: what does not fit, or cannot be, is left out.
///
/// A page that CRIU writes must not become a huge one with others in it, which would be zeros and never asked for; so there are none
/// until it has ended. Returns what is to be written to [`HUGE_PAGES`] then.
fn bring_first(bundle: &Bundle, images: &str) -> Option<Vec<u8>> {
    let hints = lazy::hints(&sys::read_file(&bundle.file(FAULTS)).ok()?);
    let mut before = None;
    for first in hints.chunk_by(|one, other| one.pid == other.pid) {
        let name = format!("pagemap-{}.img", first[0].pid);
        let (theirs, ours) = (criu::path(images, &name), criu::path(criu::WORK, &name));
        let Some(map) = sys::read_file(&theirs).ok().and_then(|map| images::with_first(&map, first)) else { continue };
        if before.is_none() {
            before = Some(without_huge_pages()?);
        }
        if program::write(&ours, &map).is_ok() {
            match files::bind(&ours, &theirs) {
                Ok(()) | Err(_) => {}
            }
        }
    }
    before
}

/// From now on there are no huge pages; gives what was before, `None` when that cannot be. Without such a file the kernel has none.
fn without_huge_pages() -> Option<Vec<u8>> {
    let Ok(choices) = sys::read_file(HUGE_PAGES) else { return Some(Vec::new()) };
    // Sizes of their own go on as the kernel was told.
    if sys::read_file(c"/proc/cmdline").ok()?.windows(8).any(|word| word == b"thp_anon") {
        return None;
    }
    let before = choices.split(|byte| b"[]".contains(byte)).nth(1)?;
    program::write(HUGE_PAGES, b"never").ok()?;
    Some(before.to_vec())
}

/// Starts what brings memory later. Where that cannot be, a mark says why.
fn is_lazy(worker: &Worker, config: &Config, workload: &Workload, images: &str, bundle: &Bundle) -> bool {
    let why: String = match sys::can_handle_faults() {
        Err(Errno(libc::ENOSYS)) => "the kernel has no userfaultfd".into(),
        Err(errno) => format!("userfaultfd: {errno}"),
        // The image that was dumped from is the one that this is.
        Ok(()) if !criu::lazy::can_serve(&workload.machine, &workload.criu) => {
            format!("CRIU {} cuts off addresses on {}", workload.criu, workload.machine)
        }
        Ok(()) => match keeper::start(config, images, bundle) {
            Ok(()) => {
                worker.mark("lazy");
                return true;
            }
            Err(failed) => failed.message.to_string(),
        },
    };
    worker.mark(&format!("not lazy: {why}"));
    false
}

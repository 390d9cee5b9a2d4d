//! How much of a lazy restore is still to come.

use guest_init::criu::{self, lazy};
use guest_init::wire::report::Failed;

use super::{Worker, keeper, system, write_all};
use crate::sys::{self, Errno};

/// Prints the numbers; zeros where nothing was restored so.
pub fn run(worker: &Worker) -> Result<(), Failed> {
    let path = criu::path(criu::WORK, criu::LAZY_LOG);
    let log = match sys::read_file(&path) {
        Ok(log) => log,
        Err(Errno(libc::ENOENT)) => alloc::vec::Vec::new(),
        Err(errno) => return Err(system(path.to_bytes(), errno)),
    };
    worker.begin();
    let pages = lazy::pages(&log, sys::exists(&keeper::over()));
    write_all(&worker.output, pages.text().as_bytes()).map_err(|errno| system(b"output", errno))
}

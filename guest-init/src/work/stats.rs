//! How much of a lazy restore is still to come.

use guest_init::criu::lazy::Sum;
use guest_init::wire::report::Failed;

use super::{Worker, keeper, system, write_all};
use crate::sys;

/// Prints the numbers; zeros where nothing was restored so.
pub fn run(worker: &Worker) -> Result<(), Failed> {
    let mut sum = Sum::default();
    keeper::read_log(|line| sum.add(line))?;
    worker.begin();
    let pages = sum.pages(sys::exists(&keeper::over()));
    write_all(&worker.output, pages.text().as_bytes()).map_err(|errno| system(b"output", errno))
}

//! How much of a lazy restore is still to come, or what it was waited for.

use alloc::string::String;

use guest_init::criu::lazy::{self, Sum};
use guest_init::wire::report::Failed;
use machinen_abi::fault::MOST_FAULTS;

use super::{Worker, keeper, system, write_all};
use crate::sys;

/// Prints the numbers, zeros where nothing was restored so; or the first faults, a line each.
pub fn run(worker: &Worker, faults: bool) -> Result<(), Failed> {
    let (mut sum, mut text, mut count) = (Sum::default(), String::new(), 0);
    keeper::read_log(|line| {
        if !faults {
            sum.add(line);
        } else if count < MOST_FAULTS
            && let Some(fault) = lazy::fault(line)
        {
            text.push_str(&fault);
            count += 1;
        }
    })?;
    worker.begin();
    if !faults {
        text = sum.pages(sys::exists(&keeper::over())).text();
    }
    write_all(&worker.output, text.as_bytes()).map_err(|errno| system(b"output", errno))
}

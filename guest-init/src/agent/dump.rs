//! The main command is dumped, or restored: what that does to its job and its end.

use guest_init::wire::report::Failed;
use guest_init::wire::request::{Dump, Restore};
use machinen_abi::body::{Exit, Reason};

use super::Agent;
use super::job::Job;
use super::main_command::Phase;
use super::open::{failed, system};
use crate::work;

/// A dump that is under way.
pub struct Dumping {
    job: usize,
    leave_running: bool,
}

impl Agent<'_> {
    /// Begins to dump the main command. Until all is written a dump is not given up, whoever goes: a CRIU that is killed leaves
    /// behind processes that do not work any more. One that is held then is: its worker comes to the end of its input.
    pub fn start_dump(&mut self, number: usize, dump: &Dump<'_>) -> Result<(), Failed> {
        if self.dump.is_some() {
            return Err(failed(Reason::Busy, "the main command is being dumped already"));
        }
        let workload = self.main.job().and_then(|job| self.jobs.get(job)).and_then(|job| job.workload(dump.tcp));
        let workload = workload.ok_or_else(|| failed(Reason::NoCommand, "the machine has no main command now"))?;
        self.check_room()?;
        let config = self.config;
        let job = Job::worker(true, |worker| work::dump::run(worker, config, dump, workload));
        let mut job = job.map_err(|errno| system("start", errno))?;
        job.is_steadfast = true;
        let job = self.add_job(number, job);
        self.dump = Some(Dumping { job, leave_running: dump.leave_running });
        if let Some(connection) = self.connections.get(number) {
            // The machine may end with it.
            connection.lingers = !dump.leave_running;
        }
        Ok(())
    }

    /// The main command comes from a bundle.
    pub fn start_restore(&mut self, number: usize, restore: &Restore) -> Result<(), Failed> {
        let config = self.config;
        let job = Job::restore(restore.size, restore.detached, |worker| work::restore::run(worker, config, restore));
        let job = self.add_job(number, job.map_err(|errno| system("start", errno))?);
        self.main.phase = Phase::Running(job);
        self.main.detached = restore.detached;
        Ok(())
    }

    /// How the main command has ended, as far as that is known: what a dump in progress makes of it is not.
    pub fn main_outcome(&self, outcome: Option<Result<Exit, Failed>>) -> Option<Result<Exit, Failed>> {
        match &self.main.dumped {
            _ if self.dump.is_some() => None,
            Some(failed) => outcome.map(|_| Err(failed.clone())),
            None => outcome,
        }
    }

    /// A job has ended: if it was the dump, the main command goes on, or is over.
    pub fn dump_has_ended(&mut self, number: usize, outcome: &Result<Exit, Failed>) {
        let Some(Dumping { leave_running, .. }) = self.dump.take_if(|dump| dump.job == number) else { return };
        let Some(main) = self.main.job() else { return };
        if outcome.is_ok() && !leave_running {
            self.main.dumped = Some(failed(Reason::Dumped, "the main command was dumped"));
            if let Some(job) = self.jobs.get(main) {
                // Another command than CRIU may have left it.
                job.signal(libc::SIGKILL);
            }
        }
        self.settle_job(main);
    }
}

//! The start of operations: from a stream's first frame to a job, or to what is done at once.

use alloc::format;
use alloc::string::ToString;

use guest_init::config::{Changes, Refusal};
use guest_init::wire::report::Failed;
use guest_init::wire::request::{self, Request};
use machinen_abi::body::{Exit, Reason, Signal, Size};

use super::connection::Role;
use super::job::Job;
use super::main_command::Phase;
use super::{Agent, MOST_JOBS};
use crate::sys::{self, Errno};
use crate::work;

/// The first number of the main command's processes: those below are free in a new machine, where it may be restored.
const FIRST_PID: u32 = 1000;

impl Agent<'_> {
    /// A stream's first frame has come.
    pub fn open(&mut self, number: usize, payload: &[u8]) {
        let is_main = self.main.is_brought_by(number);
        let done = request::parse(payload).and_then(|request| match request {
            Request::Command { changes, terminal, detached } => self.command(number, &changes, terminal, detached),
            Request::Restore(restore) if is_main => self.start_restore(number, &restore),
            _ if is_main => Err(failed(Reason::Invalid, "the main command is exec, pty or restore")),
            Request::Restore(_) => Err(failed(Reason::Invalid, "only the main command is restored")),
            Request::Dump(dump) => self.start_dump(number, &dump),
            request => self.serve(number, request),
        });
        let (Err(failed), Some(connection)) = (done, self.connections.get(number)) else { return };
        connection.stream.fail(&failed);
        connection.role = Role::Done;
        if is_main {
            self.main.is_refused(&failed);
        }
    }

    fn command(
        &mut self,
        number: usize,
        changes: &Changes<'_>,
        terminal: Option<Size>,
        detached: bool,
    ) -> Result<(), Failed> {
        let is_main = self.main.is_brought_by(number);
        if !is_main {
            self.check_room()?;
        }
        let command = self.config.command_with(changes, terminal.is_some()).map_err(|refusal| {
            let what = if changes == &Changes::default() { "/machinen-config.json: " } else { "" };
            failed(
                Reason::Invalid,
                &match refusal {
                    Refusal::NoCommand => "no command is given, and the image has none".to_string(),
                    refusal => format!("{what}{refusal}"),
                },
            )
        })?;
        if is_main {
            sys::number_from(FIRST_PID);
        }
        let job = match terminal {
            Some(size) => Job::terminal(&command, size),
            None if is_main => Job::command(&command, !detached, detached),
            None if detached => Job::detached(&command),
            None => Job::command(&command, true, false),
        };
        let job = self.add_job(number, job.map_err(|errno| system("start", errno))?);
        if is_main {
            self.main.phase = Phase::Running(job);
            self.main.detached = detached;
        }
        Ok(())
    }

    pub fn check_room(&self) -> Result<(), Failed> {
        if self.jobs.count() < MOST_JOBS { Ok(()) } else { Err(failed(Reason::Busy, "too many operations at once")) }
    }

    /// Gives a stream a job that has been started.
    pub fn add_job(&mut self, number: usize, mut job: Job) -> usize {
        job.owner = Some(number);
        let job = self.jobs.add(job);
        if let Some(connection) = self.connections.get(number) {
            connection.role = Role::Job(job);
        }
        job
    }

    fn serve(&mut self, number: usize, request: Request<'_>) -> Result<(), Failed> {
        match request {
            Request::Signal(signal) => {
                self.main_job()?;
                self.signal(self.main.job(), signal);
            }
            Request::Resize(size) => {
                self.main_job()?;
                self.resize(self.main.job(), size);
            }
            Request::Attach => {
                let pid = self.main_job()?.shown_pid();
                if let Some(connection) = self.connections.get(number) {
                    connection.stream.started(pid);
                    connection.role = Role::Attached;
                }
                return Ok(());
            }
            Request::PowerOff => {
                self.power_off();
                if let Some(connection) = self.connections.get(number) {
                    connection.stream.started(0);
                    connection.role = Role::PowerOff;
                }
                return Ok(());
            }
            request => {
                self.check_room()?;
                let job = Job::worker(false, |worker| work::serve(worker, &request))
                    .map_err(|errno| system("start", errno))?;
                self.add_job(number, job);
                return Ok(());
            }
        }
        if let Some(connection) = self.connections.get(number) {
            connection.stream.started(0);
            connection.stream.exit(Exit::Code(0));
            connection.role = Role::Done;
        }
        Ok(())
    }

    fn main_job(&mut self) -> Result<&mut Job, Failed> {
        let job = self.main.job().and_then(|job| self.jobs.get(job));
        job.ok_or_else(|| failed(Reason::NoCommand, "the machine has no main command now"))
    }

    /// Sends a signal to a job's command.
    pub fn signal(&mut self, job: Option<usize>, Signal(signal): Signal) {
        if let (Some(job), Ok(signal)) = (job.and_then(|job| self.jobs.get(job)), i32::try_from(signal)) {
            job.signal(signal);
        }
    }

    /// Gives a job's terminal another size.
    pub fn resize(&mut self, job: Option<usize>, size: Size) {
        if let Some(job) = job.and_then(|job| self.jobs.get(job)) {
            job.resize(size);
        }
    }

    /// The machine is about to end: whoever waits for that is told.
    pub fn tell_all(&mut self, exit: Exit) {
        for (_, connection) in self.connections.iter() {
            match connection.role {
                Role::Attached => connection.copies.exit(self.main.dumped.clone().map_or(Ok(exit), Err)),
                Role::PowerOff => connection.stream.exit(Exit::Code(0)),
                Role::New | Role::Job(_) | Role::Done => continue,
            }
            connection.lingers = true;
            connection.flush();
            if connection.stream.is_over() {
                connection.role = Role::Done;
            }
        }
    }
}

/// A failure without a system call.
pub fn failed(reason: Reason, message: &str) -> Failed {
    Failed { reason, errno: 0, message: message.to_string() }
}

/// A failure of a system call.
pub fn system(what: &str, Errno(errno): Errno) -> Failed {
    Failed { reason: Reason::System, errno, message: format!("{what}: {}", Errno(errno)) }
}

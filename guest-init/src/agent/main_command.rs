//! The machine's main command: the stream to the host that brings it, and what its end means.

use alloc::format;

use guest_init::status::{NOT_EXECUTABLE, NOT_FOUND, REFUSED};
use guest_init::wire::report::Failed;
use machinen_abi::MAIN_PORT;
use machinen_abi::body::{Exit, Reason};

use super::Agent;
use super::connection::Connection;
use crate::Refused;
use crate::sys::{self, Errno, Fd, vsock};

/// For a host that is about to listen.
const CONNECT_LIMIT_MS: i64 = 2000;
const CONNECT_PAUSE_MS: i64 = 5;
/// For a command that is asked to end, before it is killed.
const GRACE_MS: i64 = 10_000;
/// For a host that has not read everything when the command has ended.
const LINGER_MS: i64 = 2000;

/// How far it is.
pub enum Phase {
    /// The stream to the host is being made.
    Connecting(Fd),
    /// The host did not listen: again at this time.
    Pausing(i64),
    /// The connection of this number is to bring the command.
    Waiting(usize),
    /// The host closed that connection.
    Lost,
    /// It is the job of this number.
    Running(usize),
    /// It has ended like this, and at that time the machine ends at the latest.
    Over(Exit, i64),
}

/// The main command, and the end of the machine.
pub struct Main {
    pub phase: Phase,
    /// No more connecting after this time.
    give_up_ms: i64,
    /// It has been asked to end, and is killed at this time.
    kill_ms: Option<i64>,
    /// It has no stream from its start on.
    pub detached: bool,
    /// It was dumped, and has ended by that.
    pub dumped: Option<Failed>,
}

impl Main {
    /// Begins to connect to the host.
    pub fn connect() -> Result<Main, Refused> {
        let phase = Phase::Connecting(connect()?);
        Ok(Main { phase, give_up_ms: sys::now_ms() + CONNECT_LIMIT_MS, kill_ms: None, detached: false, dumped: None })
    }

    /// What to wait for.
    pub fn wanted(&self) -> (i32, i16) {
        match &self.phase {
            Phase::Connecting(socket) => (socket.number(), libc::POLLOUT),
            _ => (-1, 0),
        }
    }

    /// How long to wait at most; -1 for as long as it takes.
    pub fn limit_ms(&self) -> i32 {
        let at = match self.phase {
            Phase::Pausing(at) | Phase::Over(_, at) => Some(at),
            _ => self.kill_ms,
        };
        at.map_or(-1, |at| i32::try_from((at - sys::now_ms()).max(0)).unwrap_or(i32::MAX))
    }

    /// The job that it is.
    pub fn job(&self) -> Option<usize> {
        if let Phase::Running(job) = self.phase { Some(job) } else { None }
    }

    /// It is this job.
    pub fn runs(&self, job: usize) -> bool {
        self.job() == Some(job)
    }

    /// It is brought by this connection, and has not been yet.
    pub fn is_brought_by(&self, connection: usize) -> bool {
        matches!(self.phase, Phase::Waiting(number) if number == connection)
    }

    /// A connection is closed.
    pub fn stream_is_gone(&mut self, number: usize) {
        if self.is_brought_by(number) {
            self.phase = Phase::Lost;
        }
    }

    /// A connection brought what makes no sense.
    pub fn stream_is_broken(&mut self, number: usize) {
        if self.is_brought_by(number) {
            self.is_over(Exit::Code(REFUSED));
        }
    }

    /// It could not be started.
    pub fn is_refused(&mut self, failed: &Failed) {
        self.is_over(Exit::Code(match failed.reason {
            Reason::NotFound => NOT_FOUND,
            Reason::CannotExecute => NOT_EXECUTABLE,
            Reason::Dumped => 0,
            _ => REFUSED,
        }));
    }

    /// A job has ended.
    pub fn job_has_ended(&mut self, number: usize, outcome: &Result<Exit, Failed>) {
        if self.runs(number) {
            match outcome {
                Ok(exit) => self.is_over(*exit),
                Err(failed) => self.is_refused(failed),
            }
        }
    }

    fn is_over(&mut self, exit: Exit) {
        self.phase = Phase::Over(exit, sys::now_ms() + LINGER_MS);
    }
}

fn connect() -> Result<Fd, Refused> {
    vsock::connect(MAIN_PORT).map_err(unreachable)
}

fn unreachable(errno: Errno) -> Refused {
    format!("agent: vsock port {MAIN_PORT} of the host: {errno}")
}

impl Agent<'_> {
    /// The stream to the host is made, or is not.
    pub fn host_answers(&mut self) -> Result<(), Refused> {
        let Phase::Connecting(socket) = &self.main.phase else { return Ok(()) };
        match vsock::connected(socket) {
            Ok(()) => {}
            Err(Errno(libc::ECONNRESET)) if sys::now_ms() < self.main.give_up_ms => {
                self.main.phase = Phase::Pausing(sys::now_ms() + CONNECT_PAUSE_MS);
                return Ok(());
            }
            Err(errno) => return Err(unreachable(errno)),
        }
        if let Phase::Connecting(socket) = core::mem::replace(&mut self.main.phase, Phase::Lost) {
            let mut connection = Connection::new(socket);
            connection.lingers = true;
            connection.stream.ready();
            self.main.phase = Phase::Waiting(self.connections.add(connection));
        }
        Ok(())
    }

    /// What is due by now; the exit code when the machine is to end.
    pub fn end(&mut self) -> Result<Option<u8>, Refused> {
        let now_ms = sys::now_ms();
        match self.main.phase {
            Phase::Pausing(at_ms) if now_ms >= at_ms => self.main.phase = Phase::Connecting(connect()?),
            Phase::Lost => {
                return Err(format!("agent: vsock port {MAIN_PORT}: the host closed it before a command came"));
            }
            Phase::Running(job) if self.main.kill_ms.is_some_and(|at_ms| now_ms >= at_ms) => {
                self.main.kill_ms = Some(now_ms + LINGER_MS);
                if let Some(job) = self.jobs.get(job) {
                    if job.status().is_some() {
                        // Its reader stands still.
                        job.drop_outputs();
                    }
                    job.signal(libc::SIGKILL);
                }
                self.settle();
            }
            Phase::Over(exit, at_ms) => {
                self.tell_all(exit);
                let rest = self.connections.iter().any(|(_, connection)| connection.lingers);
                if now_ms >= at_ms || (!rest && self.console.waiting.is_empty()) {
                    return Ok(Some(exit.status()));
                }
            }
            _ => {}
        }
        Ok(None)
    }

    /// Asks the main command to end, which ends the machine; without one it ends now.
    pub fn power_off(&mut self) {
        match self.main.phase {
            Phase::Over(..) => {}
            Phase::Running(job) => {
                if let Some(job) = self.jobs.get(job) {
                    // A stopped process gets to see it too.
                    job.signal(libc::SIGTERM);
                    job.signal(libc::SIGCONT);
                }
                self.main.kill_ms.get_or_insert(sys::now_ms() + GRACE_MS);
            }
            _ => self.main.is_over(Exit::Code(0)),
        }
    }
}

//! A job: a process that works for a stream, and the pipes or the terminal between them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::c_int;

use guest_init::config::Command;
use guest_init::criu::workload::{Terminal, Workload};
use guest_init::wire::report::{Failed, Report};
use guest_init::wire::request::Tcp;
use guest_init::wire::stream::Output;
use libc::{POLLIN, POLLOUT};
use machinen_abi::body::{Exit, Reason, Size};

use crate::child;
use crate::sys::{self, Errno, Fd, files, terminal};
use crate::work::{Ends, Worker};

/// A terminal's own buffers hold less. What comes after so much is from processes in the background.
const TERMINAL_REST_BYTES: usize = 128 << 10;

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A program, with pipes.
    Command,
    /// A program, with a terminal.
    Terminal,
    /// A child of PID 1's own program.
    Worker,
    /// Such a child, which restores a program that takes its place.
    Restore,
}

/// What a program that is being restored may get: pipes or a terminal.
struct Offer {
    stdin: Fd,
    outputs: [Fd; 2],
    master: Fd,
    slave: Fd,
    size: Size,
    /// Nobody gives it input.
    detached: bool,
}

/// The state of a job.
pub struct Job {
    pub kind: Kind,
    pid: c_int,
    /// The connection that it works for.
    pub owner: Option<usize>,
    report_pipe: Option<Fd>,
    report: Report,
    begun: bool,
    stdin: Option<Fd>,
    outputs: [Option<Fd>; 2],
    /// A terminal that nobody has open is at its end; its session may still open it again.
    held: Option<Fd>,
    /// Its wait status, and what it left in its outputs.
    ended: Option<(c_int, [usize; 2])>,
    /// The last byte of a terminal's input, and how many characters are to say that it has ended.
    last_byte: u8,
    ends: Option<usize>,
    offer: Option<Offer>,
    /// The wait status of what is restored, when that came first.
    early: Option<c_int>,
    /// It has been restored, and nothing of its output has come yet.
    is_silent: bool,
    /// It is not ended when nobody waits for it any more.
    pub is_steadfast: bool,
}

impl Job {
    /// A command with pipes; without `input` its stdin is empty. With `together` its outputs are one.
    pub fn command(command: &Command, input: bool, together: bool) -> sys::Result<Job> {
        let (their_stdin, stdin) = if input {
            let (theirs, ours) = Fd::pipe()?;
            (theirs, Some(ours))
        } else {
            (Fd::open(c"/dev/null", libc::O_RDONLY)?, None)
        };
        let (output, their_output) = Fd::pipe()?;
        let (error, their_error) = if together {
            (None, their_output.copy()?)
        } else {
            let (ours, theirs) = Fd::pipe()?;
            (Some(ours), theirs)
        };
        let attach = || sys::set_stdio(their_stdin.number(), their_output.number(), their_error.number());
        Job::start(Kind::Command, command, &attach, stdin, [Some(output), error])
    }

    /// A command with a terminal.
    pub fn terminal(command: &Command, size: Size) -> sys::Result<Job> {
        let (master, slave) = terminal::open(size)?;
        let attach = || {
            sys::take_terminal(&slave)?;
            sys::set_stdio(slave.number(), slave.number(), slave.number())
        };
        let stdin = master.copy()?;
        let mut job = Job::start(Kind::Terminal, command, &attach, Some(stdin), [Some(master), None])?;
        job.held = Some(slave);
        Ok(job)
    }

    /// A command on the console, of which nothing is heard any more.
    pub fn detached(command: &Command) -> sys::Result<Job> {
        let input = Fd::open(c"/dev/null", libc::O_RDONLY)?;
        let console = Fd::open(c"/dev/console", libc::O_WRONLY | libc::O_NOCTTY)?;
        let attach = || sys::set_stdio(input.number(), console.number(), console.number());
        Job::start(Kind::Command, command, &attach, None, [None, None])
    }

    /// A child that does the work itself; `error` says whether what it prints on its standard error is heard.
    pub fn worker(error: bool, work: impl FnOnce(&Worker) -> Result<(), Failed>) -> sys::Result<Job> {
        let (their_stdin, stdin) = Fd::pipe()?;
        let (output, their_output) = Fd::pipe()?;
        let (error, their_error) =
            if error { Fd::pipe().map(|(ours, theirs)| (Some(ours), Some(theirs)))? } else { (None, None) };
        let (report, their_report) = Fd::pipe()?;
        let Some(pid) = sys::fork()? else {
            let (input, output, error, report) = (&their_stdin, &their_output, their_error.as_ref(), &their_report);
            Worker::run(&Ends { input, output, error, report, more: &[] }, work)
        };
        Job::new(Kind::Worker, pid, report, Some(stdin), [Some(output), error])
    }

    /// A child that restores a program; `work` is told what that gets under the numbers from 4 on.
    pub fn restore(size: Size, detached: bool, work: impl FnOnce(&Worker) -> Result<(), Failed>) -> sys::Result<Job> {
        let (their_stdin, stdin) = Fd::pipe()?;
        let (output, their_output) = Fd::pipe()?;
        let (error, their_error) = Fd::pipe()?;
        let (master, slave) = terminal::open(size)?;
        let (report, their_report) = Fd::pipe()?;
        [&stdin, &output, &error].into_iter().try_for_each(Fd::set_nonblocking)?;
        let null = Fd::open(c"/dev/null", libc::O_RDWR)?;
        let Some(pid) = sys::fork()? else {
            let more = [&their_stdin, &their_output, &their_error, &slave];
            Worker::run(&Ends { input: &null, output: &null, error: None, report: &their_report, more: &more }, work)
        };
        let mut job = Job::new(Kind::Restore, pid, report, None, [None, None])?;
        job.offer = Some(Offer { stdin, outputs: [output, error], master, slave, size, detached });
        Ok(job)
    }

    fn start(
        kind: Kind,
        command: &Command,
        attach: &dyn Fn() -> sys::Result<()>,
        stdin: Option<Fd>,
        outputs: [Option<Fd>; 2],
    ) -> sys::Result<Job> {
        let (pid, report) = child::start_reporting(command, attach)?;
        Job::new(kind, pid, report, stdin, outputs)
    }

    fn new(kind: Kind, pid: c_int, report: Fd, stdin: Option<Fd>, outputs: [Option<Fd>; 2]) -> sys::Result<Job> {
        for fd in stdin.iter().chain(outputs.iter().flatten()).chain([&report]) {
            fd.set_nonblocking()?;
        }
        Ok(Job {
            kind,
            pid,
            owner: None,
            report_pipe: Some(report),
            report: Report::default(),
            begun: false,
            stdin,
            outputs,
            held: None,
            ended: None,
            last_byte: b'\n',
            ends: None,
            offer: None,
            early: None,
            is_silent: false,
            is_steadfast: false,
        })
    }

    /// Whether its process has this number.
    pub fn is(&self, pid: c_int) -> bool {
        self.ended.is_none() && self.pid == pid
    }

    /// A process of this number, which is no job's, has ended. True when it is what this one restores.
    pub fn restores(&mut self, pid: c_int, status: c_int) -> bool {
        if self.kind != Kind::Restore {
            return false;
        }
        self.read_report();
        let is_it = self.report.restored().is_some_and(|restored| restored.pid == pid);
        if is_it {
            self.early = Some(status);
        }
        is_it
    }

    /// The program is restored, and this child of PID 1 from now on.
    fn adopt(&mut self) {
        let (Some(Offer { stdin, outputs, master, slave, size, detached }), Some(restored)) =
            (self.offer.take(), self.report.restored())
        else {
            return;
        };
        (self.pid, self.ended, self.is_silent) = (restored.pid, None, true);
        if restored.terminal {
            // It has the size of the old one.
            match terminal::resize(&master, size) {
                Ok(()) | Err(_) => {}
            }
            (self.kind, self.stdin, self.held) = (Kind::Terminal, master.copy().ok(), Some(slave));
            self.outputs = [Some(master), None];
        } else {
            let [input, output, error] = restored.pipes;
            self.kind = Kind::Command;
            self.stdin = Some(stdin).filter(|_| input && !detached);
            let [out, err] = outputs;
            self.outputs = [Some(out).filter(|_| output), Some(err).filter(|_| error)];
        }
        if let Some(status) = self.early {
            self.end(status);
        }
    }

    /// What a bundle says of it, as far as this knows; `None` when it is no program.
    pub fn workload(&self, tcp: Tcp) -> Option<Workload> {
        if self.ended.is_some() || !self.begun || !matches!(self.kind, Kind::Command | Kind::Terminal) {
            return None;
        }
        let mut workload = Workload { pid: self.pid, tcp, ..Workload::default() };
        if let Some(terminal) = &self.held {
            let (file_system, _, device) = files::identity(terminal).ok()?;
            let Size { rows, columns } = terminal::size(terminal).ok()?;
            workload.terminal = Some(Terminal { device, file_system, rows, columns });
        } else {
            let [output, error] = &self.outputs;
            let inode = |pipe: &Option<Fd>| Some(files::identity(pipe.as_ref()?).ok()?.1);
            workload.pipes = [inode(&self.stdin), inode(output), inode(error)];
        }
        Some(workload)
    }

    /// True once, when the first output of a restored program has come.
    pub fn breaks_silence(&mut self) -> bool {
        core::mem::take(&mut self.is_silent)
    }

    /// Its child has told a point that nobody has taken.
    pub fn has_marks(&self) -> bool {
        self.report.has_marks()
    }

    /// The points that its child has told since this was called last.
    pub fn take_marks(&mut self) -> Vec<(u64, String)> {
        self.report.take_marks()
    }

    /// The number of its process, 0 for one that is nobody's business.
    pub fn shown_pid(&self) -> u32 {
        if matches!(self.kind, Kind::Worker | Kind::Restore) { 0 } else { u32::try_from(self.pid).unwrap_or(0) }
    }

    /// What it prints comes here.
    pub fn is_heard(&self) -> bool {
        self.outputs.iter().any(Option::is_some)
    }

    /// What to wait for: the pipe of its report.
    pub fn report_wanted(&self) -> (c_int, i16) {
        (number(&self.report_pipe), POLLIN)
    }

    /// What to wait for: its stdin. With no event asked for, poll still tells that nobody reads.
    pub fn stdin_wanted(&self, has_input: bool) -> (c_int, i16) {
        let (number, ready) = (number(&self.stdin), (has_input || self.ends.is_some()) && self.begun);
        // The writing side of a terminal also says that there is output, and that is asked for elsewhere.
        if ready || self.kind != Kind::Terminal { (number, if ready { POLLOUT } else { 0 }) } else { (-1, 0) }
    }

    /// What to wait for: an output, when there is room for it.
    pub fn output_wanted(&self, output: Output, room: usize) -> (c_int, i16) {
        if self.begun && self.left(output, room) > 0 {
            (number(&self.outputs[output as usize]), POLLIN)
        } else {
            (-1, 0)
        }
    }

    /// Of so many bytes, those that are still to come from an output.
    pub fn left(&self, output: Output, bytes: usize) -> usize {
        self.ended.map_or(bytes, |(_, left)| bytes.min(left[output as usize]))
    }

    /// Reads what the child reports.
    pub fn read_report(&mut self) {
        let Some(pipe) = &self.report_pipe else { return };
        let mut buffer = [0; 512];
        loop {
            match pipe.read(&mut buffer) {
                Ok(count @ 1..) => self.report.add(&buffer[..count]),
                Err(Errno(libc::EINTR)) => {}
                Err(Errno(libc::EAGAIN)) => return,
                Ok(0) | Err(_) => {
                    self.report_pipe = None;
                    return;
                }
            }
        }
    }

    /// True once, when the program runs.
    pub fn begins(&mut self) -> bool {
        let runs = match self.kind {
            Kind::Worker => self.report.has_begun(),
            Kind::Restore => {
                if self.report.has_begun() {
                    self.adopt();
                }
                self.report.has_begun()
            }
            Kind::Command | Kind::Terminal if self.begun => true,
            Kind::Command | Kind::Terminal => self.report_pipe.is_none() && self.report.failed().is_none(),
        };
        !core::mem::replace(&mut self.begun, runs) && runs
    }

    /// The program runs, or has run.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Gives it input; returns how many bytes are taken care of: all of them when it takes none.
    pub fn feed(&mut self, input: &[u8]) -> usize {
        if self.kind == Kind::Restore {
            return 0;
        }
        let Some(stdin) = &self.stdin else { return input.len() };
        if !self.begun || input.is_empty() {
            return 0;
        }
        match stdin.write(input) {
            Ok(count) => {
                self.last_byte = input[..count].last().copied().unwrap_or(self.last_byte);
                count
            }
            Err(Errno(libc::EAGAIN | libc::EINTR)) => 0,
            Err(_) => {
                self.stdin = None;
                input.len()
            }
        }
    }

    /// There is no more input, and all of it has been given. Called again until there is room for that.
    pub fn end_input(&mut self) {
        if let (Kind::Terminal, Some(stdin)) = (self.kind, &self.stdin) {
            // A terminal's end is a character: alone in a line it is the end, elsewhere the end of the line.
            const ENDS: &[u8] = &[4, 4];
            let ends = *self.ends.get_or_insert(if self.last_byte == b'\n' { 1 } else { 2 });
            match stdin.write(&ENDS[..ends]) {
                Ok(count) => self.ends = Some(ends - count),
                Err(Errno(libc::EAGAIN | libc::EINTR)) => {}
                Err(_) => self.ends = Some(0),
            }
            if self.ends != Some(0) {
                return;
            }
        }
        self.stdin = None;
    }

    /// Nobody reads its stdin any more.
    pub fn stdin_is_broken(&mut self) {
        self.stdin = None;
    }

    /// Reads from an output; `None` when there is nothing now.
    pub fn read<'a>(&mut self, output: Output, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let room = self.left(output, buffer.len());
        let pipe = self.outputs[output as usize].as_ref()?;
        if room == 0 {
            return None;
        }
        match pipe.read(&mut buffer[..room]) {
            Ok(count @ 1..) => {
                if let Some((_, left)) = &mut self.ended {
                    left[output as usize] -= count;
                }
                Some(&buffer[..count])
            }
            Err(Errno(libc::EINTR)) => None,
            // What a terminal holds is not known; with its session gone nothing is on its way.
            Err(Errno(libc::EAGAIN)) if self.ended.is_none() => None,
            Ok(0) | Err(_) => {
                self.outputs[output as usize] = None;
                None
            }
        }
    }

    /// All of an output has been read that ever comes.
    pub fn has_ended(&self, output: Output) -> bool {
        self.outputs[output as usize].is_none() || self.left(output, 1) == 0
    }

    /// Its process has ended with this wait status.
    pub fn end(&mut self, status: c_int) {
        self.read_report();
        if self.kind == Kind::Restore && self.report.has_begun() {
            // It has done its work, and what it has restored goes on.
            return;
        }
        self.held = None;
        let left = match self.kind {
            Kind::Terminal => [TERMINAL_REST_BYTES, 0],
            // Nobody else has a worker's pipes: they come to their end.
            Kind::Worker | Kind::Restore => [usize::MAX; 2],
            Kind::Command => [0, 1].map(|output: usize| self.outputs[output].as_ref().map_or(0, Fd::held_bytes)),
        };
        self.ended = Some((status, left));
    }

    /// How it ended, after all of its output has been read.
    pub fn outcome(&self) -> Option<Result<Exit, Failed>> {
        let (status, _) = self.ended?;
        if let Some(failed) = self.report.failed() {
            return Some(Err(failed));
        }
        let over = Output::BOTH.into_iter().all(|output| self.has_ended(output));
        if matches!(self.kind, Kind::Worker | Kind::Restore) && status != 0 {
            let message = format!("the work was ended: {}", exit(status).status());
            return Some(Err(Failed { reason: Reason::System, errno: libc::EIO, message }));
        }
        over.then(|| Ok(exit(status)))
    }

    /// The wait status of its process, when it has ended.
    pub fn status(&self) -> Option<c_int> {
        self.ended.map(|(status, _)| status)
    }

    /// Sends a signal to its process group, or to the process alone as long as it has not made one.
    pub fn signal(&self, signal: c_int) {
        if self.ended.is_some() {
            return;
        }
        match sys::kill(-self.pid, signal).or_else(|_| sys::kill(self.pid, signal)) {
            Ok(()) | Err(_) => {}
        }
    }

    /// Gives its terminal another size.
    pub fn resize(&self, size: Size) {
        if let (Kind::Terminal, Some(master)) = (self.kind, &self.outputs[0]) {
            match terminal::resize(master, size) {
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Nobody waits for what it has printed.
    pub fn drop_outputs(&mut self) {
        self.outputs = [None, None];
    }

    /// Nobody wants its work any more.
    pub fn abandon(&mut self) {
        if self.is_steadfast {
            (self.owner, self.stdin) = (None, None);
            return;
        }
        // First, so that a worker does not take this for the end of its input.
        self.signal(if self.kind == Kind::Worker { libc::SIGKILL } else { libc::SIGHUP });
        self.owner = None;
        self.stdin = None;
        self.outputs = [None, None];
        self.held = None;
    }
}

fn number(fd: &Option<Fd>) -> c_int {
    fd.as_ref().map_or(-1, Fd::number)
}

fn exit(status: c_int) -> Exit {
    let number = if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    let number = u8::try_from(number).unwrap_or(u8::MAX);
    if libc::WIFSIGNALED(status) { Exit::Signal(number) } else { Exit::Code(number) }
}

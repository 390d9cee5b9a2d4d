//! The agent: serves streams of docs/wire-protocol.md, and runs the main command. One loop, which never waits for
//! anything but poll(2).

mod connection;
mod dump;
mod job;
mod main_command;
mod open;
pub mod points;
mod slots;

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::c_int;

use guest_init::config::Config;
use guest_init::wire::stream::{Event, Output};
use libc::{POLLERR, POLLIN, POLLOUT};
use machinen_abi::AGENT_PORT;
use machinen_abi::body::Mark;

use self::connection::{Connection, Role};
use self::dump::Dumping;
use self::job::Job;
use self::main_command::Main;
use self::points::Points;
use self::slots::Slots;
use crate::relay;
use crate::sys::{self, Errno, Fd, vsock};
use crate::{Refused, console};

/// Jobs at a time; one more is refused.
const MOST_JOBS: usize = 64;
/// Connections at a time; others wait to be accepted.
const MOST_CONNECTIONS: usize = 128;
/// Read at a time.
const BUFFER_BYTES: usize = 64 << 10;

/// Everything that the loop knows.
struct Agent<'a> {
    config: &'a Config,
    points: Points,
    signals: Fd,
    listener: Fd,
    console: Console,
    connections: Slots<Connection>,
    jobs: Slots<Job>,
    main: Main,
    dump: Option<Dumping>,
    buffer: Vec<u8>,
}

/// Where a detached main command prints.
struct Console {
    line: Fd,
    waiting: Vec<u8>,
}

/// What poll tells about.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Host,
    Console,
    Connection(usize),
    Report(usize),
    Stdin(usize),
    Output(usize, Output),
}

/// Serves until the machine is to end; returns the exit code.
pub fn serve(config: &Config, mut points: Points) -> Result<u8, Refused> {
    let failed = |errno: Errno| format!("agent: vsock port {AGENT_PORT}: {errno}");
    let signals = relay::signals()?;
    let listener = vsock::listen(AGENT_PORT).map_err(failed)?;
    points.add("agent");
    let mut agent = Agent {
        config,
        points,
        signals,
        listener,
        console: Console { line: console::line()?, waiting: Vec::new() },
        connections: Slots::new(),
        jobs: Slots::new(),
        main: Main::connect()?,
        dump: None,
        buffer: vec![0; BUFFER_BYTES],
    };
    loop {
        agent.settle();
        if let Some(code) = agent.end()? {
            return Ok(code);
        }
        agent.wait()?;
    }
}

impl Agent<'_> {
    /// Waits until something happens, and does what it asks for. Nothing is removed here, so that the numbers of what
    /// poll has told about stay.
    fn wait(&mut self) -> Result<(), Refused> {
        let (mut set, mut sources) = (Vec::new(), Vec::new());
        let mut want = |source: Source, (fd, events): (c_int, i16)| {
            if fd >= 0 {
                set.push(libc::pollfd { fd, events, revents: 0 });
                sources.push(source);
            }
        };
        want(Source::Signals, (self.signals.number(), POLLIN));
        if self.connections.count() < MOST_CONNECTIONS {
            want(Source::Listener, (self.listener.number(), POLLIN));
        }
        want(Source::Host, self.main.wanted());
        if !self.console.waiting.is_empty() {
            want(Source::Console, (self.console.line.number(), POLLOUT));
        }
        for (number, connection) in self.connections.iter() {
            if !connection.is_gone() {
                want(Source::Connection(number), connection.wanted());
            }
        }
        for number in self.jobs.numbers() {
            let rooms = Output::BOTH.map(|output| self.room(number, output));
            let has_input = self.has_input(number);
            let Some(job) = self.jobs.get(number) else { continue };
            want(Source::Report(number), job.report_wanted());
            want(Source::Stdin(number), job.stdin_wanted(has_input));
            for (output, room) in Output::BOTH.into_iter().zip(rooms) {
                want(Source::Output(number, output), job.output_wanted(output, room));
            }
        }
        sys::poll_all(&mut set, self.main.limit_ms()).map_err(|errno| format!("poll: {errno}"))?;
        for (source, entry) in sources.into_iter().zip(set) {
            if entry.revents != 0 {
                self.handle(source, entry.revents)?;
            }
        }
        Ok(())
    }

    fn handle(&mut self, source: Source, events: i16) -> Result<(), Refused> {
        match source {
            Source::Signals => self.take_signals(),
            Source::Listener => self.accept(),
            Source::Host => self.host_answers()?,
            // It is written to after every round.
            Source::Console => {}
            Source::Connection(number) => {
                let Some(connection) = self.connections.get(number) else { return Ok(()) };
                if events & POLLOUT != 0 {
                    connection.unblock();
                }
                if events & !POLLOUT != 0 {
                    connection.read(&mut self.buffer);
                    self.take_events(number);
                }
            }
            Source::Report(number) => {
                if let Some(job) = self.jobs.get(number) {
                    job.read_report();
                }
            }
            Source::Stdin(number) => {
                if events & POLLERR != 0
                    && let Some(job) = self.jobs.get(number)
                {
                    job.stdin_is_broken();
                }
                self.feed(number);
            }
            Source::Output(number, output) => self.read_output(number, output),
        }
        Ok(())
    }

    /// Brings everything as far as it goes without waiting.
    fn settle(&mut self) {
        for number in self.jobs.numbers() {
            self.settle_job(number);
        }
        self.flush_console();
        for number in self.connections.numbers() {
            let Some(connection) = self.connections.get(number) else { continue };
            connection.flush();
            if connection.is_finished() {
                self.close(number);
            }
        }
    }

    /// A connection ends, and with it the work for it.
    fn close(&mut self, number: usize) {
        let Some(connection) = self.connections.remove(number) else { return };
        if let Role::Job(job) = connection.role
            && let Some(job) = self.jobs.get(job)
        {
            job.abandon();
        }
        self.main.stream_is_gone(number);
    }

    fn settle_job(&mut self, number: usize) {
        let Some(job) = self.jobs.get(number) else { return };
        if job.begins() {
            self.begin(number);
        }
        let Some(job) = self.jobs.get(number) else { return };
        if job.status().is_some() || job.has_marks() {
            // Of what is left nothing may tell: a terminal that others hold open. And a point comes after what was printed before it.
            for output in Output::BOTH {
                self.read_output(number, output);
            }
        }
        let Some(job) = self.jobs.get(number) else { return };
        let (owner, ended) = (job.owner, Output::BOTH.map(|output| job.has_begun() && job.has_ended(output)));
        let (outcome, marks) = (job.outcome(), job.take_marks());
        if self.main.runs(number) {
            let attached = self.connections.iter().filter(|(_, connection)| connection.role == Role::Attached);
            for (_, connection) in attached {
                let over = Output::BOTH.into_iter().filter(|output| ended[*output as usize]);
                over.for_each(|output| connection.copies.end(output));
            }
        }
        let outcome = if self.main.runs(number) { self.main_outcome(outcome) } else { outcome };
        if let Some(connection) = owner.and_then(|owner| self.connections.get(owner)) {
            for (time_ns, name) in &marks {
                connection.stream.mark(&Mark { time_ns: *time_ns, name });
            }
            for output in Output::BOTH.into_iter().filter(|output| ended[*output as usize]) {
                connection.stream.end(output);
            }
            match &outcome {
                Some(Ok(exit)) => connection.stream.exit(*exit),
                Some(Err(failed)) => connection.stream.fail(failed),
                None => return,
            }
            connection.role = Role::Done;
        }
        if let Some(outcome) = outcome {
            self.jobs.remove(number);
            self.main.job_has_ended(number, &outcome);
            self.dump_has_ended(number, &outcome);
        }
    }

    /// The program of a job runs: whoever wants it is told.
    fn begin(&mut self, number: usize) {
        let Some(job) = self.jobs.get(number) else { return };
        let (pid, owner, is_heard) = (job.shown_pid(), job.owner, job.is_heard());
        if let Some(connection) = owner.and_then(|owner| self.connections.get(owner)) {
            if self.main.runs(number) {
                self.points.add("command");
                self.points.send(&mut connection.stream);
            }
            connection.stream.started(pid);
            let detached = self.main.runs(number) && self.main.detached;
            if detached || !is_heard {
                connection.stream.finish();
                connection.lingers = false;
                connection.role = Role::Done;
                if let Some(job) = self.jobs.get(number) {
                    job.owner = None;
                }
            }
        }
        self.feed(number);
    }

    fn accept(&mut self) {
        while self.connections.count() < MOST_CONNECTIONS {
            match vsock::accept(&self.listener) {
                Ok(socket) => drop(self.connections.add(Connection::new(socket))),
                Err(_) => return,
            }
        }
    }

    /// Does what came on a connection.
    fn take_events(&mut self, number: usize) {
        while let Some(connection) = self.connections.get(number)
            && let Some(event) = connection.stream.take()
        {
            match (connection.role, event) {
                (_, Event::Open(payload)) => self.open(number, &payload),
                (Role::Job(job), Event::Signal(signal)) => self.signal(Some(job), signal),
                (Role::Job(job), Event::Resize(size)) => self.resize(Some(job), size),
                (Role::Attached, Event::Signal(signal)) => self.signal(self.main.job(), signal),
                (Role::Attached, Event::Resize(size)) => self.resize(self.main.job(), size),
                (Role::New | Role::PowerOff | Role::Done, _) => {}
            }
        }
        let Some(connection) = self.connections.get(number) else { return };
        match connection.role {
            // It has been refused.
            Role::Job(job) if connection.stream.is_over() => {
                connection.role = Role::Done;
                if let Some(job) = self.jobs.get(job) {
                    job.abandon();
                }
            }
            Role::New if connection.stream.is_over() => {
                connection.role = Role::Done;
                self.main.stream_is_broken(number);
            }
            Role::Attached if connection.stream.is_over() => connection.role = Role::Done,
            Role::Job(job) => self.feed(job),
            Role::Attached => self.feed_main(),
            Role::New | Role::PowerOff | Role::Done => connection.stream.consume(usize::MAX),
        }
    }

    /// Input is waiting for a job.
    fn has_input(&mut self, number: usize) -> bool {
        let owner = self.jobs.get(number).and_then(|job| job.owner);
        let own = owner.and_then(|owner| self.connections.get(owner)).is_some_and(|own| !own.stream.input().is_empty());
        own || (self.main.runs(number) && self.attached_input().is_some())
    }

    /// An attached stream that has input.
    fn attached_input(&mut self) -> Option<usize> {
        let mut attached = self.connections.iter().filter(|(_, connection)| connection.role == Role::Attached);
        attached.find(|(_, connection)| !connection.stream.input().is_empty()).map(|(number, _)| number)
    }

    fn feed_main(&mut self) {
        if let Some(job) = self.main.job() {
            self.feed(job);
        }
    }

    /// Gives a job the input that waits for it.
    fn feed(&mut self, number: usize) {
        let Some(job) = self.jobs.get(number) else { return };
        if let Some(connection) = job.owner.and_then(|owner| self.connections.get(owner)) {
            let count = job.feed(connection.stream.input());
            connection.stream.consume(count);
            if connection.stream.has_input_ended() && connection.stream.input().is_empty() && job.has_begun() {
                job.end_input();
            }
        }
        while self.main.runs(number)
            && let Some(attached) = self.attached_input()
        {
            let (Some(job), Some(connection)) = (self.jobs.get(number), self.connections.get(attached)) else { return };
            let count = job.feed(connection.stream.input());
            connection.stream.consume(count);
            if count == 0 {
                return;
            }
        }
    }

    /// Bytes of an output of a job that there is room for.
    fn room(&mut self, number: usize, output: Output) -> usize {
        let Some(job) = self.jobs.get(number) else { return 0 };
        match job.owner {
            Some(owner) => self.connections.get(owner).map_or(0, |connection| connection.stream.room(output)),
            None if job.is_steadfast || self.console.waiting.is_empty() => BUFFER_BYTES,
            None => 0,
        }
    }

    /// Passes on what there is of an output.
    fn read_output(&mut self, number: usize, output: Output) {
        loop {
            let room = self.room(number, output).min(BUFFER_BYTES);
            let Some(job) = self.jobs.get(number) else { return };
            let Some(bytes) = job.read(output, &mut self.buffer[..room]) else { return };
            let (ended, is_steadfast, is_first) = (job.status().is_some(), job.is_steadfast, job.breaks_silence());
            if self.main.runs(number) {
                let attached = self.connections.iter().filter(|(_, connection)| connection.role == Role::Attached);
                attached.for_each(|(_, connection)| connection.copies.add(&mut connection.stream, output, bytes));
            }
            match job.owner.and_then(|owner| self.connections.get(owner)) {
                Some(connection) => {
                    if is_first {
                        let time_ns = sys::clock_ns(libc::CLOCK_REALTIME);
                        connection.stream.mark(&Mark { time_ns, name: "first output" });
                    }
                    connection.stream.data(output, bytes);
                }
                // Nobody is left to hear how it dumps.
                None if is_steadfast => {}
                None => self.console.waiting.extend_from_slice(bytes),
            }
            if !ended {
                return;
            }
        }
    }

    /// Writes to the console what a detached main command has printed. A console that cannot be written to is no reason
    /// to stop the command.
    fn flush_console(&mut self) {
        while !self.console.waiting.is_empty() {
            match self.console.line.write(&self.console.waiting) {
                Ok(count) => drop(self.console.waiting.drain(..count)),
                Err(Errno(libc::EINTR)) => {}
                Err(Errno(libc::EAGAIN)) => return,
                Err(_) => self.console.waiting.clear(),
            }
        }
    }

    fn take_signals(&mut self) {
        while let Some(signal) = self.signals.next_signal() {
            if signal != libc::SIGCHLD {
                if let Some(job) = self.main.job().and_then(|job| self.jobs.get(job)) {
                    job.signal(signal);
                }
                continue;
            }
            // Orphans come to PID 1; they are reaped and forgotten.
            while let Some((pid, status)) = sys::reap() {
                if let Some((_, job)) = self.jobs.iter().find(|(_, job)| job.is(pid)) {
                    job.end(status);
                } else {
                    // Or it is what is being restored.
                    self.jobs.iter().any(|(_, job)| job.restores(pid, status));
                }
            }
        }
    }
}

//! The loop of PID 1: signals, children, and the bytes between the console and the command.

use alloc::format;
use core::ffi::c_int;

use guest_init::chunk::Chunk;
use guest_init::config::Command;
use guest_init::marks::{Decoder, Event};
use guest_init::status::exit_code;
use libc::{POLLIN, POLLOUT};

use crate::sys::{self, Errno, Fd};
use crate::{Refused, child, console};

/// Passed on to the command's process group.
const FORWARDED: [c_int; 7] =
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// Bytes and breaks that the monitor sends for one request (docs/rootfs-contract.md).
const WINDOW_ITEMS: usize = 2048;
const CHUNK_BYTES: usize = 4096;

/// Runs `command` with the console as its terminal; returns its exit code.
pub fn terminal(command: &Command) -> Result<u8, Refused> {
    let signals = signals()?;
    let pid = child::start(command, &|| {
        let terminal = console::terminal()?;
        sys::take_terminal(&terminal)?;
        sys::set_stdio(terminal.number(), terminal.number(), terminal.number())
    })
    .map_err(|errno| format!("fork: {errno}"))?;
    loop {
        wait([(signals.number(), POLLIN)])?;
        if let Some(code) = take_signals(&signals, pid) {
            return Ok(code);
        }
    }
}

/// Runs `command` with pipes for stdin and output and copies between them and the console; returns its exit code.
pub fn bytes(command: &Command) -> Result<u8, Refused> {
    let signals = signals()?;
    let (relay, pid) = Relay::start(command)?;
    console::request(&relay.console);
    relay.run(&signals, pid)
}

/// The queue of all signals that PID 1 takes; they are blocked from now on.
pub fn signals() -> Result<Fd, Refused> {
    let mut all = [libc::SIGCHLD; FORWARDED.len() + 1];
    all[1..].copy_from_slice(&FORWARDED);
    Fd::signals(&all).map_err(|errno| format!("signals: {errno}"))
}

fn wait<const N: usize>(wanted: [(c_int, i16); N]) -> Result<[i16; N], Refused> {
    match sys::poll(wanted) {
        Err(Errno(libc::EINTR)) => Ok([0; N]),
        result => result.map_err(|errno| format!("poll: {errno}")),
    }
}

/// Handles the pending signals; the exit code when the command `pid` has ended.
fn take_signals(signals: &Fd, pid: c_int) -> Option<u8> {
    let mut code = None;
    while let Some(signal) = signals.next_signal() {
        if signal != libc::SIGCHLD {
            forward(pid, signal);
            continue;
        }
        // Orphans come to PID 1; they are reaped and forgotten.
        while let Some((ended, status)) = sys::reap() {
            if ended == pid {
                code = code.or(exit_code(status));
            }
        }
    }
    code
}

/// Passes a signal on to the command's process group, or to the process alone as long as it has not made one: between
/// fork and setsid. A command that is gone gets nothing.
fn forward(pid: c_int, signal: c_int) {
    match sys::kill(-pid, signal).or_else(|_| sys::kill(pid, signal)) {
        Ok(()) | Err(_) => {}
    }
}

struct Relay {
    console: Fd,
    /// The console's other end is gone: nothing comes and nothing can be said.
    hung_up: bool,
    decoder: Decoder,
    /// Bytes and breaks since the last request.
    received: usize,
    /// The command's stdin; `None` after its end.
    stdin: Option<Fd>,
    input: Chunk<CHUNK_BYTES>,
    input_ended: bool,
    /// What the command and its children write; `None` when none of them can any more.
    output_pipe: Option<Fd>,
    output: Chunk<CHUNK_BYTES>,
}

impl Relay {
    fn start(command: &Command) -> Result<(Relay, c_int), Refused> {
        let failed = |errno| format!("pipe: {errno}");
        let console = console::line()?;
        let (their_stdin, stdin) = Fd::pipe().map_err(failed)?;
        let (output_pipe, their_output) = Fd::pipe().map_err(failed)?;
        let attach = || sys::set_stdio(their_stdin.number(), their_output.number(), their_output.number());
        let pid = child::start(command, &attach).map_err(|errno| format!("fork: {errno}"))?;
        stdin.set_nonblocking().and_then(|()| output_pipe.set_nonblocking()).map_err(failed)?;
        let relay = Relay {
            console,
            hung_up: false,
            decoder: Decoder::default(),
            received: 0,
            stdin: Some(stdin),
            input: Chunk::new(),
            input_ended: false,
            output_pipe: Some(output_pipe),
            output: Chunk::new(),
        };
        Ok((relay, pid))
    }

    fn run(mut self, signals: &Fd, pid: c_int) -> Result<u8, Refused> {
        loop {
            let wants = |wanted: bool, events: i16| if wanted { events } else { 0 };
            let number = |fd: &Option<Fd>| fd.as_ref().map_or(-1, Fd::number);
            let console_events = wants(self.input.is_empty(), POLLIN) | wants(!self.output.is_empty(), POLLOUT);
            // With no event asked for, poll still tells that the reader of stdin is gone.
            let [signal, console, stdin, output] = wait([
                (signals.number(), POLLIN),
                (if self.hung_up { -1 } else { self.console.number() }, console_events),
                (number(&self.stdin), wants(!self.input.is_empty(), POLLOUT)),
                (if self.output.is_empty() { number(&self.output_pipe) } else { -1 }, POLLIN),
            ])?;
            if console & POLLIN != 0 {
                self.read_console();
            } else if console & (libc::POLLHUP | libc::POLLERR) != 0 {
                self.hung_up = true;
                self.input_ended = true;
            }
            if stdin & libc::POLLERR != 0 {
                self.close_stdin();
            } else if !self.input.is_empty() {
                self.feed_stdin();
            }
            if self.input.is_empty() && self.received >= WINDOW_ITEMS && self.stdin.is_some() {
                self.received = 0;
                console::request(&self.console);
            }
            if self.input_ended && self.input.is_empty() {
                self.stdin = None;
            }
            if output != 0 {
                self.read_output(CHUNK_BYTES);
            }
            if console & POLLOUT != 0 || output != 0 || self.hung_up {
                self.write_console();
            }
            if signal != 0
                && let Some(code) = take_signals(signals, pid)
            {
                self.finish()?;
                return Ok(code);
            }
        }
    }

    fn read_console(&mut self) {
        let mut buffer = [0; CHUNK_BYTES];
        let count = match self.console.read(&mut buffer) {
            Err(Errno(libc::EAGAIN | libc::EINTR)) => return,
            Ok(count @ 1..) => count,
            Ok(0) | Err(_) => {
                self.hung_up = true;
                self.input_ended = true;
                return;
            }
        };
        for &byte in &buffer[..count] {
            let Some(event) = self.decoder.push(byte) else { continue };
            self.received += 1;
            match event {
                // The chunk was empty and there is at most one byte out for each byte in: it always fits.
                Event::Byte(byte) if self.stdin.is_some() && !self.input_ended => {
                    let fits = self.input.push(byte);
                    debug_assert!(fits, "more bytes out than in");
                }
                Event::Break => self.input_ended = true,
                // A parity error means nothing on this line, and input after its end is nobody's.
                Event::Byte(_) | Event::Marked(_) => {}
            }
        }
    }

    fn feed_stdin(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        match stdin.write(self.input.pending()) {
            Ok(count) => self.input.consume(count),
            Err(Errno(libc::EAGAIN | libc::EINTR)) => {}
            Err(_) => self.close_stdin(),
        }
    }

    /// The command reads no more: what comes is dropped.
    fn close_stdin(&mut self) {
        self.input.clear();
        self.stdin = None;
    }

    fn read_output(&mut self, limit: usize) {
        let Some(pipe) = &self.output_pipe else { return };
        match self.output.refill(limit, |space| pipe.read(space)) {
            Ok(1..) | Err(Errno(libc::EAGAIN | libc::EINTR)) => {}
            Ok(0) | Err(_) => self.output_pipe = None,
        }
    }

    fn write_console(&mut self) {
        match self.console.write(self.output.pending()) {
            Ok(count) => self.output.consume(count),
            Err(Errno(libc::EAGAIN | libc::EINTR)) => {}
            // A console that cannot be written to is no reason to stop the command.
            Err(_) => self.output.clear(),
        }
    }

    /// Writes out what the command left in its pipe. Processes in its background may hold the pipe open and write
    /// on: what comes after the end of the command is theirs and is lost, as on a host whose machine stops.
    fn finish(&mut self) -> Result<(), Refused> {
        let mut left = self.output_pipe.as_ref().map_or(0, Fd::held_bytes);
        loop {
            while !self.output.is_empty() && !self.hung_up {
                wait([(self.console.number(), POLLOUT)])?;
                self.write_console();
            }
            if left == 0 || self.output_pipe.is_none() {
                return Ok(());
            }
            self.read_output(left);
            left = left.saturating_sub(self.output.pending().len());
        }
    }
}

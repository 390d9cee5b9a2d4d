//! The loop between a command in a guest and the standard streams, signals and terminal of this process.
//!
//! One thread, poll(2), nothing that waits: a reader that stops holds up its own stream only, and a signal always passes.

use std::any::Any;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use machinen_abi::body::{Credit, Exit, Reason, Signal as GuestSignal, Started, Stream};
use machinen_abi::frame::{Kind, MOST_PAYLOAD_BYTES};
use machinen_abi::window::Allowance;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, kill_process, pidfd_send_signal};
use signal_hook::consts::{SIGCONT, SIGINT, SIGTERM, SIGTSTP, SIGWINCH};

use super::channel::Channel;
pub use super::output::Out;
use super::output::Output;
pub use super::over::{Done, Over};
use super::signals::{FORWARDED, Signals};
use super::terminal::{self, Raw};
use super::wire::{Frame, Wire, protocol};
use super::{Refusal, add_mark, wire};
use crate::error::{Error, Result};

/// Ctrl-]: twice, it leaves a command alone.
const LEAVE: u8 = 0x1d;

/// What happens in the guest when SIGTSTP stops this process.
#[derive(Debug, Default)]
pub enum Pause {
    /// Nothing: the command is another's.
    #[default]
    Nothing,
    /// The command gets the signal, and SIGCONT later.
    Command,
    /// The whole machine stands still: its monitor's pidfd.
    Machine(OwnedFd),
}

/// A command's streams, connected.
#[derive(Debug)]
pub struct Relay {
    wire: Wire,
    input: Option<Channel>,
    allowance: Allowance,
    outputs: [Output; 2],
    signals: Option<Signals>,
    raw: Option<Raw>,
    limit: Option<Instant>,
    pause: Pause,
    /// Ctrl-] Ctrl-] leaves; whether the first was typed.
    leave: Option<bool>,
    asked_to_end: Option<i32>,
    until_started: bool,
    /// Stops at the mark of this name.
    until_mark: Option<&'static str>,
    /// The command has started.
    started: bool,
    /// It has written to its output.
    printed: bool,
    /// Points of time, in ns since 1970.
    marks: Vec<(u64, String)>,
    chunk: Vec<u8>,
    /// Came before this began.
    first: Option<Frame>,
    /// Has to be there until the command has started.
    held: Option<Box<dyn Any>>,
}

impl Relay {
    /// Connects a stream on which `open` was sent.
    pub fn new(wire: Wire, input: Option<Channel>, output: Out, error: Out) -> Relay {
        let outputs = [Output::new(Stream::Output, output), Output::new(Stream::Error, error)];
        Relay {
            wire,
            input,
            allowance: Allowance::default(),
            outputs,
            signals: None,
            raw: None,
            limit: None,
            pause: Pause::Nothing,
            leave: None,
            asked_to_end: None,
            until_started: false,
            until_mark: None,
            started: false,
            printed: false,
            marks: Vec::new(),
            chunk: vec![0; MOST_PAYLOAD_BYTES],
            first: None,
            held: None,
        }
    }

    /// Passes signals on; `pause` says what SIGTSTP does.
    pub fn signals(mut self, signals: Signals, pause: Pause) -> Relay {
        self.signals = Some(signals);
        self.pause = pause;
        self
    }

    /// Holds something until the command has started.
    pub(crate) fn hold(mut self, held: Option<Box<dyn Any>>) -> Relay {
        self.held = held;
        self
    }

    /// Ends at this time.
    pub fn limit(mut self, limit: Option<Instant>) -> Relay {
        self.limit = limit;
        self
    }

    /// The command has a terminal, which is the user's: given back at the end.
    pub fn terminal(mut self, raw: Raw) -> Relay {
        self.raw = Some(raw);
        self
    }

    /// Ctrl-] Ctrl-] leaves the command alone.
    pub fn can_leave(mut self) -> Relay {
        self.leave = Some(false);
        self
    }

    /// Ends when the command has started.
    pub fn until_started(mut self) -> Relay {
        self.until_started = true;
        self
    }

    /// This frame has come already.
    pub fn begin_with(&mut self, first: Frame) {
        self.first = Some(first);
    }

    /// Runs to the end; gives that, marks with their times in ns since 1970, and what was kept of output and error.
    ///
    /// # Errors
    /// `EXEC_PROTOCOL`; `RUN_OUTPUT` when output cannot be written, `RUN_INPUT` when input cannot be read.
    pub fn run(self) -> Result<Done> {
        self.run_holding().map(|(done, _)| done)
    }

    /// The same; the stream stays open as long as what is also returned.
    pub(crate) fn run_holding(mut self) -> Result<(Done, Wire)> {
        let over = self.go()?;
        if matches!(over, Over::Exit(_) | Over::Refused(_) | Over::Lost) {
            self.drain()?;
        }
        let [output, error] = self.outputs.map(|output| match output.out {
            Out::Keep(kept) | Out::Last(kept) => kept,
            _ => Vec::new(),
        });
        Ok((Done { over, marks: self.marks, output, error }, self.wire))
    }

    /// Runs until the mark of this name has come, or to the end; gives which, and what has come up to there.
    pub(crate) fn run_until(&mut self, mark: &'static str) -> Result<Done> {
        self.until_mark = Some(mark);
        let over = self.go()?;
        let [output, error] = self.outputs.each_mut().map(|output| match &mut output.out {
            Out::Keep(kept) | Out::Last(kept) => std::mem::take(kept),
            _ => Vec::new(),
        });
        Ok(Done { over, marks: std::mem::take(&mut self.marks), output, error })
    }

    /// Gives the operation a byte of input, or says that there is none.
    pub(crate) fn answer(&mut self, byte: Option<u8>) {
        match byte {
            Some(byte) if self.allowance.spend(1) => self.wire.send(Kind::Input, &[byte]),
            _ => self.wire.send(Kind::InputEnd, &[]),
        }
    }

    fn go(&mut self) -> Result<Over> {
        if let Some((kind, payload)) = self.first.take()
            && let Some(over) = self.frame(kind, payload)?
        {
            return Ok(over);
        }
        loop {
            while let Some((kind, payload)) = self.wire.next_frame()? {
                if let Some(over) = self.frame(kind, payload)? {
                    return Ok(over);
                }
            }
            if self.wire.is_over() {
                return Ok(Over::Lost);
            }
            self.wire.flush();
            let Some(ready) = self.wait()? else { return Ok(Over::Limit) };
            if ready.signals
                && let Some(over) = self.take_signals()?
            {
                return Ok(over);
            }
            for at in 0..self.outputs.len() {
                if ready.outputs[at] && !self.pump(at)? {
                    return Ok(Over::OutputClosed);
                }
            }
            if ready.input
                && let Some(over) = self.take_input()?
            {
                return Ok(over);
            }
            if ready.wire {
                self.wire.fill();
            }
        }
    }

    /// One frame of the agent's; an end where it is one.
    fn frame(&mut self, kind: Kind, payload: Vec<u8>) -> Result<Option<Over>> {
        let malformed = || protocol("a payload that makes no sense");
        match kind {
            Kind::Output | Kind::Error => {
                let at = usize::from(kind == Kind::Error);
                if !self.outputs[at].receipt.take(payload.len()) {
                    return Err(protocol("more output than it may send"));
                }
                if at == 0 && !payload.is_empty() && !std::mem::replace(&mut self.printed, true) {
                    self.mark("first output byte");
                }
                self.outputs[at].pending.extend_from_slice(&payload);
                if !self.pump(at)? {
                    return Ok(Some(Over::OutputClosed));
                }
            }
            Kind::Credit => {
                let credit = Credit::parse(&payload).ok_or_else(malformed)?;
                if credit.stream != Stream::Input || !self.allowance.grant(credit.bytes) {
                    return Err(protocol("credit that nobody asked for"));
                }
            }
            Kind::Started => {
                Started::parse(&payload).ok_or_else(malformed)?;
                if std::mem::replace(&mut self.started, true) {
                    return Err(protocol("a second start"));
                }
                self.mark("command started");
                self.held = None;
                if self.until_started {
                    return Ok(Some(Over::Started));
                }
            }
            Kind::Mark => {
                add_mark(&mut self.marks, &payload)?;
                if self.until_mark.is_some() && self.marks.last().map(|(_, name)| &**name) == self.until_mark {
                    self.until_mark = None;
                    return Ok(Some(Over::Marked));
                }
            }
            Kind::Exit => return Exit::parse(&payload).map(|exit| Some(Over::Exit(exit))).ok_or_else(malformed),
            Kind::Failed => {
                let refusal = Refusal::parse(&payload)?;
                return Ok(Some(match self.asked_to_end {
                    // What was at work before there was a command: the signal has ended it.
                    Some(signal) if !self.started && refusal.reason == Reason::System => Over::Signal(signal),
                    _ => Over::Refused(refusal),
                }));
            }
            Kind::OutputEnd | Kind::ErrorEnd => {
                let at = usize::from(kind == Kind::ErrorEnd);
                self.outputs[at].ended = true;
                self.outputs[at].close();
            }
            Kind::Ready | Kind::Open | Kind::Input | Kind::InputEnd | Kind::Signal | Kind::Resize => {
                return Err(protocol("a frame that has no place here"));
            }
        }
        Ok(None)
    }

    fn mark(&mut self, name: &str) {
        self.marks.push((now_ns(), name.to_owned()));
    }

    /// Hands output on. `false`: its reader is gone.
    fn pump(&mut self, at: usize) -> Result<bool> {
        let output = &mut self.outputs[at];
        match output.pump() {
            Ok(count) => {
                if let Some(credit) = output.receipt.consume(count) {
                    self.wire.credit(output.stream, credit);
                }
                Ok(true)
            }
            Err(error) if output.out.is_gone(&error) => Ok(false),
            Err(error) => Err(Error::host("RUN_OUTPUT", "write the command's output", error)),
        }
    }

    /// Waits for something. `None`: the time is over.
    fn wait(&self) -> Result<Option<Ready>> {
        // Where a byte may be held back there has to be room for two.
        let least = usize::from(self.leave.is_some());
        let wants_input = self.allowance.left() > least && self.wire.waiting_bytes() < MOST_PAYLOAD_BYTES;
        let input = self.input.as_ref().filter(|input| wants_input && input.is_ours());
        let mut fds = vec![PollFd::from_borrowed_fd(self.wire.as_fd(), self.wire.wanted())];
        let signals = add(&mut fds, self.signals.as_ref().map(AsFd::as_fd), PollFlags::IN);
        let input = add(&mut fds, input.map(AsFd::as_fd), PollFlags::IN);
        let outputs = self.outputs.each_ref().map(|output| match &output.out {
            Out::To(channel) if output.is_waiting() => add(&mut fds, Some(channel.as_fd()), PollFlags::OUT),
            _ => None,
        });
        let left = self.limit.map(|limit| limit.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(None);
        }
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(wire::lost(error.into())),
        }
        let is_ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        Ok(Some(Ready {
            wire: is_ready(Some(0)),
            signals: is_ready(signals),
            input: is_ready(input),
            outputs: outputs.map(is_ready),
        }))
    }

    fn take_input(&mut self) -> Result<Option<Over>> {
        let Some(input) = &mut self.input else { return Ok(None) };
        let most = self.allowance.left().min(self.chunk.len());
        // One more byte may have been held back.
        let room = if self.leave.is_some() { most.saturating_sub(1) } else { most };
        let count = match input.read(&mut self.chunk[..room]) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(None),
            // A terminal that has gone.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => 0,
            Err(error) => return Err(Error::host("RUN_INPUT", "read the command's input", error)),
        };
        if count == 0 {
            self.input = None;
            self.wire.send(Kind::InputEnd, &[]);
            return Ok(None);
        }
        let mut bytes = self.chunk[..count].to_vec();
        if let Some(half) = self.leave {
            match scan(&mut bytes, half) {
                Some(half) => self.leave = Some(half),
                None => return Ok(Some(Over::Left)),
            }
        }
        if self.allowance.spend(bytes.len()) {
            self.wire.send(Kind::Input, &bytes);
        }
        Ok(None)
    }

    fn take_signals(&mut self) -> Result<Option<Over>> {
        let pending = self.signals.as_mut().map(Signals::pending).unwrap_or_default();
        for signal in pending {
            match signal {
                SIGTSTP => self.stop()?,
                SIGCONT => {
                    if let Some(raw) = self.raw.as_ref().filter(|_| terminal::in_foreground(std::io::stdin())) {
                        raw.again()?;
                    }
                    self.resize();
                }
                SIGWINCH => self.resize(),
                SIGINT | SIGTERM if self.asked_to_end.is_some() => return Ok(Some(Over::Signal(signal))),
                signal if FORWARDED.contains(&signal) => {
                    if matches!(signal, SIGINT | SIGTERM) {
                        self.asked_to_end = Some(signal);
                    }
                    self.send_signal(signal);
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn send_signal(&mut self, signal: i32) {
        if let Ok(number) = u32::try_from(signal) {
            self.wire.send(Kind::Signal, &GuestSignal(number).to_bytes());
        }
    }

    /// Tells the size of the user's terminal, where the command has one.
    pub fn resize(&mut self) {
        if self.raw.is_some() {
            self.wire.send(Kind::Resize, &terminal::size(std::io::stdin()).to_bytes());
        }
    }

    /// Stops what is to be stopped and then this process; comes back when it is continued.
    fn stop(&mut self) -> Result<()> {
        if let Some(raw) = &self.raw {
            raw.leave();
        }
        match &self.pause {
            Pause::Nothing => {}
            Pause::Command => self.send_signal(SIGTSTP),
            // It may have ended, which the stream will tell.
            Pause::Machine(monitor) => drop(pidfd_send_signal(monitor, Signal::STOP)),
        }
        self.wire.flush();
        // By SIGSTOP: SIGTSTP would go on where no shell watches (an orphaned process group).
        let _ = kill_process(getpid(), Signal::STOP);
        match &self.pause {
            Pause::Nothing => {}
            Pause::Command => self.send_signal(SIGCONT),
            Pause::Machine(monitor) => drop(pidfd_send_signal(monitor, Signal::CONT)),
        }
        Ok(())
    }

    /// Gives the readers what is left.
    fn drain(&mut self) -> Result<()> {
        for at in 0..self.outputs.len() {
            while self.outputs[at].is_waiting() && self.pump(at)? {
                let Out::To(channel) = &self.outputs[at].out else { continue };
                let mut fds = vec![PollFd::new(channel, PollFlags::OUT)];
                if let Some(signals) = &self.signals {
                    fds.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
                }
                if poll(&mut fds, None).is_err() || fds.get(1).is_none_or(|fd| fd.revents().is_empty()) {
                    continue;
                }
                let pending = self.signals.as_mut().map(Signals::pending).unwrap_or_default();
                if pending.iter().any(|signal| matches!(*signal, SIGINT | SIGTERM)) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// What is ready.
#[derive(Clone, Copy, Debug)]
struct Ready {
    wire: bool,
    signals: bool,
    input: bool,
    outputs: [bool; 2],
}

/// Adds a descriptor to those to wait for; where it is among them.
fn add<'a>(fds: &mut Vec<PollFd<'a>>, fd: Option<BorrowedFd<'a>>, flags: PollFlags) -> Option<usize> {
    fds.push(PollFd::from_borrowed_fd(fd?, flags));
    Some(fds.len() - 1)
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Looks for Ctrl-] Ctrl-] in `bytes`; `half`: the first was the last byte before, and held back. `None`: there it is.
/// Otherwise whether the last byte is held back now.
fn scan(bytes: &mut Vec<u8>, half: bool) -> Option<bool> {
    if half {
        bytes.insert(0, LEAVE);
    }
    if bytes.windows(2).any(|pair| pair == [LEAVE, LEAVE]) {
        return None;
    }
    let held = bytes.last() == Some(&LEAVE);
    if held {
        bytes.pop();
    }
    Some(held)
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;

//! The client of a machine's agent: `docs/wire-protocol.md`.
//!
//! - [`oneshot`]: an operation of which only the end matters.
//! - [`wire`]: frames over a stream.
//! - [`request`]: what a stream is for.
//! - [`relay`]: the loop between a command in the guest and this process's standard streams.
//! - [`transfer`]: files as the input or output of an operation.
//! - [`oneshot`]: an operation without data.
//! - [`channel`], [`signals`], [`terminal`]: standard streams, signals and the terminal of this process.

pub mod channel;
pub mod oneshot;
mod output;
pub mod relay;
pub mod request;
pub mod signals;
pub mod terminal;
pub mod transfer;
pub mod wire;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use machinen_abi::body::{Failure, Reason};
use rustix::fs::{Mode, OFlags, open};

use self::request::Request;
use self::wire::{Frame, Wire};
use crate::error::{Error, Result};

/// The socket of a machine's directory that leads to its agent.
pub const AGENT_SOCKET: &str = "agent.sock";
/// The one to which the guest comes for its main command.
pub const MAIN_SOCKET: &str = "main.sock";

/// How long an agent that does not answer yet is waited for: the machine may be starting.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks the agent of the machine in `dir`; gives the stream and its first frame.
///
/// # Errors
/// `EXEC_VSOCK_UNAVAILABLE` when nothing answers (the machine has ended, or its agent does not come up), `EXEC_PROTOCOL`,
/// `EXEC_TOO_LONG` for a request that no frame holds.
pub fn ask(dir: &Path, request: &Request) -> Result<(Wire, Frame)> {
    let payload = request.to_payload()?;
    let limit = Instant::now() + PATIENCE;
    loop {
        let mut wire = Wire::new(connect(dir)?)?;
        wire.send(machinen_abi::frame::Kind::Open, &payload);
        if let Some(first) = wire.receive(Some(limit))? {
            return Ok((wire, first));
        }
        // Where nobody listens in the guest the stream ends at once: whoever is early tries again.
        if Instant::now() >= limit {
            let cause = io::Error::from(io::ErrorKind::TimedOut);
            return Err(wire::lost(cause).hint("machinen logs NAME shows what its guest did").retry());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Connects to the agent of the machine in `dir`, whose path may be of any length.
fn connect(dir: &Path) -> Result<UnixStream> {
    let place = directory(dir).map_err(wire::lost)?;
    let path = format!("/proc/self/fd/{}/{AGENT_SOCKET}", place.as_raw_fd());
    UnixStream::connect(path).map_err(|cause| wire::lost(cause).hint("machinen ls shows which machines live"))
}

/// Listens at `name` in `dir`, whose path may be of any length.
///
/// # Errors
/// Those of bind(2).
pub fn listen(dir: &Path, name: &str) -> io::Result<UnixListener> {
    let place = directory(dir)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{name}", place.as_raw_fd()))
}

fn directory(dir: &Path) -> io::Result<std::os::fd::OwnedFd> {
    Ok(open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Why an operation did not happen, as the agent said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The sort of failure.
    pub reason: Reason,
    /// The guest's error number, 0 without one.
    pub errno: u32,
    /// One line.
    pub message: String,
}

impl Refusal {
    /// From the payload of a `failed` frame.
    ///
    /// # Errors
    /// `EXEC_PROTOCOL`.
    pub fn parse(payload: &[u8]) -> Result<Refusal> {
        let Failure { reason, errno, message } =
            Failure::parse(payload).ok_or_else(|| wire::protocol("a failure that is too short"))?;
        // It is printed: nothing in it may steer a terminal.
        let message = message.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        Ok(Refusal { reason, errno, message })
    }

    /// What a shell would end with: 127 not found, 126 cannot be executed, otherwise 125.
    pub fn status(&self) -> u8 {
        match self.reason {
            Reason::NotFound => 127,
            Reason::CannotExecute => 126,
            _ => 125,
        }
    }

    /// As an error.
    pub fn error(&self) -> Error {
        let Refusal { reason, errno, message } = self;
        let code = match reason {
            Reason::NotFound => "EXEC_NOT_FOUND",
            Reason::CannotExecute => "EXEC_CANNOT_EXECUTE",
            Reason::Version => "EXEC_VERSION",
            Reason::Protocol => "EXEC_PROTOCOL",
            Reason::Unsupported => "EXEC_UNSUPPORTED",
            Reason::Invalid => "EXEC_INVALID",
            Reason::System => "EXEC_SYSTEM",
            Reason::Busy => "EXEC_BUSY",
            Reason::Escape => "COPY_ESCAPE",
            Reason::NoCommand => "EXEC_NO_COMMAND",
        };
        let error = Error::new(code, message.clone());
        match reason {
            Reason::Version => error.hint(format!(
                "the machine's agent has version {errno} of the protocol, this tool {}: start the machine anew",
                machinen_abi::VERSION
            )),
            Reason::NoCommand => error.hint("give a command after --"),
            Reason::Busy => error.retry(),
            _ => error,
        }
    }
}

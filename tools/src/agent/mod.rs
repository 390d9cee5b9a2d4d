//! The client of a machine's agent: `docs/wire-protocol.md`.
//!
//! - [`wire`]: frames over a stream.
//! - [`request`]: what a stream is for.
//! - [`relay`]: the loop between a command in the guest and this process's standard streams.
//! - [`transfer`]: files as the input or output of an operation.
//! - [`channel`], [`signals`], [`terminal`]: standard streams, signals and the terminal of this process.

pub mod channel;
mod output;
mod over;
pub mod relay;
pub mod request;
pub mod signals;
pub mod terminal;
pub mod transfer;
pub mod wire;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use machinen_abi::body::{Exit, Failure, Mark, Reason};
use machinen_abi::frame::Kind;
use machinen_abi::open::Operation;

use self::request::Request;
use self::transfer::Transfer;
use self::wire::{Frame, Wire};
use crate::error::{Error, Result};
use crate::registry::ShortPath;

/// The socket of a machine's directory that leads to its agent.
pub const AGENT_SOCKET: &str = "agent.sock";
/// The one to which the guest comes for its main command.
pub const MAIN_SOCKET: &str = "main.sock";

/// How long an agent that does not answer yet is waited for: the machine may be starting.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most points of its start that a guest may name: it has about a dozen.
const MOST_MARKS: usize = 256;
/// Most bytes of such a name.
const MOST_MARK_BYTES: usize = 256;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks the agent of the machine in `dir`, and waits until `limit` or [`PATIENCE`] is over; gives the stream and its first frame.
///
/// # Errors
/// `EXEC_VSOCK_UNAVAILABLE` when nothing answers (the machine has ended, or its agent does not come up), `EXEC_PROTOCOL`,
/// `EXEC_TOO_LONG` for a request that no frame holds.
pub fn ask(dir: &Path, request: &Request, limit: Option<Instant>) -> Result<(Wire, Frame)> {
    let payload = request.to_payload()?;
    let patience = Instant::now() + PATIENCE;
    let limit = limit.map_or(patience, |limit| limit.min(patience));
    loop {
        let mut wire = Wire::new(connect(dir)?)?;
        wire.send(Kind::Open, &payload);
        if let Some(first) = wire.receive(Some(limit))? {
            return Ok((wire, first));
        }
        // Where nobody listens in the guest the stream ends at once: whoever is early tries again.
        if Instant::now() >= limit {
            return Err(silent());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Has the guest write out what its file systems hold, and waits until then or until `limit`.
///
/// # Errors
/// As [`ask`], and as the agent refuses it.
pub fn sync(dir: &Path, limit: Option<Instant>) -> Result<()> {
    let (wire, first) = ask(dir, &Request::new(Operation::Sync), limit)?;
    Transfer::new(wire, first).limit(limit).finish()
}

/// Has the guest end its main command and then itself, and waits for its answer until `limit`, whatever else it says.
/// `false`: it hung up without one, as it does when it has just gone.
///
/// # Errors
/// As [`ask`], and as the agent refuses it.
pub fn power_off(dir: &Path, limit: Instant) -> Result<bool> {
    let mut wire = Wire::new(connect(dir)?)?;
    wire.send(Kind::Open, &Request::new(Operation::PowerOff).to_payload()?);
    loop {
        match wire.receive(Some(limit))? {
            Some((Kind::Exit, payload)) => {
                return Exit::parse(&payload).map(|_| true).ok_or_else(|| wire::protocol("an end that makes no sense"));
            }
            Some((Kind::Failed, payload)) => return Err(Refusal::parse(&payload)?.error()),
            Some(_) if Instant::now() < limit => {}
            None if wire.is_over() => return Ok(false),
            _ => return Err(silent()),
        }
    }
}

fn silent() -> Error {
    let cause = io::Error::from(io::ErrorKind::TimedOut);
    wire::lost(cause).hint("machinen logs NAME shows what its guest did").retry()
}

/// Adds a point of the guest's start, in ns since 1970, to `marks`.
///
/// # Errors
/// `EXEC_PROTOCOL` for what is none, and for more of them than a start has.
pub fn add_mark(marks: &mut Vec<(u64, String)>, payload: &[u8]) -> Result<()> {
    let mark = Mark::parse(payload).filter(|mark| mark.name.len() <= MOST_MARK_BYTES && marks.len() < MOST_MARKS);
    let mark = mark.ok_or_else(|| wire::protocol("a mark that makes no sense"))?;
    marks.push((mark.time_ns, printable(mark.name)));
    Ok(())
}

/// What a guest says, for a terminal that it shall not steer.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Connects to the agent of the machine in `dir`, whose path may be of any length.
fn connect(dir: &Path) -> Result<UnixStream> {
    let connected = ShortPath::new(dir, AGENT_SOCKET).and_then(UnixStream::connect);
    connected.map_err(|cause| wire::lost(cause).hint("machinen ls shows which machines live"))
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
        Ok(Refusal { reason, errno, message: printable(message) })
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
            Reason::Dumped => "SNAPSHOT_TAKEN",
        };
        let error = Error::new(code, message.clone());
        match reason {
            Reason::Version => error.hint(format!(
                "the machine's agent has version {errno} of the protocol, this tool {}: start the machine anew",
                machinen_abi::VERSION
            )),
            Reason::NoCommand => error.hint("give a command after --"),
            Reason::CannotExecute if i32::try_from(*errno) == Ok(rustix::io::Errno::NOEXEC.raw_os_error()) => error
                .hint(format!("the image may be of another architecture than this one, {}", std::env::consts::ARCH)),
            Reason::Dumped => error.hint("machinen-restore starts it again from the snapshot"),
            Reason::Busy => error.retry(),
            _ => error,
        }
    }
}

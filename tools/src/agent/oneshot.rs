//! An operation of the guest agent that has no data: asked for, waited for.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use machinen_abi::body::{Exit, Failure};
use machinen_abi::frame::{HEADER_BYTES, Header, Kind};
use machinen_abi::open::{Operation, begin};

use crate::error::{Error, Result};

/// Asks the agent behind the socket for `operation`, and waits for its end, `limit` at most for each answer.
///
/// `None`: the machine went away before it answered, as it does when it is switched off.
///
/// # Errors
/// `AGENT_UNAVAILABLE`: nobody is there, or answers; `AGENT_REFUSED`: it says why; `AGENT_PROTOCOL`.
pub fn ask(socket: impl AsRef<Path>, operation: Operation, limit: Duration) -> Result<Option<Exit>> {
    let deadline = Instant::now() + limit;
    let mut stream = send(socket.as_ref(), operation, limit)
        .map_err(|cause| Error::host("AGENT_UNAVAILABLE", "ask the guest agent", cause))?;
    loop {
        // A limit of 0 would be none.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let frame = stream.set_read_timeout(Some(left)).and_then(|()| receive(&mut stream));
        let (kind, payload) = match frame {
            Ok(Ok(frame)) => frame,
            Ok(Err(malformed)) => {
                return Err(Error::new("AGENT_PROTOCOL", format!("the guest agent's answer: {malformed}")));
            }
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            Err(error) => return Err(Error::host("AGENT_UNAVAILABLE", "wait for the guest agent", error)),
        };
        match kind {
            Kind::Exit => return Ok(Exit::parse(&payload)),
            Kind::Failed => {
                let why = Failure::parse(&payload).map_or("no reason", |failure| failure.message);
                return Err(Error::new("AGENT_REFUSED", format!("the guest agent refused: {}", why.escape_debug())));
            }
            _ => {}
        }
    }
}

fn send(socket: &Path, operation: Operation, limit: Duration) -> io::Result<UnixStream> {
    let mut payload = Vec::new();
    begin(machinen_abi::VERSION, operation, &mut payload);
    let header = Header::new(Kind::Open, payload.len()).ok_or(ErrorKind::InvalidInput)?;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(limit.max(Duration::from_millis(1))))?;
    stream.write_all(&[&header.to_bytes(), payload.as_slice()].concat())?;
    Ok(stream)
}

/// A frame, or why it is none.
fn receive(
    stream: &mut UnixStream,
) -> io::Result<std::result::Result<(Kind, Vec<u8>), machinen_abi::frame::Malformed>> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let header = match Header::from_bytes(header) {
        Ok(header) => header,
        Err(malformed) => return Ok(Err(malformed)),
    };
    let mut payload = vec![0; usize::try_from(header.length).unwrap_or(usize::MAX)];
    stream.read_exact(&mut payload)?;
    Ok(Ok((header.kind, payload)))
}

//! An operation of the guest agent that has no data: asked for, waited for.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use machinen_abi::body::{Exit, Failure};
use machinen_abi::frame::{HEADER_BYTES, Header, Kind, Malformed};
use machinen_abi::open::{Operation, begin};

use crate::error::{Error, Result};

/// Asks the agent behind the socket for `operation`, and waits for its end, `limit` at most whatever it sends.
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
        let (kind, payload) = match receive(&mut stream, deadline) {
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
fn receive(stream: &mut UnixStream, deadline: Instant) -> io::Result<std::result::Result<(Kind, Vec<u8>), Malformed>> {
    let mut header = [0; HEADER_BYTES];
    read_exact(stream, &mut header, deadline)?;
    let header = match Header::from_bytes(header) {
        Ok(header) => header,
        Err(malformed) => return Ok(Err(malformed)),
    };
    let mut payload = vec![0; usize::try_from(header.length).unwrap_or(usize::MAX)];
    read_exact(stream, &mut payload, deadline)?;
    Ok(Ok((header.kind, payload)))
}

/// Fills the buffer. Fails with `TimedOut` when that takes longer than to the deadline, however the bytes come.
fn read_exact(stream: &mut UnixStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, "it did not answer in time"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => buffer = buffer.get_mut(length..).unwrap_or_default(),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

//! The client of a monitor's control socket.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::error::{Error, Result};
use crate::registry::ShortPath;
use crate::vm::start::CTL_SOCKET;

/// A monitor answers between two looks at its guest, but it may have gigabytes to copy.
const PATIENCE: Duration = Duration::from_mins(10);
/// What the monitor says while the guest has a share mounted.
pub const SHARE_BUSY: &str = "CTL_SHARE_BUSY";
/// No answer is longer.
const MOST_BYTES: u64 = 4096;

/// Asks the monitor of the machine in `dir` for something, with a descriptor where it needs one, and waits until `limit` at most.
///
/// # Errors
/// `CTL_UNAVAILABLE` when nothing answers; [`SHARE_BUSY`] while the guest has the share mounted, `CTL_REFUSED` otherwise, as the
/// monitor says it.
pub fn ask(dir: &Path, request: &str, descriptor: Option<BorrowedFd<'_>>, limit: Option<Instant>) -> Result<()> {
    let left = limit.map_or(PATIENCE, |limit| limit.saturating_duration_since(Instant::now()).min(PATIENCE));
    let answer = exchange(dir, request, descriptor, left).map_err(|cause| {
        Error::host("CTL_UNAVAILABLE", format!("ask the monitor in {} for: {request}", dir.display()), cause)
            .hint("machinen ls shows which machines live; one that was started by an older machinen cannot be asked")
    })?;
    match answer.trim_end() {
        "ok" => Ok(()),
        answer => {
            let why = answer.strip_prefix("error ").unwrap_or("no answer");
            let message = format!("ask the monitor for: {request}: {why}");
            match why.split(' ').next() {
                Some(SHARE_BUSY) => Err(Error::new(SHARE_BUSY, message).retry()),
                _ => Err(Error::new("CTL_REFUSED", message)),
            }
        }
    }
}

fn exchange(dir: &Path, request: &str, descriptor: Option<BorrowedFd<'_>>, patience: Duration) -> io::Result<String> {
    let mut stream = ShortPath::new(dir, CTL_SOCKET).and_then(UnixStream::connect)?;
    // None at all would be one without end.
    stream.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
    let line = format!("{request}\n");
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptors) = &descriptors {
        rights.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    // A line fits into the buffer of a socket that nobody has written to.
    let sent = sendmsg(stream.as_fd(), &[IoSlice::new(line.as_bytes())], &mut rights, SendFlags::NOSIGNAL)?;
    if sent != line.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut answer = String::new();
    (&mut stream).take(MOST_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}

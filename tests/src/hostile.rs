//! A guest that the test speaks for, at the sockets of a machine without one.

#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;

use machinen_abi::body::{Exit, Failure, Mark, Reason};
use machinen_abi::frame::{HEADER_BYTES, Header, Kind};

use crate::machines::{Machine, Machines};
use crate::{Finished, Run, bin};

/// Address space of a tool in KiB, beside what it needs anyway: one that keeps what a guest sends comes to its end.
pub const ROOM_KIB: u32 = 64 << 10;

/// A frame as on the wire.
///
/// # Panics
/// When it is too long.
#[must_use]
pub fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&Header::new(kind, payload.len()).unwrap().to_bytes(), payload].concat()
}

/// A point of a guest's start.
#[must_use]
pub fn mark(name: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    Mark { time_ns: 1, name }.write(&mut payload);
    frame(Kind::Mark, &payload)
}

/// An agent's refusal.
#[must_use]
pub fn failed(reason: Reason, errno: u32, message: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    Failure { reason, errno, message }.write(&mut payload);
    frame(Kind::Failed, &payload)
}

/// The end of a command.
#[must_use]
pub fn exit(code: u8) -> Vec<u8> {
    frame(Kind::Exit, &Exit::Code(code).to_bytes())
}

/// A command's start.
#[must_use]
pub fn started() -> Vec<u8> {
    frame(Kind::Started, &[1, 0, 0, 0])
}

/// Reads a whole frame.
///
/// # Panics
/// When none comes.
#[must_use]
pub fn receive(stream: &mut UnixStream) -> (Kind, Vec<u8>) {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).unwrap();
    let header = Header::from_bytes(header).unwrap();
    let mut payload = vec![0; usize::try_from(header.length).unwrap()];
    stream.read_exact(&mut payload).unwrap();
    (header.kind, payload)
}

/// Says it all, or as much as the tool takes; `true` when that is all.
pub fn say(stream: &mut UnixStream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).is_ok()
}

/// Runs a tool of this registry with room for what it needs, and no more.
///
/// # Panics
/// When it does not end.
#[must_use]
pub fn confined(machines: &Machines, name: &str, args: &[&str]) -> Finished {
    let script = format!("ulimit -v {ROOM_KIB} && exec \"$0\" \"$@\"");
    let run = Run::new("sh").args(["-c", &script]).arg(bin(name)).args(args);
    run.env("MACHINEN_REGISTRY_DIR", machines.registry.path()).stdin("input").finish()
}

/// A machine, `web`, whose agent plays this on every stream, after `open`.
///
/// # Panics
/// When there can be none.
#[must_use]
pub fn serve(machines: &Machines, play: impl Fn(&mut UnixStream) + Send + Sync + 'static) -> Machine {
    let play = Arc::new(play);
    machines.start(Some("web"), |claim, _| {
        let listener = UnixListener::bind(claim.socket("agent.sock").expect("a directory")).expect("a socket");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, play) = (stream.expect("a stream"), Arc::clone(&play));
                thread::spawn(move || {
                    assert_eq!(receive(&mut stream).0, Kind::Open);
                    play(&mut stream);
                });
            }
        });
    })
}

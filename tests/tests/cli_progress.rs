//! Progress is for a person at a terminal, and for nobody else.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use machinen_tests::monitor::Scratch;
use machinen_tests::pty::Pty;
use machinen_tests::session::Session;
use machinen_tests::{Run, bin};

/// Long enough for a sign of life between two of its pieces.
const BYTES: u64 = 768 << 20;

/// A tar of one file, which takes no room.
fn archive(path: &Path) {
    let mut header = tar::Header::new_ustar();
    header.set_path("large").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(BYTES);
    header.set_cksum();
    let mut file = File::create(path).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(512 + BYTES + 1024).unwrap();
}

#[test]
fn a_terminal_sees_how_far_it_is_and_a_pipe_sees_nothing() {
    let scratch = Scratch::new("progress");
    archive(&scratch.file("a.tar"));
    let pty = Pty::open().unwrap();
    let mut command = Command::new(bin("machinen-rootfs-img"));
    command.arg(scratch.file("a.tar")).env("MACHINEN_CACHE_DIR", scratch.file("one"));
    let mut session = Session::on_terminal(command, &pty);
    session.expect(" %\r");
    // What was shown is taken away before the result.
    session.expect("\r\u{1b}[K");
    assert_eq!(session.end().code(), Some(0), "{}", session.printed());
    let piped =
        Run::new(bin("machinen-rootfs-img")).arg(scratch.file("a.tar")).env("MACHINEN_CACHE_DIR", scratch.file("two"));
    let piped = piped.finish();
    assert_eq!((piped.code(), String::from_utf8_lossy(&piped.stderr).as_ref()), (0, ""));
    assert!(piped.printed().ends_with(".img\n"), "{}", piped.printed());
}

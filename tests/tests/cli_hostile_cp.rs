//! `machinen-cp` against guests whose archives are not what they should be.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use machinen_abi::body::Credit;
use machinen_abi::frame::{HEADER_BYTES, Header, Kind};
use machinen_abi::window::Allowance;
use machinen_tests::hostile::{confined, exit, frame, say, serve, started};
use machinen_tests::machines::Machines;
use machinen_tests::monitor::{Live, read_bytes};
use machinen_tests::pty::Pty;
use tar::EntryType;

/// The header of an entry that has or claims so many bytes.
fn header(kind: EntryType, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("x").unwrap();
    header.set_mode(0o644);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// Plays a guest that keeps to the windows: `started`, this output, and then pieces of this without end.
fn pour(stream: &mut UnixStream, first: &[u8], endless: &[u8]) {
    let mut allowance = Allowance::default();
    assert!(allowance.spend(first.len()));
    let mut goes_on = say(stream, &[started(), frame(Kind::Output, first)].concat());
    while goes_on {
        if allowance.spend(endless.len()) {
            goes_on = say(stream, &frame(Kind::Output, endless));
            continue;
        }
        // Its end is that the tool hangs up.
        let mut bytes = [0; HEADER_BYTES];
        let Ok(header) = stream.read_exact(&mut bytes).map(|()| Header::from_bytes(bytes).unwrap()) else { return };
        let mut payload = vec![0; usize::try_from(header.length).unwrap()];
        goes_on = stream.read_exact(&mut payload).is_ok();
        if let Some(credit) = Credit::parse(&payload).filter(|_| header.kind == Kind::Credit) {
            assert!(allowance.grant(credit.bytes));
        }
    }
}

#[test]
fn an_archive_without_end_is_refused() {
    for (what, first, endless) in [
        ("a long name", header(EntryType::GNULongName, 8 << 30), [b'x'; 32768]),
        ("attributes", header(EntryType::XHeader, 8 << 30), [b'x'; 32768]),
        ("a directory's content", header(EntryType::Directory, 8 << 30), [b'x'; 32768]),
        ("what follows the end", [header(EntryType::Regular, 0), vec![0; 1024]].concat(), [0; 32768]),
        ("no archive", vec![7; 512], [7; 32768]),
    ] {
        let machines = Machines::default();
        let _web = serve(&machines, move |stream| pour(stream, &first, &endless));
        let beside = machines.beside("file").display().to_string();
        for args in [["web:/x", &beside], ["web:/x", "-"], [&beside, "web:/x"], ["-", "web:/x"]] {
            fs::write(&beside, "x").unwrap();
            let run = confined(&machines, "machinen-cp", &args);
            let refused = ["EXEC_PROTOCOL", "COPY_READ"].iter().any(|code| run.printed().contains(code));
            assert!(run.code() == 1 && refused, "{what}, {args:?}: {} {}", run.code(), run.printed());
        }
    }
}

#[test]
fn binary_is_kept_from_a_terminal() {
    for (content, code) in [(&b"text \xc3\xa9"[..], 0), (b"\0binary", 1)] {
        let machines = Machines::default();
        let mut archive = [header(EntryType::Regular, content.len() as u64), content.to_vec()].concat();
        archive.resize(2048, 0);
        let _web = serve(&machines, move |stream| {
            assert!(say(stream, &[started(), frame(Kind::Output, &archive), exit(0)].concat()));
        });
        let mut pty = Pty::open().unwrap();
        let mut command = machines.command("machinen-cp");
        command.args(["web:/x", "-"]);
        let mut cp = Live::on_terminal(command, &pty, |command| {
            command.stderr(Stdio::piped());
        });
        if code == 0 {
            assert_eq!(read_bytes(&mut pty.user, content.len()), content);
        }
        let mut stderr = String::new();
        cp.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((cp.wait().code(), stderr.contains("COPY_TERMINAL")), (Some(code), code == 1), "{stderr}");
        // A pipe gets it as it is.
        let run = confined(&machines, "machinen-cp", &["web:/x", "-"]);
        assert_eq!((run.code(), &run.stdout[..]), (0, content), "{}", run.printed());
    }
}

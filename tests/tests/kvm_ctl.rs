//! The control socket of a monitor: what it does for whom, and what it refuses. Directories are put in place by it in `linux_snapshot`.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use machinen_fixtures::guests::echo;
use machinen_tests::monitor::{Kernel, LIMIT, Live, Scratch, read_bytes};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A line to the socket, with a descriptor; the line that comes back.
fn ask(socket: &Path, line: &str, file: &File) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    assert!(rights.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(&stream, &[IoSlice::new(line.as_bytes())], &mut rights, SendFlags::NOSIGNAL).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_running_machine_is_asked() {
    let scratch = Scratch::new("ctl");
    let (socket, disk, out) = (scratch.file("ctl"), scratch.file("disk"), scratch.file("out"));
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let directory = File::open(scratch.path()).unwrap();
    // Only with the first of them is there a root disk.
    for (flag, layer) in [("--root-disk", "ok\n"), ("--disk", "error CTL_NO_LAYER ")] {
        let kernel = Kernel::new(echo());
        let mut command = kernel.command();
        command.arg("--ctl").arg(&socket).args(["--share", "s="]).arg(flag).arg(&disk);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut live = Live::start(command);
        let (mut stdin, mut stdout) = (live.child.stdin.take().unwrap(), live.child.stdout.take().unwrap());
        std::io::Write::write_all(&mut stdin, b"a").unwrap();
        assert_eq!(read_bytes(&mut stdout, 1), b"a");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&out).unwrap();
        for (line, answer) in [
            ("share s\n", "ok\n"),
            ("share s ro\n", "ok\n"),
            ("unshare s\n", "ok\n"),
            ("unshare other\n", "error CTL_NO_SHARE the machine has no share other\n"),
            ("disk x\n", "error CTL_REQUEST disk needs a number\n"),
            ("stop\n", "error CTL_REQUEST "),
        ] {
            let said = ask(&socket, line, &directory);
            assert!(said.starts_with(answer) && said.ends_with('\n'), "{line}: {said}");
        }
        let said = ask(&socket, "share s\n", &file);
        assert!(said.starts_with("error CTL_SHARE_UNREADABLE "), "{said}");
        let said = ask(&socket, "layer\n", &file);
        assert!(said.starts_with(layer), "{flag}: {said}");
        // A layer has a trailer, also when nothing was written.
        assert_eq!(fs::metadata(&out).unwrap().len() > 1 << 20, layer == "ok\n", "{flag}");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&out).unwrap();
        assert_eq!(ask(&socket, "disk 0\n", &file), "ok\n", "{flag}");
        assert_eq!(fs::metadata(&out).unwrap().len(), 1 << 20, "{flag}");
        assert!(ask(&socket, "disk 1\n", &file).starts_with("error CTL_NO_DISK "));
        // The guest goes on, and the socket goes with its end.
        std::io::Write::write_all(&mut stdin, b"b").unwrap();
        assert_eq!(read_bytes(&mut stdout, 1), b"b");
        drop(stdin);
        assert_eq!(live.wait().code(), Some(0));
        assert!(!socket.exists());
    }
}

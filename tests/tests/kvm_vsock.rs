//! The monitor's vsock sockets on the host: made, refused, replaced, removed.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use machinen_fixtures::guests::{hello, print_and_halt};
use machinen_tests::monitor::{Kernel, Live, Scratch, assert_refused, read_bytes};

/// A monitor whose guest sleeps, with this bridge.
fn running(kernel: &Kernel, bridge: &str) -> Live {
    let mut command = kernel.command();
    command.args(["--vsock", bridge]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut live = Live::start(command);
    // The sockets are there before the guest runs.
    let mut stdout = live.child.stdout.take().unwrap();
    assert!(!read_bytes(&mut stdout, 1).is_empty());
    live
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[test]
fn a_socket_goes_with_its_monitor_and_a_dead_one_is_replaced() {
    let (kernel, scratch) = (Kernel::new(print_and_halt()), Scratch::new("vsock"));
    // A longer path than an address of a socket holds.
    let directory = scratch.file(&"long".repeat(40));
    fs::create_dir(&directory).unwrap();
    let socket = directory.join("a socket");
    for kind in ["in:5", "hybrid"] {
        let bridge = format!("{kind}:{}", socket.display());
        let mut dead = running(&kernel, &bridge);
        assert!(is_socket(&socket));
        dead.send(libc::SIGKILL);
        dead.wait();
        assert!(is_socket(&socket));
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            let mut live = running(&kernel, &bridge);
            let refused = kernel.run().args(["--vsock", &bridge]).finish();
            assert_refused(&refused, "VSOCK_SOCKET_TAKEN");
            live.send(signal);
            assert_eq!(live.wait().signal(), Some(signal));
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "nothing is left");
        }
    }
    let bridge = format!("in:5:{}", socket.display());
    assert_eq!(Kernel::new(hello()).run().args(["--vsock", &bridge]).finish().code(), 0);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "nothing is left");
}

#[test]
fn clients_that_come_before_the_driver_wait_and_do_no_harm() {
    let (kernel, scratch) = (Kernel::new(print_and_halt()), Scratch::new("vsock"));
    let socket = scratch.file("in");
    let mut live = running(&kernel, &format!("in:5:{}", socket.display()));
    let clients: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    live.until_asleep();
    drop(clients);
    live.until_asleep();
    live.send(libc::SIGTERM);
    live.wait();
}

#[test]
fn sockets_that_cannot_be_made_are_refused() {
    let (kernel, scratch) = (Kernel::new(hello()), Scratch::new("vsock"));
    let file = scratch.file("file");
    fs::write(&file, "mine").unwrap();
    let listened = scratch.file("listened");
    let _listener = UnixListener::bind(&listened).unwrap();
    let cases = [
        (file.clone(), "VSOCK_SOCKET_TAKEN"),
        (listened, "VSOCK_SOCKET_TAKEN"),
        (scratch.file("no/such/directory"), "VSOCK_SOCKET"),
        (file.join("below"), "VSOCK_SOCKET"),
        (scratch.path().to_owned(), "VSOCK_SOCKET_TAKEN"),
        (scratch.file(&"x".repeat(300)), "VSOCK_SOCKET"),
        ("/proc/socket".into(), "VSOCK_SOCKET"),
    ];
    for (path, code) in cases {
        // The one that can be made goes again.
        let good = format!("in:5:{}", scratch.file("good").display());
        let bad = format!("hybrid:{}", path.display());
        assert_refused(&kernel.run().args(["--vsock", &good, "--vsock", &bad]).finish(), code);
        assert!(!scratch.file("good").exists());
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

//! A dump is held until the host has taken it: the processes stand still, and go on unless the host says so.

#![forbid(unsafe_code)]

use std::process::Command;

use machinen_abi::body::{Exit, HELD, Reason, TAKEN};
use machinen_abi::frame::Kind;
use machinen_abi::open::{Operation, Tag};
use machinen_tests::agent::{Client, End, Machine, Outcome, exec};
use machinen_tests::bundles::{COUNTING, TALK};
use machinen_tests::criu::{Field, root};
use machinen_tests::e2fs::E2fs;
use machinen_tests::guest::Scratch;
use machinen_tests::{Run, asset, bin};

/// A guest of Debian that runs this program of Python's, which says when it is ready, and the number of its process.
fn boot(program: &str) -> (Machine, Client, u32) {
    let root = root(&E2fs::new());
    let machine = Machine::boot(|bridges| {
        let scratch = Scratch::new();
        let initrd = scratch.path("initrd");
        let make = Run::new(bin("machinen-mkinitramfs")).arg("minimal").arg(&initrd);
        let made = make.args(["--root", "/dev/vda", "--agent"]).finish();
        assert_eq!(made.code(), 0, "{}", made.printed());
        let mut command = Command::new(bin("vmm-min"));
        command.arg("--kernel").arg(asset("vmlinux-tuned")).arg("--initrd").arg(initrd).args(["-m", "1024"]);
        command.args(bridges).arg("--root-disk").arg(root);
        (command, scratch)
    });
    let mut main = machine.ready();
    exec(&mut main, &["python3", "-c", program]);
    let pid = u32::from_le_bytes(main.expect(Kind::Started).try_into().unwrap());
    main.expect_output("ready\n");
    assert_eq!(machine.run("mkdir /b").triple().2, 0);
    (machine, main, pid)
}

/// How far it is, as its listener says.
fn counted(machine: &Machine) -> u64 {
    let ask = "import socket; print(socket.create_connection((\"127.0.0.1\", 4000), 60).recv(100).decode())";
    let (number, error, code) = machine.run(&format!("python3 -c '{ask}'")).triple();
    assert_eq!((&*error, code), ("", 0));
    number.trim_end().parse().unwrap_or_else(|_| panic!("{number}"))
}

fn goes_on(machine: &Machine) {
    let (before, after) = (counted(machine), counted(machine));
    assert!(before < after, "{before}, then {after}");
}

/// Begins a dump and waits until it is held; the processes stand still then, and all that describes them is there.
fn hold(machine: &Machine, pid: u32, fields: &[Field<'_>]) -> Client {
    assert_eq!(machine.run("rm -rf /b/*").triple().2, 0);
    let mut client = machine.connect();
    client.open(Operation::Dump, &[&[(Tag::Directory, &b"/b"[..]), (Tag::Hold, b"")], fields].concat());
    let mut output = Vec::new();
    while client.marks.last().is_none_or(|(name, _)| name != HELD) {
        match client.receive() {
            Some((Kind::Output, bytes)) => output.extend(bytes),
            Some((Kind::Started | Kind::Mark, _)) => {}
            other => panic!("{other:?}, after {:?}", client.marks),
        }
    }
    let text = String::from_utf8(output).unwrap();
    assert!(text.contains("\"criu\":\"3.17.1\"") && text.ends_with('\n'), "{text}");
    let (seen, _, code) =
        machine.run(&format!("cat /b/img/workload.json; ls /b /b/img; cat /proc/{pid}/stat")).triple();
    assert!(code == 0 && seen.starts_with(&text), "{seen}");
    for name in ["dump.log", "inventory.img", "criu.kdat", "pages-1.img"] {
        assert!(seen.contains(name), "{seen}");
    }
    assert!(seen.contains("(python3) t "), "it does not stand still: {seen}");
    client
}

fn refused(outcome: &Outcome, why: &str) {
    let End::Failed(Reason::System, _, message) = &outcome.end else { panic!("{outcome:?}") };
    assert!(message.contains(why), "{message}");
}

#[test]
fn processes_go_on_unless_the_host_takes_the_dump() {
    let (machine, main, pid) = boot(COUNTING);
    // Whatever the host does but say so.
    drop(hold(&machine, pid, &[]));
    goes_on(&machine);
    let mut client = hold(&machine, pid, &[(Tag::LeaveRunning, b"")]);
    client.send(Kind::InputEnd, &[]);
    refused(&client.outcome(), "the host has not taken the dump");
    goes_on(&machine);
    let mut client = hold(&machine, pid, &[]);
    client.send(Kind::Input, b"x");
    refused(&client.outcome(), "the host has not taken the dump");
    goes_on(&machine);
    let client = hold(&machine, pid, &[(Tag::Timeout, &[5, 0, 0, 0])]);
    refused(&client.outcome(), "nobody has taken the dump in its time");
    goes_on(&machine);
    let mut client = hold(&machine, pid, &[]);
    client.send(Kind::Resize, &[1]);
    assert_eq!(client.outcome().reason(), Reason::Protocol);
    goes_on(&machine);

    // The same when what holds it is killed, or CRIU, or who began it.
    for (victim, why) in [("^/proc/1/exe", "criu dump: exit code"), ("^criu dump", "criu has ended")] {
        let client = hold(&machine, pid, &[]);
        assert_eq!(machine.run(&format!("pkill -KILL -f '{victim}'")).triple().2, 0);
        let outcome = client.outcome();
        let End::Failed(Reason::System, _, message) = &outcome.end else { panic!("{victim}: {outcome:?}") };
        assert!(message.contains(why) || message.contains("criu has ended"), "{victim}: {message}");
        goes_on(&machine);
    }

    // While it is held others are served, and it is held as long as nobody says anything.
    let mut client = hold(&machine, pid, &[(Tag::LeaveRunning, b"")]);
    let mut sync = machine.connect();
    sync.open(Operation::Sync, &[]);
    assert_eq!(sync.outcome().end, End::Exit(Exit::Code(0)));
    client.send(Kind::Input, &[TAKEN]);
    let outcome = client.outcome();
    assert_eq!(outcome.end, End::Exit(Exit::Code(0)), "{outcome:?}");
    goes_on(&machine);
    let log = machine.run("tail -n 1 /b/dump.log").text();
    assert!(log.contains("Dumping finished successfully"), "{log}");

    // A command that dumps holds nothing itself, but the main command ends only when it is taken.
    let command: [Field<'_>; 2] = [(Tag::Argument, b"true"), (Tag::Hold, b"")];
    for taken in [false, true] {
        assert_eq!(machine.run("rm -rf /b/*").triple().2, 0);
        let mut client = machine.connect();
        client.open(Operation::Dump, &[&command[..], &[(Tag::Directory, b"/b")]].concat());
        while client.marks.last().is_none_or(|(name, _)| name != HELD) {
            client.receive().expect("more");
        }
        goes_on(&machine);
        if taken {
            client.send(Kind::Input, &[TAKEN]);
            assert_eq!(client.outcome().end, End::Exit(Exit::Code(0)));
        } else {
            drop(client);
            goes_on(&machine);
        }
    }
    assert_eq!(main.outcome().end, End::Failed(Reason::Dumped, 0, "the main command was dumped".into()));
    assert_eq!(machine.finish(), (0, String::new()));
}

#[test]
fn connections_go_on_after_a_dump_that_is_not_taken() {
    let (machine, mut main, pid) = boot(TALK);
    for tcp in [Tag::TcpKeep, Tag::TcpClose] {
        for leave_running in [&[][..], &[(Tag::LeaveRunning, &b""[..])]] {
            drop(hold(&machine, pid, &[&[(tcp, &b""[..])], leave_running].concat()));
            assert_eq!(machine.run("touch /tmp/say").triple().2, 0);
            main.expect_output("heard");
        }
    }
    machine.stop(main);
}

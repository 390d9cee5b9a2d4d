//! The guest agent, with a client of its own that speaks, and breaks, the protocol.

#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use machinen_abi::body::{Exit, Reason, Size};
use machinen_abi::frame::Kind;
use machinen_abi::open::{Operation, Tag};
use machinen_tests::agent::{Client, End, Machine, exec};
use machinen_tests::guest::Guest;

const KERNELS: [&str; 2] = ["vmlinux", "vmlinux-tuned"];

fn busybox() -> Guest {
    Guest::command(&["sh", "-c", "echo from the image; exit 5"])
}

#[test]
fn the_main_command_and_others() {
    for kernel in KERNELS {
        let machine = Machine::start(kernel, busybox());
        let mut main = machine.ready();
        let other = machine.run("echo out; echo err >&2; exit 3");
        assert_eq!(other.triple(), ("out\n".into(), "err\n".into(), 3));
        exec(&mut main, &["sh", "-c", "read line; echo $line; kill -9 $$"]);
        main.expect(Kind::Started);
        assert_eq!(machine.run("kill -9 1; echo still here").text(), "still here\n");
        assert_eq!(machine.run("kill -15 $$").end, End::Exit(Exit::Signal(15)));
        assert_eq!(machine.exec(&["nowhere"]).outcome().reason(), Reason::NotFound);
        assert_eq!(machine.exec(&["/etc"]).outcome().reason(), Reason::NotFound);
        assert_eq!(machine.exec(&["/bin"]).outcome().reason(), Reason::CannotExecute);
        main.input(b"a line\n");
        let outcome = main.outcome();
        assert_eq!((outcome.text(), outcome.end), ("a line\n".into(), End::Exit(Exit::Signal(9))));
        assert_eq!(machine.finish(), (137, String::new()));
    }
}

/// A machine of the tuned kernel whose main command waits.
fn machine() -> (Machine, Client) {
    let machine = Machine::start("vmlinux-tuned", busybox());
    let mut main = machine.ready();
    exec(&mut main, &["sleep", "1000"]);
    main.expect(Kind::Started);
    (machine, main)
}

/// Ends it by its main command.
fn stop(machine: Machine, mut main: Client) {
    main.send(Kind::Signal, &[15, 0, 0, 0]);
    assert_eq!(main.outcome().end, End::Exit(Exit::Signal(15)));
    assert_eq!(machine.finish(), (143, String::new()));
}

#[test]
fn terminals() {
    let (machine, main) = machine();
    let terminal = |script: &str| {
        let mut client = machine.connect();
        let size = Size { rows: 30, columns: 100 }.to_bytes();
        let words: [&[u8]; 3] = [b"sh", b"-c", script.as_bytes()];
        let fields = words.map(|word| (Tag::Argument, word));
        client.open(Operation::Pty, &[&fields[..], &[(Tag::Size, &size[..])]].concat());
        client
    };
    let mut client =
        terminal("stty size; tty; trap 'stty size; exit 4' WINCH; echo $TERM >&2; while :; do sleep 1; done");
    client.expect_output("30 100\r\n/dev/pts/0\r\nvt100\r\n");
    client.send(Kind::Resize, &Size { rows: 5, columns: 7 }.to_bytes());
    let outcome = client.outcome();
    assert_eq!(outcome.triple(), ("5 7\r\n".into(), String::new(), 4));

    // Input is echoed; its end is the end of a line that is not empty, then of the file.
    let mut client = terminal("cat; echo end");
    client.input(b"one\ntwo");
    let text = client.outcome().text();
    assert_eq!((text.matches("one").count(), text.matches("two").count()), (2, 2), "{text:?}");
    assert!(text.ends_with("twoend\r\n"), "{text:?}");

    // A key that interrupts does.
    let mut client = terminal("echo on; sleep 1000");
    client.expect_output("on\r\n");
    client.send(Kind::Input, b"\x03");
    assert_eq!(client.outcome().end, End::Exit(Exit::Signal(2)));

    // All that is printed comes, and nobody waits for what the background holds.
    let outcome = terminal("sleep 1000 & seq 50000; exit 9").outcome();
    let expected: String = (1..=50_000).map(|number| format!("{number}\r\n")).collect();
    assert!(outcome.text() == expected, "{} of {} bytes", outcome.output.len(), expected.len());
    assert_eq!(outcome.end, End::Exit(Exit::Code(9)));

    // The end of the stream hangs it up.
    let mut client = terminal("trap 'echo hung up >/tmp/hup; exit' HUP; echo on; while :; do sleep 1; done");
    client.expect_output("on\r\n");
    drop(client);
    let found = machine.run("while [ ! -s /tmp/hup ]; do usleep 10000; done; cat /tmp/hup");
    assert_eq!(found.text(), "hung up\n");
    stop(machine, main);
}

#[test]
fn a_detached_main_command_prints_on_the_console() {
    for kernel in KERNELS {
        let mut machine = Machine::start(kernel, busybox());
        let mut main = machine.ready();
        let script = "cat; echo out; echo err >&2; while [ ! -e /tmp/go ]; do usleep 10000; done; echo end; exit 6";
        let words = ["sh", "-c", script].map(|word| (Tag::Argument, word.as_bytes()));
        main.open(Operation::Exec, &[&words[..], &[(Tag::Detached, b"")]].concat());
        let outcome = main.outcome();
        assert_eq!((outcome.end, outcome.kinds), (End::Lost, vec![Kind::Mark, Kind::Started]));
        let names: Vec<&str> = outcome.marks.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["init", "modules", "root", "agent", "command"]);
        let times: Vec<u64> = outcome.marks.iter().map(|(_, time)| *time).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(times.is_sorted() && (now - Duration::from_nanos(times[0])).as_secs() < 60, "{times:?}");
        machine.session.expect("out\nerr\n");
        assert_eq!(machine.run("touch /tmp/go").triple().2, 0);
        assert_eq!(machine.finish(), (6, "out\nerr\nend\n".into()));
    }
}

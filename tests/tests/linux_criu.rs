//! The main command is dumped by CRIU in one guest and restored in another. The bundle is on a disk that both have.

#![forbid(unsafe_code)]

use machinen_abi::body::{Exit, Reason};
use machinen_abi::frame::Kind;
use machinen_abi::open::{Operation, Tag};
use machinen_tests::IS_LAZY;
use machinen_tests::agent::{Client, End, exec};
use machinen_tests::bundles::COUNTER;
use machinen_tests::criu::{AT, Disks, Field, STOCK, TUNED, dump, dump_and_end, expect_first, print_marks};

#[test]
fn a_counter_goes_on_where_it_was() {
    let disks = Disks::new(256);
    let (machine, mut main) = disks.boot(TUNED, "rw");
    exec(&mut main, &["python3", "-c", COUNTER, "e"]);
    let pid = u32::from_le_bytes(main.expect(Kind::Started).try_into().unwrap());
    assert!(pid >= 1000, "{pid}");
    main.expect_output("\n5\n");

    // What cannot be dumped runs on.
    let failing = dump(&machine, &[(Tag::Argument, b"false")]);
    assert_eq!(failing.end, End::Failed(Reason::System, 0, "false: exit code 1".into()));
    let slow: [Field<'_>; 3] = [(Tag::Argument, b"sleep"), (Tag::Argument, b"1000"), (Tag::Timeout, &[1, 0, 0, 0])];
    let late = "the dump command has not ended after 1 s";
    assert_eq!(dump(&machine, &slow).end, End::Failed(Reason::System, 110, late.into()));
    let script = "echo $MACHINEN_DUMP_PID $MACHINEN_DUMP_DIR >&2; kill -0 $MACHINEN_DUMP_PID";
    let own: [Field<'_>; 4] =
        [(Tag::Argument, b"sh"), (Tag::Argument, b"-c"), (Tag::Argument, script.as_bytes()), (Tag::LeaveRunning, b"")];
    let own = dump(&machine, &own);
    assert_eq!(own.end, End::Exit(Exit::Code(0)), "{own:?}");
    assert_eq!(String::from_utf8(own.error).unwrap(), format!("{pid} /b/img\n"));
    let mut client = machine.connect();
    client.open(Operation::Dump, &[]);
    let End::Failed(Reason::System, errno, message) = client.outcome().end else { panic!("it was dumped") };
    assert!([19, 22].contains(&errno) && message.starts_with("share bundle: not mounted: "), "{errno} {message}");
    assert_eq!(machine.run("rm -r /b/img").triple().2, 0);

    // Others are served meanwhile, but for one more dump.
    let mut client = machine.connect();
    client.open(Operation::Dump, &[AT, (Tag::LeaveRunning, b"")]);
    client.expect(Kind::Started);
    assert_eq!(machine.run("echo meanwhile").text(), "meanwhile\n");
    assert_eq!(dump(&machine, &[]).reason(), Reason::Busy);
    let running = client.outcome();
    assert_eq!(running.end, End::Exit(Exit::Code(0)), "{running:?}");
    print_marks("dump, leaving it running", &running);
    main.send(Kind::Input, b"hello\n");
    main.expect_output("got hello\n");
    let listed = machine.run("ls /b /b/img; rm -r /b/img").text();
    for name in ["dump.log", "inventory.img", "workload.json", "criu.kdat"] {
        assert!(listed.contains(name), "{listed}");
    }

    let (before, dumped) = dump_and_end(machine, main, &[]);
    assert!(dumped.text().starts_with(&format!("{{\"format\":1,\"pid\":{pid},\"pipes\":[")), "{}", dumped.text());
    assert!(dumped.text().contains("\"criu\":\"3.17.1\""), "{}", dumped.text());
    let last: u32 = before.text().lines().last().unwrap().parse().unwrap();

    for lazy in [&[][..], &[(Tag::Lazy, &b""[..])]] {
        let (machine, mut main) = disks.restore(TUNED, lazy);
        assert_eq!(machine.run("true").triple().2, 0);
        assert_eq!(main.expect(Kind::Started), pid.to_le_bytes());
        expect_first(&mut main, last + 1);
        main.send(Kind::Input, b"end 7\n");
        let outcome = main.outcome();
        assert_eq!(outcome.end, End::Exit(Exit::Code(7)), "{outcome:?}");
        let text = outcome.text();
        assert!(text.ends_with("got end 7\n"), "{text}");
        assert!(String::from_utf8_lossy(&outcome.error).lines().all(|line| line.starts_with('e')), "{outcome:?}");
        print_marks(if lazy.is_empty() { "restore, eager" } else { "restore, lazy" }, &outcome);
        let names: Vec<&str> = outcome.marks.iter().map(|(name, _)| &**name).collect();
        for name in ["restore", "bundle", "criu", "restored", "first output"] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert_eq!(names.contains(&"lazy"), !lazy.is_empty() && IS_LAZY, "{names:?}");
        let refused = names.contains(&"not lazy: CRIU 3.17.1 cuts off addresses on aarch64");
        assert_eq!(refused, !lazy.is_empty() && !IS_LAZY, "{names:?}");
        assert_eq!(machine.finish(), (7, String::new()));
    }

    // A number that is taken.
    let (machine, mut main) = disks.boot(TUNED, "ro");
    assert_eq!(machine.run("echo 999 >/proc/sys/kernel/ns_last_pid").triple().2, 0);
    let mut taker = machine.exec(&["sleep", "1000"]);
    assert_eq!(u32::from_le_bytes(taker.expect(Kind::Started).try_into().unwrap()), pid);
    main.open(Operation::Restore, &[AT]);
    let End::Failed(Reason::System, 0, message) = main.outcome().end else { panic!("it was restored") };
    assert!(message.starts_with("criu restore: exit code 1: ") && message.contains(&pid.to_string()), "{message}");
    assert_eq!(machine.finish(), (125, String::new()));
}

/// Reads once for each signal.
const READER: &str = r#"
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
while True:
    signal.sigwait([signal.SIGUSR1])
    data = os.read(0, 1000)
    print("read", data.decode().strip(), flush=True)
    if not data: sys.exit(5)
"#;

/// Waits until so many bytes are in a process's stdin.
const AWAIT_INPUT: &str = r#"
import array, fcntl, sys, termios
left = array.array("i", [0])
while left[0] != int(sys.argv[2]):
    with open("/proc/%s/fd/0" % sys.argv[1]) as f: fcntl.ioctl(f, termios.FIONREAD, left)
"#;

#[test]
fn what_is_restored_has_its_input_and_can_be_dumped_again() {
    let disks = Disks::new(128);
    let (machine, mut main) = disks.boot(TUNED, "rw");
    exec(&mut main, &["python3", "-c", READER]);
    let pid = u32::from_le_bytes(main.expect(Kind::Started).try_into().unwrap());
    main.expect_output("ready\n");
    main.send(Kind::Input, b"unread\n");
    let mut client = machine.exec(&["python3", "-c", AWAIT_INPUT, &pid.to_string(), "7"]);
    client.send(Kind::InputEnd, &[]);
    assert_eq!(client.outcome().triple(), (String::new(), String::new(), 0));
    assert_eq!(machine.run("mkdir /b/one /b/two").triple().2, 0);
    dump_and_end(machine, main, &[(Tag::Directory, b"/b/one")]);

    let read = |main: &mut Client, text: &str| {
        main.send(Kind::Signal, &[10, 0, 0, 0]);
        main.expect_output(&format!("read {text}\n"));
    };
    let (machine, mut main) = disks.boot(TUNED, "rw");
    main.open(Operation::Restore, &[(Tag::Directory, b"/b/one"), (Tag::Lazy, b"")]);
    main.expect(Kind::Started);
    read(&mut main, "unread");
    // It waits for memory that is still to come.
    dump_and_end(machine, main, &[(Tag::Directory, b"/b/two")]);

    let (machine, mut main) = disks.restore(TUNED, &[(Tag::Directory, b"/b/two")]);
    main.send(Kind::Input, b"later\n");
    main.expect(Kind::Started);
    read(&mut main, "later");
    main.send(Kind::InputEnd, &[]);
    main.send(Kind::Signal, &[10, 0, 0, 0]);
    let outcome = main.outcome();
    assert_eq!((outcome.text(), outcome.end), ("read \n".into(), End::Exit(Exit::Code(5))));
    assert_eq!(machine.finish(), (5, String::new()));
}

/// Answers every request on a connection with the number of requests so far.
const SERVER: &str = r#"
import socket, select
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", 80))
listener.listen(8)
print("listening", flush=True)
count, all = 0, [listener]
while True:
    for s in select.select(all, [], [])[0]:
        if s is listener:
            all.append(s.accept()[0])
            continue
        try: data = s.recv(1000)
        except OSError: data = b""
        if data:
            count += 1
            s.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d\n" % count)
        else:
            all.remove(s)
            s.close()
            print("closed", flush=True)
"#;

/// Sends a request for each line of its input, all on one connection.
const ASKER: &str = r#"
import socket, sys
s = socket.create_connection(("127.0.0.1", 80))
for line in sys.stdin:
    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
    print("answer", s.recv(1000).split()[-1].decode(), flush=True)
"#;

#[test]
fn a_server_listens_again_and_its_connections_are_closed() {
    let disks = Disks::new(256);
    let (machine, mut main) = disks.boot(TUNED, "rw");
    exec(&mut main, &["python3", "-c", SERVER]);
    main.expect_output("listening\n");
    let mut asker = machine.exec(&["python3", "-c", ASKER]);
    let mut ask = |answer: u32| {
        asker.send(Kind::Input, b"\n");
        asker.expect_output(&format!("answer {answer}\n"));
    };
    ask(1);
    // An open connection is no reason to go on without it.
    let End::Failed(Reason::System, 0, message) = dump(&machine, &[]).end else { panic!("it was dumped") };
    assert!(message.starts_with("criu dump: exit code 1: ") && message.contains("TCP"), "{message}");
    ask(2);
    for tcp in [Tag::TcpClose, Tag::TcpKeep] {
        assert_eq!(machine.run("rm -r /b/img").triple().2, 0);
        let dumped = dump(&machine, &[(tcp, b""), (Tag::LeaveRunning, b"")]);
        assert_eq!(dumped.end, End::Exit(Exit::Code(0)), "{tcp:?}: {dumped:?}");
        ask(if tcp == Tag::TcpClose { 3 } else { 4 });
    }
    assert_eq!(machine.run("rm -r /b/img").triple().2, 0);
    dump_and_end(machine, main, &[(Tag::TcpClose, b"")]);

    // Attached, and on the console.
    let (machine, mut main) = disks.restore(TUNED, &[]);
    main.expect_output("closed\n");
    let mut asker = machine.exec(&["python3", "-c", ASKER]);
    asker.input(b"\n\n");
    assert_eq!(asker.outcome().triple(), ("answer 5\nanswer 6\n".into(), String::new(), 0));
    machine.stop(main);

    let (mut machine, main) = disks.restore(TUNED, &[(Tag::Detached, b"")]);
    let outcome = main.outcome();
    assert_eq!((outcome.end, outcome.kinds), (End::Lost, vec![Kind::Mark, Kind::Started]));
    machine.session.expect("closed\n");
    let mut asker = machine.exec(&["python3", "-c", ASKER]);
    asker.input(b"\n");
    assert_eq!(asker.outcome().triple(), ("answer 5\n".into(), String::new(), 0));
    let mut off = machine.connect();
    off.open(Operation::PowerOff, &[]);
    assert_eq!(off.outcome().end, End::Exit(Exit::Code(0)));
    machine.session.expect("closed\n");
    assert_eq!(machine.finish(), (143, "closed\nclosed\n".into()));
}

#[test]
fn a_shell_is_typed_into_where_it_is_restored() {
    let disks = Disks::new(128);
    let (machine, mut main) = disks.boot(TUNED, "rw");
    let shell: [Field<'_>; 3] = [(Tag::Argument, b"bash"), (Tag::Argument, b"--norc"), (Tag::Argument, b"-i")];
    main.open(Operation::Pty, &[&shell[..], &[(Tag::Size, &[30, 0, 100, 0])]].concat());
    main.expect_output("# ");
    main.send(Kind::Input, b"x=remembered; sleep 1000 & stty size\n");
    main.expect_output("30 100\r\n");
    main.expect_output("# ");
    let (_, dumped) = dump_and_end(machine, main, &[]);
    assert!(dumped.text().contains("\"terminal\":{\"device\":"), "{}", dumped.text());

    let (machine, mut main) = disks.restore(TUNED, &[(Tag::Size, &[50, 0, 132, 0])]);
    // Another terminal than the one that it had.
    main.expect(Kind::Started);
    main.send(Kind::Input, b"echo $x $((6 * 7)); stty size; jobs\n");
    main.expect_output("remembered 42\r\n50 132\r\n");
    main.expect_output("Running");
    main.expect_output("# ");
    main.send(Kind::Input, b"sleep 2000; echo status $?\n");
    let script = "until pgrep -f 'sleep 200[0]'; do sleep 0.01; done";
    assert_eq!(machine.run(script).triple().2, 0);
    main.send(Kind::Input, b"\x03");
    main.expect_output("# ");
    main.send(Kind::Resize, &[5, 0, 70, 0]);
    main.send(Kind::Input, b"stty size; exit 7\n");
    let outcome = main.outcome();
    assert!(outcome.text().contains("5 70\r\n"), "{}", outcome.text());
    assert_eq!(outcome.end, End::Exit(Exit::Code(7)));
    assert_eq!(machine.finish(), (7, String::new()));
}

#[test]
fn what_one_kernel_ran_goes_on_under_another() {
    for (from, to) in [(TUNED, STOCK), (STOCK, TUNED)] {
        let disks = Disks::new(128);
        let (machine, mut main) = disks.boot(from, "rw");
        exec(&mut main, &["python3", "-c", COUNTER]);
        main.expect_output("\n5\n");
        let (before, _) = dump_and_end(machine, main, &[]);
        let last: u32 = before.text().lines().last().unwrap().parse().unwrap();
        for lazy in [&[][..], &[(Tag::Lazy, &b""[..])]] {
            let (machine, mut main) = disks.restore(to, lazy);
            expect_first(&mut main, last + 1);
            main.send(Kind::Input, b"end 7\n");
            let outcome = main.outcome();
            assert_eq!(outcome.end, End::Exit(Exit::Code(7)), "{from} to {to}: {outcome:?}");
            print_marks(&format!("{from} to {to}"), &outcome);
            assert_eq!(machine.finish(), (7, String::new()));
        }
    }
}

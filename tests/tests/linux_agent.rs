//! The guest agent, with a client of its own that speaks, and breaks, the protocol.

#![forbid(unsafe_code)]

use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use machinen_abi::body::{Credit, Exit, Reason, Size, Stream};
use machinen_abi::frame::Kind;
use machinen_abi::open::{Operation, Tag};
use machinen_tests::agent::{Client, End, Machine, exec};
use machinen_tests::asset;
use machinen_tests::guest::{Guest, monitor};

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
    Machine::waiting("vmlinux-tuned", busybox())
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
    machine.stop(main);
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
        let since = times.windows(2).map(|pair| (pair[1] - pair[0]) / 1000).collect::<Vec<_>>();
        println!("{kernel}: microseconds from each of {names:?} to the next: {since:?}");
        machine.session.expect("out\nerr\n");
        // The machine may end before the answer does.
        drop(machine.run("touch /tmp/go"));
        assert_eq!(machine.finish(), (6, "out\nerr\nend\n".into()));
    }
}

#[test]
fn input_comes_as_it_is_and_a_signal_passes_it() {
    let (machine, main) = machine();
    let bytes: Vec<u8> = (0..200_000_u32).map(|number| u8::try_from(number * 7 % 256).unwrap()).collect();
    let mut client = machine.exec(&["cat"]);
    client.input(&bytes);
    assert!(client.outcome().output == bytes);

    // Much more than any window, while its copy comes back.
    let mut client = machine.exec(&["md5sum"]);
    let (mut left, mut allowed) = (20 << 20, 256 << 10);
    while left > 0 {
        let count = 65_536.min(left).min(allowed);
        client.send(Kind::Input, &vec![b'x'; count]);
        (left, allowed) = (left - count, allowed - count);
        if allowed < 65_536 {
            allowed += Credit::parse(&client.expect(Kind::Credit)).unwrap().bytes as usize;
        }
    }
    client.send(Kind::InputEnd, &[]);
    assert_eq!(client.outcome().text(), "b9dc45e76c3e084bb92d9af5a383533a  -\n");

    let mut client = machine.exec(&[
        "sh",
        "-c",
        "exec 2>/dev/null; trap 'echo usr1; exit 3' USR1; echo on; while :; do usleep 9999; done",
    ]);
    client.expect_output("on\n");
    (0..4).for_each(|_| client.send(Kind::Input, &[0; 65_536]));
    client.send(Kind::Signal, &[10, 0, 0, 0]);
    // The shell would say that its own child, which is in the group, got the signal.
    assert_eq!(client.outcome().triple(), ("usr1\n".into(), String::new(), 3));

    // A command that reads nothing any more takes everything.
    let mut client = machine.exec(&["sh", "-c", "exec <&-; echo closed; sleep 1000"]);
    client.expect_output("closed\n");
    for _ in 0..8 {
        (0..2).for_each(|_| client.send(Kind::Input, &[0; 65_536]));
        client.expect(Kind::Credit);
    }
    client.send(Kind::Signal, &[9, 0, 0, 0]);
    assert_eq!(client.outcome().end, End::Exit(Exit::Signal(9)));
    machine.stop(main);
}

#[test]
fn environment_directory_and_image() {
    let guest = busybox().make(&["--env", "A=image", "--env", "B=image", "--cwd", "/bin"]);
    let machine = Machine::start("vmlinux-tuned", guest);
    let main = machine.ready();
    let fields: [(Tag, &[u8]); 7] = [
        (Tag::Argument, b"sh"),
        (Tag::Argument, b"-c"),
        (Tag::Argument, b"env | grep -v SHLVL | sort; pwd"),
        (Tag::Environment, b"A=\xff=x"),
        (Tag::Environment, b"B"),
        (Tag::Environment, b"C=new"),
        (Tag::Directory, b"/proc"),
    ];
    let run = |fields: &[(Tag, &[u8])]| {
        let mut client = machine.connect();
        client.open(Operation::Exec, fields);
        client.outcome()
    };
    let all = b"A=\xff=x\nC=new\nHOME=/root\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/proc\n/proc\n";
    assert_eq!(String::from_utf8_lossy(&run(&fields).output), String::from_utf8_lossy(all));
    let plain = run(&fields[..3]).text();
    assert!(plain.starts_with("A=image\nB=image\nHOME=") && plain.ends_with("\n/bin\n"), "{plain}");
    assert_eq!(run(&[]).triple(), ("from the image\n".into(), String::new(), 5));
    let nowhere = run(&[(Tag::Argument, b"ls"), (Tag::Directory, b"/nowhere")]);
    assert_eq!(nowhere.end, End::Failed(Reason::System, 2, "cwd /nowhere: No such file or directory".into()));
    assert_eq!(run(&[(Tag::Argument, b"ls"), (Tag::Directory, b"x")]).reason(), Reason::Invalid);
    // The machine's own command, as the image has it.
    let mut main = main;
    main.open(Operation::Exec, &[]);
    assert_eq!(main.outcome().triple(), ("from the image\n".into(), String::new(), 5));
    assert_eq!(machine.finish(), (5, String::new()));
}

#[test]
fn a_reader_that_stands_still_holds_up_only_its_own_stream() {
    let (machine, main) = machine();
    let mut client = machine.exec(&["sh", "-c", "yes & exec >&-; seq 100000 >&2; echo over >&2; kill -9 $!; exit 8"]);
    let (mut output, mut error) = (0, Vec::new());
    // Credit for the standard error only.
    while !error.ends_with(b"over\n") {
        match client.receive_only().unwrap() {
            (Kind::Output, bytes) => output += bytes.len(),
            (Kind::Error, bytes) => {
                error.extend(&bytes);
                let bytes = u32::try_from(bytes.len()).unwrap();
                client.send(Kind::Credit, &Credit { stream: Stream::Error, bytes }.to_bytes());
            }
            (Kind::Started, _) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((output, error.len()), (256 << 10, 588_895 + 5));
    // With the command ended, what is in the pipe is still to come.
    client.send(Kind::Credit, &Credit { stream: Stream::Output, bytes: 256 << 10 }.to_bytes());
    assert_eq!(client.outcome().end, End::Exit(Exit::Code(8)));
    machine.stop(main);
}

#[test]
fn many_at_once_and_no_more() {
    let (machine, main) = machine();
    let mut clients: Vec<Client> =
        (0..32).map(|_| machine.exec(&["sh", "-c", "read line; echo $line; exit 7"])).collect();
    clients.iter_mut().for_each(|client| drop(client.expect(Kind::Started)));
    for (number, client) in clients.iter_mut().enumerate() {
        client.input(format!("number {number}\n").as_bytes());
    }
    for (number, client) in clients.into_iter().enumerate() {
        assert_eq!(client.outcome().triple(), (format!("number {number}\n"), String::new(), 7));
    }
    let mut held: Vec<Client> = (0..63).map(|_| machine.exec(&["sleep", "1000"])).collect();
    held.iter_mut().for_each(|client| drop(client.expect(Kind::Started)));
    assert_eq!(machine.exec(&["true"]).outcome().reason(), Reason::Busy);
    // What does not need a place is done; and a place that becomes free is used.
    let mut resize = machine.connect();
    resize.open(Operation::Resize, &[(Tag::Size, &[1, 0, 1, 0])]);
    assert_eq!(resize.outcome().end, End::Exit(Exit::Code(0)));
    held.pop();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match machine.run("exit 4").end {
            End::Exit(exit) => break assert_eq!(exit, Exit::Code(4)),
            end => assert!(Instant::now() < deadline, "{end:?}"),
        }
    }
    drop(held);
    machine.stop(main);
}

#[test]
fn a_host_that_breaks_the_protocol_is_refused() {
    let (machine, main) = machine();
    let open = |payload: &[u8]| {
        let mut client = machine.connect();
        client.send(Kind::Open, payload);
        client.outcome().end
    };
    assert_eq!(open(&[2, 0, 1, 0]), End::Failed(Reason::Version, 1, "this agent speaks version 1, not 2".into()));
    let reason = |end: End| if let End::Failed(reason, ..) = end { reason } else { panic!("{end:?}") };
    assert_eq!(reason(open(&[1, 0, 32, 0])), Reason::Unsupported);
    assert_eq!(reason(open(&[1, 0, 99, 0])), Reason::Unsupported);
    assert_eq!(reason(open(&[1, 0, 6, 0])), Reason::Invalid);
    assert_eq!(reason(open(&[1, 0, 1, 0, 7])), Reason::Protocol);
    assert_eq!(reason(open(&[])), Reason::Protocol);
    let raw = |bytes: &[u8]| {
        let mut client = machine.connect();
        client.socket.write_all(bytes).unwrap();
        client.outcome().end
    };
    assert_eq!(reason(raw(b"GET / HTTP/1.1\r\n\r\n")), Reason::Protocol);
    assert_eq!(reason(raw(&[0xff; 5000])), Reason::Protocol);
    assert_eq!(reason(raw(&[1, 0, 0, 0, 1, 0, 128, 0])), Reason::Protocol, "an open frame of 8 MiB and a byte");
    assert_eq!(reason(raw(&[2, 0, 0, 0, 0, 0, 0, 0])), Reason::Protocol, "input first");
    // Within an operation: it ends, as when the host goes away.
    // Its own child gets the signal, too, and the shell would say so to a pipe that is gone, and die of that.
    let script = "exec 2>/dev/null; trap 'echo hup >/tmp/hup; exit' HUP; echo on; while :; do usleep 9999; done";
    let mut client = machine.exec(&["sh", "-c", script]);
    client.expect_output("on\n");
    client.send(Kind::Started, &[0; 4]);
    assert_eq!(client.outcome().reason(), Reason::Protocol);
    assert_eq!(machine.run("while [ ! -s /tmp/hup ]; do usleep 9999; done; cat /tmp/hup").text(), "hup\n");
    let mut client = machine.exec(&["sleep", "1000"]);
    client.expect(Kind::Started);
    for _ in 0..5 {
        client.send(Kind::Input, &[0; 65_536]);
    }
    assert_eq!(client.outcome().reason(), Reason::Protocol, "more input than the window");
    // Streams that say nothing, and streams that are cut.
    let _silent: Vec<Client> = (0..20).map(|_| machine.connect()).collect();
    for end in 1..12 {
        machine.connect().socket.write_all(&[1, 0, 0, 0, 8, 0, 0, 0, 1, 0, 1, 0][..end]).unwrap();
    }
    assert_eq!(machine.run("echo well").text(), "well\n");
    machine.stop(main);
}

#[test]
fn a_reader_that_goes_away_ends_what_it_reads() {
    let (machine, main) = machine();
    for _ in 0..3 {
        let mut client = machine.exec(&["yes", "endless"]);
        client.expect_output("endless\n");
    }
    let script = "while pidof yes >/dev/null; do usleep 9999; done; echo gone";
    assert_eq!(machine.run(script).text(), "gone\n");
    // What ends does not wait for its children, but keeps what it has printed itself.
    let outcome = machine.run("(trap '' HUP; sleep 1000; echo late) & seq 9000; exit 2");
    assert_eq!((outcome.output.len(), outcome.end), (43_893, End::Exit(Exit::Code(2))));
    let last: Vec<Kind> = outcome.kinds.iter().rev().take(3).copied().collect();
    assert!(last[0] == Kind::Exit && last[1..].contains(&Kind::OutputEnd) && last[1..].contains(&Kind::ErrorEnd));
    machine.stop(main);
}

#[test]
fn attached_streams_take_part_in_the_main_command() {
    let machine = Machine::start("vmlinux-tuned", busybox());
    let mut main = machine.ready();
    let early = {
        let mut client = machine.connect();
        client.open(Operation::Attach, &[]);
        client.outcome().reason()
    };
    assert_eq!(early, Reason::NoCommand);
    exec(&mut main, &["sh", "-c", "while read line; do echo got $line; echo err >&2; [ $line = end ] && exit 3; done"]);
    main.expect(Kind::Started);
    let attach = || {
        let mut client = machine.connect();
        client.open(Operation::Attach, &[]);
        client.expect(Kind::Started);
        client
    };
    let (mut one, mut two) = (attach(), attach());
    one.send(Kind::Input, b"a\n");
    two.expect_output("got a\n");
    drop(two);
    main.send(Kind::Input, b"b\n");
    one.expect_output("got b\n");
    one.send(Kind::Input, b"end\n");
    let text = "got a\ngot b\ngot end\n";
    assert_eq!(main.outcome().triple(), (text.into(), "err\n".repeat(3), 3));
    let last = one.outcome();
    assert_eq!((last.text(), last.end), ("got end\n".into(), End::Exit(Exit::Code(3))));
    assert_eq!(machine.finish(), (3, String::new()));
}

#[test]
fn the_machine_is_switched_off() {
    let power_off = |machine: &Machine| {
        let mut client = machine.connect();
        client.open(Operation::PowerOff, &[]);
        client.expect(Kind::Started);
        client
    };
    let machine = Machine::start("vmlinux-tuned", busybox());
    let mut main = machine.ready();
    exec(&mut main, &["sh", "-c", "trap 'echo bye; exit 9' TERM; echo on; while :; do usleep 9999; done"]);
    main.expect_output("on\n");
    let client = power_off(&machine);
    let outcome = main.outcome();
    assert_eq!((outcome.text(), outcome.end), ("bye\n".into(), End::Exit(Exit::Code(9))));
    assert_eq!(client.outcome().end, End::Exit(Exit::Code(0)));
    assert_eq!(machine.finish(), (9, String::new()));

    // One that does not want to, and prints until it is killed.
    let machine = Machine::start("vmlinux-tuned", busybox());
    let mut main = machine.ready();
    exec(&mut main, &["sh", "-c", "trap '' TERM; echo on; while :; do usleep 9999; done"]);
    main.expect_output("on\n");
    let _client = power_off(&machine);
    assert_eq!(main.outcome().end, End::Exit(Exit::Signal(9)));
    assert_eq!(machine.finish(), (137, String::new()));

    // One that has ended, while nobody takes what it has printed.
    let machine = Machine::start("vmlinux-tuned", busybox());
    let mut main = machine.ready();
    exec(&mut main, &["sh", "-c", "seq 50000; exec sleep 1000"]);
    while machine.run("pidof sleep").text().is_empty() {}
    let client = power_off(&machine);
    assert_eq!(client.outcome().end, End::Exit(Exit::Code(0)));
    drop(main);
    assert_eq!(machine.finish(), (143, String::new()));

    // One that was never there.
    let machine = Machine::start("vmlinux-tuned", busybox());
    let main = machine.ready();
    let _client = power_off(&machine);
    drop(main);
    assert_eq!(machine.finish(), (0, String::new()));
}

#[test]
fn a_main_command_that_does_not_start_ends_the_machine() {
    for (words, code, reason) in
        [(&["nowhere"][..], 127, Reason::NotFound), (&["/bin"][..], 126, Reason::CannotExecute)]
    {
        let machine = Machine::start("vmlinux-tuned", busybox());
        let mut main = machine.ready();
        exec(&mut main, words);
        assert_eq!(main.outcome().reason(), reason);
        assert_eq!(machine.finish(), (code, String::new()));
    }
    let machine = Machine::start("vmlinux-tuned", busybox());
    let mut main = machine.ready();
    main.open(Operation::Sync, &[]);
    assert_eq!(main.outcome().reason(), Reason::Invalid);
    assert_eq!(machine.finish().0, 125);
}

#[test]
fn nothing_of_a_long_output_is_lost_at_the_end() {
    let machine = Machine::start("vmlinux-tuned", busybox());
    let mut main = machine.ready();
    exec(&mut main, &["sh", "-c", "seq 300000; seq 300000 >&2; exit 1"]);
    let expected: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    let (output, error, code) = main.outcome().triple();
    assert!(output == expected && error == expected && code == 1);
    assert_eq!(machine.finish(), (1, String::new()));
}

#[test]
fn what_outlives_its_stream_and_what_does_not() {
    let (mut machine, main) = machine();
    let script = "trap '' HUP; cat; while [ ! -e /tmp/go ]; do usleep 9999; done; echo on the console";
    let words = ["sh", "-c", script].map(|word| (Tag::Argument, word.as_bytes()));
    let mut client = machine.connect();
    client.open(Operation::Exec, &[&words[..], &[(Tag::Detached, b"")]].concat());
    let outcome = client.outcome();
    assert_eq!((outcome.end, outcome.kinds), (End::Lost, vec![Kind::Started]));
    assert_eq!(machine.run("touch /tmp/go").triple().2, 0);
    machine.session.expect("on the console\n");
    // The main command's host goes away: it hangs up, and the machine ends with that.
    drop(main);
    assert_eq!(machine.finish(), (129, "on the console\n".into()));
}

#[test]
fn without_a_host_that_listens_there_is_nothing_to_do() {
    let machine = Machine::start("vmlinux-tuned", busybox());
    let main = machine.ready();
    drop(main);
    let (code, printed) = machine.finish();
    assert_eq!((code, &*printed), (125, "init: agent: vsock port 1025: the host closed it before a command came\n"));
    let guest = busybox().make(&["--agent"]);
    let finished = monitor(&asset("vmlinux-tuned"), &guest.initrd()).finish();
    let printed = finished.printed();
    assert!(finished.code() == 125 && printed.starts_with("init: agent: vsock port 1025 of the host: "), "{printed}");
}

#[test]
fn whoever_waits_costs_nothing() {
    let (machine, main) = machine();
    // A terminal, input that nobody reads, output that nobody reads, a background that holds pipes, and silence.
    let mut terminal = machine.connect();
    terminal.open(Operation::Pty, &[(Tag::Argument, b"cat")]);
    terminal.expect(Kind::Started);
    let mut unread = machine.exec(&["sleep", "1000"]);
    (0..4).for_each(|_| unread.send(Kind::Input, &[0; 65_536]));
    let mut stalled = machine.exec(&["yes"]);
    stalled.expect(Kind::Output);
    let mut taken = 0;
    while taken < 150_000 {
        taken += stalled.receive_only().unwrap().1.len();
    }
    let mut closed = machine.exec(&["sh", "-c", "exec <&- >&- 2>&-; sleep 1000"]);
    closed.expect(Kind::ErrorEnd);
    let mut attached = machine.connect();
    attached.open(Operation::Attach, &[]);
    attached.expect(Kind::Started);
    let mut ended = machine.exec(&["sh", "-c", "sleep 1000 & yes | head -c 300000"]);
    ended.expect(Kind::Started);
    let _silent = machine.connect();
    // Of a hundred ticks that a second has. The loop of a PID 1 that does not sleep would take most of them.
    let script =
        "ticks() { awk '{ print $14 + $15 }' /proc/1/stat; }; a=$(ticks); sleep 2; b=$(ticks); echo $((b - a))";
    let ticks: u32 = machine.run(script).text().trim().parse().unwrap();
    println!("{ticks} ticks of PID 1 in two seconds");
    assert!(ticks < 60, "{ticks}");
    machine.stop(main);
}

//! The host's tools against guests that do what they like: real tools and sockets; the test speaks for the guest.
//!
//! For `machinen-run` the monitor is a script that holds the machine's lock and lives; for the others it is the process of
//! [`Machines`].

#![forbid(unsafe_code)]

use std::fs;
use std::io::Read;
use std::iter;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use machinen_abi::body::{Credit, Reason, Stream};
use machinen_abi::frame::Kind;
use machinen_abi::open::{Open, Operation, Tag};
use machinen_tests::hostile::{ROOM_KIB, confined, exit, failed, frame, mark, receive, say, serve, started};
use machinen_tests::machines::{Machine, Machines};
use machinen_tests::monitor::Live;
use machinen_tests::{Finished, bin};

/// What a guest says after `open`: these bytes, and the last of them without end.
#[derive(Clone, Debug)]
struct Speech {
    once: Vec<u8>,
    endless: Vec<u8>,
    /// Then it says nothing, instead of hanging up.
    holds: bool,
}

impl Speech {
    fn once(bytes: impl Into<Vec<u8>>) -> Self {
        Self { once: bytes.into(), endless: Vec::new(), holds: false }
    }

    fn endless(once: impl Into<Vec<u8>>, endless: impl Into<Vec<u8>>) -> Self {
        Self { once: once.into(), endless: endless.into(), holds: false }
    }

    fn held(self) -> Self {
        Self { holds: true, ..self }
    }

    fn play(&self, stream: &mut UnixStream) {
        let mut goes_on = say(stream, &self.once);
        while goes_on && !self.endless.is_empty() {
            goes_on = say(stream, &self.endless);
        }
        if self.holds {
            // Until the tool hangs up. What it sends is nothing to this guest.
            let _: std::io::Result<u64> = std::io::copy(stream, &mut std::io::sink());
        }
    }
}

/// A machine whose agent answers every stream so.
fn machine(machines: &Machines, speech: &Speech) -> Machine {
    let speech = speech.clone();
    serve(machines, move |stream| speech.play(stream))
}

/// It ended with this code, and one diagnostic of the kind that starts with this.
fn assert_refused(run: &Finished, exit: i32, code: &str, what: &str) {
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.code(), exit, "{what}: {}", run.printed());
    assert!(stderr.contains(&format!(": {code}: ")), "{what}: {stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains('\x1b'), "{what}: {stderr}");
    assert!(stderr.len() < 4096, "{what}: {} bytes of message", stderr.len());
}

/// What no tool takes after `open`.
fn nonsense() -> Vec<(&'static str, Speech)> {
    let raw = |kind: u16, reserved: u16, length: u32| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(reserved.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        Speech::once(bytes).held()
    };
    let credit = |stream, bytes| frame(Kind::Credit, &Credit { stream, bytes }.to_bytes());
    vec![
        ("not our protocol", Speech::once("SSH-2.0-OpenSSH_9.9\r\n").held()),
        ("zeros", Speech::endless([], [0; 4096])),
        ("noise", Speech::endless([], [0xff; 4096])),
        ("an oversize length", raw(Kind::Output as u16, 0, u32::MAX)),
        ("one byte too many", raw(Kind::Output as u16, 0, 65537)),
        ("reserved bits", raw(Kind::Started as u16, 1, 4)),
        ("a frame for guests", Speech::once(frame(Kind::Signal, &[9, 0, 0, 0])).held()),
        ("a large frame for guests", raw(Kind::Open as u16, 0, 8 << 20)),
        ("another ready", Speech::once([started(), frame(Kind::Ready, &[1, 0])].concat()).held()),
        ("started twice", Speech::endless([], started())),
        ("a short failure", Speech::once(frame(Kind::Failed, &[1])).held()),
        ("an exit of no kind", Speech::once([started(), frame(Kind::Exit, &[7, 7])].concat()).held()),
        ("credit for output", Speech::once([started(), credit(Stream::Output, 1)].concat()).held()),
        ("too much credit", Speech::once([started(), credit(Stream::Input, u32::MAX)].concat()).held()),
        ("a long mark", Speech::once([started(), mark(&"x".repeat(60_000))].concat()).held()),
        ("marks without end", Speech::endless(started(), mark(&"x".repeat(200)).repeat(100))),
    ]
}

/// What asks the agent of `web`: program, arguments, and its exit code for a failure. `to` is where it may copy to.
fn tools(to: &str) -> [(&'static str, Vec<&str>, i32); 4] {
    [
        ("machinen-exec", vec!["-T", "web", "--", "x"], 125),
        ("machinen-attach", vec!["web"], 125),
        ("machinen-cp", vec!["-", "web:/tmp/x"], 1),
        ("machinen-cp", vec!["web:/etc", to], 1),
    ]
}

#[test]
fn what_is_no_protocol_is_refused_by_every_tool() {
    for (what, speech) in nonsense() {
        let machines = Machines::default();
        let _web = machine(&machines, &speech);
        let to = machines.beside("to").display().to_string();
        for (name, args, code) in tools(&to) {
            let run = confined(&machines, name, &args);
            assert_refused(&run, code, "EXEC_PROTOCOL", &format!("{what}, {name} {args:?}"));
        }
    }
}

#[test]
fn output_beyond_the_window_is_refused_and_within_it_memory_stays() {
    let machines = Machines::default();
    let full = frame(Kind::Output, &[b'x'; 65536]);
    // Nobody reads what exec prints: it may take a window, and no more.
    let _web = machine(&machines, &Speech::endless(started(), full));
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = machines.command("machinen-exec");
    command.args(["-T", "web", "--", "x"]).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
    let mut exec = Live::start(command);
    let mut stderr = String::new();
    exec.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(stderr.contains(": EXEC_PROTOCOL: ") && stderr.contains("more output than it may send"), "{stderr}");
    assert_eq!(exec.wait().code(), Some(125));
    drop((reader, machines));
    // Frames without content cost no window: they are taken for ever, in no more memory, until Ctrl-C twice.
    let machines = Machines::default();
    let _web = machine(&machines, &Speech::endless(started(), frame(Kind::Error, &[]).repeat(1000)));
    let run = confined(&machines, "machinen-exec", &["-T", "--timeout", "1", "web", "--", "x"]);
    assert_refused(&run, 124, "RUN_TIMEOUT", "empty frames");
}

#[test]
fn a_silent_agent_has_no_more_than_the_time_limit() {
    let machines = Machines::default();
    let _web = machine(&machines, &Speech::once([]).held());
    let run = machines.tool("machinen-exec").args(["-T", "--timeout", "0.2", "web", "--", "x"]).finish();
    assert_refused(&run, 124, "RUN_TIMEOUT", "silence");
}

#[test]
fn an_agent_of_another_version_is_told_from_a_broken_one() {
    let machines = Machines::default();
    let other = failed(Reason::Version, 7, "version 1 of the protocol is not served");
    let _web = machine(&machines, &Speech::once(other));
    let to = machines.beside("to").display().to_string();
    for (name, args, code) in tools(&to) {
        let run = confined(&machines, name, &args);
        assert_refused(&run, code, "EXEC_VERSION", name);
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        let says = |text: &str| assert!(said.contains(text), "{text}: {said}");
        says("has version 7 of the protocol");
        says(&format!("this tool {}", machinen_abi::VERSION));
        says("start the machine anew");
    }
}

#[test]
fn what_a_guest_says_steers_no_terminal() {
    let machines = Machines::default();
    let _web = machine(&machines, &Speech::once(failed(Reason::System, 5, "\x1b]0;owned\x07\nmachinen-exec: fine")));
    for (name, args, code) in
        [("machinen-exec", &["-T", "web", "--", "x"][..], 125), ("machinen-cp", &["-", "web:/tmp/x"], 1)]
    {
        let run = confined(&machines, name, args);
        assert_refused(&run, code, "EXEC_SYSTEM", name);
        assert!(!run.stderr.contains(&7), "{}", run.printed());
        assert_eq!(String::from_utf8_lossy(&run.stderr).matches("machinen-exec: fine").count(), 1);
        assert!(!run.printed().contains("\nmachinen-exec: fine"), "{}", run.printed());
    }
}

#[test]
fn a_guest_that_dies_half_way_is_a_failure() {
    let machines = Machines::default();
    let half = [started(), frame(Kind::Output, b"half")].concat();
    let cut = [&half[..], &frame(Kind::Output, b"never")[..9]].concat();
    for speech in [half, cut] {
        let web = machine(&machines, &Speech::once(speech));
        let run = confined(&machines, "machinen-exec", &["-T", "web", "--", "x"]);
        assert_eq!(run.stdout, b"half");
        assert_refused(&run, 125, "BOOT_ENDED", "exec");
        let run = confined(&machines, "machinen-cp", &["web:/etc/passwd", "-"]);
        assert_eq!(run.code(), 1, "{}", run.printed());
        web.kill(&machines);
        machines.registry.gc(false).unwrap();
    }
}

/// `machinen-run` whose monitor is a script, with what it wants to know of the world.
struct Host {
    machines: Machines,
    /// The script tells its directory there.
    born: PathBuf,
}

impl Host {
    fn new() -> Self {
        let machines = Machines::default();
        let born = machines.beside("born");
        assert!(Command::new("mkfifo").arg(&born).status().unwrap().success());
        let vmm = machines.beside("vmm");
        fs::write(&vmm, format!("#!/bin/sh\npwd >'{}'\nexec sleep 1000\n", born.display())).unwrap();
        fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
        // The super block of an ext4 image begins so; nobody looks at more.
        let mut image = vec![0; 4096];
        image[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        fs::write(machines.beside("image"), image).unwrap();
        Self { machines, born }
    }

    /// Starts a tool that is to boot, and plays its guest from the connection on.
    fn run(&self, flags: &[&str]) -> (Live, UnixStream) {
        let mut command = Command::new("sh");
        command.env("MACHINEN_REGISTRY_DIR", self.machines.registry.path());
        command.args(["-c", &format!("ulimit -v {ROOM_KIB} && exec \"$0\" \"$@\"")]).arg(bin("machinen-run"));
        command.args(flags).arg(self.machines.beside("image")).args(["--", "x"]);
        command.env("MACHINEN_VMM", self.machines.beside("vmm")).env("MACHINEN_KERNEL", "/dev/null");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = Live::start(command);
        let dir = fs::read_to_string(&self.born).unwrap();
        let stream = UnixStream::connect(format!("{}/main.sock", dir.trim_end())).unwrap();
        (run, stream)
    }

    /// It ended like this, and left nothing.
    fn ended(&self, mut run: Live) -> Finished {
        let status = run.wait();
        let Child { stdout, stderr, .. } = &mut run.child;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        stdout.take().unwrap().read_to_end(&mut out).unwrap();
        stderr.take().unwrap().read_to_end(&mut err).unwrap();
        assert!(self.machines.registry.list().unwrap().is_empty(), "its directory is left");
        Finished { stdout: out, stderr: err, status, elapsed: Default::default(), killed: false }
    }
}

fn ready() -> Vec<u8> {
    frame(Kind::Ready, &machinen_abi::VERSION.to_le_bytes())
}

#[test]
fn a_guest_whose_first_words_make_no_sense_does_not_start() {
    for (what, speech) in nonsense() {
        if what == "another ready" {
            continue;
        }
        let host = Host::new();
        let (run, mut stream) = host.run(&[]);
        let guest = thread::spawn(move || speech.play(&mut stream));
        assert_refused(&host.ended(run), 125, "EXEC_PROTOCOL", what);
        guest.join().unwrap();
    }
}

#[test]
fn a_guest_that_makes_no_sense_after_it_is_ready_ends_its_machine() {
    for flags in [&["-T"][..], &["-d"]] {
        for (what, speech) in nonsense() {
            if flags == ["-d"] && (speech.once.starts_with(&started()) || what == "started twice") {
                // It has started, and is left alone.
                continue;
            }
            let host = Host::new();
            let (run, mut stream) = host.run(flags);
            assert!(say(&mut stream, &ready()));
            assert_eq!(receive(&mut stream).0, Kind::Open);
            let guest = thread::spawn(move || speech.play(&mut stream));
            assert_refused(&host.ended(run), 125, "EXEC_PROTOCOL", &format!("{what}, {flags:?}"));
            guest.join().unwrap();
        }
    }
}

#[test]
fn a_guest_of_another_version_is_refused_with_both_numbers() {
    let host = Host::new();
    let (run, mut stream) = host.run(&[]);
    assert!(say(&mut stream, &frame(Kind::Ready, &[9, 0])));
    let run = host.ended(run);
    assert_refused(&run, 125, "EXEC_VERSION", "ready");
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(said.contains("version 9") && said.contains(&format!("this tool {}", machinen_abi::VERSION)), "{said}");
    assert!(said.contains("same build"), "{said}");
}

#[test]
fn a_silent_guest_can_be_left_at_every_step() {
    const TERM: i32 = 15;
    for flags in [&["-T"][..], &["-d"]] {
        for words in [vec![], mark("init"), ready()] {
            let host = Host::new();
            let (run, mut stream) = host.run(flags);
            assert!(say(&mut stream, &words));
            if words == ready() {
                assert_eq!(receive(&mut stream).0, Kind::Open);
            }
            run.until_asleep();
            run.send(TERM);
            if words == ready() {
                // The first is the command's.
                let told = iter::repeat_with(|| receive(&mut stream)).find(|(kind, _)| *kind != Kind::InputEnd);
                assert_eq!(told, Some((Kind::Signal, vec![15, 0, 0, 0])));
                run.send(TERM);
            }
            let run = host.ended(run);
            assert_eq!((run.code(), run.printed().as_str()), (128 + TERM, ""), "{flags:?} {words:?}");
        }
    }
    // Nor does it have more than the time limit.
    for words in [vec![], ready()] {
        let host = Host::new();
        let (run, mut stream) = host.run(&["-T", "--timeout", "0.3"]);
        assert!(say(&mut stream, &words));
        assert_refused(&host.ended(run), 124, "RUN_TIMEOUT", "silence");
    }
}

#[test]
fn a_guest_that_goes_away_says_so() {
    for flags in [&["-T"][..], &["-d"]] {
        for words in [vec![], ready(), ready()[..5].to_vec()] {
            let host = Host::new();
            let (run, mut stream) = host.run(flags);
            assert!(say(&mut stream, &words));
            if words == ready() {
                assert_eq!(receive(&mut stream).0, Kind::Open);
            }
            drop(stream);
            assert_refused(&host.ended(run), 125, "BOOT_ENDED", "hung up");
        }
    }
}

#[test]
fn a_mebibyte_of_arguments_comes_whole() {
    let host = Host::new();
    let word = "x".repeat(120_000);
    let env = format!("A={word}");
    let (run, mut stream) = host.run(&[&["-T"], &["-e", env.as_str()].repeat(9)[..]].concat());
    assert!(say(&mut stream, &ready()));
    let (kind, payload) = receive(&mut stream);
    let open = Open::parse(&payload).unwrap();
    assert_eq!((kind, Operation::of(open.operation)), (Kind::Open, Some(Operation::Exec)));
    let whole =
        open.fields().map(Result::unwrap).filter(|(tag, value)| *tag == Tag::Environment && *value == env.as_bytes());
    assert_eq!(whole.count(), 9);
    assert!(say(&mut stream, &[started(), exit(3)].concat()));
    assert_eq!(host.ended(run).code(), 3);
}

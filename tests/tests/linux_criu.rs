//! The main command is dumped by CRIU in one guest and restored in another. The bundle is on a disk that both have.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use machinen_abi::body::{Exit, Reason};
use machinen_abi::frame::Kind;
use machinen_abi::open::{Operation, Tag};
use machinen_tests::agent::{Client, End, MODULES, Machine, Outcome, exec};
use machinen_tests::bundles::CRIU_MODULES;
use machinen_tests::e2fs::E2fs;
use machinen_tests::guest::Scratch;
use machinen_tests::lab::Arch;
use machinen_tests::{IS_LAZY, Run, asset, bin, rootfs};

const TUNED: &str = "vmlinux-tuned";
const STOCK: &str = "vmlinux";

/// A field of a first frame.
type Field<'a> = (Tag, &'a [u8]);

/// Where the guests have the disk of bundles.
const AT: Field<'static> = (Tag::Directory, b"/b");

/// A root file system, and a disk for bundles.
struct Disks {
    _scratch: Scratch,
    root: PathBuf,
    bundle: PathBuf,
}

impl Disks {
    fn new(mib: u64) -> Self {
        let (scratch, e2fs) = (Scratch::new(), E2fs::new());
        let run = Run::new(bin("machinen-rootfs-img")).env("MACHINEN_E2FSCK", e2fs.e2fsck());
        let made = run.arg(asset(&rootfs(Arch::OWN))).limit(Duration::from_secs(100)).finish();
        assert_eq!(made.code(), 0, "{}", made.printed());
        let root = String::from_utf8(made.stdout).unwrap().trim_end().into();
        let bundle = scratch.path("bundle");
        e2fs.make(&bundle, mib, None);
        Self { _scratch: scratch, root, bundle }
    }

    /// A guest of Debian with the disk of bundles at `/b`, and the stream for its main command.
    fn boot(&self, kernel: &str, access: &str) -> (Machine, Client) {
        self.boot_by(None, kernel, access)
    }

    /// The same, where this program is to become /init.
    fn boot_by(&self, first: Option<&str>, kernel: &str, access: &str) -> (Machine, Client) {
        let machine = Machine::boot(|bridges| {
            let scratch = Scratch::new();
            let initrd = scratch.path("initrd");
            let mut make = Run::new(bin("machinen-mkinitramfs")).arg("minimal").arg(&initrd);
            make = make.args(["--root", "/dev/vda", "--agent"]);
            if kernel == STOCK {
                for name in MODULES.iter().chain(&["virtio_blk"]).chain(&CRIU_MODULES) {
                    make = make.arg("--module").arg(asset(&format!("modules/{name}.ko")));
                }
            }
            let made = make.finish();
            assert_eq!(made.code(), 0, "{}", made.printed());
            let mut command = Command::new(bin("vmm-min"));
            if let Some(first) = first {
                // A second archive, which the kernel unpacks over the first.
                let more = archive("first", &fs::read(bin(first)).unwrap());
                File::options().append(true).open(&initrd).unwrap().write_all(&more).unwrap();
                command.args(["--cmdline", "rdinit=/first"]);
            }
            command.arg("--kernel").arg(asset(kernel)).arg("--initrd").arg(initrd).args(["-m", "1024"]).args(bridges);
            command.arg("--root-disk").arg(&self.root);
            command.arg("--disk").arg(format!("{}:{access}", self.bundle.display()));
            (command, scratch)
        });
        let main = machine.ready();
        let option = if access == "ro" { "-r" } else { "-w" };
        let mounted = machine.run(&format!("mkdir -p /b && mount {option} /dev/vdb /b"));
        assert_eq!(mounted.triple(), (String::new(), String::new(), 0));
        (machine, main)
    }

    /// Restores the bundle in a new guest.
    fn restore(&self, kernel: &str, fields: &[Field<'_>]) -> (Machine, Client) {
        let (machine, mut main) = self.boot(kernel, "ro");
        main.open(Operation::Restore, &[&[AT], fields].concat());
        (machine, main)
    }
}

/// An initramfs of one program (newc, as Documentation/driver-api/early-userspace/buffer-format.rst has it).
fn archive(name: &str, program: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for (name, content) in [(name, program), ("TRAILER!!!", b"")] {
        let fields = [1, 0o100_755, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        let fields: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        for part in [format!("070701{fields}{name}\0").as_bytes(), content] {
            all.extend(part);
            all.resize(all.len().next_multiple_of(4), 0);
        }
    }
    all
}

fn dump(machine: &Machine, fields: &[Field<'_>]) -> Outcome {
    let mut client = machine.connect();
    client.open(Operation::Dump, &[&[AT], fields].concat());
    client.outcome()
}

/// Dumps, which ends the machine. Returns what the main command had printed, and the dump.
fn dump_and_end(machine: Machine, main: Client, fields: &[Field<'_>]) -> (Outcome, Outcome) {
    let dumped = dump(&machine, fields);
    assert_eq!(dumped.end, End::Exit(Exit::Code(0)), "{dumped:?}");
    let outcome = main.outcome();
    assert_eq!(outcome.end, End::Failed(Reason::Dumped, 0, "the main command was dumped".into()));
    assert_eq!(machine.finish(), (0, String::new()));
    (outcome, dumped)
}

/// The time from each mark to the next, for whoever reads the test's output.
fn print_marks(what: &str, outcome: &Outcome) {
    let mut marks = outcome.marks.clone();
    marks.sort_by_key(|(_, time)| *time);
    let since: Vec<String> =
        marks.windows(2).map(|pair| format!("{} +{} ms", pair[1].0, (pair[1].1 - pair[0].1) / 1_000_000)).collect();
    println!("{what}: {}", since.join(", "));
}

/// Counts, one number a line, and ends when it is told a code.
const COUNTER: &str = r#"
import sys, select
n = 0
while True:
    n += 1
    print(n, flush=True)
    print("e%d" % n, file=sys.stderr, flush=True)
    if select.select([0], [], [], 0.02)[0]:
        line = sys.stdin.readline()
        if not line: sys.exit(99)
        print("got " + line.strip(), flush=True)
        if line.startswith("end"): sys.exit(int(line.split()[1]))
"#;

/// Waits for the first output of a counter, which begins with this number.
fn expect_first(main: &mut Client, number: u32) {
    let bytes = main.expect(Kind::Output);
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with(&format!("{number}\n")), "{text} does not begin with {number}");
}

#[test]
fn a_counter_goes_on_where_it_was() {
    let disks = Disks::new(256);
    let (machine, mut main) = disks.boot(TUNED, "rw");
    exec(&mut main, &["python3", "-c", COUNTER]);
    let pid = u32::from_le_bytes(main.expect(Kind::Started).try_into().unwrap());
    assert!(pid >= 1000, "{pid}");
    main.expect_output("\n5\n");

    // What cannot be dumped runs on.
    let failing = dump(&machine, &[(Tag::Argument, b"false")]);
    assert_eq!(failing.end, End::Failed(Reason::System, 0, "false: exit code 1".into()));
    let slow: [Field<'_>; 3] = [(Tag::Argument, b"sleep"), (Tag::Argument, b"1000"), (Tag::Timeout, &[1, 0, 0, 0])];
    let End::Failed(Reason::System, 110, message) = dump(&machine, &slow).end else { panic!() };
    assert_eq!(message, "the dump command has not ended after 1 s");
    let script = "echo $MACHINEN_DUMP_PID $MACHINEN_DUMP_DIR >&2; kill -0 $MACHINEN_DUMP_PID";
    let own: [Field<'_>; 4] =
        [(Tag::Argument, b"sh"), (Tag::Argument, b"-c"), (Tag::Argument, script.as_bytes()), (Tag::LeaveRunning, b"")];
    let own = dump(&machine, &own);
    assert_eq!(own.end, End::Exit(Exit::Code(0)), "{own:?}");
    assert_eq!(String::from_utf8(own.error).unwrap(), format!("{pid} /b/img\n"));
    let mut client = machine.connect();
    client.open(Operation::Dump, &[]);
    let End::Failed(Reason::System, errno, message) = client.outcome().end else { panic!() };
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

/// Fills a heap, then answers each line of input from a child over pipes, and says whether the heap is as it was.
const TREE: &str = r#"
import os, sys, hashlib
(r, w), (r2, w2) = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(w)
    while True:
        line = os.read(r, 100)
        if not line: os._exit(0)
        os.write(w2, line.upper())
heap = bytearray(os.urandom(1 << 20) * MIB)
for i in range(0, len(heap), 4096): heap[i:i+4] = i.to_bytes(4, "little")
digest = hashlib.sha1(heap).hexdigest()
print("ready", flush=True)
for line in sys.stdin:
    os.write(w, line.encode())
    answer = os.read(r2, 100).decode().strip()
    same = hashlib.sha1(heap).hexdigest() == digest
    print("from the child:", answer, same, flush=True)
os.close(w)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]) + 9)
"#;

/// What `stats` answers.
fn stats(machine: &Machine) -> BTreeMap<String, u64> {
    let text = stats_text(machine, &[]);
    let pairs = text.lines().map(|line| line.split_once(' ').unwrap());
    pairs.map(|(name, number)| (name.to_owned(), number.parse().unwrap())).collect()
}

fn stats_text(machine: &Machine, fields: &[Field<'_>]) -> String {
    let mut client = machine.connect();
    client.open(Operation::Stats, fields);
    let (text, error, code) = client.outcome().triple();
    assert_eq!((&*error, code), ("", 0));
    text
}

#[test]
fn a_tree_with_a_large_heap_comes_eagerly_and_lazily() {
    let mib: u64 = if machinen_tests::soak() { 256 } else { 64 };
    let disks = Disks::new(mib * 2 + 64);
    let (machine, mut main) = disks.boot(TUNED, "rw");
    exec(&mut main, &["python3", "-c", &TREE.replace("MIB", &mib.to_string())]);
    main.expect_output("ready\n");
    assert_eq!(stats(&machine).values().sum::<u64>(), 4096, "{:?}", stats(&machine));
    let (_, dumped) = dump_and_end(machine, main, &[]);
    print_marks(&format!("dump of {mib} MiB"), &dumped);

    // What was waited for before, and comes with the processes.
    let mut hints = BTreeSet::new();
    for (lazy, kernel) in [(false, TUNED), (true, TUNED), (true, TUNED), (true, STOCK)] {
        let fields: &[Field<'_>] = if lazy { &[(Tag::Lazy, b"")] } else { &[] };
        let (machine, mut main) = disks.boot(kernel, "rw");
        let text: Vec<&str> = hints.iter().map(String::as_str).collect();
        let script = format!("cat >/b/faults <<.\n0 1000\n1000 1001\n99 1000\n1000 1000\n{}\n.\n", text.join("\n"));
        assert_eq!(machine.run(&script).triple().2, 0);
        main.open(Operation::Restore, &[&[AT], fields].concat());
        main.send(Kind::Input, b"a line\n");
        let lazy = lazy && IS_LAZY;
        if lazy {
            main.expect(Kind::Started);
            let now = stats(&machine);
            println!("after the start: {now:?}");
            assert!(
                now["total"] + hints.len() as u64 >= mib * 256 && now["served"] + now["pending"] == now["total"],
                "{now:?}"
            );
        }
        main.expect_output("from the child: A LINE True\n");
        if lazy {
            let deadline = Instant::now() + Duration::from_mins(1);
            while stats(&machine)["pending"] > 0 {
                assert!(Instant::now() < deadline, "{:?}", stats(&machine));
            }
            assert_eq!(machine.run("until [ -e /run/machinen/lazy.over ]; do sleep 0.01; done").triple().2, 0);
            let over = stats_text(&machine, &[(Tag::Lazy, b"")]);
            println!("{:?}", stats(&machine));
            assert_eq!(over.lines().count() as u64, stats(&machine)["faults"].min(4096), "{over}");
            assert!(over.lines().all(|line| line.starts_with("100") && line.len() > 6), "{over}");
            // What came first is not waited for.
            let again: Vec<&str> = over.lines().filter(|line| hints.contains(*line)).collect();
            assert!(again.is_empty(), "{again:?}");
            hints.extend(over.lines().take(1000).map(str::to_owned));
            let huge = machine.run("cat /sys/kernel/mm/transparent_hugepage/enabled").text();
            assert!(!huge.contains("[never]"), "{huge}");
        }
        main.send(Kind::InputEnd, &[]);
        let outcome = main.outcome();
        assert_eq!(outcome.end, End::Exit(Exit::Code(9)), "{outcome:?}");
        print_marks(&format!("restore of {mib} MiB, {}", if lazy { "lazy" } else { "eager" }), &outcome);
        assert_eq!(machine.finish(), (9, String::new()));
    }
}

#[test]
fn a_kernel_that_cannot_bring_memory_later_brings_it_first() {
    let disks = Disks::new(128);
    let (machine, mut main) = disks.boot(TUNED, "rw");
    exec(&mut main, &["python3", "-c", COUNTER]);
    main.expect_output("\n5\n");
    let (before, _) = dump_and_end(machine, main, &[]);
    let last: u32 = before.text().lines().last().unwrap().parse().unwrap();
    let no_server = if IS_LAZY { "criu lazy-pages: it has ended" } else { "CRIU 3.17.1 cuts off addresses" };
    // A kernel that has no userfaultfd, and a server that does not come up.
    for (first, prepare, why) in [
        (Some("machinen-without-userfaultfd"), "true", "the kernel has no userfaultfd"),
        (None, "mkdir -p /run/machinen/lazy-pages.socket/x", no_server),
    ] {
        let (machine, mut main) = disks.boot_by(first, TUNED, "ro");
        assert_eq!(machine.run(prepare).triple().2, 0);
        main.open(Operation::Restore, &[AT, (Tag::Lazy, b"")]);
        expect_first(&mut main, last + 1);
        assert_eq!(stats(&machine)["total"], 0);
        main.send(Kind::Input, b"end 7\n");
        let outcome = main.outcome();
        assert_eq!(outcome.end, End::Exit(Exit::Code(7)), "{outcome:?}");
        let names: Vec<&str> = outcome.marks.iter().map(|(name, _)| &**name).collect();
        assert!(names.iter().any(|name| name.starts_with(&format!("not lazy: {why}"))), "{names:?}");
        assert_eq!(machine.finish(), (7, String::new()));
    }
}

/// By its number from the second line on: who looks for a name reads memory of the processes.
const KILL_THE_SERVER_WHEN_SOMEBODY_WAITS: &str = r#"
server=$(pgrep -f 'criu lazy-page[s]')
[ -z "$server" ] || kill -STOP $server
echo stopped
while :; do
    for at in /proc/1???/wchan; do
        read where <$at
        case $where in *userfault*) kill -KILL $server; exit ;; esac
    done
done 2>/dev/null
"#;

#[test]
fn nothing_goes_on_with_memory_that_cannot_come() {
    if !IS_LAZY {
        println!("SKIP: CRIU 3.17.1 brings no memory page by page on aarch64");
        return;
    }
    let disks = Disks::new(256);
    let (machine, mut main) = disks.boot(TUNED, "rw");
    exec(&mut main, &["python3", "-c", &TREE.replace("MIB", "64")]);
    main.expect_output("ready\n");
    dump_and_end(machine, main, &[]);
    let (machine, mut main) = disks.restore(TUNED, &[(Tag::Lazy, b"")]);
    main.expect(Kind::Started);
    // All in one command: whoever writes to a process that waits for memory as it reads may wait with it, and that is PID 1.
    let mut killer = machine.connect();
    exec(&mut killer, &["/bin/sh", "-c", KILL_THE_SERVER_WHEN_SOMEBODY_WAITS]);
    killer.expect_output("stopped\n");
    let now = stats(&machine);
    main.input(b"a line\n");
    let outcome = main.outcome();
    let text = outcome.text();
    let status = match outcome.end {
        // A machine that is fast enough has had all of it.
        End::Exit(exit) if now["pending"] == 0 => {
            assert_eq!((&*text, exit), ("from the child: A LINE True\n", Exit::Code(9)));
            exit.status()
        }
        // It may come upon a page of zeros before it is killed.
        End::Exit(exit @ Exit::Signal(9 | 11)) => {
            assert_eq!(text, "", "{now:?}");
            exit.status()
        }
        end => panic!("{end:?} {now:?} {text}"),
    };
    assert_eq!(machine.finish(), (status.into(), String::new()));
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

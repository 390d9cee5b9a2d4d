//! Memory that comes page by page to what is restored: all of it, what was waited for before first, or none of it.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use machinen_abi::body::Exit;
use machinen_abi::frame::Kind;
use machinen_abi::open::{Operation, Tag};
use machinen_tests::agent::{End, Machine, exec};
use machinen_tests::bundles::COUNTER;
use machinen_tests::criu::{AT, Disks, Field, STOCK, TUNED, dump_and_end, expect_first, print_marks};
use machinen_tests::{IS_LAZY, soak};

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
    let mib: u64 = if soak() { 256 } else { 64 };
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
            println!("SKIP: all memory had come before its server stood still");
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

//! snapshot, restore and fork, as people type them: processes of one machine go on in another.

#![forbid(unsafe_code)]

use std::fs;

use machinen_tests::bundles::{COUNTER, count, counted, find, goes_on, no_machine_is_left, snapshot};
use machinen_tests::cli::Cli;
use machinen_tests::host::Small;
use machinen_tests::monitor::wait_until;
use machinen_tests::pty::Pty;
use machinen_tests::session::Session;
use machinen_tests::{IS_LAZY, Run, asset};

/// A connection of a process with itself; says when it ends.
const STREAM: &str = r#"
import os, socket, sys, time
listener = socket.create_server(("127.0.0.1", 4000))
one = socket.create_connection(("127.0.0.1", 4000))
other, _ = listener.accept()
print("connected", flush=True)
n = 0
while True:
    n += 1
    try:
        one.sendall(b"%d\n" % n)
        if not other.recv(100): break
    except OSError as error:
        print("broken", flush=True)
        break
    if os.path.exists("/tmp/say"):
        os.remove("/tmp/say")
        print("goes on", flush=True)
    time.sleep(0.02)
print("the stream has ended", flush=True)
while not os.path.exists("/tmp/end"): time.sleep(0.05)
sys.exit(5)
"#;

/// The last whole number of a counter that was cut off.
fn last(printed: &str) -> u64 {
    let lines = printed.rsplit_once('\n').map_or("", |(lines, _)| lines);
    lines.lines().rev().find_map(|line| line.parse().ok()).expect("a number")
}

#[test]
fn a_counter_goes_on_in_other_machines() {
    let cli = Cli::of_debian();
    let bundle = cli.path("bundle");
    let dir = bundle.to_str().unwrap();
    let mut counter = Session::on_pipes(cli.run_command(&["--name", "c"], &["python3", "-c", COUNTER]));
    counter.expect("\n5\n");

    // What fails leaves it as it was.
    let failed = cli.tool("snapshot", &["--dump-cmd", "sh -c 'exit 3'", "c", dir]).finish();
    assert_eq!(failed.code(), 1, "{}", failed.printed());
    assert!(
        failed.printed().contains("SNAPSHOT_FAILED") && failed.printed().contains("exit code 3"),
        "{}",
        failed.printed()
    );
    let partial = cli.tool("restore", &[dir]).finish();
    assert_eq!(partial.code(), 125, "{}", partial.printed());
    assert!(partial.printed().contains("BUNDLE_PARTIAL"), "{}", partial.printed());
    assert_eq!(fs::read_dir(&bundle).unwrap().count(), 0);
    fs::write(bundle.join("mine"), "").unwrap();
    let again = cli.tool("snapshot", &["c", dir]).finish();
    assert!(again.code() == 1 && again.printed().contains("it is not empty"), "{}", again.printed());
    fs::remove_dir_all(&bundle).unwrap();
    counter.type_in("still here\n");
    counter.expect("got still here\n");

    let made = cli.tool("snapshot", &["--json", "c", dir]).finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    let said: serde_json::Value = serde_json::from_str(&made.printed()).unwrap();
    assert_eq!((said["meta"]["source"].as_str(), said["meta"]["engine"].as_str()), (Some("c"), Some("criu")));
    assert!(said["meta"]["workload"]["pid"].as_u64().is_some_and(|pid| pid >= 1000), "{said}");
    assert_eq!(counter.end().code(), Some(125), "{}", counter.printed());
    assert!(counter.printed().contains("SNAPSHOT_TAKEN"), "{}", counter.printed());
    let stopped = last(&counter.printed());
    no_machine_is_left(&cli);

    for flags in [&[][..], &["--lazy"]] {
        let mut restored = Session::on_pipes(cli.command("restore", &[flags, &[dir]].concat()));
        restored.expect(&format!("{}\n", stopped + 1));
        restored.type_in("end 7\n");
        assert_eq!(restored.end().code(), Some(7), "{}", restored.printed());
        let printed = restored.printed();
        assert_eq!(printed.lines().next().unwrap_or_default(), (stopped + 1).to_string(), "{printed}");
    }

    // In another directory it may be anybody's.
    let moved = cli.path("moved");
    fs::create_dir(&moved).unwrap();
    for name in ["img", "meta.json", "root.layer"] {
        fs::rename(bundle.join(name), moved.join(name)).unwrap();
    }
    let mut left: Vec<_> = fs::read_dir(&bundle).unwrap().map(|item| item.unwrap().file_name()).collect();
    left.sort();
    let expected: &[&str] = if IS_LAZY { &["dump.log", "faults"] } else { &["dump.log"] };
    assert_eq!(left, expected);
    let dir = moved.to_str().unwrap();
    let refused = cli.tool("restore", &[dir]).finish();
    assert_eq!(refused.code(), 125, "{}", refused.printed());
    let image = cli.image().to_str().unwrap().to_owned();
    assert!(
        refused.printed().contains("RESTORE_UNTRUSTED") && refused.printed().contains(&image),
        "{}",
        refused.printed()
    );
    for flags in [["--trust", ""], ["--image", &image]] {
        let flags: Vec<&str> = flags.into_iter().filter(|flag| !flag.is_empty()).chain([dir]).collect();
        let mut restored = Session::on_pipes(cli.command("restore", &flags));
        restored.expect(&format!("{}\n", stopped + 1));
        restored.type_in("end 8\n");
        assert_eq!(restored.end().code(), Some(8), "{}", restored.printed());
    }
    no_machine_is_left(&cli);
}

#[test]
fn a_shell_on_a_terminal_goes_on() {
    let cli = Cli::of_debian();
    let bundle = cli.path("bundle");
    let dir = bundle.to_str().unwrap();
    let pty = Pty::open().unwrap();
    let mut shell = Session::on_terminal(cli.run_command(&["--name", "s"], &["bash", "--norc"]), &pty);
    shell.type_in("cd /usr; word=remem''bered; echo re''ady\n");
    shell.expect("ready");
    let made = cli.tool("snapshot", &["s", dir]).finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    assert_eq!(shell.end().code(), Some(125));
    let pty = Pty::open().unwrap();
    let mut shell = Session::on_terminal(cli.command("restore", &[dir]), &pty);
    shell.type_in("echo $word in $PWD; sleep 1000\n");
    shell.expect("remembered in /usr");
    // Ctrl-C reaches what runs, by the new terminal.
    shell.type_in("\x03");
    shell.type_in("exit 6\n");
    assert_eq!(shell.end().code(), Some(6), "{}", shell.printed());
}

#[test]
fn a_fork_leaves_its_source_alone() {
    let cli = Cli::of_debian();
    cli.detach("web", &["python3", "-c", STREAM]);
    let mut logs = Session::on_pipes(cli.command("logs", &["-f", "web"]));
    logs.expect("connected");
    let refused = cli.tool("fork", &["-d", "--min-free", "100.1", "web"]).finish();
    assert_eq!(refused.code(), 125, "{}", refused.printed());
    assert!(refused.printed().contains("FORK_MEMORY_BACKPRESSURE"), "{}", refused.printed());

    // What was written to the disk is in the copy, and what is written then in one of them only.
    let written =
        cli.exec("web", &["sh", "-c", "seq 100000 >/srv/numbers; sha256sum </srv/numbers"]).finish().printed();
    let forked = cli.tool("fork", &["-d", "web"]).finish();
    assert_eq!(forked.code(), 0, "{}", forked.printed());
    let name = forked.printed().trim_end().to_owned();
    assert!(name.strip_prefix("web/").is_some_and(|pid| pid.parse::<u32>().is_ok()), "{name}");
    let list = cli.tool("ls", &["--json"]).finish().printed();
    let copy = list.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let copy = copy.into_iter().find(|vm| vm["name"] == *name).expect("it is listed");
    assert_eq!(copy["forked_from"], "web", "{list}");

    assert_eq!(cli.exec("web", &["rm", "/srv/numbers"]).finish().code(), 0);
    assert_eq!(cli.exec(&name, &["sh", "-c", "sha256sum </srv/numbers"]).finish().printed(), written);

    // The copy's stream has ended, the source's goes on.
    assert_eq!(cli.exec(&name, &["touch", "/tmp/end"]).finish().code(), 0);
    let mut logs = Session::on_pipes(cli.command("logs", &["-f", &name]));
    logs.expect("the stream has ended");
    assert_eq!(logs.end().code(), Some(0));
    assert_eq!(cli.exec("web", &["touch", "/tmp/say"]).finish().code(), 0);
    let mut logs = Session::on_pipes(cli.command("logs", &["-f", "web"]));
    logs.expect("goes on");
    assert!(!cli.tool("logs", &["web"]).finish().printed().contains("has ended"));
    assert_eq!(cli.tool("stop", &["-t", "0", "web"]).finish().code(), 0);
    no_machine_is_left(&cli);
    // Nothing of the bundle is left.
    assert_eq!(fs::read_dir(cli.path("cache/bundles")).unwrap().count(), 0);
}

#[test]
fn memory_and_disk_are_of_the_same_moment() {
    let cli = Cli::of_debian();
    let bundle = cli.path("bundle");
    count(&cli, "src");
    // What it does after its dump is not in the bundle.
    snapshot(&cli, &["-l"], "src", &bundle);
    let then = counted(&cli, "src");
    let restored = cli.tool("restore", &["-d", "--name", "old", bundle.to_str().unwrap()]).finish();
    assert_eq!(restored.code(), 0, "{}", restored.printed());
    println!("{then} some time after the snapshot, and in what was restored {}", counted(&cli, "old"));
    for name in ["src", "old"] {
        goes_on(&cli, name);
        assert_eq!(cli.tool("stop", &["-t", "0", name]).finish().code(), 0);
    }
    no_machine_is_left(&cli);
}

#[test]
fn a_fork_is_of_one_moment_and_a_bundle_has_all_of_the_log() {
    let cli = Cli::of_debian();
    let bundle = cli.path("bundle");
    count(&cli, "src");
    let forked = cli.tool("fork", &["-d", "--name", "copy", "src"]).finish();
    assert_eq!(forked.code(), 0, "{}", forked.printed());
    goes_on(&cli, "copy");
    assert_eq!(cli.tool("stop", &["-t", "0", "copy"]).finish().code(), 0);

    snapshot(&cli, &[], "src", &bundle);
    wait_until("it is gone", || find(&cli, "src").is_none());
    let log = fs::read_to_string(bundle.join("dump.log")).unwrap();
    assert!(log.contains("Dumping finished successfully"), "{log}");
    let mut names: Vec<_> = fs::read_dir(&bundle).unwrap().map(|item| item.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["dump.log", "img", "meta.json", "root.layer"]);
    let restored = cli.tool("restore", &["-d", "--name", "src", bundle.to_str().unwrap()]).finish();
    assert_eq!(restored.code(), 0, "{}", restored.printed());
    goes_on(&cli, "src");
    assert_eq!(cli.tool("stop", &["-t", "0", "src"]).finish().code(), 0);
    no_machine_is_left(&cli);
}

/// Writes more to the root disk than a small file system holds.
const FILL: &str = "
with open('/fill', 'wb') as f:
    for i in range(64): f.write(bytes([i + 1]) * (1 << 20))
";

#[test]
fn what_cannot_be_kept_or_takes_too_long_goes_on() {
    let cli = Cli::of_debian();
    count(&cli, "src");
    assert_eq!(cli.exec("src", &["python3", "-c", FILL]).finish().code(), 0);
    if let Some(small) = Small::mount(40) {
        for flags in [&[][..], &["-l"]] {
            let dir = small.path().join("bundle");
            let full = cli.tool("snapshot", &[flags, &["src", dir.to_str().unwrap()]].concat()).finish();
            let printed = full.printed();
            assert_eq!(full.code(), 1, "{printed}");
            for part in ["SNAPSHOT_DIRECTORY", "root.layer", "CTL_WRITE", "dump.log"] {
                assert!(printed.contains(part), "{part}: {printed}");
            }
            goes_on(&cli, "src");
            let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|item| item.unwrap().file_name()).collect();
            assert_eq!(left, ["dump.log"]);
            fs::remove_dir_all(&dir).unwrap();
        }
    } else {
        println!("SKIP: no right to mount a small file system");
    }

    // A monitor that says nothing.
    let monitor = cli.monitor().to_string();
    let signal = |name: &str| assert_eq!(Run::new(asset("busybox")).args(["kill", name, &monitor]).finish().code(), 0);
    let bundle = cli.path("bundle");
    signal("-STOP");
    let late = cli.tool("snapshot", &["--timeout", "1", "src", bundle.to_str().unwrap()]).finish();
    signal("-CONT");
    assert_eq!(late.code(), 1, "{}", late.printed());
    assert!(late.printed().contains("SNAPSHOT_TIMEOUT") && late.printed().contains("after 1 s"), "{}", late.printed());
    goes_on(&cli, "src");
    // A command that dumps and comes to no end.
    let late = ["--timeout", "2", "--dump-cmd", "sleep 1000", "src", bundle.to_str().unwrap()];
    let late = cli.tool("snapshot", &late).finish();
    assert_eq!(late.code(), 1, "{}", late.printed());
    assert!(late.printed().contains("SNAPSHOT_TIMEOUT"), "{}", late.printed());
    goes_on(&cli, "src");
    assert_eq!(fs::read_dir(&bundle).unwrap().count(), 0);
    snapshot(&cli, &["--timeout", "100"], "src", &bundle);
    wait_until("the machine is gone", || find(&cli, "src").is_none());
    no_machine_is_left(&cli);
}

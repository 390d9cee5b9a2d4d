//! Guests that harm themselves, readers that stop, and registries in odd places: the rest of the machine and the tools go on.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use machinen_abi::frame::{Header, Kind};
use machinen_abi::open::{Operation, Tag, add, begin};
use machinen_tests::Run;
use machinen_tests::cli::Cli;
use machinen_tests::monitor::{Live, wait_until};
use machinen_tests::session::Session;

/// What nobody expects to hold a file.
const NO_HOME: &str = "/proc";

fn value(run: Run) -> serde_json::Value {
    let finished = run.finish();
    assert_eq!(finished.code(), 0, "{}", finished.printed());
    serde_json::from_slice(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.printed()))
}

#[test]
fn a_guest_cannot_kill_its_agent_and_a_guest_that_is_gone_is_told() {
    let cli = Cli::new();
    cli.detach("m", &["sleep", "1000"]);
    // TERM and its like are the main command's, by way of PID 1.
    let script = "for signal in KILL STOP SEGV ABRT; do kill -$signal 1; done; echo tried";
    assert_eq!(cli.exec("m", &["sh", "-c", script]).finish().printed(), "tried\n");
    assert_eq!(cli.exec("m", &["echo", "there"]).finish().printed(), "there\n");
    // A machine that goes away under a command: no exit code of the command's is made up.
    let gone = cli.exec("m", &["sh", "-c", "echo last words; exec reboot -f"]).finish();
    assert_eq!((gone.code(), &gone.stdout[..]), (125, &b"last words\n"[..]), "{}", gone.printed());
    assert!(gone.printed().contains("BOOT_ENDED"), "{}", gone.printed());
    assert_eq!(cli.exec("m", &["true"]).finish().code(), 125);
    let gone = cli.run(&[], &["reboot", "-f"]).finish();
    assert!(gone.code() == 125 && gone.printed().contains("BOOT_ENDED"), "{}", gone.printed());
    assert_eq!(cli.tool("gc", &[]).finish().code(), 0);
    assert_eq!(cli.directories(), [] as [std::path::PathBuf; 0]);
}

/// A process's state as proc_pid_stat(5) says it; `-` when it is gone.
fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('-')
}

#[test]
fn a_machine_that_stands_still_ends_with_its_tool() {
    let cli = Cli::new();
    let mut run = Session::on_pipes(cli.run_command(&[], &["sh", "-c", "echo begun; exec sleep 1000"]));
    run.expect("begun");
    let monitor = cli.monitor();
    run.signal(libc::SIGTSTP);
    run.until("both stand still", |run| run.state() == 'T' && state(monitor) == 'T');
    // SIGTERM alone, which the monitor gets then, would wait for the day on which it is continued.
    run.signal(libc::SIGKILL);
    wait_until("the monitor has ended", || matches!(state(monitor), '-' | 'Z'));
    assert_eq!(cli.tool("gc", &[]).finish().code(), 0);
    assert_eq!(cli.directories(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn readers_that_stop_hold_up_nobody_else() {
    let cli = Cli::new();
    cli.detach("m", &["sleep", "1000"]);
    let [dir] = &cli.directories()[..] else { panic!("one machine") };
    // Streams whose host never reads: they fill what vsock may have under way.
    let mut open = Vec::new();
    begin(machinen_abi::VERSION, Operation::Exec, &mut open);
    add(&mut open, Tag::Argument, b"yes").unwrap();
    let open = [&Header::new(Kind::Open, open.len()).unwrap().to_bytes()[..], &open].concat();
    let streams: Vec<UnixStream> = (0..8)
        .map(|_| {
            let mut stream = UnixStream::connect(dir.join("agent.sock")).unwrap();
            std::io::Write::write_all(&mut stream, &open).unwrap();
            stream
        })
        .collect();
    // And a tool whose reader does not read.
    let mut command = cli.command("exec", &["-T", "m", "--", "yes"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let stuck = Live::start(command);
    stuck.until_asleep();
    let bytes: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    let through = cli.exec("m", &["cat"]).stdin(bytes.clone()).finish();
    assert!(through.code() == 0 && through.stdout == bytes, "{} bytes", through.stdout.len());
    assert_eq!(cli.exec("m", &["sh", "-c", "ps | grep -c '[y]es$'"]).finish().printed(), "9\n");
    drop((streams, stuck));
    // Who reads no more ends what it read.
    let script = "while ps | grep -q '[y]es$'; do sleep 0.1; done; echo none";
    assert_eq!(cli.exec("m", &["sh", "-c", script]).finish().printed(), "none\n");
}

#[test]
fn a_mebibyte_of_arguments_and_every_byte_of_them() {
    let cli = Cli::new();
    cli.detach("m", &["sleep", "1000"]);
    let long = "x".repeat(100_000);
    let words: Vec<&str> =
        ["sh", "-c", "echo $#; echo ${11} | wc -c", "sh"].into_iter().chain([long.as_str(); 11]).collect();
    assert_eq!(cli.exec("m", &words).finish().printed(), "11\n100001\n");
    // All that an argument may have.
    let bytes: Vec<u8> = (1..=255).collect();
    let word: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&bytes);
    let mut command: Command = cli.command("exec", &["-T", "m", "--", "printf", "%s"]);
    let output = command.arg(word).stdin(Stdio::null()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(0), bytes));
}

#[test]
fn a_console_is_followed_and_memory_is_told() {
    let cli = Cli::new();
    let script = "echo begun; until [ -e /tmp/go ]; do sleep 0.1; done; echo goes on; exec sleep 1000";
    cli.detach("m", &["sh", "-c", script]);
    let mut logs = Session::on_pipes(cli.command("logs", &["-f", "m"]));
    logs.expect("begun");
    assert_eq!(cli.exec("m", &["touch", "/tmp/go"]).finish().code(), 0);
    logs.expect("goes on");
    let mem = value(cli.tool("mem", &["--json", "m"]));
    let number = |name: &str| mem[name].as_u64().unwrap_or_else(|| panic!("{name}: {mem}"));
    assert_eq!((number("ceiling_bytes"), number("pid")), (256 << 20, u64::from(cli.monitor())));
    assert!(number("rss_bytes") > number("monitor_bytes") && number("monitor_bytes") > 0, "{mem}");
    assert!(number("rss_bytes") < 256 << 20 && number("reclaimed_bytes") < 256 << 20, "{mem}");
    let table = cli.tool("mem", &["m"]).finish().printed();
    assert!(table.starts_with("NAME ") && table.contains("\nm ") && table.contains(" 256M "), "{table}");
    assert_eq!(cli.tool("stop", &["m"]).finish().printed(), "");
    assert_eq!(logs.end().code(), Some(0), "{}", logs.printed());
}

/// A life with these variables instead of a registry and a cache of the test's.
fn life(cli: &Cli, variables: &[(&str, &str)]) {
    let with = |run: Run| {
        let run = run.env("MACHINEN_REGISTRY_DIR", "").env("MACHINEN_CACHE_DIR", "").env("HOME", NO_HOME);
        variables.iter().fold(run, |run, (name, value)| run.env(name, value)).finish()
    };
    let started = with(cli.run(&["-d", "--name", "odd"], &["sleep", "1000"]));
    assert_eq!((started.code(), started.printed().as_str()), (0, "odd\n"), "{variables:?}");
    assert_eq!(with(cli.exec("odd", &["echo", "there"])).printed(), "there\n");
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(with(cli.tool("cp", &["-", "odd:/tmp/x"]).stdin(bytes.clone())).printed(), "");
    assert_eq!(with(cli.tool("cp", &["odd:/tmp/x", "-"])).stdout, bytes);
    assert!(with(cli.tool("ls", &["-q"])).printed().contains("odd"));
    assert_eq!(with(cli.tool("logs", &["odd"])).code(), 0);
    let stop = with(cli.tool("stop", &["--json", "odd"]));
    assert!(stop.code() == 0 && stop.printed().contains("\"by\":\"guest\""), "{}", stop.printed());
    assert_eq!(with(cli.tool("gc", &[])).printed(), "");
}

#[test]
fn registries_in_odd_places() {
    let cli = Cli::new();
    let deep = cli.path(&format!("{}/{}", "x".repeat(200), "y".repeat(200)));
    fs::create_dir_all(&deep).unwrap();
    life(&cli, &[("XDG_RUNTIME_DIR", deep.to_str().unwrap())]);
    assert!(deep.join("machinen").is_dir());
    for none in ["", "/nowhere", "relative"] {
        life(&cli, &[("XDG_RUNTIME_DIR", none)]);
    }
}

#[test]
fn variables_are_flags() {
    let cli = Cli::new();
    let image = cli.image().display().to_string();
    let set = |run: Run| run.env("MACHINEN_NAME", "of/env").env("MACHINEN_MEMORY", "300").env("MACHINEN_DETACH", "1");
    let started = set(cli.tool("run", &[&image, "--", "sleep", "1000"])).finish();
    assert_eq!((started.code(), started.printed().as_str()), (0, "of/env\n"));
    let listed = value(cli.tool("ls", &["--json"]));
    assert_eq!((&listed["name"], &listed["memory_mib"]), (&"of/env".into(), &300.into()), "{listed}");
    let late = cli.run(&[], &["sleep", "1000"]).env("MACHINEN_TIMEOUT", "2").finish();
    assert_eq!(late.code(), 124, "{}", late.printed());
    // A flag is more than a variable.
    let run = cli.run(&["-m", "200"], &["sh", "-c", "grep MemTotal /proc/meminfo"]).env("MACHINEN_MEMORY", "900");
    let total: u64 = run.finish().printed().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((100 << 10..200 << 10).contains(&total), "{total} KiB");
}

//! Machines that outlive who started them: exec, attach, logs, stop.

#![forbid(unsafe_code)]

use machinen_tests::cli::Cli;
use machinen_tests::pty::Pty;
use machinen_tests::session::Session;

#[test]
fn a_detached_machine_is_used_from_elsewhere_and_stopped() {
    let cli = Cli::new();
    let script = "trap 'echo asked to end; exit 9' TERM; echo on the console; while :; do sleep 0.1; done";
    cli.detach("worker/1", &["sh", "-c", script]);
    assert_eq!(cli.exec("worker/1", &["cat", "/proc/1/comm"]).finish().code(), 0);
    let pid = cli.monitor().to_string();
    assert_eq!(cli.exec(&pid, &["echo", "by number"]).finish().printed(), "by number\n");
    let list = cli.tool("ls", &[]).finish().printed();
    assert!(list.contains("worker/1") && list.contains(&pid), "{list}");
    let taken = cli.run(&["--name", "worker/1"], &["true"]).finish();
    assert_eq!(taken.code(), 125);
    assert!(taken.printed().contains("REGISTRY_NAME_TAKEN") && taken.printed().contains(&pid), "{}", taken.printed());
    let stop = cli.tool("stop", &["-k", "worker/1"]).finish();
    assert_eq!((stop.code(), stop.printed().as_str()), (0, ""));
    let logs = cli.tool("logs", &["worker/1"]).finish().printed();
    assert!(logs.contains("on the console") && logs.contains("asked to end"), "{logs}");
    assert_eq!(cli.exec("worker/1", &["true"]).finish().code(), 125);
    assert_eq!(cli.tool("gc", &[]).finish().code(), 0);
    assert_eq!(cli.directories(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn a_detached_machine_ends_with_its_command() {
    let cli = Cli::new();
    let missing = cli.run(&["-d", "--name", "x"], &["no-such-program"]).finish();
    assert_eq!(missing.code(), 127, "{}", missing.printed());
    assert_eq!(cli.directories(), [] as [std::path::PathBuf; 0]);
    cli.detach("x", &["sh", "-c", "while ! [ -e /tmp/go ]; do sleep 0.1; done; exit 4"]);
    let mut attached = Session::on_pipes(cli.command("attach", &["x"]));
    assert_eq!(cli.exec("x", &["touch", "/tmp/go"]).finish().code(), 0);
    assert_eq!(attached.end().code(), Some(4), "{}", attached.printed());
}

#[test]
fn attach_takes_part_in_the_main_command_and_leaves_it() {
    let cli = Cli::new();
    let pty = Pty::open().unwrap();
    let mut first = Session::on_terminal(cli.run_command(&["--name", "x"], &["sh", "-i"]), &pty);
    first.expect("/ # ");
    let second_pty = Pty::open().unwrap();
    let before = second_pty.modes().unwrap();
    let mut second = Session::on_terminal(cli.command("attach", &["x"]), &second_pty);
    second.until("raw", |_| !second_pty.modes().unwrap().is_cooked());
    second.type_in("echo to bo''th\n");
    second.expect("to both");
    first.expect("to both");
    second.type_in("\x1d\x1d");
    assert_eq!(second.end().code(), Some(0), "{}", second.printed());
    assert_eq!(second_pty.modes().unwrap(), before);
    first.type_in("exit 6\n");
    assert_eq!(first.end().code(), Some(6));
}

#[test]
fn long_and_strange_registry_directories_are_no_obstacle() {
    let cli = Cli::new();
    let deep = cli.path(&format!("{}/a,b:c d/{}", "x".repeat(200), "y".repeat(200)));
    let with = |run: machinen_tests::Run| run.env("MACHINEN_REGISTRY_DIR", &deep).finish();
    let started = with(cli.run(&["-d", "--name", "x"], &["sleep", "1000"]));
    assert_eq!(started.printed(), "x\n");
    assert_eq!(with(cli.exec("x", &["echo", "there"])).printed(), "there\n");
    assert_eq!(with(cli.tool("stop", &["-t", "0", "x"])).code(), 0);
}

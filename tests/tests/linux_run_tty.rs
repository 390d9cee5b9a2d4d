//! `machinen-run` and its siblings on the user's terminal, and signals.

#![forbid(unsafe_code)]

use std::process::Command;

use machinen_tests::cli::Cli;
use machinen_tests::pty::Pty;
use machinen_tests::session::Session;

const PROMPT: &str = "/ # ";

/// A program on a terminal of its own, whose modes are as before when it ends.
fn on_terminal(command: Command) -> (Session, Pty) {
    let pty = Pty::open().unwrap();
    assert!(pty.modes().unwrap().is_cooked());
    (Session::on_terminal(command, &pty), pty)
}

fn shell_is_used_and_left(command: Command) {
    let (mut session, pty) = on_terminal(command);
    let before = pty.modes().unwrap();
    session.expect(PROMPT);
    session.until("raw", |_| !pty.modes().unwrap().is_cooked());
    session.type_in("stty size; echo $TERM\n");
    session.expect("24 80\r\nvt-test\r\n");
    session.expect(PROMPT);
    pty.resize(40, 100).unwrap();
    // The size comes by a signal and by vsock: the guest is asked until it has it.
    session.type_in("until [ \"$(stty size)\" = '40 100' ]; do :; done; echo re''sized\n");
    session.expect("resized");
    session.expect(PROMPT);
    // Told by the job itself: before it is in the foreground Ctrl-C is the shell's, which goes on.
    session.type_in("sh -c 'echo be\"\"gun; exec sleep 1000'\n");
    session.expect("begun");
    session.type_in("\x03");
    session.expect(PROMPT);
    session.type_in("echo $?\n");
    session.expect("130\r\n");
    session.expect(PROMPT);
    session.type_in("sh -c 'exit 3'\n");
    session.expect(PROMPT);
    session.type_in("\x04");
    assert_eq!(session.end().code(), Some(3), "{}", session.printed());
    assert_eq!(pty.modes().unwrap(), before);
}

#[test]
fn a_shell_on_the_terminal_of_run() {
    let cli = Cli::new();
    let mut command = cli.run_command(&[], &["sh", "-i"]);
    command.env("TERM", "vt-test");
    shell_is_used_and_left(command);
}

#[test]
fn a_shell_on_the_terminal_of_exec() {
    let cli = Cli::new();
    cli.detach("m", &["sleep", "1000"]);
    let mut command = cli.command("exec", &["-it", "m", "--", "sh", "-i"]);
    command.env("TERM", "vt-test");
    shell_is_used_and_left(command);
}

#[test]
fn ctrl_z_stops_the_machine_and_the_tool() {
    let cli = Cli::new();
    let (mut session, _pty) = on_terminal(cli.run_command(&["-T"], &["sh", "-c", "echo up; read x; echo got $x"]));
    session.expect("up");
    let monitor = cli.monitor();
    session.type_in("\x1a");
    session.until("stopped", |session| session.state() == 'T' && machinen_tests::host::state(monitor) == 'T');
    session.signal(libc::SIGCONT);
    session.until("continued", |session| session.state() != 'T' && machinen_tests::host::state(monitor) != 'T');
    session.type_in("hello\n");
    session.expect("got hello");
    assert_eq!(session.end().code(), Some(0));
}

#[test]
fn signals_reach_the_command_and_two_end_the_machine() {
    let cli = Cli::new();
    let trap = "trap 'echo told; exit 5' INT TERM; echo up; while :; do sleep 0.1; done";
    let (mut session, _pty) = on_terminal(cli.run_command(&["-T"], &["sh", "-c", trap]));
    session.expect("up");
    session.type_in("\x03");
    session.expect("told");
    assert_eq!(session.end().code(), Some(5));

    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGHUP, 129), (libc::SIGUSR1, 138), (libc::SIGQUIT, 131)] {
        let mut session = Session::on_pipes(cli.run_command(&[], &["sh", "-c", "echo up; exec sleep 1000"]));
        session.expect("up");
        session.signal(signal);
        assert_eq!(session.end().code(), Some(code), "{signal}: {}", session.printed());
    }

    let deaf = "trap '' INT TERM; echo up; while :; do sleep 0.1; done";
    let mut session = Session::on_pipes(cli.run_command(&[], &["sh", "-c", deaf]));
    session.expect("up");
    session.signal(libc::SIGTERM);
    // The first has to be taken before the second counts as one.
    session.until("asleep", |session| session.state() == 'S');
    session.signal(libc::SIGINT);
    assert_eq!(session.end().code(), Some(130), "{}", session.printed());
    assert_eq!(cli.directories(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn a_machine_ends_with_its_tool_however_that_ends() {
    let cli = Cli::new();
    let mut session = Session::on_pipes(cli.run_command(&["--name", "x"], &["sh", "-c", "echo up; sleep 1000"]));
    session.expect("up");
    let monitor = cli.monitor();
    session.signal(libc::SIGKILL);
    session.end();
    machinen_tests::monitor::wait_until("the monitor has ended", || {
        !std::path::Path::new(&format!("/proc/{monitor}/fd/0")).exists()
    });
    // Its name is free.
    let again = cli.run(&["--name", "x"], &["true"]).finish();
    assert_eq!(again.code(), 0, "{}", again.printed());
    let gc = cli.tool("gc", &[]).finish();
    assert_eq!((gc.code(), cli.directories().len()), (0, 0), "{}", gc.printed());
}

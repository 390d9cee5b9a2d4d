//! A shell in a guest on the user's terminal.

#![forbid(unsafe_code)]

use std::os::unix::process::ExitStatusExt;

use machinen_tests::guest::{Guest, Scratch};
use machinen_tests::pty::{Modes, Pty};
use machinen_tests::session::Session;

const PROMPT: &str = "/ # ";

/// Prints the modes that matter, in the hands of a program: busybox's line editor changes them while it reads.
const MODES: &str = "#!/bin/sh
stty -a 2>/dev/null | tr ' ' '\\n' | grep -x -e '-*icanon' -e '-*echo' -e '-*isig' | sort | tr '\\n' ,
";

/// A shell at its prompt, on a terminal that had `before` as its modes.
struct Shell {
    session: Session,
    pty: Pty,
    before: Modes,
    _initrd: Scratch,
}

impl Shell {
    fn start() -> Self {
        let pty = Pty::open().unwrap();
        let before = pty.modes().unwrap();
        assert!(before.is_cooked());
        let (command, initrd) = Guest::command(&["sh", "-i"]).file("bin/modes", 0o755, MODES).start();
        let mut session = Session::on_terminal(command, &pty);
        session.expect(PROMPT);
        let shell = Self { session, pty, before, _initrd: initrd };
        assert!(!shell.modes().is_cooked());
        shell
    }

    fn modes(&self) -> Modes {
        self.pty.modes().unwrap()
    }

    /// Types a line and waits for its echo and what it prints.
    fn line(&mut self, typed: &str, printed: &str) {
        self.session.type_in(&format!("{typed}\n"));
        self.session.expect(typed);
        self.session.expect(printed);
    }

    /// The same, and the shell is ready for the next.
    fn whole_line(&mut self, typed: &str, printed: &str) {
        self.line(typed, printed);
        self.session.expect(PROMPT);
    }
}

#[test]
fn a_shell_is_used_interrupted_stopped_and_left() {
    let mut shell = Shell::start();
    let raw = shell.modes();
    shell.whole_line("echo $((6*7))", "\r\n42\r\n");
    shell.whole_line("tty", "\r\n/dev/ttyS0\r\n");
    shell.whole_line("echo term=$TERM", "\r\nterm=vt100\r\n");
    shell.whole_line("modes", "\r\necho,icanon,isig,");

    // The guest's terminal makes the signal, for the guest's job.
    shell.line("sh -c 'echo asleep; exec sleep 1000'", "\r\nasleep\r\n");
    shell.session.type_in("\x03");
    shell.session.expect(PROMPT);
    shell.whole_line("echo code=$?", "\r\ncode=130\r\n");

    shell.session.signal(libc::SIGTSTP);
    shell.session.until("stopped", |session| session.state() == 'T');
    assert_eq!(shell.modes(), shell.before);
    shell.session.signal(libc::SIGCONT);
    let pty = &shell.pty;
    shell.session.until("raw again", |_| pty.modes().unwrap() == raw);
    shell.whole_line("echo again $((2+2))", "\r\nagain 4\r\n");

    shell.line("(exit 9)", PROMPT);
    shell.session.type_in("\x04");
    let status = shell.session.end();
    assert_eq!(status.code(), Some(9), "{}", shell.session.printed());
    assert_eq!(shell.modes(), shell.before);
}

#[test]
fn a_killed_monitor_gives_the_terminal_back() {
    for signal in [libc::SIGTERM, libc::SIGSEGV] {
        let mut shell = Shell::start();
        shell.session.signal(signal);
        let status = shell.session.end();
        assert_eq!(status.signal(), Some(signal), "{}", shell.session.printed());
        assert_eq!(shell.modes(), shell.before);
    }
}

#[test]
fn a_forced_session_takes_its_lines_from_a_pipe() {
    let finished = Guest::command(&["cat"]).monitor(&["--tty"]).stdin("typed\n").run();
    // Once by the echo of the terminal, once by the command, which then sees the end of its input.
    assert_eq!((finished.code(), finished.printed().as_str()), (0, "typed\r\ntyped\r\n"));
}

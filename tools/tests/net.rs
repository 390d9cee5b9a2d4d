//! `machinen-net` as its users meet it: what the command gets, what is refused, what is left behind.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const TOOL: &str = env!("CARGO_BIN_EXE_machinen-net");

fn tool(args: &[&str]) -> Command {
    let mut command = Command::new(TOOL);
    command.args(args).stdin(Stdio::null());
    for name in ["MACHINEN_PASST", "MACHINEN_ASSETS_DIR", "MACHINEN_CMDLINE", "MACHINEN_NET_SOCKET"] {
        command.env_remove(name);
    }
    command
}

fn run(args: &[&str]) -> Output {
    tool(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machinen-net-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A command that is killed at the end.
struct Live(Child);

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a command that has its first line printed when it runs.
fn live(args: &[&str]) -> (Live, String) {
    let mut child = Live(tool(args).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_command_gets_socket_mtu_and_address() {
    let script = "echo $MACHINEN_NET_MTU $MACHINEN_CMDLINE; readlink /proc/self/fd/${MACHINEN_NET_SOCKET#fd:}; exit 7";
    let done = tool(&["--", "sh", "-c", script]).env("MACHINEN_CMDLINE", "a=b c").output().unwrap();
    assert_eq!((done.status.code(), text(&done.stderr).as_str()), (Some(7), ""));
    let printed = text(&done.stdout);
    let rest = printed.strip_prefix("65520 a=b c machinen.net=10.0.2.15/24,10.0.2.2,10.0.2.3\n");
    assert!(rest.is_some_and(|rest| rest.starts_with("socket:[")), "{printed}");
    let done = run(&["--address", "172.16.0.9/12,172.16.0.1", "--", "sh", "-c", "echo $MACHINEN_CMDLINE"]);
    assert_eq!(text(&done.stdout), "machinen.net=172.16.0.9/12,172.16.0.1\n");
}

#[test]
fn passt_ends_with_the_command_however_it_ends() {
    for end in ["exit", "kill -9 $$", "exec sleep 1000"] {
        let port = free_port();
        let (mut child, line) = live(&["-p", &format!("{port}:80"), "--", "sh", "-c", &format!("echo up; {end}")]);
        assert_eq!(line, "up\n");
        if end.starts_with("exec") {
            assert!(!is_free(port), "passt has it");
            // The command is what machinen-net was.
            child.0.kill().unwrap();
        }
        child.0.wait().unwrap();
        wait_until("passt has gone", || is_free(port));
    }
    let port = free_port();
    let done = run(&["-p", &format!("{port}:80"), "--", "/no/such/program"]);
    assert_eq!(done.status.code(), Some(127));
    assert!(text(&done.stderr).contains("NET_COMMAND: execute /no/such/program"), "{}", text(&done.stderr));
    wait_until("passt has gone", || is_free(port));
    assert_eq!(run(&["--", "/etc/passwd"]).status.code(), Some(126));
}

#[test]
fn a_tool_killed_while_passt_starts_leaves_nothing() {
    let scratch = Scratch::new();
    // A passt that says when it has begun, waits until its socket is closed, and says so.
    let program = scratch.path("passt");
    let script = format!("#!/bin/sh\necho begun >{0}.begun\ncat <&$4 >/dev/null\necho ended >{0}.ended\n", program);
    fs::write(&program, script).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = Live(tool(&["--passt", &program, "--", "true"]).spawn().unwrap());
    wait_until("passt has begun", || fs::exists(format!("{program}.begun")).unwrap());
    child.0.kill().unwrap();
    wait_until("passt has ended", || fs::exists(format!("{program}.ended")).unwrap());
}

#[test]
fn a_taken_port_is_refused_with_who_has_it() {
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let own =
        [format!("{}:80", tcp.local_addr().unwrap().port()), format!("{}:80/udp", udp.local_addr().unwrap().port())];
    for port in &own {
        let done = run(&["--json", "-p", port, "--", "true"]);
        assert_eq!((done.status.code(), done.stdout.len()), (Some(125), 0));
        let error: serde_json::Value = serde_json::from_slice(&done.stderr).unwrap();
        assert_eq!((error["code"].as_str(), error["retryable"].as_bool()), (Some("NET_PORT_TAKEN"), Some(true)));
        let who = format!("process {} (", std::process::id());
        assert!(error["message"].as_str().unwrap().contains(&who), "{error}");
    }
    // And one of ours.
    let port = free_port();
    let (_child, _) = live(&["-p", &format!("{port}:80"), "--", "sh", "-c", "echo up; exec sleep 1000"]);
    let done = run(&["-p", &format!("{port}:8080"), "--", "true"]);
    assert_eq!(done.status.code(), Some(125));
    let message = text(&done.stderr);
    assert!(
        message.starts_with(&format!("machinen-net: NET_PORT_TAKEN: port 127.0.0.1:{port}/tcp: process ")),
        "{message}"
    );
    assert!(message.contains("passt") && message.contains("\n  hint: "), "{message}");
    let done = run(&["-p", "192.0.2.77:8080:80", "--", "true"]);
    assert!(text(&done.stderr).contains("NET_PORT_ADDRESS"), "{}", text(&done.stderr));
}

#[test]
fn usage_errors_exit_125_and_say_what_to_do() {
    let table: [(&[&str], &str); 12] = [
        (&[], "no command"),
        (&["--"], "no command"),
        (&["true"], "the command comes after --"),
        (&["--frobnicate", "--", "true"], "--frobnicate"),
        (&["-p", "80", "--", "true"], "port 80: one port only"),
        (&["-p", "80:80/sctp", "--", "true"], "neither /tcp nor /udp"),
        (&["-p", "80:0", "--", "true"], "from 1 to 65535"),
        (&["-p", "[::1]:80:80", "--", "true"], "not an IPv4 address"),
        (&["-p", "8080:80", "-p", "8080:81", "--", "true"], "named twice"),
        (&["--address", "10.0.2.15", "--", "true"], "no /PREFIX"),
        (&["--socket", "s", "-p", "8080:80", "--", "true"], "--socket starts none"),
        (&["--socket", "s", "--passt", "p", "--", "true"], "--socket starts none"),
    ];
    for (args, why) in table {
        let done = run(args);
        let message = text(&done.stderr);
        assert_eq!(done.status.code(), Some(125), "{args:?}: {message}");
        assert!(message.starts_with("machinen-net: NET_USAGE: ") && message.contains(why), "{args:?}: {message}");
        assert!(message.contains("\n  hint: "), "{message}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    for (flag, expected) in [("--help", "MACHINEN_NET_SOCKET"), ("-h", "--socket"), ("--version", "machinen-net 0.")] {
        let done = run(&[flag]);
        assert_eq!((done.status.code(), done.stderr.len()), (Some(0), 0));
        assert!(text(&done.stdout).contains(expected), "{flag}");
    }
}

#[test]
fn an_existing_socket_is_handed_over() {
    let scratch = Scratch::new();
    let _listener = UnixListener::bind(scratch.path("s")).unwrap();
    let script = "echo $MACHINEN_NET_SOCKET ${MACHINEN_CMDLINE-none} ${MACHINEN_NET_MTU-none}";
    let done = tool(&["--socket", "s", "--", "sh", "-c", script]).current_dir(&scratch.0).output().unwrap();
    assert_eq!(text(&done.stdout), format!("{} none none\n", scratch.path("s")), "{}", text(&done.stderr));
    let address = "192.168.127.2/24,192.168.127.1,192.168.127.1";
    let done = run(&["--socket", &scratch.path("s"), "--address", address, "--", "sh", "-c", "echo $MACHINEN_CMDLINE"]);
    assert_eq!(text(&done.stdout), format!("machinen.net={address}\n"));
    for (name, code) in [("no", "NET_SOCKET_MISSING"), ("", "NET_SOCKET_INVALID")] {
        let done = run(&["--socket", &scratch.path(name), "--", "true"]);
        assert_eq!(done.status.code(), Some(125));
        assert!(text(&done.stderr).contains(code), "{}", text(&done.stderr));
    }
}

#[test]
fn passt_is_looked_for_and_its_failure_told() {
    let scratch = Scratch::new();
    let found = tool(&["--", "/bin/true"]).env("PATH", scratch.path("")).output().unwrap();
    assert!(
        text(&found.stderr).contains("NET_PASST_MISSING: find passt: tried MACHINEN_PASST (not set)"),
        "{}",
        text(&found.stderr)
    );
    assert!(text(&found.stderr).contains("apt-get install passt"), "{}", text(&found.stderr));
    let named = tool(&["--", "/bin/true"]).env("MACHINEN_PASST", "/no/passt").output().unwrap();
    assert!(text(&named.stderr).contains("NET_PASST_FAILED: /no/passt: execute"), "{}", text(&named.stderr));
    let failing = tool(&["--passt", "ls", "--", "/bin/true"]).output().unwrap();
    let message = text(&failing.stderr);
    assert!(message.contains("NET_PASST_FAILED: ls: exit status: 2: ls: "), "{message}");
    assert_eq!(failing.status.code(), Some(125));
}

#[test]
fn nobody_can_do_it() {
    let id = Command::new("id").arg("-u").output().unwrap();
    if id.stdout != b"0\n" {
        println!("SKIP: all other tests ran without privilege");
        return;
    }
    let scratch = Scratch::new();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(TOOL, scratch.path("tool")).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", &scratch.path("tool")]);
    command.args(["-p", &format!("{}:80", free_port()), "--", "sh", "-c", "echo up $(id -u)"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((printed.as_str(), said.as_str()), ("up 65534\n", ""));
    child.wait().unwrap();
}

//! Processes of every kind go on in other machines, eagerly and lazily: a server, a tree with pipes and a large heap.

#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;

use machinen_tests::bundles::{content, free_port, get, no_machine_is_left, snapshot};
use machinen_tests::cli::Cli;
use machinen_tests::monitor::{LIMIT, wait_until};
use machinen_tests::session::Session;
use machinen_tests::{IS_LAZY, soak};
use serde_json::Value;

/// Answers each request with the number of requests so far, on port 8000, in a thread of its own.
const SERVER: &str = r#"
import http.server
count = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        body = b"%d\n" % count
        self.send_response(200)
        self.send_header("Content-Length", len(body))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
server = http.server.ThreadingHTTPServer(("", 8000), Handler)
print("listening", flush=True)
server.serve_forever()
"#;

#[test]
fn a_server_is_reached_where_it_is_restored() {
    let cli = Cli::of_debian();
    let bundle = cli.path("bundle");
    let [first, second, third] = [(); 3].map(|()| free_port());
    let publish = |port: u16| format!("{port}:8000");
    let flags = ["--name", "web", "-p", &publish(first)];
    let mut web = Session::on_pipes(cli.run_command(&flags, &["python3", "-c", SERVER]));
    web.expect("listening\n");
    assert_eq!(get(first).as_deref(), Some("1"));

    // One of its threads has half a request.
    let mut silent = TcpStream::connect((Ipv4Addr::LOCALHOST, first)).unwrap();
    silent.write_all(b"GET ").unwrap();
    let established = "grep -E ':1F40 [0-9A-F]+:[0-9A-F]+ 01 ' /proc/net/tcp";
    wait_until("the connection is accepted", || cli.exec("web", &["sh", "-c", established]).finish().code() == 0);
    let refused = cli.tool("snapshot", &["web", bundle.to_str().unwrap()]).finish();
    assert_eq!(refused.code(), 1, "{}", refused.printed());
    assert!(refused.printed().contains("TCP"), "{}", refused.printed());
    assert_eq!(get(first).as_deref(), Some("2"));
    std::fs::remove_dir_all(&bundle).unwrap();
    snapshot(&cli, &["--tcp-close"], "web", &bundle);
    assert_eq!(web.end().code(), Some(125));
    silent.set_read_timeout(Some(LIMIT)).unwrap();
    // Not that it is silent still.
    let end = silent.read(&mut [0; 16]).map_err(|error| error.kind());
    assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "{end:?}");

    let dir = bundle.to_str().unwrap();
    let mut web = Session::on_pipes(cli.command("restore", &["--name", "web", "-p", &publish(second), dir]));
    wait_until("it serves", || get(second).is_some_and(|answer| answer == "3"));
    assert_eq!((get(second).as_deref(), get(first)), (Some("4"), None));
    assert_eq!(cli.tool("stop", &["-t", "0", "web"]).finish().code(), 0);
    web.end();
    let made = cli.tool("restore", &["-d", "--lazy", "--name", "web/2", "-p", &publish(third), dir]).finish();
    assert_eq!((made.code(), made.printed()), (0, "web/2\n".into()));
    wait_until("it serves", || get(third).is_some_and(|answer| answer == "3"));
    assert_eq!(get(third).as_deref(), Some("4"));
    // Who stops it keeps what it had to wait for.
    assert!(!bundle.join("faults").exists());
    assert_eq!(cli.tool("stop", &["web/2"]).finish().code(), 0);
    if IS_LAZY {
        let faults = fs::read_to_string(bundle.join("faults")).unwrap();
        assert!(faults.lines().next().is_some_and(|line| line.starts_with("100")), "{faults}");
    }
    no_machine_is_left(&cli);
}

/// Fills a heap; then each line of its input goes through two children by pipes, one in capitals, one backwards, and comes with
/// its number, and whether the heap is as it was.
const TREE: &str = r#"
import os, sys, hashlib
r, w = os.pipe()
def child(change, given):
    mine, theirs = os.pipe()
    if os.fork() == 0:
        os.close(w)
        while True:
            line = os.read(given, 100)
            if not line: os._exit(0)
            os.write(theirs, change(line.strip()) + b"\n")
    os.close(given)
    os.close(theirs)
    return mine
answers = child(lambda line: line[::-1], child(lambda line: line.upper(), r))
heap = bytearray(os.urandom(1 << 20) * MIB)
for i in range(0, len(heap), 4096): heap[i:i+4] = i.to_bytes(4, "little")
digest = hashlib.sha1(heap).hexdigest()
n = 0
print("ready", flush=True)
for line in sys.stdin:
    n += 1
    os.write(w, line.encode())
    answer = os.read(answers, 100).decode().strip()
    print(n, answer, hashlib.sha1(heap).hexdigest() == digest, flush=True)
os.close(w)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]) + os.waitstatus_to_exitcode(os.wait()[1]) + 9)
"#;

/// What `machinen mem` says is still to come.
fn pending(cli: &Cli, name: &str) -> Value {
    let said = cli.tool("mem", &["--json", name]).finish();
    assert_eq!(said.code(), 0, "{}", said.printed());
    let value: Value = serde_json::from_slice(&said.stdout).unwrap();
    value["lazy_pages_pending"].clone()
}

#[test]
fn a_tree_with_pipes_and_a_large_heap() {
    let mib = if soak() { 256 } else { 64 };
    let cli = Cli::of_debian();
    let bundle = cli.path("bundle");
    let script = TREE.replace("MIB", &mib.to_string());
    let mut tree = Session::on_pipes(cli.run_command(&["--name", "t"], &["python3", "-c", &script]));
    tree.expect("ready\n");
    tree.type_in("one\n");
    tree.expect("1 ENO True\n");
    assert!(pending(&cli, "t").is_null());
    snapshot(&cli, &[], "t", &bundle);
    assert_eq!(tree.end().code(), Some(125));
    let before = content(&bundle);

    // A hint is kept beside what is there, and used; not where it cannot be.
    let faults = bundle.join("faults");
    let mut hint = String::new();
    for (lazy, writable) in [(false, true), (true, false), (true, true), (true, true)] {
        let flags: &[&str] = if lazy { &["--lazy"] } else { &[] };
        fs::set_permissions(&bundle, Permissions::from_mode(if writable { 0o700 } else { 0o770 })).unwrap();
        let flags = if writable { flags } else { &["--lazy", "--trust"] };
        let dir = bundle.to_str().unwrap();
        let mut tree = Session::on_pipes(cli.command("restore", &[flags, &["--name", "t", dir]].concat()));
        tree.type_in("two\n");
        tree.expect("2 OWT True\n");
        let now = pending(&cli, "t");
        println!("after the first answer: {now} pages are to come");
        // None, where all came first though it was asked for later.
        assert_eq!(now.is_u64(), lazy, "{now}");
        wait_until("all has come", || pending(&cli, "t").as_u64().is_none_or(|pages| pages == 0));
        tree.type_in("three\n");
        tree.expect("3 EERHT True\n");
        // The end of its input.
        tree.close_input();
        assert_eq!(tree.end().code(), Some(9), "{}", tree.printed());
        assert_eq!(tree.printed(), "2 OWT True\n3 EERHT True\n");
        assert_eq!(faults.exists(), lazy && writable && IS_LAZY);
        if let Ok(now) = fs::read_to_string(&faults) {
            println!("{} faults are known", now.lines().count());
            assert!(now.starts_with(&hint) && now.lines().all(|line| line.starts_with("100")), "{now}");
            hint = now;
        }
    }
    assert!(content(&bundle) == before, "the bundle has changed");
    no_machine_is_left(&cli);
}

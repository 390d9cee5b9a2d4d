//! What tests of snapshots have in common.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::Cli;
use crate::host::without_holes;
use crate::monitor::LIMIT;
use crate::session::Session;

/// What Debian's kernel has as modules of what CRIU needs, in order.
pub const CRIU_MODULES: [&str; 10] = [
    "unix_diag",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "netlink_diag",
    "af_packet_diag",
    "veth",
    "libcrc32c",
    "nfnetlink",
    "nf_tables",
];

/// Counts, one number a line, and ends when it is told a code. With an argument that and the number go to its standard error, too.
pub const COUNTER: &str = r#"
import sys, select
n = 0
while True:
    n += 1
    print(n, flush=True)
    if len(sys.argv) > 1: print(sys.argv[1] + str(n), file=sys.stderr, flush=True)
    if select.select([0], [], [], 0.02)[0]:
        line = sys.stdin.readline()
        if not line: sys.exit(99)
        print("got " + line.strip(), flush=True)
        if line.startswith("end"): sys.exit(int(line.split()[1]))
"#;

/// A process that talks with another over TCP; says how much it heard for each file that it is to remove.
pub const TALK: &str = r#"
import os, socket, sys, time
listener = socket.create_server(("127.0.0.1", 4000))
if os.fork() == 0:
    one = socket.create_connection(("127.0.0.1", 4000))
    while one.sendall(b"x") is None: time.sleep(0.02)
other, _ = listener.accept()
n = 0
print("ready", flush=True)
while True:
    data = other.recv(100)
    if not data: sys.exit(3)
    n += len(data)
    if os.path.exists("/tmp/say"):
        os.remove("/tmp/say")
        print("heard", n, flush=True)
"#;

/// Answers each request with the number of requests so far, on port 8000.
pub const SERVER: &str = r#"
import socket
listener = socket.create_server(("", 8000))
print("listening", flush=True)
n = 0
while True:
    s, _ = listener.accept()
    if s.recv(1000):
        n += 1
        s.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d\n" % n)
    s.close()
"#;

/// Counts, has some memory that it changes, and says on port 4000 how far it is. Its file on the root disk has the number, too: whenever
/// it is about to write the next one they are the same, or it says so.
pub const COUNTING: &str = r#"
import os, select, socket
listener = socket.create_server(("127.0.0.1", 4000))
heap = bytearray(6 << 20)
for i in range(0, len(heap), 4096): heap[i:i+4] = i.to_bytes(4, "little")
disk = os.open("/count", os.O_RDWR | os.O_CREAT)
n = 0
os.pwrite(disk, b"%20d" % n, 0)
print("ready", flush=True)
differ = ""
while True:
    written = int(os.pread(disk, 20, 0))
    if written != n: differ = "memory %d disk %d" % (n, written)
    n += 1
    heap[n * 4096 % len(heap)] = n % 251
    os.pwrite(disk, b"%20d" % n, 0)
    if select.select([listener], [], [], 0.01)[0]:
        s, _ = listener.accept()
        s.sendall((differ or str(n)).encode())
        s.close()
"#;

/// Starts [`COUNTING`].
///
/// # Panics
/// When it does not start.
pub fn count(cli: &Cli, name: &str) {
    cli.detach(name, &["python3", "-c", COUNTING]);
    Session::on_pipes(cli.command("logs", &["-f", name])).expect("ready");
}

/// Asks [`COUNTING`] by its listener how far it is.
///
/// # Panics
/// When it does not answer, or when memory and disk differ.
#[must_use]
pub fn counted(cli: &Cli, name: &str) -> u64 {
    let ask = "import socket; print(socket.create_connection(('127.0.0.1', 4000), 60).recv(100).decode(), end='')";
    let asked = cli.exec(name, &["python3", "-c", ask]).finish();
    assert_eq!(asked.code(), 0, "{}", asked.printed());
    asked.printed().parse().unwrap_or_else(|_| panic!("{name}: {}", asked.printed()))
}

/// [`COUNTING`] runs, and its listener answers.
///
/// # Panics
/// When it does not.
pub fn goes_on(cli: &Cli, name: &str) {
    let (before, after) = (counted(cli, name), counted(cli, name));
    assert!(before < after, "{name}: {before}, then {after}");
}

/// Collects what dead machines left, after which there is none.
///
/// # Panics
/// When there is.
pub fn no_machine_is_left(cli: &Cli) {
    let collected = cli.tool("gc", &[]).finish();
    assert_eq!(collected.code(), 0, "{}", collected.printed());
    assert_eq!(cli.directories(), [] as [PathBuf; 0]);
}

/// Takes a snapshot.
///
/// # Panics
/// When that fails.
pub fn snapshot(cli: &Cli, flags: &[&str], name: &str, dir: &Path) {
    let made = cli.tool("snapshot", &[flags, &[name, dir.to_str().unwrap()]].concat()).finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
}

/// What `machinen ls` says of a machine that lives.
#[must_use]
pub fn find(cli: &Cli, name: &str) -> Option<Value> {
    let list = cli.tool("ls", &["--json"]).finish();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let mut all = list.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    all.find(|vm| vm["name"] == name)
}

/// The same of one that has to.
///
/// # Panics
/// When it is not listed.
#[must_use]
pub fn listed(cli: &Cli, name: &str) -> Value {
    find(cli, name).unwrap_or_else(|| panic!("{name} does not live"))
}

/// A port of the host that nobody has.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// What a server of the host's port answers; `None` where nobody does.
#[must_use]
pub fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.split_once("\r\n\r\n").map(|(_, body)| body.trim_end().to_owned())
}

/// A file: its path, its length, and what is in it.
pub type Content = (PathBuf, u64, Vec<(u64, Vec<u8>)>);

/// The files of a directory tree, to see that they stay as they are; but for a bundle's hint for lazy restores, which comes and grows.
///
/// # Panics
/// When they cannot be read.
#[must_use]
pub fn content(dir: &Path) -> Vec<Content> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(content(&path));
        } else if !path.ends_with("faults") {
            let (bytes, parts) = (fs::metadata(&path).unwrap().len(), without_holes(&path));
            all.push((path, bytes, parts));
        }
    }
    all.sort();
    all
}

/// Copies a bundle, for a test that breaks it.
///
/// # Panics
/// When that fails.
pub fn copy(from: &Path, to: &Path) {
    for (path, bytes, parts) in content(from) {
        let path = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(path).unwrap();
        file.set_len(bytes).unwrap();
        parts.iter().for_each(|(at, part)| file.write_all_at(part, *at).unwrap());
    }
}

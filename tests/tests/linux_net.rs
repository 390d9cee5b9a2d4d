//! The network of a Linux guest: through passt to this host's own loopback, and back in by forwarded ports.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use machinen_tests::guest::{Guest, Scratch};
use machinen_tests::monitor::{Live, wait_until};
use machinen_tests::session::Session;
use machinen_tests::{Run, asset, bin};

/// Moved each way by each protocol: twelve times as much under `MACHINEN_SOAK=1`.
fn payload_bytes() -> usize {
    if machinen_tests::soak() { 100_000_000 } else { 8_000_000 }
}

/// For each of the four ways.
const PATIENCE: Duration = Duration::from_secs(600);

const MODULES: [&str; 4] = ["virtio_mmio", "failover", "net_failover", "virtio_net"];

/// Before a script.
const PRELUDE: &str = "
set -e
sum() { sha256sum | cut -c -64; }
";

/// A guest of this script in a network with these forwarded ports.
fn guest(script: &str, ports: &[String]) -> (Session, Scratch) {
    guest_on("vmlinux", &MODULES, script, ports)
}

/// The same on a kernel that needs these modules.
fn guest_on(kernel: &str, modules: &[&str], script: &str, ports: &[String]) -> (Session, Scratch) {
    let traffic = fs::read(bin("machinen-traffic")).unwrap();
    let guest = Guest::busybox(&format!("{PRELUDE}{script}")).modules(modules);
    let (monitor, scratch) = guest.file("bin/machinen-traffic", 0o755, traffic).monitor(&["-m", "1024"]).start();
    let mut command = Command::new(bin("machinen-net"));
    command.args(ports.iter().flat_map(|port| ["-p", port])).arg("--").arg(monitor.get_program());
    let stock = asset("vmlinux");
    let of_kernel = |arg: &OsStr| if arg == stock { asset(kernel).into() } else { arg.to_owned() };
    command.args(monitor.get_args().map(of_kernel));
    (Session::on_pipes(command), scratch)
}

fn free_tcp_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn free_udp_port() -> u16 {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A file of so many bytes that do not repeat.
fn payload(scratch: &Scratch, bytes: usize) -> PathBuf {
    let path = scratch.path("payload");
    let mut random = fs::File::open("/dev/urandom").unwrap().take(bytes as u64);
    io::copy(&mut random, &mut fs::File::create(&path).unwrap()).unwrap();
    path
}

fn sum(path: &Path) -> String {
    let finished = Run::new(asset("busybox")).arg("sha256sum").arg(path).finish();
    finished.printed()[..64].to_owned()
}

/// A program that is killed at the end.
fn start(program: &Path, args: &[&str], streams: impl FnOnce(&mut Command)) -> Live {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    streams(&mut command);
    Live::start(command)
}

/// The processes that are passt for a forwarded port.
fn passts(port: u16) -> Vec<u32> {
    let argument = format!("127.0.0.1/{port}:80");
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next().is_some_and(|name| name.ends_with(b"passt")) && words.any(|word| word == argument.as_bytes())
    })
    .collect()
}

fn kill(pid: u32) {
    let killed = Run::new(asset("busybox")).args(["kill", "-9"]).arg(pid.to_string()).finish();
    assert_eq!(killed.code(), 0, "{}", killed.printed());
}

#[test]
fn bytes_reach_the_hosts_loopback_and_come_back_in_by_forwarded_ports() {
    let scratch = Scratch::new();
    let bytes = payload_bytes();
    let sent = payload(&scratch, bytes);
    let expected = sum(&sent);
    let [http, http_in, udp, udp_in] = [free_tcp_port(), free_tcp_port(), free_udp_port(), free_udp_port()];

    let root = scratch.path("").display().to_string();
    let address = format!("127.0.0.1:{http}");
    let _server = start(&asset("busybox"), &["httpd", "-f", "-p", &address, "-h", &root], |_| {});
    let received = scratch.path("received");
    let output = fs::File::create(&received).unwrap();
    let udp_address = format!("127.0.0.1:{udp}");
    let receiver = &bin("machinen-traffic");
    let mut receiver = start(receiver, &["receive", &udp_address], |command| {
        command.stdout(output);
    });

    let script = format!(
        "cat /etc/resolv.conf
        wget -q -O /tmp/payload http://10.0.2.2:{http}/payload
        echo tcp-down $(sum </tmp/payload)
        httpd -p 80 -h /tmp
        echo tcp-up
        read line
        machinen-traffic send 10.0.2.2:{udp} </tmp/payload
        echo udp-up
        machinen-traffic receive 0.0.0.0:5000 >/tmp/udp &
        echo udp-down
        wait
        echo udp-down $(sum </tmp/udp)"
    );
    let clock = Instant::now();
    let lap = |what: &str, session: &Session| {
        println!("{:6.2} s  {what} ({} bytes printed)", clock.elapsed().as_secs_f32(), session.printed().len());
    };
    let (mut session, _initrd) = guest(&script, &[format!("{http_in}:80"), format!("{udp_in}:5000/udp")]);
    session.expect("nameserver 10.0.2.3\n");
    session.expect_within(PATIENCE, &format!("tcp-down {expected}\n"));
    lap("TCP to the guest, which connected", &session);

    session.expect("tcp-up\n");
    let got = scratch.path("got");
    let url = format!("http://127.0.0.1:{http_in}/payload");
    let fetched = Run::new(asset("busybox")).args(["wget", "-q", "-O"]).arg(&got).arg(url);
    let fetched = fetched.limit(PATIENCE).finish();
    assert_eq!(fetched.code(), 0, "{}", fetched.printed());
    assert_eq!(sum(&got), expected);
    lap("TCP from the guest, which was connected to", &session);

    session.type_in("\n");
    session.expect_within(PATIENCE, "udp-up\n");
    assert!(receiver.wait().success());
    assert_eq!(sum(&received), expected);
    lap("UDP from the guest", &session);

    session.expect("udp-down\n");
    let input = fs::File::open(&sent).unwrap();
    let udp_in_address = format!("127.0.0.1:{udp_in}");
    let mut sender = start(&bin("machinen-traffic"), &["send", &udp_in_address], |command| {
        command.stdin(input);
    });
    session.expect_within(PATIENCE, &format!("udp-down {expected}\n"));
    assert!(sender.wait().success());
    lap("UDP to the guest", &session);
    assert!(session.end().success(), "{}", session.printed());
    wait_until("passt has ended with its machine", || passts(http_in).is_empty());
}

#[test]
fn when_passt_is_killed_the_link_is_down_and_the_guest_lives() {
    let scratch = Scratch::new();
    payload(&scratch, 1_000_000);
    let [http, port] = [free_tcp_port(), free_tcp_port()];
    let root = scratch.path("").display().to_string();
    let address = format!("127.0.0.1:{http}");
    let _server = start(&asset("busybox"), &["httpd", "-f", "-p", &address, "-h", &root], |_| {});
    let script = format!(
        "while :; do wget -q -O /dev/null http://10.0.2.2:{http}/payload || :; done 2>/dev/null &
        ping 10.0.2.2 >/dev/null &
        until [ $(cat /sys/class/net/eth0/statistics/rx_bytes) -gt 100000 ]; do :; done
        echo traffic $(cat /sys/class/net/eth0/carrier)
        until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do :; done
        echo down
        exit 7"
    );
    let (mut session, _initrd) = guest(&script, &[format!("{port}:80")]);
    session.expect("traffic 1\n");
    let [passt] = passts(port)[..] else { panic!("one passt expected") };
    kill(passt);
    session.expect("down\n");
    assert_eq!(session.end().code(), Some(7), "{}", session.printed());
}

#[test]
fn passt_ends_when_its_machine_is_killed() {
    let port = free_tcp_port();
    let (mut session, _initrd) = guest("echo up; while :; do :; done", &[format!("{port}:80")]);
    session.expect("up\n");
    assert_eq!(passts(port).len(), 1);
    kill(session.id());
    session.end();
    wait_until("passt has ended with its machine", || passts(port).is_empty());
    // A process that ends loses its command line before its sockets.
    wait_until("its port is free again", || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
}

#[test]
fn the_tuned_kernel_has_the_same_network() {
    let scratch = Scratch::new();
    let sent = payload(&scratch, 1_000_000);
    let http = free_tcp_port();
    let root = scratch.path("").display().to_string();
    let _server = start(&asset("busybox"), &["httpd", "-f", "-p", &format!("127.0.0.1:{http}"), "-h", &root], |_| {});
    let script = format!("wget -q -O - http://10.0.2.2:{http}/payload | sum");
    let (mut session, _initrd) = guest_on("vmlinux-tuned", &[], &script, &[]);
    session.expect(&sum(&sent));
}

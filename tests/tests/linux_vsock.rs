//! vsock with Debian's stock kernel: `machinen-vsock-peer` in the guest, Unix sockets here.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use machinen_fixtures::traffic::{exchange, receive, send};
use machinen_tests::guest::{Guest, Scratch};
use machinen_tests::session::Session;
use machinen_tests::{bin, host, soak};

/// The modules of the stock kernel that are needed, in order.
const MODULES: [&str; 4] = ["virtio_mmio", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];

/// A guest that runs `machinen-vsock-peer`; ports 1 in and 2 out lead to sockets named so.
struct Peer {
    session: Session,
    sockets: Scratch,
    _initrd: Scratch,
}

impl Peer {
    fn start(arguments: &[&str]) -> Self {
        let sockets = Scratch::new();
        let bridge = |kind: &str, name: &str| format!("{kind}:{}", sockets.path(name).display());
        let words = [&["machinen-vsock-peer"], arguments].concat();
        let peer = fs::read(bin("machinen-vsock-peer")).unwrap();
        let guest = Guest::command(&words).file("bin/machinen-vsock-peer", 0o755, peer).modules(&MODULES);
        let bridges = [bridge("in:1", "in"), bridge("out:2", "out"), bridge("hybrid", "any")];
        let flags: Vec<&str> = bridges.iter().flat_map(|bridge| ["--vsock", bridge]).collect();
        let (command, initrd) = guest.monitor(&["-m", "256"]).monitor(&flags).start();
        Self { session: Session::on_pipes(command), sockets, _initrd: initrd }
    }

    fn listen(&self, name: &str) -> UnixListener {
        UnixListener::bind(self.sockets.path(name)).unwrap()
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.sockets.path("in")).unwrap()
    }

    /// Waits for the end, which is a good one, and for the sockets to be gone; returns what was printed.
    fn finish(mut self) -> String {
        let status = self.session.end();
        let printed = self.session.printed();
        assert_eq!(status.code(), Some(0), "{printed}");
        assert!(!self.sockets.path("in").exists() && !self.sockets.path("any").exists());
        printed
    }
}

/// A listener that gives up.
fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                return stream;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("waited too long for a connection of the guest's: {error}"),
        }
    }
}

#[test]
fn streams_carry_their_data_while_one_reader_stands_still() {
    let streams: u64 = 64;
    let total: u64 = if soak() { 1 << 30 } else { 32 << 20 };
    let bytes = total / streams;
    let mut peer = Peer::start(&["flow", "1", "2", &streams.to_string(), &bytes.to_string()]);
    let listener = peer.listen("out");
    peer.session.expect("ready\n");
    let start = Instant::now();
    let mut threads = Vec::new();
    let mut talk = |number: u64, stream: UnixStream| {
        stream.set_read_timeout(None).unwrap();
        threads.push(thread::spawn(move || (number, exchange(&stream, number * 2 + 1, bytes))));
    };
    let mut stopped_in = peer.connect();
    stopped_in.write_all(&[0]).unwrap();
    let sender = stopped_in.try_clone().unwrap();
    let sender = thread::spawn(move || send(&sender, 1, bytes));
    for number in streams / 2 + 1..=streams {
        let mut stream = peer.connect();
        stream.write_all(&[u8::try_from(number).unwrap()]).unwrap();
        talk(number, stream);
    }
    let mut stopped_out = None;
    for _ in 0..=streams / 2 {
        let mut stream = accept(&listener);
        let mut number = [0];
        stream.read_exact(&mut number).unwrap();
        match number[0] {
            0 => stopped_out = Some(stream),
            number => talk(number.into(), stream),
        }
    }
    let sums: BTreeMap<u64, (u64, u64)> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .map(|(number, sums)| (number, sums.unwrap_or_else(|error| panic!("stream {number}: {error}"))))
        .collect();
    let elapsed = start.elapsed();
    // Guest RAM is anonymous too, and the guest touches more of it; this is the whole.
    let rss = host::rss_kib(peer.session.id());
    assert!(!sender.is_finished(), "the stopped reader's writer has to stand still");
    peer.session.expect("others done\n");
    let stopped_out = receive(&stopped_out.unwrap()).unwrap();
    let sent_in = sender.join().unwrap().unwrap();
    let printed = peer.finish();
    for (number, (sent, received)) in &sums {
        let line = format!("stream {number} {received:x} {sent:x}\n");
        assert!(printed.contains(&line), "{line} is not in\n{printed}");
    }
    assert_eq!(sums.len() as u64, streams);
    assert!(printed.contains(&format!("stopped in {bytes} {sent_in:x}\n")), "{printed}");
    assert_eq!(stopped_out.0, bytes);
    assert!(printed.contains(&format!("stopped out {:x}\n", stopped_out.1)), "{printed}");
    println!(
        "{streams} streams, {} MiB each way in {:.1} s, monitor with 256 MiB of guest: {rss} KiB resident",
        total >> 20,
        elapsed.as_secs_f64()
    );
}

#[test]
fn every_end_of_a_stream_is_seen_at_its_other_end() {
    let mut peer = Peer::start(&["ends", "1", "2"]);
    let listener = peer.listen("out");
    let early = peer.sockets.path("in");
    peer.session.expect("ready\n");
    let read = |stream: &mut UnixStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };

    let mut stream = accept(&listener);
    assert_eq!(read(&mut stream).unwrap(), "question");
    stream.write_all(b"after the end").unwrap();
    drop(stream);
    peer.session.expect("answer after the end\n");

    let mut stream = UnixStream::connect(&early).unwrap();
    stream.write_all(b"words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read(&mut stream).unwrap(), "heard words");

    // Closed with something unread: what Linux resets a connection for.
    let mut stream = accept(&listener);
    stream.read_exact(&mut [0]).unwrap();
    drop(stream);
    // Linux' vsock shows a reset as an end.
    peer.session.expect("host reset 0\n");
    peer.session.expect("then write BrokenPipe\n");

    let mut stream = UnixStream::connect(&early).unwrap();
    let error = loop {
        if let Err(error) = stream.write(&[0; 4096]) {
            break error.kind();
        }
    };
    assert!(matches!(error, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error:?}");

    drop(accept(&listener));
    peer.session.expect("host closed ");
    peer.session.expect("no bridge ConnectionReset\n");
    peer.session.expect("no host ");
    println!("{}", peer.finish());
}

#[test]
fn hundreds_of_streams_and_every_way_in() {
    let count = 300;
    let mut peer = Peer::start(&["many", "9", &count.to_string()]);
    // The guest's way out by the hybrid socket; nobody in the guest listens yet, whom its clients could ask for.
    let listener = peer.listen("any_9");
    let any = peer.sockets.path("any");
    peer.session.until("listening", |_| fs::symlink_metadata(&any).is_ok_and(|file| file.file_type().is_socket()));
    let mut refused = UnixStream::connect(&any).unwrap();
    refused.write_all(b"CONNECT 4000\n").unwrap();
    let mut garbage = UnixStream::connect(&any).unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _silent = UnixStream::connect(&any).unwrap();
    let mut streams: Vec<UnixStream> = (0..count).map(|_| accept(&listener)).collect();
    for stream in &mut streams {
        let mut number = [0; 8];
        stream.read_exact(&mut number).unwrap();
        stream.write_all(&number).unwrap();
    }
    assert_eq!(refused.read(&mut [0; 16]).unwrap(), 0);
    // What is left unread of it may make the end a reset.
    assert!(!garbage.read(&mut [0; 16]).is_ok_and(|count| count > 0));
    assert!(peer.finish().contains(&format!("equal {count}\n")));
}

/// The counters of KVM for a monitor's VM; debugfs is mounted where it is not.
fn kvm_counter(pid: u32, name: &str) -> Option<u64> {
    let base = Path::new("/sys/kernel/debug/kvm");
    if !base.exists() {
        // It may be mounted by now, or not be there: then there are no figures.
        let _ = Command::new("mount").args(["-t", "debugfs", "none", "/sys/kernel/debug"]).status();
    }
    let own =
        |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{pid}-")));
    let directory = fs::read_dir(base).ok()?.flatten().map(|entry| entry.path()).find(own)?;
    fs::read_to_string(directory.join(name)).ok()?.trim().parse().ok()
}

#[test]
fn a_small_message_and_its_answer_are_few_exits() {
    const ROUNDS: u64 = 200;
    let peer = Peer::start(&["ping", "2", &(ROUNDS + 20).to_string()]);
    let listener = peer.listen("out");
    let mut stream = accept(&listener);
    let names = ["mmio_exits", "signal_exits", "io_exits", "exits", "halt_exits", "irq_exits"];
    let counters = || names.map(|name| kvm_counter(peer.session.id(), name));
    let mut answer = |rounds: u64| {
        for _ in 0..rounds {
            let mut message = [0; 64];
            stream.read_exact(&mut message).unwrap();
            stream.write_all(&message).unwrap();
        }
    };
    answer(10);
    let before = counters();
    answer(ROUNDS);
    let after = counters();
    answer(10);
    peer.finish();
    let mut ours = Some(0.0);
    for ((name, before), after) in names.iter().zip(before).zip(after) {
        let count = before.zip(after).map(|(before, after)| (after - before) as f64 / ROUNDS as f64);
        println!("{name} for each round: {count:?}");
        if name != &"exits" && name.starts_with(['m', 's']) {
            ours = ours.zip(count).map(|(sum, count)| sum + count);
        }
    }
    let Some(exits) = ours else {
        println!("SKIP: no counters of KVM: there is no debugfs here, or no right to read it");
        return;
    };
    // The guest's message and its credit update are one each, which Linux sends after every read that leaves nothing; the
    // answer's signal is one, its interrupt two.
    assert!(exits <= 5.3, "{exits} exits to the monitor");
}

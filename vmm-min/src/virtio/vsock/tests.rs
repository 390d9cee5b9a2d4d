//! The device against a driver of rings in RAM, and sockets of this process.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::credit::BUF_ALLOC;
use super::packet::{Header, Operation, Shut};
use super::stream::Key;
use super::testing::{Guest, device, directory, fuzz, packet};
use super::{FIRST_PORT, FROM_GUEST, MOST_LINES, MOST_RESETS, TO_GUEST};
use crate::virtio::mmio::Status;
use crate::virtio::testing::{RING_ENTRIES, WRITE, ram};

const KEY: Key = Key { guest_port: 5000, host_port: 1 };

/// A guest whose stream [`KEY`] is open, and its host's end.
fn open() -> (Guest, UnixListener, UnixStream) {
    let mut guest = Guest::new(&["out:1:out"]);
    let listener = guest.listen("out");
    let host = open_another(&mut guest, &listener, KEY);
    (guest, listener, host)
}

fn open_another(guest: &mut Guest, listener: &UnixListener, key: Key) -> UnixStream {
    guest.send(packet(key.guest_port, key.host_port, Operation::Request), &[]);
    let (header, _) = guest.expect(key, Operation::Response);
    assert_eq!((header.buf_alloc, header.fwd_cnt), (BUF_ALLOC, 0));
    let (host, _) = listener.accept().expect("a connection");
    // No test waits for ever.
    host.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    host
}

fn from_guest(operation: Operation) -> Header {
    packet(KEY.guest_port, KEY.host_port, operation)
}

fn shutdown(flags: Shut) -> Header {
    Header { flags: flags.bits(), ..from_guest(Operation::Shutdown) }
}

fn read(host: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    host.read_exact(&mut bytes).expect("bytes");
    bytes
}

fn is_at_end(host: &mut UnixStream) -> bool {
    host.read(&mut [0]).expect("an end") == 0
}

fn streams(guest: &Guest) -> usize {
    guest.driver.device.backend().load_figures().0
}

#[test]
fn data_goes_both_ways() {
    let (mut guest, _listener, mut host) = open();
    guest.send(from_guest(Operation::Data), b"to the host");
    assert_eq!(read(&mut host, 11), b"to the host");
    host.write_all(b"to the guest").unwrap();
    guest.wake();
    let (header, data) = guest.expect(KEY, Operation::Data);
    assert_eq!((&data[..], header.fwd_cnt), (&b"to the guest"[..], 11));
    assert_eq!(guest.receive(), None);
}

#[test]
fn each_side_can_end_its_direction() {
    let (mut guest, _listener, mut host) = open();
    guest.send(shutdown(Shut::SEND), &[]);
    assert!(is_at_end(&mut host));
    host.write_all(b"answer").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    guest.wake();
    assert_eq!(guest.expect(KEY, Operation::Data).1, b"answer");
    // Both directions have ended, so this says that all is over.
    let (header, _) = guest.expect(KEY, Operation::Shutdown);
    assert_eq!(header.flags, Shut::all().bits());
    guest.send(shutdown(Shut::all()), &[]);
    guest.expect(KEY, Operation::Reset);
    assert_eq!(streams(&guest), 0);
}

#[test]
fn the_host_ends_first() {
    let (mut guest, _listener, mut host) = open();
    host.shutdown(Shutdown::Write).unwrap();
    guest.wake();
    assert_eq!(guest.expect(KEY, Operation::Shutdown).0.flags, Shut::SEND.bits());
    guest.send(from_guest(Operation::Data), b"late");
    assert_eq!(read(&mut host, 4), b"late");
    drop(host);
    guest.wake();
    assert_eq!(guest.expect(KEY, Operation::Shutdown).0.flags, Shut::all().bits());
    guest.wake();
    assert_eq!(guest.receive(), None);
    guest.send(from_guest(Operation::Reset), &[]);
    assert_eq!((streams(&guest), guest.receive()), (0, None));
}

#[test]
fn a_host_that_stops_reading_is_told_to_the_guest() {
    let (mut guest, _listener, mut host) = open();
    host.shutdown(Shutdown::Read).unwrap();
    guest.send(from_guest(Operation::Data), b"nobody wants this");
    assert_eq!(guest.expect(KEY, Operation::Shutdown).0.flags, Shut::RECEIVE.bits());
    host.write_all(b"still here").unwrap();
    guest.wake();
    assert_eq!(guest.expect(KEY, Operation::Data).1, b"still here");
}

#[test]
fn a_host_that_throws_data_away_resets() {
    let (mut guest, _listener, host) = open();
    guest.send(from_guest(Operation::Data), b"unread");
    drop(host);
    guest.wake();
    guest.expect(KEY, Operation::Reset);
    assert_eq!(streams(&guest), 0);
}

#[test]
fn a_reset_of_the_guest_ends_the_hosts_side() {
    let (mut guest, _listener, mut host) = open();
    guest.send(from_guest(Operation::Reset), &[]);
    assert!(is_at_end(&mut host));
    assert_eq!(host.write(b"x").expect_err("closed").kind(), ErrorKind::BrokenPipe);
    assert_eq!((guest.receive(), streams(&guest)), (None, 0));
}

#[test]
fn connections_that_nobody_takes_are_refused() {
    let mut guest = Guest::new(&["out:1:out"]);
    for port in [1, 2] {
        // Nobody listens; no bridge.
        guest.send(packet(9, port, Operation::Request), &[]);
        guest.expect(Key { guest_port: 9, host_port: port }, Operation::Reset);
    }
    let _listener = guest.listen("out");
    let elsewhere = Header { target_cid: 77, ..packet(9, 1, Operation::Request) };
    guest.send(elsewhere, &[]);
    assert_eq!(guest.receive().expect("a reset").0, elsewhere.reset_of());
    let seqpacket = Header { kind: 2, ..packet(9, 1, Operation::Request) };
    guest.send(seqpacket, &[]);
    assert_eq!(guest.receive().expect("a reset").0, seqpacket.reset_of());
    // Of somebody else: nobody is there to be answered. An answer to an answer would never end.
    guest.send(Header { source_cid: 4, ..packet(9, 1, Operation::Request) }, &[]);
    guest.send(Header { kind: 2, ..packet(9, 1, Operation::Reset) }, &[]);
    guest.send(packet(9, 1, Operation::Reset), &[]);
    assert_eq!(guest.receive(), None);
    for operation in [Operation::Data, Operation::Response, Operation::Shutdown, Operation::CreditRequest] {
        guest.send(packet(9, 1, operation), &[]);
        guest.expect(Key { guest_port: 9, host_port: 1 }, Operation::Reset);
    }
    assert_eq!(streams(&guest), 0);
}

#[test]
fn a_client_waits_for_the_guest() {
    let directory = directory();
    let device = device(&directory.0, &["in:7:in"]);
    // Before there is a driver.
    let mut client = UnixStream::connect(directory.0.join("in")).unwrap();
    client.write_all(b"early").unwrap();
    let mut guest = Guest::with(device, directory, ram());
    let key = Key { guest_port: 7, host_port: FIRST_PORT };
    guest.expect(key, Operation::Request);
    assert_eq!(guest.receive(), None);
    guest.send(packet(7, FIRST_PORT, Operation::Response), &[]);
    assert_eq!(guest.expect(key, Operation::Data).1, b"early");
    // Another that is refused, and one that goes before it is answered.
    let mut refused = guest.connect("in");
    guest.expect(Key { host_port: FIRST_PORT + 1, ..key }, Operation::Request);
    guest.send(packet(7, FIRST_PORT + 1, Operation::Reset), &[]);
    assert!(is_at_end(&mut refused));
    let gone = guest.connect("in");
    guest.expect(Key { host_port: FIRST_PORT + 2, ..key }, Operation::Request);
    drop(gone);
    guest.wake();
    guest.expect(Key { host_port: FIRST_PORT + 2, ..key }, Operation::Reset);
    assert_eq!(streams(&guest), 1);
}

#[test]
fn a_hybrid_client_names_its_port() {
    let mut guest = Guest::new(&["hybrid:any"]);
    let mut client = guest.connect("any");
    for (part, wanted) in [("CONN", 0), ("ECT 77", 0), ("\nearly", 1)] {
        client.write_all(part.as_bytes()).unwrap();
        guest.wake();
        assert_eq!(
            guest.driver.device.backend().streams.iter().filter(|(_, stream)| stream.key.guest_port == 77).count(),
            wanted
        );
    }
    let key = Key { guest_port: 77, host_port: FIRST_PORT };
    guest.expect(key, Operation::Request);
    guest.send(packet(77, FIRST_PORT, Operation::Response), &[]);
    let answer = format!("OK {FIRST_PORT}\n");
    assert_eq!(read(&mut client, answer.len()), answer.as_bytes());
    assert_eq!(guest.expect(key, Operation::Data).1, b"early");
    // The other way.
    let listener = guest.listen("any_1234");
    open_another(&mut guest, &listener, Key { guest_port: 8, host_port: 1234 });
    guest.send(packet(8, 1235, Operation::Request), &[]);
    guest.expect(Key { guest_port: 8, host_port: 1235 }, Operation::Reset);
}

#[test]
fn hybrid_clients_that_say_something_else_go() {
    let mut guest = Guest::new(&["hybrid:any"]);
    let long = "CONNECT 00000000000000000000000000000000000000000001\n";
    for line in
        ["\n", "CONNECT\n", "CONNECT x\n", "CONNECT -1\n", "CONNECT 4294967295\n", "LISTEN 5\n", "\u{ff}\n", long]
    {
        let mut client = guest.connect("any");
        client.write_all(line.as_bytes()).unwrap();
        guest.wake();
        // What is left unread makes the end a reset.
        assert!(client.read(&mut [0]).is_ok_and(|count| count == 0) || line == long, "{line:?}");
        assert_eq!(streams(&guest), 0, "{line:?}");
    }
    // Those that say nothing make room for others.
    let mut silent: Vec<UnixStream> = (0..=MOST_LINES).map(|_| guest.connect("any")).collect();
    assert_eq!(streams(&guest), MOST_LINES);
    assert!(is_at_end(&mut silent[0]));
    silent[MOST_LINES].write_all(b"CONNECT 5\r\n").unwrap();
    guest.wake();
    guest.expect(Key { guest_port: 5, host_port: FIRST_PORT }, Operation::Request);
    assert_eq!(guest.receive(), None);
}

#[test]
fn a_host_that_does_not_read_holds_up_nobody() {
    let (mut guest, listener, mut slow) = open();
    let other = Key { guest_port: 6000, ..KEY };
    let mut quick = open_another(&mut guest, &listener, other);
    // The device says how much it takes.
    let chunk = [7; 4096];
    let (mut sent, mut taken) = (0u32, 0u32);
    while sent + 4096 - taken <= BUF_ALLOC {
        guest.send(from_guest(Operation::Data), &chunk);
        sent += 4096;
        while let Some((header, _)) = guest.receive() {
            assert_eq!(header.operation, Operation::CreditUpdate.number());
            taken = header.fwd_cnt;
        }
    }
    assert!(guest.driver.device.backend().load_figures().1 > BUF_ALLOC as usize / 4);
    guest.send(packet(6000, 1, Operation::Data), b"quick");
    assert_eq!(read(&mut quick, 5), b"quick");
    guest.send(from_guest(Operation::CreditRequest), &[]);
    let (header, _) = guest.expect(KEY, Operation::CreditUpdate);
    assert!(header.fwd_cnt < sent);
    // It ends, and reads at last: nothing is lost, although the guest is long gone.
    guest.send(shutdown(Shut::all()), &[]);
    guest.expect(KEY, Operation::Reset);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        slow.read_to_end(&mut all).map(|_| all)
    });
    while !reader.is_finished() {
        guest.wake();
        std::thread::yield_now();
    }
    let all = reader.join().unwrap().unwrap();
    assert_eq!((u32::try_from(all.len()), all.iter().all(|byte| *byte == 7)), (Ok(sent), true));
    assert_eq!(streams(&guest), 1);
}

#[test]
fn more_than_the_credit_is_a_reset() {
    let (mut guest, _listener, mut host) = open();
    // One packet that is more than all of it, in one buffer again and again.
    for _ in 0..64 {
        guest.send(from_guest(Operation::Data), &vec![1; 60 << 10]);
    }
    let mut last = None;
    while let Some((header, _)) = guest.receive() {
        last = Some(header.operation);
    }
    assert_eq!((last, streams(&guest)), (Some(Operation::Reset.number()), 0));
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == 1));
}

#[test]
fn a_guest_that_does_not_read_holds_up_nobody() {
    let mut guest = Guest::new(&["out:1:out"]);
    let listener = guest.listen("out");
    let other = Key { guest_port: 6000, ..KEY };
    guest.send(Header { buf_alloc: 1000, ..from_guest(Operation::Request) }, &[]);
    guest.expect(KEY, Operation::Response);
    let mut slow = listener.accept().unwrap().0;
    let mut quick = open_another(&mut guest, &listener, other);
    slow.write_all(&[5; 3000]).unwrap();
    quick.write_all(b"quick").unwrap();
    guest.wake();
    assert_eq!(guest.expect(KEY, Operation::Data).1, [5; 1000]);
    assert_eq!(guest.expect(other, Operation::Data).1, b"quick");
    // It is asked once, and not again when the answer is that it has no room.
    guest.expect(KEY, Operation::CreditRequest);
    guest.wake();
    guest.send(Header { buf_alloc: 1000, ..from_guest(Operation::CreditUpdate) }, &[]);
    guest.wake();
    assert_eq!(guest.receive(), None);
    guest.send(Header { buf_alloc: 1000, fwd_cnt: 1000, ..from_guest(Operation::CreditUpdate) }, &[]);
    assert_eq!(guest.expect(KEY, Operation::Data).1, [5; 1000]);
    guest.expect(KEY, Operation::CreditRequest);
    // One that takes its buffer back, or says that it has read more than it got, has no room.
    guest.send(Header { buf_alloc: 0, fwd_cnt: 2000, ..from_guest(Operation::CreditUpdate) }, &[]);
    guest.send(Header { buf_alloc: 1000, fwd_cnt: 2001, ..from_guest(Operation::CreditUpdate) }, &[]);
    assert_eq!(guest.receive(), None);
    slow.write_all(b"!").unwrap();
    guest.send(Header { buf_alloc: 9000, fwd_cnt: 2000, ..from_guest(Operation::CreditUpdate) }, &[]);
    assert_eq!(guest.expect(KEY, Operation::Data).1.len(), 1001);
    // And signals are on again: this would be lost otherwise.
    slow.write_all(b"last").unwrap();
    guest.wake();
    assert_eq!(guest.expect(KEY, Operation::Data).1, b"last");
}

#[test]
fn small_packets_come_back_with_the_answer() {
    let (mut guest, _listener, mut host) = open();
    guest.driver.request(FROM_GUEST, &[&Header { bytes: 4, ..from_guest(Operation::Data) }.to_bytes(), b"ping"], &[]);
    guest.driver.notify(FROM_GUEST);
    assert_eq!(guest.driver.used(FROM_GUEST), None);
    assert_eq!(read(&mut host, 4), b"ping");
    host.write_all(b"pong").unwrap();
    guest.wake();
    assert!(guest.driver.used(FROM_GUEST).is_some());
    assert_eq!(guest.expect(KEY, Operation::Data).1, b"pong");
    // A driver that waits for its buffers gets them before it has to.
    for _ in 0..RING_ENTRIES / 2 {
        guest.driver.request(FROM_GUEST, &[&from_guest(Operation::CreditUpdate).to_bytes()], &[]);
        guest.driver.notify(FROM_GUEST);
    }
    assert!(guest.driver.used(FROM_GUEST).is_some());
}

#[test]
fn a_guest_that_takes_no_answers_has_to_wait() {
    let (mut guest, _listener, _host) = open();
    guest.reposts = false;
    // As many as are answered, as are kept, and some that stay in the ring.
    let sent = MOST_RESETS + usize::from(RING_ENTRIES) + 10;
    for number in (0..).take(sent) {
        guest.send(packet(number, 99, Operation::Request), &[]);
    }
    assert!(guest.driver.device.backend().resets.len() <= MOST_RESETS);
    let mut answers = 0;
    while guest.driver.used(TO_GUEST).is_some() {
        answers += 1;
    }
    for _ in 0..sent {
        for head in 0..RING_ENTRIES {
            guest.post(head);
        }
        guest.driver.notify(TO_GUEST);
        let before = answers;
        while guest.driver.used(TO_GUEST).is_some() {
            answers += 1;
        }
        if answers - before < usize::from(RING_ENTRIES) {
            break;
        }
    }
    assert_eq!(answers, sent);
    assert!(!guest.driver.status().contains(Status::NEEDS_RESET));
}

#[test]
fn hundreds_of_streams_at_once() {
    let mut guest = Guest::new(&["out:1:out"]);
    let listener = guest.listen("out");
    let key = |number: u32| Key { guest_port: 1000 + number, host_port: 1 };
    let mut hosts: Vec<UnixStream> = (0..300).map(|number| open_another(&mut guest, &listener, key(number))).collect();
    assert_eq!(streams(&guest), 300);
    for (host, number) in hosts.iter_mut().zip(0u32..) {
        host.write_all(&number.to_le_bytes()).unwrap();
    }
    guest.wake();
    // One buffer after the other, in turn: more streams than buffers.
    let mut seen: Vec<u32> = Vec::new();
    while let Some((header, data)) = guest.receive() {
        assert_eq!(header.target_port - 1000, u32::from_le_bytes(data.try_into().unwrap()));
        seen.push(header.target_port - 1000);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..300).collect::<Vec<_>>());
    // A port used again while it is in use ends its stream.
    guest.send(packet(1000, 1, Operation::Request), &[]);
    guest.expect(key(0), Operation::Reset);
    assert_eq!(streams(&guest), 299);
    guest.driver.write(0x70, 0);
    assert_eq!(streams(&guest), 0);
    assert!(hosts.iter_mut().all(is_at_end));
}

#[test]
fn a_stream_too_many_is_refused_and_room_is_used_again() {
    let mut guest = Guest::new(&["in:7:in"]);
    let mut clients: Vec<UnixStream> = Vec::new();
    for _ in 0..super::table::MOST_STREAMS {
        clients.push(guest.connect("in"));
        guest.receive().expect("a request");
    }
    let late = guest.connect("in");
    assert_eq!((streams(&guest), guest.receive()), (super::table::MOST_STREAMS, None));
    // One goes: the one that waits gets its place at once.
    guest.send(packet(7, FIRST_PORT, Operation::Reset), &[]);
    let (header, _) = guest.receive().expect("a request");
    assert_eq!(header.operation, Operation::Request.number());
    drop(late);
}

#[test]
fn a_saved_device_goes_on_without_its_streams() {
    let (mut guest, _listener, mut host) = open();
    host.write_all(b"on its way").unwrap();
    guest.driver.request(FROM_GUEST, &[&Header { bytes: 4, ..from_guest(Operation::Data) }.to_bytes(), b"held"], &[]);
    guest.driver.write(0x50, 1);
    guest.driver.request(super::EVENTS, &[], &[4]);
    let state = guest.driver.device.save();
    assert_eq!(state, guest.driver.device.save());

    let directory = directory();
    let ram = std::mem::replace(&mut guest.driver.ram, ram());
    // The same guest with another device.
    let restored = device(&directory.0, &["out:1:out"]);
    guest.driver.ram = ram;
    guest.driver.device = crate::virtio::mmio::Mmio::new(restored);
    guest.driver.device.load(&guest.driver.ram, state).expect("loads");
    guest.wake();
    assert_eq!(guest.event(), Some(4));
    // What was delivered before the save comes first.
    let mut operations = Vec::new();
    while let Some((header, _)) = guest.receive() {
        operations.push(header.operation);
    }
    assert_eq!(operations.last(), Some(&Operation::Reset.number()));
    assert!(guest.driver.used(FROM_GUEST).is_some(), "what was held comes back");
    let listener = UnixListener::bind(directory.0.join("out")).unwrap();
    open_another(&mut guest, &listener, KEY);
}

#[test]
fn packets_that_lie_about_their_buffers_stop_the_device() {
    let faults: [(&[u8], &str); 2] = [
        (&[0; 43], "vsock packet without a header"),
        (&Header { bytes: 1, ..from_guest(Operation::Data) }.to_bytes(), "vsock packet longer than its buffers"),
    ];
    for (bytes, why) in faults {
        let (mut guest, _listener, _host) = open();
        guest.send_raw(bytes, &[]);
        assert!(guest.driver.status().contains(Status::NEEDS_RESET));
        assert_eq!(guest.driver.device.take_fault().map(|fault| fault.0), Some(why));
    }
    let (mut guest, _listener, mut host) = open();
    guest.driver.write(0x70, 0);
    assert!(is_at_end(&mut host));
    guest.driver.start(crate::virtio::testing::VERSION_1);
    guest.driver.descriptor(TO_GUEST, 0, 0x20_0000, 44, WRITE, 0);
    guest.driver.put(guest.driver.rings(TO_GUEST) + crate::virtio::testing::AVAIL, &[0, 0, 0, 0]);
    guest.driver.put(guest.driver.rings(FROM_GUEST) + crate::virtio::testing::AVAIL, &[0, 0, 0, 0]);
    guest.driver.offer(TO_GUEST, 0);
    guest.send(from_guest(Operation::Request), &[]);
    assert!(guest.driver.status().contains(Status::NEEDS_RESET));
}

#[test]
fn the_corpus_of_the_fuzz_target_harms_nobody() {
    crate::virtio::testing::corpus("vsock").iter().for_each(|input| fuzz(input));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 200, ..Default::default() })]
    #[test]
    fn nothing_that_a_guest_or_its_clients_do_breaks_the_device(bytes in proptest::collection::vec(0u8.., 0..600)) {
        fuzz(&bytes);
    }
}

//! The device between a driver and a peer.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::{any, prop, proptest};

use super::script::{MAC, run};
use super::{HEADER, MOST_FRAME_BYTES, Net};
use crate::ram::Ram;
use crate::sys;
use crate::virtio::mmio::{Interrupt, Mmio, Status};
use crate::virtio::testing::{Driver, EVENT_IDX, ram};

const MERGEABLE: u64 = 1 << 15;
const CSUM: u64 = 1;
const STATUS: u64 = 1 << 16;

/// A device and its peer, which never waits.
fn pair(features: u64) -> (Driver<Net>, UnixStream) {
    sys::ignore_sigio();
    let (peer, socket) = UnixStream::pair().expect("sockets");
    peer.set_nonblocking(true).expect("a socket");
    (Driver::new(Net::new(socket, MAC, Some(65520)), features | STATUS), peer)
}

/// A signal comes.
fn wake(driver: &mut Driver<Net>) {
    driver.device.woken();
    driver.device.settle(&driver.ram);
}

/// A frame of so many bytes, all different from their neighbours.
fn frame(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from(at % 251).expect("a byte")).collect()
}

/// The same as it goes over the socket.
fn wire(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).expect("short").to_be_bytes(), frame].concat()
}

/// Everything that the peer can read now.
fn hear(peer: &mut UnixStream) -> Vec<u8> {
    let mut heard = Vec::new();
    if let Err(error) = peer.read_to_end(&mut heard) {
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    heard
}

fn config(driver: &Driver<Net>) -> [u8; 12] {
    let mut config = [0; 12];
    driver.device.read(0x100, &mut config);
    config
}

fn is_up(driver: &Driver<Net>) -> bool {
    config(driver)[6] == 1
}

/// What the driver finds in a buffer: number of buffers, and the frame's bytes after the header.
fn received(driver: &mut Driver<Net>, place: u64) -> Option<(u16, Vec<u8>)> {
    let (_, bytes) = driver.used(0)?;
    let content = driver.get(place, bytes as usize);
    Some((u16::from_le_bytes([content[10], content[11]]), content[HEADER..].to_vec()))
}

#[test]
fn the_configuration_is_address_link_and_mtu() {
    let (driver, _peer) = pair(0);
    let expected = [2, 0, 0x5e, 0x10, 0, 1, 1, 0, 0, 0, 0xf0, 0xff];
    assert_eq!(config(&driver), expected);
    assert_eq!(driver.read(0x10) & (1 << 3), 1 << 3, "an MTU is offered where there is one");
}

#[test]
fn frames_arrive_whole_and_in_order() {
    let (mut driver, mut peer) = pair(MERGEABLE | EVENT_IDX);
    let places = [driver.request(0, &[], &[2048]), driver.request(0, &[], &[2048])];
    let sent = [frame(60), frame(1514)];
    peer.write_all(&[wire(&sent[0]), wire(&sent[1])].concat()).expect("room");
    wake(&mut driver);
    for (place, sent) in places.iter().zip(sent) {
        assert_eq!(received(&mut driver, place[0]), Some((1, sent)));
    }
    assert!(driver.device.irq());
    assert_eq!(driver.used(0), None);
}

#[test]
fn a_frame_arrives_in_pieces_of_a_byte() {
    let (mut driver, mut peer) = pair(MERGEABLE);
    let place = driver.request(0, &[], &[20, 100])[0];
    let sent = frame(80);
    for byte in wire(&sent) {
        assert_eq!(driver.used(0), None);
        peer.write_all(&[byte]).expect("room");
        wake(&mut driver);
    }
    assert_eq!(received(&mut driver, place), Some((1, sent)));
}

#[test]
fn a_large_frame_takes_several_buffers_and_waits_for_them() {
    let (mut driver, mut peer) = pair(MERGEABLE | EVENT_IDX);
    let sent = frame(5000);
    peer.write_all(&wire(&sent)).expect("room");
    wake(&mut driver);
    let mut places = Vec::new();
    for left in (0..4).rev() {
        places.extend(driver.request(0, &[], &[1500]));
        driver.notify(0);
        assert_eq!(driver.used(0).is_some(), left == 0, "5012 bytes need four");
    }
    let mut content = Vec::new();
    places.iter().for_each(|place| content.extend(driver.get(*place, 1500)));
    assert_eq!(content[10], 4);
    assert!(content[HEADER..][..5000] == sent);
    let rest = [driver.used(0), driver.used(0), driver.used(0)].map(|used| used.expect("used").1);
    assert_eq!(rest, [1500, 1500, 512]);
}

#[test]
fn a_frame_that_fits_nowhere_is_dropped_and_the_next_one_comes() {
    // Without mergeable buffers all has to be in one; with them in all that the ring can hold.
    for (features, buffers) in [(0, 1), (MERGEABLE, 16)] {
        let (mut driver, mut peer) = pair(features);
        let places: Vec<u64> = (0..buffers).flat_map(|_| driver.request(0, &[], &[100])).collect();
        driver.notify(0);
        peer.write_all(&[wire(&frame(3000)), wire(&frame(88))].concat()).expect("room");
        wake(&mut driver);
        assert_eq!(received(&mut driver, places[0]), Some((1, frame(88))));
        assert!(is_up(&driver));
    }
}

#[test]
fn a_buffer_that_is_not_for_writing_holds_nothing() {
    let (mut driver, mut peer) = pair(0);
    driver.request(0, &[&[0; 100]], &[]);
    driver.notify(0);
    peer.write_all(&wire(&frame(60))).expect("room");
    wake(&mut driver);
    assert_eq!(driver.used(0), None, "and the frame is dropped");
    assert!(!driver.status().contains(Status::NEEDS_RESET));
}

#[test]
fn lengths_that_no_frame_has() {
    let (mut driver, mut peer) = pair(MERGEABLE);
    let place = driver.request(0, &[], &[2048])[0];
    let runts: Vec<u8> = (0..14).flat_map(|bytes| wire(&frame(bytes))).collect();
    peer.write_all(&[runts, wire(&frame(14))].concat()).expect("room");
    wake(&mut driver);
    assert_eq!(received(&mut driver, place), Some((1, frame(14))), "shorter ones are dropped");
    peer.write_all(&(MOST_FRAME_BYTES + 1).to_be_bytes()).expect("room");
    wake(&mut driver);
    assert!(!is_up(&driver), "after a longer one nobody knows where the next one starts");
    assert_eq!(peer.read(&mut [0]).expect("closed"), 0);
}

#[test]
fn the_link_is_down_when_the_peer_closes_in_the_middle_of_a_frame() {
    let (mut driver, mut peer) = pair(MERGEABLE);
    driver.request(0, &[], &[2048]);
    let generation = driver.read(0xfc);
    peer.write_all(&wire(&frame(600))[..300]).expect("room");
    wake(&mut driver);
    assert!(is_up(&driver));
    drop(peer);
    wake(&mut driver);
    assert!(!is_up(&driver));
    assert_eq!(driver.used(0), None);
    assert_eq!((driver.read(0xfc), driver.read(0x60)), (generation + 1, Interrupt::CONFIG.bits()));
    driver.write(0x64, 3);
    // What is sent into the void is used up, and nothing is told twice.
    driver.request(1, &[&[0; HEADER], &frame(60)], &[]);
    driver.notify(1);
    assert!(driver.used(1).is_some());
    wake(&mut driver);
    assert_eq!(driver.read(0x60) & Interrupt::CONFIG.bits(), 0);
}

#[test]
fn frames_are_sent_after_their_lengths_however_they_are_cut() {
    let (mut driver, mut peer) = pair(EVENT_IDX);
    let sent = frame(1000);
    driver.request(1, &[&[0; HEADER], &sent], &[]);
    driver.request(1, &[&[0; 5], &[&[0; 7], &sent[..1]].concat(), &sent[1..30], &[], &sent[30..]], &[]);
    driver.notify(1);
    assert_eq!(hear(&mut peer), [wire(&sent), wire(&sent)].concat());
    assert!(driver.used(1).is_some() && driver.used(1).is_some());
}

#[test]
fn requests_that_are_no_frames_are_dropped() {
    let (mut driver, mut peer) = pair(CSUM);
    let mut segments = [0; HEADER];
    segments[1] = 1;
    let checksum = |start: u8, offset: u8| {
        let mut header = [0; HEADER];
        (header[0], header[6], header[8]) = (1, start, offset);
        header
    };
    let cases: [(&[u8], usize); 8] = [
        (&[], 0),
        (&[0; HEADER - 1], 0),
        (&[0; HEADER], 0),
        (&[0; HEADER], 13),
        (&[0; HEADER], MOST_FRAME_BYTES as usize + 1),
        (&segments, 100),
        (&checksum(51, 200), 1000),
        (&checksum(34, 16), 51),
    ];
    for (header, bytes) in cases {
        driver.request(1, &[header, &frame(bytes)], &[]);
        driver.notify(1);
        assert!(driver.used(1).is_some(), "{bytes}");
        assert_eq!(hear(&mut peer), b"", "{bytes}");
    }
    assert!(!driver.status().contains(Status::NEEDS_RESET));
}

#[test]
fn a_checksum_is_filled_in() {
    let (mut driver, mut peer) = pair(CSUM);
    // UDP from 10.0.2.15:1000 to 10.0.2.2:53, «ab» and «abc»; the sum of the pseudo-header where the checksum belongs.
    for text in [&b"ab"[..], b"abc"] {
        let length = u8::try_from(8 + text.len()).expect("short");
        let pseudo = [10, 0, 2, 15, 10, 0, 2, 2, 0, 17, 0, length];
        let sum = |bytes: &[u8]| {
            let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
            let sum: u32 = words.sum();
            u16::try_from((sum >> 16) + (sum & 0xffff)).expect("few words")
        };
        let mut sent = frame(34);
        sent.extend([3, 0xe8, 0, 53, 0, length]);
        sent.extend(sum(&pseudo).to_be_bytes());
        sent.extend(text);
        let mut header = [0; HEADER];
        (header[0], header[6], header[8]) = (1, 34, 6);
        driver.request(1, &[&header, &sent[..37], &sent[37..]], &[]);
        driver.notify(1);
        let heard = hear(&mut peer);
        assert_eq!(heard.len(), 4 + sent.len());
        // With a right checksum the sum of everything is all ones (RFC 1071).
        assert_eq!(sum(&[&pseudo, &heard[4 + 34..]].concat()), 0xffff);
        assert_eq!(heard[4..][..40], sent[..40]);
    }
}

/// Sends until the socket is full and part of a frame is sent; returns how many frames wait, that one included.
fn fill(driver: &mut Driver<Net>) -> usize {
    let (mut offered, mut used) = (0, 0);
    while offered == used {
        driver.request(1, &[&[0; HEADER], &frame(60_000)], &[]);
        driver.notify(1);
        offered += 1;
        used += std::iter::from_fn(|| driver.used(1)).count();
    }
    offered
}

#[test]
fn a_full_socket_holds_frames_back_and_nothing_is_lost() {
    let (mut driver, mut peer) = pair(EVENT_IDX);
    let frames = fill(&mut driver);
    assert_eq!(driver.used(1), None);
    let mut heard = Vec::new();
    while heard.len() < frames * 60_004 {
        let more = hear(&mut peer);
        assert!(!more.is_empty(), "{} bytes of {frames} frames", heard.len());
        heard.extend(more);
        wake(&mut driver);
    }
    assert!(heard == wire(&frame(60_000)).repeat(frames));
    assert!(driver.used(1).is_some());
}

#[test]
fn a_reset_in_the_middle_of_a_frame_leaves_whole_frames() {
    let (mut driver, mut peer) = pair(0);
    let frames = fill(&mut driver);
    driver.put(driver.rings(0), &[0; 0x2000]);
    driver.start(STATUS | 1 << 32);
    // And one under way in the other direction.
    driver.request(0, &[], &[2048]);
    peer.write_all(&wire(&frame(600))[..300]).expect("room");
    wake(&mut driver);
    driver.put(driver.rings(0), &[0; 0x2000]);
    driver.start(STATUS | 1 << 32);
    driver.request(1, &[&[0; HEADER], &frame(70)], &[]);
    driver.notify(1);
    let place = driver.request(0, &[], &[2048])[0];
    peer.write_all(&[&wire(&frame(600))[300..], &wire(&frame(61))].concat()).expect("room");
    let mut heard = Vec::<u8>::new();
    while let more @ [_, ..] = &hear(&mut peer)[..] {
        heard.extend(more);
        wake(&mut driver);
    }
    assert_eq!(heard.len(), frames * 60_004 + 74, "zeros in place of what was not sent any more");
    assert_eq!(heard[frames * 60_004..], wire(&frame(70)));
    assert_eq!(received(&mut driver, place), Some((1, frame(61))));
}

#[test]
fn a_frame_that_changes_while_it_is_sent_stops_the_device_and_stays_whole() {
    let (mut driver, mut peer) = pair(0);
    let frames = fill(&mut driver);
    // Every descriptor's length.
    for index in 0..16 {
        let at = driver.rings(1) + index * 16 + 8;
        driver.put(at, &8u32.to_le_bytes());
    }
    let mut heard = hear(&mut peer);
    wake(&mut driver);
    assert!(driver.status().contains(Status::NEEDS_RESET));
    driver.put(driver.rings(0), &[0; 0x2000]);
    driver.start(STATUS | 1 << 32);
    while let more @ [_, ..] = &hear(&mut peer)[..] {
        heard.extend(more);
        wake(&mut driver);
    }
    assert_eq!(heard.len(), frames * 60_004);
}

#[test]
fn a_state_goes_on_with_another_peer() {
    let (mut driver, mut peer) = pair(MERGEABLE | EVENT_IDX);
    let place = driver.request(0, &[], &[2048])[0];
    peer.write_all(&wire(&frame(600))[..300]).expect("room");
    wake(&mut driver);
    fill(&mut driver);
    let state = driver.device.save();
    let (mut peer, socket) = UnixStream::pair().expect("sockets");
    peer.set_nonblocking(true).expect("a socket");
    let mut other = Mmio::new(Net::new(socket, [2; 6], None));
    other.load(&driver.ram, state.clone()).expect("the same kind");
    assert_eq!(other.save(), state);
    driver.device = other;
    driver.device.settle(&driver.ram);
    assert!(hear(&mut peer) == wire(&frame(60_000)), "the frame that was under way is sent from its start");
    assert!(driver.used(1).is_some());
    peer.write_all(&wire(&frame(61))).expect("room");
    wake(&mut driver);
    assert_eq!(received(&mut driver, place), Some((1, frame(61))));
    assert_eq!(config(&driver)[..6], MAC);
}

#[test]
fn a_peer_that_floods_does_not_hold_the_machine() {
    let (mut driver, mut peer) = pair(MERGEABLE);
    let flood = wire(&frame(1)).repeat(2000);
    peer.write_all(&flood).expect("room");
    peer.write_all(&wire(&frame(60))).expect("room");
    let place = driver.request(0, &[], &[100])[0];
    let mut turns = 0;
    let frame = loop {
        wake(&mut driver);
        turns += 1;
        if let Some(frame) = received(&mut driver, place) {
            break frame;
        }
    };
    assert_eq!(frame.0, 1);
    assert!(turns > 10, "{turns}");
}

thread_local! {
    static RAM: RefCell<Option<Ram>> = const { RefCell::new(None) };
}

#[test]
fn the_corpus_of_the_fuzz_target_harms_nobody() {
    for script in crate::virtio::testing::corpus("net") {
        RAM.with_borrow_mut(|kept| *kept = Some(run(&script, kept.take().unwrap_or_else(ram))));
    }
}

proptest! {
    #[test]
    fn nothing_that_driver_and_peer_do_breaks_the_device(script in prop::collection::vec(any::<u8>(), 0..400)) {
        RAM.with_borrow_mut(|kept| *kept = Some(run(&script, kept.take().unwrap_or_else(ram))));
    }
}

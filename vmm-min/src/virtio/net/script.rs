//! A driver, a peer and everything that both may do wrong, by a script of bytes: for property tests and fuzzing.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::{LEAST_FRAME_BYTES, MOST_FRAME_BYTES, Net};
use crate::ram::Ram;
use crate::sys;
use crate::virtio::testing::{Driver, EVENT_IDX, INDIRECT, RING_STEP};

/// Address that the device has.
pub const MAC: [u8; 6] = [2, 0, 0x5e, 0x10, 0, 1];
/// Both queues' rings.
const RINGS_BYTES: usize = 0x2000;
const MERGEABLE: u64 = 1 << 15;
const CSUM: u64 = 1;

/// Runs a script against a device in `ram` and gives the RAM back. An operation is a byte, its arguments follow it; nothing is
/// no script.
///
/// # Panics
/// When the peer gets anything but whole frames of allowed lengths, or the device anything else than it may.
pub fn run(script: &[u8], ram: Ram) -> Ram {
    sys::ignore_sigio();
    let mut script = script.iter().copied();
    let features = script.next().unwrap_or(0);
    let features = if features & 1 != 0 { MERGEABLE } else { 0 }
        | if features & 2 != 0 { EVENT_IDX | INDIRECT } else { 0 }
        | if features & 4 != 0 { CSUM } else { 0 };
    let (mut peer, socket) = UnixStream::pair().expect("a pair of sockets");
    peer.set_nonblocking(true).expect("a socket");
    assert!(ram.write(vm_memory::GuestAddress(RING_STEP), &[0; RINGS_BYTES]), "the rings are RAM");
    let mut driver = Driver::with_ram(Net::new(socket, MAC, None), features, ram);
    let mut heard = Vec::new();
    while let Some(operation) = script.next() {
        let mut argument = || script.next().unwrap_or(0);
        match operation % 10 {
            0 => {
                let bytes: Vec<u8> = (0..argument()).map(|_| argument()).collect();
                // What the peer cannot send now it does not send.
                let _ = peer.write(&bytes);
                wake(&mut driver);
            }
            1 => {
                let bytes = u32::from(argument()) * 16;
                let _ = peer.write(&bytes.to_be_bytes());
                let _ = peer.write(&vec![argument(); bytes as usize]);
                wake(&mut driver);
            }
            2 => {
                driver.request(0, &[], &[u32::from(argument()), u32::from(argument()) * 16]);
                driver.notify(0);
            }
            3 => {
                let header: Vec<u8> = (0..12).map(|_| argument()).collect();
                let frame = vec![argument(); usize::from(argument()) * 16];
                driver.request(1, &[&header, &frame], &[]);
                driver.notify(1);
            }
            4 => {
                let header = [argument() & 1, 0, 0, 0, 0, 0, argument(), 0, argument(), 0, 0, 0];
                driver.request(1, &[&header, &vec![argument(); 60_000]], &[]);
                driver.notify(1);
            }
            5 => {
                hear(&mut peer, &mut heard);
                wake(&mut driver);
            }
            6 => {
                driver.put(driver.rings(0), &[0; RINGS_BYTES]);
                driver.start(features | crate::virtio::testing::VERSION_1);
            }
            7 => {
                let (queue, index) = (usize::from(argument() & 1), u16::from(argument() % 16));
                let at = u64::from(argument()) << 14 | u64::from(argument());
                let (bytes, flags) = (u32::from(argument()) << (argument() % 25), argument().into());
                driver.descriptor(queue, index, at, bytes, flags, argument().into());
                driver.offer(queue, index);
                driver.notify(queue);
            }
            8 => {
                let state = driver.device.save();
                driver.device.load(&driver.ram, state.clone()).expect("its own state");
                assert_eq!(driver.device.save(), state);
                wake(&mut driver);
            }
            _ => {
                let _ = peer.shutdown(if argument() & 1 == 0 { Shutdown::Write } else { Shutdown::Both });
                wake(&mut driver);
            }
        }
    }
    hear(&mut peer, &mut heard);
    check(&heard);
    driver.ram
}

fn wake(driver: &mut Driver<Net>) {
    driver.device.woken();
    driver.device.settle(&driver.ram);
}

fn hear(peer: &mut UnixStream, heard: &mut Vec<u8>) {
    match peer.read_to_end(heard) {
        Err(error) if error.kind() != ErrorKind::WouldBlock && error.kind() != ErrorKind::ConnectionReset => {
            panic!("the peer reads: {error}");
        }
        _ => {}
    }
}

/// Frame after frame; the last may be on its way.
fn check(mut heard: &[u8]) {
    while let Some((prefix, rest)) = heard.split_first_chunk() {
        let bytes = u32::from_be_bytes(*prefix);
        assert!((LEAST_FRAME_BYTES..=MOST_FRAME_BYTES).contains(&bytes), "a frame of {bytes} bytes");
        heard = rest.get(bytes as usize..).unwrap_or_default();
    }
}

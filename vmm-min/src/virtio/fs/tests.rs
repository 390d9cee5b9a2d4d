//! A driver asks: through rings, in chains of any cut, with data straight from its memory.

use std::fs;
use std::path::PathBuf;

use machinen_share::owner::Owners;
use machinen_share::wire::opcode;

use super::*;
use crate::virtio::mmio::Status;
use crate::virtio::testing::{Driver, EVENT_IDX, corpus, run_hostile_guest};

const FORGETS: usize = 0;
const REQUESTS: usize = 1;

/// A directory that is gone at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("machinen-fs-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a writable temporary directory");
        Place(path)
    }

    fn share(&self, read_only: bool) -> ShareConfig {
        ShareConfig { tag: "tag".into(), directory: Some(self.0.to_str().expect("text").into()), read_only }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("clean up");
    }
}

fn header(opcode: u32, node: u64, length: usize) -> Vec<u8> {
    let mut header = vec![0; IN_HEADER_BYTES];
    header[..4].copy_from_slice(&u32::try_from(length).expect("short").to_le_bytes());
    header[4..8].copy_from_slice(&opcode.to_le_bytes());
    header[8..16].copy_from_slice(&0x55aa_u64.to_le_bytes());
    header[16..24].copy_from_slice(&node.to_le_bytes());
    header
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Asks, with the request in `cuts` pieces; gives the error and the payload.
fn ask(driver: &mut Driver<Fs>, opcode: u32, node: u64, body: &[u8], room: &[u32]) -> (i32, Vec<u8>) {
    let request = [header(opcode, node, IN_HEADER_BYTES + body.len()), body.to_vec()].concat();
    let pieces: Vec<&[u8]> = request.chunks(request.len().div_ceil(4)).collect();
    let places = driver.request(REQUESTS, &pieces, room);
    driver.notify(REQUESTS);
    let (_, bytes) = driver.used(REQUESTS).expect("answered");
    let all: Vec<u8> = places.iter().zip(room).flat_map(|(at, bytes)| driver.get(*at, *bytes as usize)).collect();
    let answer = &all[..bytes as usize];
    assert_eq!(answer[..4], bytes.to_le_bytes());
    assert_eq!(answer[8..16], 0x55aa_u64.to_le_bytes());
    (i32::from_le_bytes(answer[4..8].try_into().expect("4 bytes")), answer[16..].to_vec())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// A driver that has mounted the directory.
fn mounted(fs: Fs) -> Driver<Fs> {
    let mut driver = Driver::new(fs, EVENT_IDX);
    let (error, answer) = ask(&mut driver, opcode::INIT, 1, &words(&[7, 41, 0, u32::MAX]), &[80]);
    assert_eq!((error, answer.len()), (0, 64));
    driver
}

#[test]
fn the_tag_and_the_number_of_queues_are_its_configuration() {
    let driver = Driver::new(Fs::new("share0", Owners::Same, 10), 0);
    let mut bytes = [0xff; 48];
    driver.device.read(0x100, &mut bytes);
    assert_eq!(bytes[..8], *b"share0\0\0");
    assert_eq!(bytes[36..], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.read(8), 26);
    let long = "t".repeat(40);
    let driver = Driver::new(Fs::new(&long, Owners::Same, 10), 0);
    driver.device.read(0x100, &mut bytes);
    assert_eq!(bytes[35..40], [b't', 1, 0, 0, 0]);
}

#[test]
fn data_goes_between_files_and_the_drivers_buffers() {
    let place = Place::new("data");
    let mut driver = mounted(Fs::open(&place.share(false), 1).expect("a directory"));
    let body = [words(&[0o102, 0o644, 0, 0]), b"f\0".to_vec()].concat();
    let (error, answer) = ask(&mut driver, opcode::CREATE, 1, &body, &[16, 128, 16]);
    assert_eq!(error, 0);
    let (node, handle) = (long(&answer, 0), long(&answer, 128));
    let data: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
    let size = u32::try_from(data.len()).expect("short");
    let start = [handle.to_le_bytes(), 100_u64.to_le_bytes()].concat();
    let write = [start.clone(), words(&[size, 0, 0, 0, 2, 0]), data.clone()].concat();
    assert_eq!(ask(&mut driver, opcode::WRITE, node, &write, &[24]), (0, words(&[size, 0])));
    assert_eq!(fs::read(place.0.join("f")).expect("written"), [vec![0; 100], data.clone()].concat());
    // In pieces of any size, of which the last is not filled.
    let read = [start, words(&[size, 0, 0, 0, 0, 0])].concat();
    let (error, answer) = ask(&mut driver, opcode::READ, node, &read, &[7, 10, 1, 20_000, 30_000, 5000]);
    assert!(error == 0 && answer == data);
    // To the end of it, which the host has moved.
    fs::write(place.0.join("f"), b"short").expect("written");
    let append = [handle.to_le_bytes().to_vec(), vec![0; 8], words(&[3, 0, 0, 0, 0o2002, 0]), b"er!".to_vec()].concat();
    assert_eq!(ask(&mut driver, opcode::WRITE, node, &append, &[24]).0, 0);
    assert_eq!(fs::read(place.0.join("f")).expect("written"), b"shorter!");
    // A write that says more than it brings writes what it brings.
    let write = [handle.to_le_bytes().to_vec(), vec![0; 8], words(&[100, 0, 0, 0, 2, 0]), b"S".to_vec()].concat();
    assert_eq!(ask(&mut driver, opcode::WRITE, node, &write, &[24]), (0, words(&[1, 0])));
    assert_eq!(fs::read(place.0.join("f")).expect("written"), b"Shorter!");
}

#[test]
fn forgetting_and_errors_write_no_more_than_there_is() {
    let place = Place::new("errors");
    fs::write(place.0.join("f"), b"").expect("written");
    let mut driver = mounted(Fs::open(&place.share(true), 1).expect("a directory"));
    assert_eq!(ask(&mut driver, opcode::LOOKUP, 1, b"none\0", &[144]), (-libc::ENOENT, Vec::new()));
    assert_eq!(ask(&mut driver, opcode::UNLINK, 1, b"f\0", &[16]), (-libc::EROFS, Vec::new()));
    assert_eq!(ask(&mut driver, 4000, 1, b"", &[16]), (-libc::ENOSYS, Vec::new()));
    assert_eq!(ask(&mut driver, opcode::LOOKUP, 1, &vec![b'n'; 80_000], &[144]), (-libc::E2BIG, Vec::new()));
    let (_, answer) = ask(&mut driver, opcode::LOOKUP, 1, b"f\0", &[144]);
    let node = long(&answer, 0);
    let forget = [header(opcode::FORGET, node, IN_HEADER_BYTES + 8), vec![1, 0, 0, 0, 0, 0, 0, 0]].concat();
    driver.request(FORGETS, &[&forget], &[]);
    driver.notify(FORGETS);
    assert_eq!(driver.used(FORGETS), Some((0, 0)));
    assert_eq!(ask(&mut driver, opcode::GETATTR, node, &[0; 16], &[120]).0, -libc::ESTALE);
}

#[test]
fn a_driver_that_breaks_the_rules_is_stopped_and_may_begin_anew() {
    let place = Place::new("rules");
    let good = header(opcode::STATFS, 1, IN_HEADER_BYTES);
    let longer = header(opcode::STATFS, 1, IN_HEADER_BYTES + 1);
    let shorter = header(opcode::STATFS, 1, IN_HEADER_BYTES - 1);
    for (request, room) in [(&good[..39], 96), (&longer, 96), (&shorter, 96), (&good, 15)] {
        let mut driver = mounted(Fs::open(&place.share(false), 1).expect("a directory"));
        driver.request(REQUESTS, &[request], &[room]);
        driver.notify(REQUESTS);
        assert!(driver.status().contains(Status::NEEDS_RESET), "{} {room}", request.len());
        assert!(driver.device.take_fault().is_some());
        assert!(driver.device.backend().is_mounted());
        driver.write(0x70, 0);
        assert!(!driver.device.backend().is_mounted(), "a reset forgets everything");
        driver.put(driver.rings(REQUESTS), &[0; 0xc00]);
        driver.start(crate::virtio::testing::VERSION_1);
        assert_eq!(ask(&mut driver, opcode::GETATTR, 1, &[0; 16], &[120]).0, -libc::ENOTCONN);
    }
}

#[test]
fn a_share_without_a_directory_gets_one_between_mounts() {
    use std::os::fd::OwnedFd;
    let place = Place::new("later");
    let open = || OwnedFd::from(fs::File::open(&place.0).expect("the directory"));
    let init = words(&[7, 41, 0, 0]);
    let empty = ShareConfig { tag: "bundle".into(), directory: None, read_only: false };
    let mut driver = Driver::new(Fs::open(&empty, 2).expect("no directory"), 0);
    assert_eq!(ask(&mut driver, opcode::INIT, 1, &init, &[80]).0, -libc::ENODEV);
    driver.device.backend_mut().attach(open(), false).expect("attached");
    assert_eq!(ask(&mut driver, opcode::INIT, 1, &init, &[80]).0, 0);
    assert_eq!(driver.device.backend_mut().attach(open(), false), Err(Refused::Busy));
    assert_eq!(driver.device.backend_mut().detach(), Err(Refused::Busy));
    assert_eq!(ask(&mut driver, opcode::DESTROY, 0, &[], &[16]).0, 0);
    driver.device.backend_mut().detach().expect("detached");
    assert_eq!(ask(&mut driver, opcode::INIT, 1, &init, &[80]).0, -libc::ENODEV);
    let missing = ShareConfig { directory: Some("/none".into()), ..empty };
    assert_eq!(Fs::open(&missing, 1).expect_err("refused").code(), "SHARE_UNREADABLE");
    let file = ShareConfig { directory: Some("/proc/self/exe".into()), ..missing };
    assert_eq!(Fs::open(&file, 1).expect_err("refused").code(), "SHARE_UNREADABLE");
}

#[test]
fn a_saved_device_goes_on_in_another() {
    let place = Place::new("saved");
    fs::write(place.0.join("f"), b"content").expect("written");
    let mut driver = mounted(Fs::open(&place.share(false), 1).expect("a directory"));
    let (_, answer) = ask(&mut driver, opcode::LOOKUP, 1, b"f\0", &[144]);
    let node = long(&answer, 0);
    let (_, answer) = ask(&mut driver, opcode::OPEN, node, &words(&[0, 0]), &[32]);
    let handle = long(&answer, 0);
    let state = driver.device.save();
    let mut other = crate::virtio::mmio::Mmio::new(Fs::open(&place.share(false), 1).expect("a directory"));
    other.load(&driver.ram, state.clone()).expect("loaded");
    assert_eq!(other.save(), state);
    driver.device = other;
    let read = [handle.to_le_bytes().to_vec(), vec![0; 8], words(&[100, 0, 0, 0, 0, 0])].concat();
    assert_eq!(ask(&mut driver, opcode::READ, node, &read, &[116]), (0, b"content".to_vec()));
}

#[test]
fn what_fuzzing_has_found_stays_harmless() {
    let place = Place::new("corpus");
    let inner = place.0.join("inner");
    for data in corpus("fs") {
        fs::create_dir_all(&inner).expect("made");
        fs::write(inner.join("a"), b"inside").expect("written");
        fs::write(place.0.join("a"), b"outside").expect("written");
        let share = ShareConfig { directory: Some(inner.to_str().expect("text").into()), ..place.share(false) };
        run_hostile_guest(Fs::open(&share, 1).expect("a directory"), &data);
        assert_eq!(fs::read(place.0.join("a")).expect("there"), b"outside");
        fs::remove_dir_all(&inner).expect("clean up");
    }
}

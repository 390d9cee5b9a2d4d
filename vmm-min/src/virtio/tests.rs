//! What a driver may and may not do, against the transport and the queues.

use super::balloon::Balloon;
use super::mmio::{Interrupt, Status};
use super::rng::Rng;
use super::testing::{AVAIL, Driver, EVENT_IDX, INDIRECT, NEXT, RAM_BYTES, RING_ENTRIES, TABLE, WRITE, descriptor};
use crate::stats::Stats;

fn rng() -> Driver<Rng> {
    Driver::new(Rng::default(), EVENT_IDX | INDIRECT)
}

/// The entropy device answers anything well formed, so it stands for all.
fn answers(driver: &mut Driver<Rng>) -> bool {
    let places = driver.request(0, &[], &[32]);
    driver.notify(0);
    driver.used(0).is_some_and(|(_, bytes)| bytes == 32) && driver.get(places[0], 32) != [0; 32]
}

fn is_stopped(driver: &Driver<Rng>) -> bool {
    driver.status().contains(Status::NEEDS_RESET) && driver.read(0x60) & Interrupt::CONFIG.bits() != 0
}

#[test]
fn registers_name_the_device() {
    let driver = rng();
    assert_eq!([0x00, 0x04, 0x08].map(|register| driver.read(register)), [0x7472_6976, 2, 4]);
    assert_eq!(driver.read(0xb0), u32::MAX, "no shared memory");
    assert_eq!(driver.read(0x34), 16, "largest queue");
    let mut half = [7; 2];
    driver.device.read(0, &mut half);
    assert_eq!(half, [0; 2], "registers are words");
}

#[test]
fn a_request_is_answered_and_interrupts() {
    let mut driver = rng();
    assert!(!driver.device.irq());
    assert!(answers(&mut driver));
    assert!(driver.device.irq());
    driver.write(0x64, Interrupt::USED.bits());
    assert!(!driver.device.irq());
    for _ in 0..100 {
        assert!(answers(&mut driver), "the rings wrap");
    }
}

#[test]
fn the_line_falls_at_an_acknowledgement_that_leaves_a_cause() {
    let mut driver = rng();
    assert!(answers(&mut driver));
    driver.offer(0, 99);
    driver.notify(0);
    assert_eq!(driver.read(0x60), 3, "used buffers, and a fault");
    driver.write(0x64, Interrupt::USED.bits());
    assert!(!driver.device.irq(), "an edge-triggered controller has to see the next edge");
    driver.device.settle(&driver.ram);
    assert!(driver.device.irq());
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for features in [0, 1 << 32 | 1 << 5, 1 << 32 | 1 << 63] {
        let mut driver = rng();
        driver.start(features);
        assert!(!driver.status().intersects(Status::FEATURES_OK | Status::DRIVER_OK), "{features:#x}");
        driver.request(0, &[], &[32]);
        driver.notify(0);
        assert_eq!(driver.used(0), None, "a device without a driver does nothing");
    }
}

#[test]
fn a_reset_is_possible_at_any_moment() {
    let mut driver = rng();
    driver.offer(0, RING_ENTRIES + 1);
    driver.notify(0);
    assert!(is_stopped(&driver));
    assert!(driver.device.take_fault().is_some());
    driver.put(driver.rings(0), &[0; 0x1000]);
    driver.start(1 << 32);
    assert!(answers(&mut driver), "a reset mends a fault");
    driver.offer(0, RING_ENTRIES + 1);
    driver.notify(0);
    assert_eq!(driver.device.take_fault(), None, "told once");
    driver.write(0x70, 0);
    assert_eq!((driver.read(0x70), driver.read(0x60), driver.read(0x44)), (0, 0, 0));
    driver.put(driver.rings(0), &[0; 0x1000]);
    driver.start(1 << 32);
    assert!(answers(&mut driver));
}

/// One chain that breaks the rules, by its first descriptors.
fn breaks(descriptors: &[(u64, u32, u16, u16)]) -> bool {
    let mut driver = rng();
    for (index, (at, bytes, flags, next)) in (0..).zip(descriptors) {
        driver.descriptor(0, index, *at, *bytes, *flags, *next);
    }
    driver.offer(0, 0);
    driver.notify(0);
    assert_eq!(driver.device.take_fault().is_some(), is_stopped(&driver));
    let stopped = is_stopped(&driver);
    assert!(!stopped || !answers(&mut driver), "it stays stopped");
    stopped
}

#[test]
fn chains_that_break_the_rules_stop_the_device() {
    assert!(breaks(&[(0x10_0000, 8, NEXT | WRITE, 0)]), "a loop of one");
    assert!(breaks(&[(0x10_0000, 8, NEXT | WRITE, 1), (0x10_0000, 8, NEXT | WRITE, 0)]), "a loop of two");
    assert!(breaks(&[(0x10_0000, 8, NEXT | WRITE, RING_ENTRIES)]), "a link out of the table");
    assert!(breaks(&[(RAM_BYTES - 4, 8, WRITE, 0)]), "a buffer beyond RAM");
    assert!(breaks(&[(u64::MAX - 3, 8, WRITE, 0)]), "a buffer around the address space");
    assert!(breaks(&[(0, u32::MAX, WRITE, 0)]), "a buffer longer than RAM");
    assert!(breaks(&[(0x10_0000, 8, NEXT | WRITE, 1), (0x10_0000, 8, 0, 0)]), "readable after writable");
    let table = 0x20_0000;
    assert!(breaks(&[(table, 15, TABLE, 0)]), "a part of a table");
    assert!(breaks(&[(table, 0, TABLE, 0)]), "an empty table");
    assert!(breaks(&[(RAM_BYTES, 16, TABLE, 0)]), "a table beyond RAM");
    assert!(!breaks(&[(0x10_0000, 8, WRITE, 0)]), "and this one is fine");
    assert!(!breaks(&[(0x10_0000, 64, WRITE | NEXT, 1), (0x10_0020, 64, WRITE, 0)]), "buffers may overlap");
}

#[test]
fn a_table_in_a_table_and_a_chain_that_is_too_long_stop_the_device() {
    for (entry, count) in [(descriptor(0x20_0000, 16, TABLE, 0), 1), (descriptor(0x10_0000, 0, WRITE | NEXT, 0), 300)] {
        let mut driver = rng();
        let table = 0x20_0000;
        for index in 0..count {
            let mut entry = entry;
            entry[14..].copy_from_slice(&u16::try_from(index + 1).expect("short").to_le_bytes());
            driver.put(table + index * 16, &entry);
        }
        driver.descriptor(0, 0, table, u32::try_from(count * 16).expect("short"), TABLE, 0);
        driver.offer(0, 0);
        driver.notify(0);
        assert!(is_stopped(&driver));
    }
}

#[test]
fn an_index_that_jumps_stops_the_device() {
    for jump in [RING_ENTRIES + 1, 0x8000, 0xffff] {
        let mut driver = rng();
        driver.put(driver.rings(0) + AVAIL + 2, &jump.to_le_bytes());
        driver.notify(0);
        assert!(is_stopped(&driver), "{jump}");
    }
}

#[test]
fn queues_that_are_not_in_ram_stop_the_device() {
    for (register, value) in
        [(0x84, 1), (0x94, 1), (0xa4, u32::MAX), (0x80, 8), (0x90, 1), (0xa0, 2), (0x38, 3), (0x38, 0)]
    {
        let mut driver = rng();
        driver.write(0x44, 0);
        driver.write(register, value);
        driver.write(0x44, 1);
        assert!(is_stopped(&driver), "{register:#x}");
    }
}

#[test]
fn registers_and_queues_that_do_not_exist_are_harmless() {
    let mut driver = rng();
    for register in (0..0x1000).step_by(4) {
        for value in [1, 0xff, u32::MAX] {
            driver.write(register, value);
            driver.read(register);
            driver.device.settle(&driver.ram);
        }
    }
    driver.put(driver.rings(0), &[0; 0x1000]);
    driver.start(1 << 32);
    assert!(answers(&mut driver));
}

#[test]
fn a_state_goes_on_where_it_was() {
    let mut driver = rng();
    for _ in 0..5 {
        assert!(answers(&mut driver));
    }
    driver.request(0, &[], &[32]);
    let state = driver.device.save();
    let mut other = super::mmio::Mmio::new(Rng::default());
    other.load(&driver.ram, state.clone()).expect("the same kind");
    assert_eq!(other.save(), state);
    assert!(other.irq(), "what was not acknowledged is still due");
    driver.device = other;
    driver.device.settle(&driver.ram);
    assert!(driver.used(0).is_some(), "the request that was under way");
    assert!(answers(&mut driver));
    let mut balloon = super::mmio::Mmio::new(Balloon::new(Stats::default()));
    assert!(balloon.load(&driver.ram, Driver::new(Balloon::new(Stats::default()), 0).device.save()).is_ok());
}

#[test]
fn what_the_balloon_reports_free_is_given_back() {
    let stats = std::env::temp_dir().join(format!("machinen-stats-{}", std::process::id()));
    let backend = Balloon::new(Stats::open(stats.to_str()).expect("a file"));
    let mut driver = Driver::new(backend, 1 << 5);
    driver.put(0x30_0000, &[1; 0x3000]);
    driver.descriptor(2, 0, 0x30_0000, 0x1000, WRITE | NEXT, 1);
    driver.descriptor(2, 1, 0x30_1000, 0x1000, WRITE, 0);
    driver.offer(2, 0);
    driver.notify(2);
    assert_eq!(driver.used(2), Some((0, 0)));
    assert_eq!(driver.get(0x30_0000, 0x2000), [0; 0x2000], "fresh pages of the host's");
    assert_eq!(driver.get(0x30_2000, 0x1000), [1; 0x1000], "and no other");
    let shown = std::fs::read(&stats).expect("the file");
    assert_eq!(shown, [&0x2000u64.to_le_bytes()[..], &[0; 16]].concat());
    // Parts of pages stay.
    driver.descriptor(2, 2, 0x30_2800, 0x1000, WRITE, 0);
    driver.offer(2, 2);
    driver.notify(2);
    assert_eq!(driver.get(0x30_2800, 0x800), [1; 0x800]);
    let state = driver.device.save();
    let mut other = super::mmio::Mmio::new(Balloon::new(Stats::default()));
    other.load(&driver.ram, state.clone()).expect("the same kind");
    assert_eq!(other.save(), state, "the count goes on");
    std::fs::remove_file(stats).expect("clean up");
}

/// Runs every hostile guest of a fuzz target's corpus.
fn replay<B: super::Backend>(target: &str, device: impl Fn() -> B) {
    super::testing::corpus(target).iter().for_each(|data| super::testing::run_hostile_guest(device(), data));
}

#[test]
fn hostile_guests_of_the_corpus_harm_nobody() {
    replay("queue", Rng::default);
    replay("balloon", || Balloon::new(Stats::default()));
    let image = std::env::temp_dir().join(format!("machinen-hostile-{}", std::process::id()));
    std::fs::write(&image, [0x5a; 64 << 10]).expect("a writable temporary directory");
    replay("blk", || {
        let path = image.to_str().expect("text");
        super::blk::Blk::new(crate::disk::Disk::open(path, crate::disk::Access::CopyOnWrite).expect("a disk"))
    });
    assert_eq!(std::fs::read(&image).expect("the image"), [0x5a; 64 << 10]);
    std::fs::remove_file(image).expect("clean up");
}

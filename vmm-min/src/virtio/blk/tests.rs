//! The block device against a driver, and disks against plain files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::{Strategy, any, prop, prop_oneof, proptest};

use super::Blk;
use crate::disk::{Access, Disk};
use crate::virtio::mmio::{Mmio, Status};
use crate::virtio::testing::{Driver, ram};

const IMAGE_BYTES: usize = 64 << 10;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// An image, removed with its owner.
struct Image(PathBuf);

impl Image {
    fn new(bytes: &[u8]) -> Image {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machinen-blk-{}-{number}", std::process::id()));
        fs::write(&path, bytes).expect("a writable temporary directory");
        Image(path)
    }

    fn pattern() -> Image {
        Image::new(&pattern())
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("text")
    }

    fn open(&self, access: Access) -> Driver<Blk> {
        Driver::new(Blk::new(Disk::open(self.path(), access).expect("a disk")), 0)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        fs::remove_file(&self.0).expect("clean up");
    }
}

/// Differs in every sector.
fn pattern() -> Vec<u8> {
    (0..IMAGE_BYTES).map(|at| u8::try_from((at / 512 * 7 + at) % 251).expect("a byte")).collect()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Does a request; returns its status, the bytes that it read and how many the device says to have written.
fn request(driver: &mut Driver<Blk>, kind: u32, sector: u64, out: &[u8], room: u32) -> (u8, Vec<u8>, u32) {
    let header = header(kind, sector);
    // Without empty buffers, as drivers do, and in pieces that no field ends at.
    let readable: Vec<&[u8]> = [&header[..5], &header[5..], out].into_iter().filter(|part| !part.is_empty()).collect();
    let writable: Vec<u32> = [room / 3, room - room / 3, 1].into_iter().filter(|bytes| *bytes > 0).collect();
    let places = driver.request(0, &readable, &writable);
    driver.notify(0);
    let (_, written) = driver.used(0).expect("an answer");
    let mut bytes: Vec<u8> =
        places.iter().zip(&writable).flat_map(|(at, bytes)| driver.get(*at, *bytes as usize)).collect();
    let status = bytes.pop().expect("the status");
    (status, bytes, written)
}

fn read(driver: &mut Driver<Blk>, sector: u64, bytes: usize) -> Vec<u8> {
    let room = u32::try_from(bytes).expect("short");
    let (status, content, written) = request(driver, IN, sector, &[], room);
    assert_eq!((status, written), (OK, room + 1));
    content
}

#[test]
fn reads_and_writes_go_to_a_layer_and_the_image_stays() {
    let image = Image::pattern();
    let mut driver = image.open(Access::CopyOnWrite);
    assert_eq!(read(&mut driver, 0, IMAGE_BYTES / 2), pattern()[..IMAGE_BYTES / 2]);
    // One sector within a cluster, then a range over three.
    for (sector, count) in [(3, 1), (15, 20)] {
        let (status, _, written) = request(&mut driver, OUT, sector, &vec![0xee; count * 512], 0);
        assert_eq!((status, written), (OK, 1));
    }
    let mut expected = pattern();
    expected[3 * 512..4 * 512].fill(0xee);
    expected[15 * 512..35 * 512].fill(0xee);
    assert_eq!([read(&mut driver, 0, 32 << 10), read(&mut driver, 64, 32 << 10)].concat(), expected);
    assert_eq!(fs::read(&image.0).expect("the image"), pattern());
}

#[test]
fn in_place_means_in_the_file() {
    let image = Image::pattern();
    let mut driver = image.open(Access::InPlace);
    assert_eq!(request(&mut driver, OUT, 1, &[1; 512], 0).0, OK);
    assert_eq!(request(&mut driver, FLUSH, 0, &[], 0).0, OK);
    assert_eq!(fs::read(&image.0).expect("the image")[512..1024], [1; 512]);
    assert_ne!(driver.read(0x10) & (1 << 9), 0, "flush is offered");
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let image = Image::pattern();
    let mut driver = image.open(Access::ReadOnly);
    assert_ne!(driver.read(0x10) & (1 << 5), 0, "the driver is told");
    for (kind, bytes) in [(OUT, 512), (DISCARD, 16), (ZEROES, 16)] {
        assert_eq!(request(&mut driver, kind, 0, &vec![1; bytes], 0).0, IO_ERROR);
    }
    assert_eq!(read(&mut driver, 0, 512), pattern()[..512]);
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn zeroes_are_zero_and_discards_are_cheap() {
    for access in [Access::CopyOnWrite, Access::InPlace] {
        let image = Image::pattern();
        let mut driver = image.open(access);
        let ranges = [range(1, 30, 1), range(40, 2, 0)].concat();
        assert_eq!(request(&mut driver, ZEROES, 0, &ranges, 0).0, OK);
        let mut expected = pattern();
        expected[512..31 * 512].fill(0);
        expected[40 * 512..42 * 512].fill(0);
        assert_eq!(read(&mut driver, 0, 32 << 10), expected[..32 << 10], "{access:?}");
        assert_eq!(request(&mut driver, DISCARD, 0, &range(64, 64, 0), 0).0, OK);
        assert_eq!(request(&mut driver, DISCARD, 0, &range(64, 64, 1), 0).0, UNSUPPORTED);
        assert_eq!(request(&mut driver, ZEROES, 0, &range(127, 2, 0), 0).0, IO_ERROR);
        assert_eq!(request(&mut driver, ZEROES, 0, &range(u64::MAX, 2, 0), 0).0, IO_ERROR);
        assert_eq!(request(&mut driver, ZEROES, 0, &range(0, 1, 0).repeat(17), 0).0, IO_ERROR);
    }
}

#[test]
fn requests_beyond_the_end_fail_and_nothing_else() {
    let image = Image::pattern();
    let mut driver = image.open(Access::CopyOnWrite);
    for (kind, sector, out, room) in [
        (IN, 128, 0, 512),
        (IN, 127, 0, 1024),
        (IN, u64::MAX, 0, 512),
        (IN, 0, 0, 511),
        (OUT, 128, 512, 0),
        (OUT, u64::MAX / 512, 512, 0),
        (OUT, 0, 513, 0),
    ] {
        assert_eq!(request(&mut driver, kind, sector, &vec![0; out], room).0, IO_ERROR, "{kind} at {sector}");
    }
    assert_eq!(request(&mut driver, 99, 0, &[], 0).0, UNSUPPORTED);
    let (status, id, _) = request(&mut driver, GET_ID, 0, &[], 20);
    assert_eq!(status, OK);
    let name = image.0.file_name().and_then(|name| name.to_str()).expect("text");
    assert!(name.as_bytes().starts_with(id.split(|byte| *byte == 0).next().expect("a part")), "{id:?}");
    assert!(!driver.status().contains(Status::NEEDS_RESET));
}

#[test]
fn a_request_without_header_or_status_stops_the_device() {
    let image = Image::pattern();
    for (readable, writable) in [(&[0; 15][..], &[1][..]), (&[0; 16], &[]), (&[], &[513])] {
        let mut driver = image.open(Access::CopyOnWrite);
        let readable: Vec<&[u8]> = Some(readable).filter(|bytes| !bytes.is_empty()).into_iter().collect();
        driver.request(0, &readable, writable);
        driver.notify(0);
        assert!(driver.status().contains(Status::NEEDS_RESET));
    }
}

#[test]
fn an_image_that_shrinks_gives_errors_to_the_guest() {
    let image = Image::pattern();
    let mut driver = image.open(Access::CopyOnWrite);
    File::options().write(true).open(&image.0).expect("the image").set_len(4096).expect("truncated");
    assert_eq!(read(&mut driver, 0, 4096), pattern()[..4096]);
    assert_eq!(request(&mut driver, IN, 8, &[], 512).0, IO_ERROR);
    assert_eq!(request(&mut driver, IN, 0, &[], 8192).0, IO_ERROR);
    assert_eq!(request(&mut driver, OUT, 9, &[1; 512], 0).0, IO_ERROR, "the rest of its cluster is gone");
    assert_eq!(request(&mut driver, OUT, 8, &[1; 4096], 0).0, OK, "but a whole one can be written");
    assert_eq!(read(&mut driver, 8, 4096), [1; 4096]);
}

#[test]
fn frozen_layers_are_below_the_next_one() {
    let image = Image::pattern();
    let mut disk = Disk::open(image.path(), Access::CopyOnWrite).expect("a disk");
    let ram = ram();
    let place = crate::virtio::queue::Buffer { at: vm_memory::GuestAddress(0x1000), bytes: 8192 };
    let buffers = [place];
    let buffers = crate::virtio::queue::Buffers::new(&buffers);
    for layer in 1..=3u8 {
        assert!(ram.write(place.at, &[layer; 8192]));
        disk.write(&ram, buffers, 0, u64::from(layer) * 512, 512 * 3).expect("written");
        disk.freeze().expect("a new layer");
    }
    disk.read(&ram, buffers, 0, 8192).expect("read");
    let mut content = vec![0; 8192];
    assert!(ram.read(place.at, &mut content));
    let sectors: Vec<u8> = content.chunks(512).take(7).map(|sector| sector[0]).collect();
    assert_eq!(sectors[1..6], [1, 2, 3, 3, 3]);
    assert_eq!(content[6 * 512..], pattern()[6 * 512..8192]);
}

#[test]
fn images_that_are_no_disks_are_refused() {
    let code = |path: &str, access| Disk::open(path, access).expect_err("refused").code();
    assert_eq!(code(Image::new(&[0; 511]).path(), Access::ReadOnly), "DISK_SIZE");
    assert_eq!(code(Image::new(&[0; 513]).path(), Access::InPlace), "DISK_SIZE");
    assert_eq!(code("/nonexistent/disk", Access::CopyOnWrite), "DISK_UNREADABLE");
    assert_eq!(code("/dev/null", Access::CopyOnWrite), "DISK_UNREADABLE");
    assert_eq!(code("/", Access::ReadOnly), "DISK_UNREADABLE");
    // Refused to root as well.
    assert_eq!(code("/sys/kernel/uevent_seqnum", Access::InPlace), "DISK_READ_ONLY");
    // Of memory: few other file systems have files of that length.
    let huge = crate::sys::memfd("huge").expect("memfd");
    huge.set_len(1 << 60).expect("sparse");
    let huge = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&huge));
    assert_eq!(code(&huge, Access::CopyOnWrite), "DISK_SIZE");
    assert!(Disk::open(&huge, Access::ReadOnly).is_ok());
    let image = Image::pattern();
    let shared = Disk::open(image.path(), Access::CopyOnWrite).expect("a disk");
    let also = Disk::open(image.path(), Access::ReadOnly).expect("readers share");
    assert_eq!(code(image.path(), Access::InPlace), "DISK_LOCKED");
    drop((shared, also));
    let _alone = Disk::open(image.path(), Access::InPlace).expect("a disk");
    assert_eq!(code(image.path(), Access::CopyOnWrite), "DISK_LOCKED");
}

#[test]
fn the_last_sector_may_go_beyond_the_image() {
    let image = Image::new(&pattern()[..5000]);
    let mut driver = image.open(Access::CopyOnWrite);
    let mut expected = pattern()[..5000].to_vec();
    expected.resize(5120, 0);
    assert_eq!(read(&mut driver, 0, 5120), expected);
    assert_eq!(request(&mut driver, OUT, 9, &[3; 512], 0).0, OK);
    expected[9 * 512..].fill(3);
    assert_eq!(read(&mut driver, 0, 5120), expected);
}

#[test]
fn a_state_goes_on_where_it_was() {
    let image = Image::pattern();
    let mut driver = image.open(Access::InPlace);
    assert_eq!(request(&mut driver, OUT, 1, &[9; 512], 0).0, OK);
    // Offered, not done yet.
    let header = header(IN, 1);
    let places = driver.request(0, &[&header], &[512, 1]);
    let state = driver.device.save();
    let other = Image::pattern();
    driver.device = Mmio::new(Blk::new(Disk::open(other.path(), Access::InPlace).expect("a disk")));
    driver.device.load(&driver.ram, state.clone()).expect("the same kind");
    assert_eq!(driver.device.save(), state);
    driver.device.settle(&driver.ram);
    assert_eq!(driver.used(0).map(|(_, bytes)| bytes), Some(513));
    assert_eq!(driver.get(places[0], 512), pattern()[512..1024], "from the disk that is there now");
}

/// What a guest does to a disk: where, and for how long, in sectors.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Freeze,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (0..128u64, 1..40u64).prop_map(|(sector, count)| (sector, count.min(128 - sector)));
    let step = prop_oneof![
        6 => (place(), any::<u8>()).prop_map(|((at, count), byte)| Step::Write(at, count, byte)),
        2 => place().prop_map(|(at, count)| Step::Zero(at, count)),
        1 => prop::strategy::Just(Step::Freeze),
    ];
    prop::collection::vec(step, 0..20)
}

proptest! {
    #[test]
    fn a_disk_is_what_a_plain_file_would_be(steps in steps(), tail in 0..512usize) {
        let image = Image::new(&pattern()[..IMAGE_BYTES - tail]);
        let model = Image::pattern();
        let file = File::options().read(true).write(true).open(&model.0).expect("the model");
        file.write_all_at(&vec![0; tail], (IMAGE_BYTES - tail) as u64).expect("written");
        let mut driver = image.open(Access::CopyOnWrite);
        for step in steps {
            match step {
                Step::Write(at, count, byte) => {
                    let bytes = vec![byte; usize::try_from(count * 512).expect("short")];
                    assert_eq!(request(&mut driver, OUT, at, &bytes, 0).0, OK);
                    file.write_all_at(&bytes, at * 512).expect("written");
                }
                Step::Zero(at, count) => {
                    let ranges = range(at, u32::try_from(count).expect("short"), 1);
                    assert_eq!(request(&mut driver, ZEROES, 0, &ranges, 0).0, OK);
                    file.write_all_at(&vec![0; usize::try_from(count * 512).expect("short")], at * 512).expect("written");
                }
                Step::Freeze => driver.device.backend_mut().disk_mut().freeze().expect("a layer"),
            }
        }
        let content = [read(&mut driver, 0, 32 << 10), read(&mut driver, 64, 32 << 10)].concat();
        assert_eq!(content, fs::read(&model.0).expect("the model"));
        assert_eq!(fs::read(&image.0).expect("the image"), &pattern()[..IMAGE_BYTES - tail]);
    }
}

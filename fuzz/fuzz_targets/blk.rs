//! The block device: headers, ranges and buffers, over a layer on an image that must stay as it is.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vmm_min::disk::{Access, Disk};
use vmm_min::virtio::blk::Blk;
use vmm_min::virtio::testing::run_hostile_guest;

/// An image of 64 KiB; one for the process, for nobody may change it.
static IMAGE: LazyLock<String> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("machinen-fuzz-{}", std::process::id()));
    fs::write(&path, [0x5a; 64 << 10]).expect("a writable temporary directory");
    path.to_str().expect("text").to_string()
});

fuzz_target!(|data: &[u8]| {
    let disk = Disk::open(&IMAGE, Access::CopyOnWrite).expect("a disk");
    run_hostile_guest(Blk::new(disk), data);
    assert!(fs::read(&*IMAGE).expect("the image").iter().all(|byte| *byte == 0x5a));
});

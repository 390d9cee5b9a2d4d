//! The file system device: any requests, on a directory beside which nothing may change.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vmm_min::config::ShareConfig;
use vmm_min::virtio::fs::Fs;
use vmm_min::virtio::testing::run_hostile_guest;

static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("machinen-fuzz-fs-{}", std::process::id()));
    fs::create_dir_all(path.join("inner/d")).expect("a writable temporary directory");
    fs::write(path.join("a"), b"outside").expect("written");
    fs::write(path.join("inner/a"), b"inside").expect("written");
    std::os::unix::fs::symlink("..", path.join("inner/up")).expect("linked");
    path
});

fuzz_target!(|data: &[u8]| {
    let inner = PLACE.join("inner");
    let share = ShareConfig { tag: "t".into(), directory: Some(inner.to_str().expect("text").into()), read_only: false };
    run_hostile_guest(Fs::open(&share, 1).expect("a directory"), data);
    assert_eq!(fs::read(PLACE.join("a")).expect("there"), b"outside");
    // Before it fills: names are the fuzzer's to choose.
    if fs::read_dir(&inner).expect("there").count() > 100 {
        let _ = std::process::Command::new("find").arg(&inner).args(["-mindepth", "1", "-delete"]).status();
        let _ = fs::create_dir(inner.join("d"));
        let _ = fs::write(inner.join("a"), b"inside");
    }
});

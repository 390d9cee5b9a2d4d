//! Memory that a guest no longer uses goes back to the host.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;
use std::process::Stdio;

use machinen_tests::guest::{Guest, Scratch};
use machinen_tests::host::rss_kib;
use machinen_tests::monitor::{Live, read_bytes, wait_until};

const TOUCHED_MIB: u64 = 512;

/// Fills memory, says so, and frees it at a word from outside.
const SCRIPT: &str = "mount -t tmpfs -o size=90% none /mnt && dd if=/dev/zero of=/mnt/x bs=1M count=512 2>/dev/null \
    && echo full && read word && rm /mnt/x && read word";

#[test]
fn an_idle_guest_gives_its_memory_back() {
    let scratch = Scratch::new();
    let stats = scratch.path("stats");
    let guest = Guest::busybox(SCRIPT).file("mnt/.keep", 0o644, "").modules(&["virtio_mmio", "virtio_balloon"]);
    let (mut command, _files) = guest.monitor(&["-m", "1024"]).start();
    command.arg("--stats-file").arg(&stats).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut live = Live::start(command);
    let mut said = read_bytes(live.child.stdout.as_mut().unwrap(), 5);
    if said != b"full\n" {
        // What the kernel has to say then comes in lines; wait for most of them.
        said.extend(read_bytes(live.child.stdout.as_mut().unwrap(), 4000));
        panic!("{}", String::from_utf8_lossy(&said));
    }
    let (process, reported) = (live.child.id(), || {
        let bytes = fs::read(&stats).unwrap();
        assert_eq!(bytes.len(), 24, "three numbers");
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    });
    let (full_kib, reported_before) = (rss_kib(process), reported());
    live.child.stdin.as_mut().unwrap().write_all(b"free\n").unwrap();
    let most_mib = TOUCHED_MIB * 9 / 10;
    wait_until("most of the memory has come back", || full_kib.saturating_sub(rss_kib(process)) >> 10 >= most_mib);
    let told_mib = || (reported() - reported_before) >> 20;
    wait_until("the stats file tells of it", || told_mib() >= most_mib);
    assert!(told_mib() < TOUCHED_MIB * 2, "{} MiB in the stats file", told_mib());
    live.child.stdin.as_mut().unwrap().write_all(b"end\n").unwrap();
    assert!(live.wait().success());
}

//! File system test suites that others wrote, in a guest, on a share. What they are expected to fail on is in fixtures/suites.

#![forbid(unsafe_code)]

use std::fs;
use std::time::Duration;

use machinen_tests::guest::{Guest, Scratch, monitor};
use machinen_tests::{Finished, asset, bin, soak};

/// The whole of pjdfstest takes a minute or two in the lab.
const PATIENCE: Duration = Duration::from_secs(900);

const PASSWD: &str = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\ntests:x:1001:1001::/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnobody:x:65534:\ntests:x:1001:\n";

/// Runs a suite's program in an empty share at /s of a guest of the tuned kernel.
fn suite(program: &str, config: &str, script: &str) -> Finished {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("shared")).unwrap();
    let guest = Guest::busybox(script)
        .file(&format!("bin/{program}"), 0o755, fs::read(asset(program)).unwrap())
        .file("suite/sleep", 0o755, fs::read(bin("machinen-sleep")).unwrap())
        .file("etc/config.toml", 0o644, config)
        .file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP)
        .make(&["--share", "t:/s"]);
    let share = format!("t={}", scratch.path("shared").display());
    let run = monitor(&asset("vmlinux-tuned"), &guest.initrd()).args(["-m", "1024", "--share", &share]);
    run.limit(PATIENCE).merged().finish()
}

#[test]
fn pjdfstest_finds_a_file_system_of_posix() {
    let config = include_str!("../../fixtures/suites/pjdfstest.toml");
    // One of the tests runs a copy of sleep, by another name.
    let finished =
        suite("pjdfstest", config, "export NO_COLOR=1 PATH=/suite:$PATH; pjdfstest -c /etc/config.toml -p /s -s /tmp");
    let printed = finished.printed();
    let unexpected = printed.lines().filter(|line| line.contains("FAILED") || line.contains("UNEXPECT"));
    assert_eq!(unexpected.collect::<Vec<_>>(), [""; 0], "{printed}");
    assert!(finished.code() == 0 && printed.contains("Summary: 0 failed"), "{printed}");
    let passed = printed.lines().filter(|line| line.ends_with(" ok")).count();
    assert!(passed > 300, "{printed}");
}

#[test]
fn fsx_finds_what_it_has_written() {
    let config = include_str!("../../fixtures/suites/fsx.toml");
    let rounds = if soak() { 200_000 } else { 1500 };
    let script = format!(
        "for seed in 1 2 3; do fsx -f /etc/config.toml -S $seed -N {rounds} /s/file || exit 1; done; echo done"
    );
    let finished = suite("fsx", config, &script);
    assert_eq!((finished.code(), finished.printed().lines().last()), (0, Some("done")), "{}", finished.printed());
}

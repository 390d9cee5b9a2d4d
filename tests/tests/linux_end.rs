//! How guests end that end themselves, of both kernels.
//!
//! What the command printed before that may still be in its pipe, so nobody asks for it here.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use machinen_tests::guest::{Guest, Scratch, monitor};
use machinen_tests::monitor::{Live, wait_until};
use machinen_tests::{asset, bin};

const KERNELS: [&str; 2] = ["vmlinux", "vmlinux-tuned"];

/// The code of a guest that resets itself, by what it has for that: a triple fault, or PSCI.
const RESET: &str = if cfg!(target_arch = "x86_64") { "GUEST_TRIPLE_FAULT" } else { "GUEST_RESET" };

/// Exit code, stdout and stderr of the monitor for a guest of each kernel that runs this script.
fn ends(script: &str) -> impl Iterator<Item = (i32, String, String)> {
    let guest = Guest::busybox(&format!("{script}; echo after; exit 3"));
    KERNELS.iter().map(move |kernel| {
        let finished = monitor(&asset(kernel), &guest.initrd()).finish();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (finished.code(), text(&finished.stdout), text(&finished.stderr))
    })
}

#[test]
fn a_panic_is_an_error_that_follows_the_kernels_words() {
    for (code, stdout, stderr) in ends("echo c >/proc/sysrq-trigger") {
        assert_eq!(code, 125, "{stdout}{stderr}");
        assert!(stdout.contains("Kernel panic - not syncing: sysrq triggered crash"), "{stdout}");
        assert!(stderr.starts_with(&format!("vmm-min: {RESET}: ")), "{stderr}");
    }
}

#[test]
fn a_guest_with_acpi_or_psci_that_switches_off_is_a_success() {
    // Without either, the tuned kernel for x86_64 has nothing to switch off by.
    let kernels = if cfg!(target_arch = "x86_64") { 1 } else { 2 };
    for (code, stdout, stderr) in ends("poweroff -f").take(kernels) {
        assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
        // To the kernel this is an emergency, which goes to every console.
        assert!(stdout.ends_with("reboot: Power down\r\n") && !stdout.contains("after"), "{stdout}");
    }
}

#[test]
fn a_restart_is_an_error_as_a_panic_is() {
    for (code, stdout, stderr) in ends("reboot -f") {
        assert_eq!(code, 125, "{stdout}{stderr}");
        assert!(stdout.contains("reboot: Restarting system") && !stdout.contains("after"), "{stdout}");
        assert!(stderr.starts_with(&format!("vmm-min: {RESET}: ")) && stderr.contains("or restart"), "{stderr}");
    }
}

/// Has a guest stop its processor and not the machine.
fn halt(kernel: &str, command: &str) {
    let (guest, scratch) = (Guest::busybox(&format!("{command}; echo after; exit 3")), Scratch::new());
    let out = scratch.path("out");
    let mut monitor = Command::new(bin("vmm-min"));
    monitor.arg("--kernel").arg(asset(kernel)).arg("--initrd").arg(guest.initrd());
    monitor.stdin(Stdio::null()).stdout(File::create(&out).unwrap());
    let mut live = Live::start(monitor);
    let said = || String::from_utf8_lossy(&fs::read(&out).unwrap()).into_owned();
    wait_until("the kernel says that it halts", || said().contains("System halted"));
    // Linux on arm64 halts by a loop (machine_halt in arch/arm64/kernel/process.c), so the monitor runs on there.
    if cfg!(target_arch = "x86_64") {
        live.until_asleep();
    }
    live.send(libc::SIGTERM);
    assert_eq!(live.wait().signal(), Some(libc::SIGTERM));
    assert!(!said().contains("after"), "{}", said());
}

#[test]
fn a_guest_that_halts_is_there_until_a_signal_ends_it() {
    KERNELS.iter().for_each(|kernel| halt(kernel, "halt -f"));
}

/// It has nothing to write to: docs/kernel.md says what ACPI would cost.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_tuned_kernel_halts_when_it_is_to_switch_off() {
    halt("vmlinux-tuned", "poweroff -f");
}

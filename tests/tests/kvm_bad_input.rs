//! What the monitor says about kernels and initrds that it cannot load, and what it takes from a pipe.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use machinen_fixtures::guests::{RESET_ERROR, hello, print_and_reset};
use machinen_fixtures::{LOAD_ADDRESS, elf, guest};
use machinen_tests::monitor::{Kernel, LIMIT, Live, Scratch, assert_refused, bzimage, read_bytes, vmm_min};
use machinen_tests::{Finished, asset, only_on};

/// Where fields of an ELF file of the fixtures are. Source: System V ABI, chapters 4 and 5.
mod field {
    pub const CLASS: usize = 4;
    pub const BYTE_ORDER: usize = 5;
    pub const MACHINE: usize = 18;
    pub const ENTRY: usize = 24;
    pub const HEADERS_AT: usize = 32;
    pub const HEADER_BYTES: usize = 54;
    pub const HEADER_COUNT: usize = 56;
    pub const OFFSET: usize = 64 + 8;
    pub const FILE_BYTES: usize = 64 + 32;
    pub const MEMORY_BYTES: usize = 64 + 40;
}

/// `e_machine` of the other architecture, and its name.
const OTHER: (u16, &str) = if cfg!(target_arch = "x86_64") { (183, "aarch64") } else { (62, "x86_64") };
/// First address beyond RAM of 64 MiB.
const RAM_END: u64 = if cfg!(target_arch = "x86_64") { 64 << 20 } else { 0x4400_0000 };
/// Room for a kernel and an initrd in that.
const ROOM: u64 = RAM_END - LOAD_ADDRESS;

fn refused(kernel: &[u8], code: &str) -> Finished {
    let run = Kernel::of_bytes(kernel).run().finish();
    assert_refused(&run, code);
    run
}

/// The hello guest's ELF file with other bytes at some place.
fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = hello().elf();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn a_truncated_elf_is_refused_at_every_length() {
    let whole = hello().elf();
    for length in [1, 3, 4, 5, 63, 64, 65, 100, 119, 120, 121, 2000, 4095, 4096, 4097, whole.len() - 1] {
        // Less than its magic number does not even look like one.
        let code = if length < 4 { "KERNEL_UNKNOWN_FORMAT" } else { "KERNEL_TRUNCATED" };
        refused(&whole[..length], code);
    }
    assert_eq!(Kernel::of_bytes(&whole).run().finish().code(), 0);
}

/// Debian's kernel, or, where that is no bzImage, one that holds something as large.
fn large_bzimage() -> Vec<u8> {
    if cfg!(target_arch = "x86_64") {
        return fs::read(asset("vmlinuz")).unwrap();
    }
    let mut code = hello().code.to_vec();
    code.resize(8 << 20, 0);
    bzimage(&elf(&code, LOAD_ADDRESS, code.len() as u64))
}

#[test]
fn a_truncated_bzimage_is_refused_at_every_length() {
    let whole = large_bzimage();
    // All within the payload: what comes after it is for booting from firmware.
    let cut = [1, 2, 512, 0x205, 0x263, 0x264, 0x265, 4096, 20_000, 1 << 20, whole.len() / 2, whole.len() / 10 * 9];
    for length in cut {
        let code = if length < 0x264 { "KERNEL_UNKNOWN_FORMAT" } else { "KERNEL_TRUNCATED" };
        let run = refused(&whole[..length], code);
        assert!(!run.printed().contains("panicked"));
    }
}

#[test]
fn a_truncated_image_is_refused_at_every_length() {
    only_on!("aarch64", "kernels in this form are aarch64's; see a_truncated_bzimage_is_refused_at_every_length");
    let whole = fs::read(asset("vmlinuz")).unwrap();
    for length in [1, 2, 63, 0x148, 4096, 20_000, 1 << 20, whole.len() / 2, whole.len() / 10 * 9] {
        // What has no table of sections yet says nothing of its length, and would run.
        refused(&whole[..length], if length < 64 { "KERNEL_UNKNOWN_FORMAT" } else { "KERNEL_TRUNCATED" });
    }
}

#[test]
fn a_damaged_payload_of_a_bzimage_is_refused() {
    let mut bzimage = large_bzimage();
    let cache = Scratch::new("bad-input");
    let middle = bzimage.len() / 2;
    bzimage[middle..middle + 4096].fill(0x55);
    let run = Kernel::of_bytes(&bzimage).run().env("MACHINEN_CACHE_DIR", cache.path()).finish();
    assert_refused(&run, "KERNEL_TRUNCATED");
    assert_eq!(cache.files().iter().filter(|file| file.starts_with("kernels")).count(), 0);
}

#[test]
fn kernels_of_other_processors_are_named() {
    for (machine, name) in [OTHER, (3, "i386"), (243, "riscv"), (4711, "ELF machine 4711")] {
        let run = refused(&changed(field::MACHINE, &machine.to_le_bytes()), "KERNEL_WRONG_ARCH");
        assert!(run.printed().contains(&format!("it is for {name}, this host runs 64-bit")), "{}", run.printed());
    }
    refused(&changed(field::CLASS, &[1]), "KERNEL_WRONG_ARCH");
    refused(&changed(field::BYTE_ORDER, &[2]), "KERNEL_WRONG_ARCH");
    if cfg!(target_arch = "x86_64") {
        // An arm64 Image: its magic number at 56.
        let mut image = vec![0; 4096];
        image[56..60].copy_from_slice(b"ARM\x64");
        refused(&image, "KERNEL_WRONG_ARCH");
    }
    refused(&bzimage(&changed(field::MACHINE, &OTHER.0.to_le_bytes())), "KERNEL_WRONG_ARCH");
}

#[test]
fn what_is_no_kernel_is_refused() {
    let mut random = Random(1);
    let noise: Vec<u8> = (0..10_000).map(|_| random.byte()).collect();
    refused(&noise, "KERNEL_UNKNOWN_FORMAT");
    refused(b"#!/bin/sh\n", "KERNEL_UNKNOWN_FORMAT");
    refused(&vec![0; 1 << 20], "KERNEL_UNKNOWN_FORMAT");
}

#[test]
fn segments_must_lie_in_ram_and_hold_the_entry() {
    let code = hello().code;
    refused(&elf(code, LOAD_ADDRESS, 1 << 40), "KERNEL_TOO_LARGE");
    refused(&elf(code, LOAD_ADDRESS, ROOM + 1), "KERNEL_TOO_LARGE");
    refused(&elf(code, RAM_END, 4096), "KERNEL_TOO_LARGE");
    refused(&elf(code, LOAD_ADDRESS, u64::MAX), "KERNEL_TOO_LARGE");
    refused(&elf(code, 0x7fff_ffff_ffff_f000, 0x2000), "KERNEL_TOO_LARGE");
    refused(&elf(code, 0xffff_ffff_ffff_f000, 0x2000), "KERNEL_MALFORMED");
    refused(&elf(code, LOAD_ADDRESS - 4096, 8192), "KERNEL_MALFORMED");
    refused(&elf(code, 0, 4096), "KERNEL_MALFORMED");
    refused(&changed(field::ENTRY, &(LOAD_ADDRESS - 1).to_le_bytes()), "KERNEL_MALFORMED");
    refused(&changed(field::ENTRY, &u64::MAX.to_le_bytes()), "KERNEL_MALFORMED");
    refused(&changed(field::FILE_BYTES, &(code.len() as u64 + 1).to_le_bytes()), "KERNEL_TRUNCATED");
    refused(&changed(field::FILE_BYTES, &u64::MAX.to_le_bytes()), "KERNEL_TRUNCATED");
    refused(&changed(field::MEMORY_BYTES, &1u64.to_le_bytes()), "KERNEL_MALFORMED");
    refused(&changed(field::OFFSET, &u64::MAX.to_le_bytes()), "KERNEL_TRUNCATED");
    refused(&changed(field::HEADERS_AT, &u64::MAX.to_le_bytes()), "KERNEL_TRUNCATED");
    refused(&changed(field::HEADER_BYTES, &55u16.to_le_bytes()), "KERNEL_MALFORMED");
    refused(&changed(field::HEADER_COUNT, &0u16.to_le_bytes()), "KERNEL_MALFORMED");
    refused(&changed(field::HEADER_COUNT, &u16::MAX.to_le_bytes()), "KERNEL_MALFORMED");
    // As large as RAM goes is not too large.
    let largest = Kernel::of_bytes(&elf(code, LOAD_ADDRESS, ROOM)).run().finish();
    assert_eq!((largest.code(), largest.printed()), (0, "x".to_owned()));
}

/// Numbers that look random and are the same each time (xorshift64).
struct Random(u64);

impl Random {
    fn byte(&mut self) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.to_le_bytes()[3]
    }

    fn below(&mut self, limit: usize) -> usize {
        (usize::from(self.byte()) << 8 | usize::from(self.byte())) % limit
    }
}

#[test]
fn a_damaged_elf_is_refused_or_runs_but_never_breaks_the_monitor() {
    let whole = hello().elf();
    let mut random = Random(0x6d61_6368_696e_656e);
    for round in 0..200 {
        let mut file = whole.clone();
        let mut changes = Vec::new();
        for _ in 0..=random.below(3) {
            // Mostly the headers, which the monitor reads; sometimes the guest's code.
            let at = if random.below(8) == 0 { 4096 + random.below(hello().code.len()) } else { random.below(120) };
            file[at] = random.byte();
            changes.push((at, file[at]));
        }
        let kernel = Kernel::of_bytes(&file);
        let mut command = kernel.command();
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut live = Live::start(command);
        // A guest that runs on is well, and still takes its signal.
        let ran_on = !live.ends_within(Duration::from_millis(100));
        if ran_on {
            live.send(libc::SIGTERM);
        }
        let status = live.wait();
        let stderr = io::read_to_string(live.child.stderr.take().unwrap()).unwrap();
        let what = format!("round {round}, {changes:?}: {status}, {stderr}");
        assert!(!stderr.contains("panicked"), "{what}");
        match status.code() {
            Some(125) => assert!(stderr.starts_with("vmm-min: ") && stderr.lines().count() <= 2, "{what}"),
            Some(_) => assert_eq!(stderr, "", "{what}"),
            None => assert!(ran_on && status.signal() == Some(libc::SIGTERM), "{what}"),
        }
    }
}

#[test]
fn an_initrd_must_fit_between_kernel_and_end_of_ram() {
    let scratch = Scratch::new("bad-input");
    let initrd = scratch.file("initrd");
    // A file with a hole: its size is all that matters.
    File::create(&initrd).unwrap().set_len(200 << 20).unwrap();
    let kernel = Kernel::new(hello());
    let run = vmm_min().args(["-m", "128", "--kernel"]).arg(kernel.path()).arg("--initrd").arg(&initrd).finish();
    assert_refused(&run, "INITRD_TOO_LARGE");
    assert!(
        run.printed().contains("its 200 MiB do not fit") && run.printed().contains("--memory"),
        "{}",
        run.printed()
    );
    let run = vmm_min().args(["-m", "204", "--kernel"]).arg(kernel.path()).arg("--initrd").arg(&initrd).finish();
    assert_eq!((run.code(), run.printed()), (0, "x".to_owned()));
    // Just so beside a kernel of one page, and one page more.
    for (pages, code) in [(ROOM / 4096 - 1, 0), (ROOM / 4096, 125)] {
        File::create(&initrd).unwrap().set_len(pages * 4096).unwrap();
        let run = kernel.run().arg("--initrd").arg(&initrd).finish();
        assert_eq!(run.code(), code, "{}", run.printed());
    }
}

#[test]
fn a_command_line_must_leave_room_for_ours() {
    let kernel = Kernel::new(hello());
    assert_refused(&kernel.run().arg("--cmdline").arg("w".repeat(2048)).finish(), "CMDLINE_TOO_LONG");
    assert_refused(&kernel.run().env("MACHINEN_CMDLINE", "w ".repeat(50_000)).finish(), "CMDLINE_TOO_LONG");
    assert_eq!(kernel.run().arg("--cmdline").arg("w".repeat(1800)).finish().code(), 0);
}

#[test]
fn memory_that_the_host_does_not_give_is_an_error_of_the_host() {
    let kernel = Kernel::new(hello());
    // An address space of 4 GiB: enough for the monitor, not for the guest.
    let script = "ulimit -v 4194304; exec \"$0\" -m 8192 --kernel \"$1\"";
    let monitor = machinen_tests::bin("vmm-min");
    let run = machinen_tests::Run::new("sh").args(["-c", script]).arg(monitor).arg(kernel.path()).limit(LIMIT).finish();
    assert_refused(&run, "MEMORY_UNAVAILABLE");
    assert!(run.printed().contains("8192 MiB") && run.printed().contains("--memory"), "{}", run.printed());
}

#[test]
fn json_errors_come_from_every_kind() {
    let cases = [
        (changed(field::MACHINE, &OTHER.0.to_le_bytes()), "KERNEL_WRONG_ARCH", "usage"),
        (print_and_reset().elf(), RESET_ERROR, "guest"),
    ];
    for (kernel, code, blame) in cases {
        let run = Kernel::of_bytes(&kernel).run().arg("--json").finish();
        let error: serde_json::Value = serde_json::from_slice(&run.stderr).expect("one object");
        assert_eq!((run.code(), error["code"].as_str(), error["blame"].as_str()), (125, Some(code), Some(blame)));
    }
}

#[test]
fn the_time_to_the_first_byte_is_reported() {
    let kernel = Kernel::new(hello());
    let run = kernel.run().arg("--boot-test").finish();
    let text = String::from_utf8(run.stderr).unwrap();
    let us = text.strip_prefix("vmm-min: first byte after ").and_then(|rest| rest.strip_suffix(" us\n"));
    assert!(run.status.code() == Some(0) && us.is_some_and(|us| us.parse::<u64>().is_ok()), "{text}");
    let run = kernel.run().args(["--boot-test", "--json"]).finish();
    let report: serde_json::Value = serde_json::from_slice(&run.stderr).unwrap();
    assert!(report["first_byte_us"].is_u64(), "{report}");
}

#[test]
fn a_kernel_from_a_pipe_is_read_to_its_end() {
    for path in ["-", "/dev/stdin"] {
        let run = vmm_min().args(["-m", "64", "--kernel", path]).stdin(hello().elf()).finish();
        assert_eq!((run.code(), run.printed()), (0, "x".to_owned()), "{path}");
    }
    // Also one that comes in pieces.
    let whole = hello().elf();
    let mut command = std::process::Command::new(machinen_tests::bin("vmm-min"));
    command.args(["-m", "64", "--kernel", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut live = Live::start(command);
    let mut stdin = live.child.stdin.take().unwrap();
    for piece in whole.chunks(1000) {
        stdin.write_all(piece).unwrap();
    }
    drop(stdin);
    assert_eq!(read_bytes(live.child.stdout.as_mut().unwrap(), 2), b"x");
    assert_eq!(live.wait().code(), Some(0));
}

guest!(
    show_initrd,
    "Prints the initrd that the boot parameters, or the device tree, name.",
    x86_64: [
        "mov ecx, [rsi + 0x21c]",
        "mov esi, [rsi + 0x218]",
        "mov edx, 0x3f8",
        "rep outsb",
        "mov edx, 0x500",
        "xor eax, eax",
        "out dx, al",
    ],
    aarch64: [
        // In the tree's structure, the first two properties of 8 bytes (3, length, name) are the initrd's ends.
        "mov x1, #0x09000000",
        "ldr w3, [x0, #8]",
        "rev w3, w3",
        "add x3, x0, x3",
        "bl 2f",
        "mov x5, x4",
        "bl 2f",
        "3: ldrb w6, [x5], #1",
        "strb w6, [x1]",
        "cmp x5, x4",
        "b.ne 3b",
        "mov x1, #0x09010000",
        "strb wzr, [x1]",
        "2: ldr w6, [x3], #4",
        "rev w6, w6",
        "cmp w6, #3",
        "b.ne 2b",
        "ldr w6, [x3]",
        "rev w6, w6",
        "cmp w6, #8",
        "b.ne 2b",
        "ldp w6, w4, [x3, #8]",
        "rev w6, w6",
        "rev w4, w4",
        "orr x4, x4, x6, lsl #32",
        "ret",
    ],
);

#[test]
fn an_initrd_arrives_whole_from_a_file_and_from_a_pipe() {
    let kernel = Kernel::new(show_initrd());
    let mut random = Random(7);
    let scratch = Scratch::new("initrd");
    for length in [1, 4095, 4096, 4097, 20_001] {
        let content: Vec<u8> = (0..length).map(|_| random.byte()).collect();
        fs::write(scratch.file("initrd"), &content).unwrap();
        let from_file = kernel.run().arg("--initrd").arg(scratch.file("initrd")).finish();
        let from_pipe = kernel.run().args(["--initrd", "-"]).stdin(content.clone()).finish();
        for run in [from_file, from_pipe] {
            assert_eq!((run.code(), run.stderr.len()), (0, 0));
            assert!(run.stdout == content, "{} bytes of {length} came", run.stdout.len());
        }
    }
}

#[test]
fn disks_that_are_none_are_refused_before_the_guest_starts() {
    let kernel = Kernel::new(hello());
    let scratch = Scratch::new("disks");
    let (short, good) = (scratch.path().join("short"), scratch.path().join("good"));
    fs::write(&short, [0; 511]).unwrap();
    fs::write(&good, [0; 4096]).unwrap();
    let [short, good] = [short, good].map(|path| path.to_str().unwrap().to_owned());
    for (disk, code) in [
        (short.as_str(), "DISK_SIZE"),
        ("/nonexistent/disk", "DISK_UNREADABLE"),
        ("/dev/null", "DISK_UNREADABLE"),
        ("/", "DISK_UNREADABLE"),
        ("", "DISK_INVALID"),
    ] {
        for flag in ["--disk", "--root-disk"] {
            assert_refused(&kernel.run().args([flag, disk]).finish(), code);
        }
    }
    assert_refused(&kernel.run().args(["--stats-file", "/nonexistent/stats"]).finish(), "STATS_FILE");
    assert_refused(&kernel.run().args(["--disk", &good]).env("TMPDIR", "/nonexistent").finish(), "DISK_LAYER");
    for access in ["", ":ro", ":rw"] {
        assert_eq!(kernel.run().args(["--disk", &format!("{good}{access}")]).finish().code(), 0);
    }
    // One that runs has it for itself.
    let halting = Kernel::new(machinen_fixtures::guests::print_and_halt());
    let mut command = halting.command();
    command.args(["--disk", &format!("{good}:rw")]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut live = Live::start(command);
    assert_eq!(read_bytes(live.child.stdout.as_mut().unwrap(), 1), b"r");
    for access in ["", ":ro", ":rw"] {
        assert_refused(&kernel.run().args(["--disk", &format!("{good}{access}")]).finish(), "DISK_LOCKED");
    }
}

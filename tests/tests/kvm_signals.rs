//! Signals at every moment of a start, what they leave behind, and the terminal's modes.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use machinen_fixtures::guests::{RESET_ERROR, echo, hello, print_and_halt, print_and_reset, print_and_spin};
use machinen_fixtures::{LOAD_ADDRESS, elf, guest};
use machinen_tests::monitor::{Kernel, Live, Scratch, bzimage, read_bytes, wait_until};
use machinen_tests::pty::Pty;
use machinen_tests::{Run, host};

const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Lets time pass without sleeping: a sleep would not end this exactly.
fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Names in the cache that are none of its entries.
fn strangers(cache: &Scratch) -> Vec<std::path::PathBuf> {
    let is_kernel = |path: &Path| path.starts_with("kernels") && path.extension().is_some_and(|end| end == "elf");
    cache.files().into_iter().filter(|path| path != Path::new("cpuid") && !is_kernel(path)).collect()
}

/// What a monitor printed to its piped stderr, when it has ended.
fn stderr(live: &mut Live) -> String {
    io::read_to_string(live.child.stderr.take().unwrap()).unwrap()
}

#[test]
fn a_signal_at_any_moment_of_the_start_ends_it() {
    let kernel = Kernel::new(print_and_halt());
    let cache = Scratch::new("cache");
    for signal in ENDING {
        for step in 0..=60 {
            // So that every start writes it.
            let _: io::Result<()> = std::fs::remove_file(cache.file("cpuid"));
            let mut command = kernel.command();
            command.env("MACHINEN_CACHE_DIR", cache.path());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut live = Live::start(command);
            spin(Duration::from_micros(50) * step);
            live.send(signal);
            let what = format!("signal {signal} after {step} x 50 us");
            assert_eq!(live.wait().signal(), Some(signal), "{what}");
            assert_eq!(stderr(&mut live), "", "{what}");
            assert_eq!(strangers(&cache), <[&Path; 0]>::default(), "{what}");
        }
    }
}

#[test]
fn a_start_that_waits_for_its_input_is_ended_by_a_signal() {
    let kernel = Kernel::new(hello());
    let scratch = Scratch::new("fifo");
    let fifo = scratch.file("initrd");
    assert_eq!(Run::new("mkfifo").arg(&fifo).finish().code(), 0);
    for signal in ENDING {
        let mut from_fifo = kernel.command();
        from_fifo.arg("--initrd").arg(&fifo).stdin(Stdio::null());
        let mut from_pipe = Command::new(machinen_tests::bin("vmm-min"));
        from_pipe.args(["-m", "64", "--kernel", "-"]).stdin(Stdio::piped());
        for mut command in [from_fifo, from_pipe] {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut live = Live::start(command);
            live.until_asleep();
            live.send(signal);
            assert_eq!(live.wait().signal(), Some(signal));
            assert_eq!(stderr(&mut live), "");
        }
    }
}

#[test]
fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
    let kernel = Kernel::new(echo());
    for signal in ENDING {
        let mut command = kernel.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        host::ignore(&mut command, signal);
        let mut live = Live::start(command);
        let (mut stdin, mut stdout) = (live.child.stdin.take().unwrap(), live.child.stdout.take().unwrap());
        for byte in 0..10 {
            live.send(signal);
            stdin.write_all(&[byte]).unwrap();
            assert_eq!(read_bytes(&mut stdout, 1), [byte]);
        }
        drop(stdin);
        assert_eq!(live.wait().code(), Some(0));
    }
}

/// A bzImage of the hello guest that takes a while to decompress.
fn large_bzimage() -> Vec<u8> {
    let mut code = hello().code.to_vec();
    code.resize(8 << 20, 0x90);
    bzimage(&elf(&code, LOAD_ADDRESS, code.len() as u64))
}

#[test]
fn a_kill_at_any_moment_leaves_a_cache_that_works() {
    const ROUNDS: u32 = 16;
    let kernel = Kernel::of_bytes(&large_bzimage());
    let start_whole = |cache: &Scratch| {
        let run = kernel.run().env("MACHINEN_CACHE_DIR", cache.path()).finish();
        assert_eq!((run.code(), run.printed()), (0, "x".to_owned()));
        run.elapsed
    };
    let time = start_whole(&Scratch::new("cache"));
    for round in 0..ROUNDS {
        let cache = Scratch::new("cache");
        let mut command = kernel.command();
        command.env("MACHINEN_CACHE_DIR", cache.path()).stdin(Stdio::null()).stdout(Stdio::null());
        let mut live = Live::start(command);
        spin(time / ROUNDS * round);
        live.send(if round % 2 == 0 { libc::SIGKILL } else { libc::SIGTERM });
        live.wait();
        assert_eq!(strangers(&cache), <[&Path; 0]>::default(), "round {round}");
        start_whole(&cache);
        assert_eq!(strangers(&cache), <[&Path; 0]>::default(), "round {round}");
    }
}

#[test]
fn a_damaged_cache_is_no_obstacle() {
    let kernel = Kernel::of_bytes(&large_bzimage());
    let cache = Scratch::new("cache");
    let start = || {
        let run = kernel.run().env("MACHINEN_CACHE_DIR", cache.path()).finish();
        assert_eq!((run.code(), run.printed()), (0, "x".to_owned()));
        assert_eq!(strangers(&cache), <[&Path; 0]>::default());
    };
    start();
    let entries = cache.files();
    // The kernel and, on x86_64, what KVM says of the processor.
    assert_eq!(entries.len(), if cfg!(target_arch = "x86_64") { 2 } else { 1 }, "{entries:?}");
    for damage in [&b""[..], b"damaged"] {
        for entry in &entries {
            std::fs::write(cache.path().join(entry), damage).unwrap();
        }
        start();
        // And made whole again.
        let whole = |entry: &std::path::PathBuf| cache.path().join(entry).metadata().unwrap().len() > 100;
        assert!(entries.iter().all(whole));
    }
    // What cannot be replaced stays, and no temporary name beside it.
    for entry in &entries {
        std::fs::remove_file(cache.path().join(entry)).unwrap();
        std::fs::create_dir(cache.path().join(entry)).unwrap();
    }
    start();
    assert_eq!(cache.files().len(), 0);
}

guest!(
    end_at_a_byte,
    "Takes input on the line, prints `r`, waits for a byte and hands it over as exit code.",
    x86_64: [
        "mov edx, 0x3fc",
        "mov al, 0x03",
        "out dx, al",
        "mov edx, 0x3f8",
        "mov al, 'r'",
        "out dx, al",
        "2: mov edx, 0x3fd",
        "in al, dx",
        "test al, 0x01",
        "jz 2b",
        "mov edx, 0x3f8",
        "in al, dx",
        "mov edx, 0x500",
        "out dx, al",
    ],
    aarch64: [
        "mov x1, #0x09000000",
        "mov w0, #0x03",
        "strb w0, [x1, #4]",
        "mov w0, #0x72",
        "strb w0, [x1]",
        "2: ldrb w0, [x1, #5]",
        "tbz w0, #0, 2b",
        "ldrb w0, [x1]",
        "mov x1, #0x09010000",
        "strb w0, [x1]",
    ],
);

#[test]
fn a_terminal_is_raw_while_the_guest_runs_and_as_before_after_every_end() {
    for (signal, guest) in [
        (None, end_at_a_byte()),
        (Some(libc::SIGTERM), print_and_spin()),
        (Some(libc::SIGHUP), print_and_halt()),
        (Some(libc::SIGUSR1), print_and_spin()),
        (Some(libc::SIGSEGV), print_and_halt()),
        (Some(libc::SIGABRT), print_and_spin()),
    ] {
        let kernel = Kernel::new(guest);
        let pty = Pty::open().unwrap();
        let before = pty.modes().unwrap();
        assert!(before.is_cooked());
        let mut live = Live::on_terminal(kernel.command(), &pty, |_| ());
        assert_eq!(read_bytes(&mut &pty.user, 1), b"r");
        assert!(!pty.modes().unwrap().is_cooked(), "raw before the guest's first byte");
        match signal {
            Some(signal) => live.send(signal),
            // Ctrl-C is a byte like any other.
            None => (&pty.user).write_all(b"\x03").unwrap(),
        }
        let status = live.wait();
        assert_eq!((status.signal(), status.code()), (signal, if signal.is_none() { Some(3) } else { None }));
        assert_eq!(pty.modes().unwrap(), before, "after {status}");
    }
}

#[test]
fn a_terminal_is_left_alone_when_only_one_end_is_one() {
    let kernel = Kernel::new(print_and_spin());
    let pty = Pty::open().unwrap();
    let before = pty.modes().unwrap();
    let mut live = Live::on_terminal(kernel.command(), &pty, |command| {
        command.stdout(Stdio::piped());
    });
    assert_eq!(read_bytes(live.child.stdout.as_mut().unwrap(), 1), b"r");
    assert_eq!(pty.modes().unwrap(), before, "stdin alone");
    drop(live);
    let mut command = kernel.command();
    command.stdin(Stdio::null()).stdout(pty.terminal().unwrap());
    let _live = Live::start(command);
    assert_eq!(read_bytes(&mut &pty.user, 1), b"r");
    assert_eq!(pty.modes().unwrap(), before, "stdout alone");
}

#[test]
fn a_terminal_comes_back_after_an_error_of_the_guest() {
    let kernel = Kernel::new(print_and_reset());
    let pty = Pty::open().unwrap();
    let before = pty.modes().unwrap();
    let mut live = Live::on_terminal(kernel.command(), &pty, |_| ());
    assert_eq!(live.wait().code(), Some(125));
    assert_eq!(pty.modes().unwrap(), before);
    let expected = format!("rvmm-min: {RESET_ERROR}: ");
    let shown = read_bytes(&mut &pty.user, expected.len());
    assert_eq!(String::from_utf8_lossy(&shown), expected);
}

#[test]
fn a_terminal_that_hangs_up_ends_the_monitor() {
    let kernel = Kernel::new(print_and_spin());
    let pty = Pty::open().unwrap();
    let mut live = Live::on_terminal(kernel.command(), &pty, |_| ());
    assert_eq!(read_bytes(&mut &pty.user, 1), b"r");
    drop(pty);
    assert_eq!(live.wait().signal(), Some(libc::SIGHUP));
}

#[test]
fn a_stopped_session_gives_the_terminal_back_and_takes_it_again() {
    let kernel = Kernel::new(end_at_a_byte());
    let pty = Pty::open().unwrap();
    let before = pty.modes().unwrap();
    let mut live = Live::on_terminal(kernel.command(), &pty, |_| ());
    assert_eq!(read_bytes(&mut &pty.user, 1), b"r");
    live.send(libc::SIGTSTP);
    wait_until("it has stopped", || host::state(live.child.id()) == 'T');
    assert_eq!(pty.modes().unwrap(), before);
    live.send(libc::SIGCONT);
    wait_until("it is raw again", || !pty.modes().unwrap().is_cooked());
    (&pty.user).write_all(b"\x07").unwrap();
    assert_eq!(live.wait().code(), Some(7));
    assert_eq!(pty.modes().unwrap(), before);
}

//! The monitor's stdin and stdout, of every kind that a shell can make.

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, Read, Seek, SeekFrom, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use machinen_fixtures::guest;
use machinen_fixtures::guests::{echo, hello, print_64k, print_and_end, print_and_spin, print_forever};
use machinen_tests::monitor::{Kernel, LIMIT, Live, Scratch, read_bytes, wait_until};
use machinen_tests::pty::Pty;
use machinen_tests::{Finished, Run, bin, host};

/// Runs a shell script with the monitor as "$0" and its arguments as "$@".
fn shell(script: &str, kernel: &Kernel) -> Finished {
    let run = Run::new("sh").args(["-c", script]).arg(bin("vmm-min")).args(["-m", "64", "--kernel"]).arg(kernel.path());
    run.limit(LIMIT).finish()
}

fn bytes(count: usize) -> Vec<u8> {
    (0u8..=250).cycle().take(count).collect()
}

/// The monitor with an echo guest, fed from `stdin`; what it printed to a pipe.
fn echoed(stdin: impl Into<Stdio>) -> Vec<u8> {
    let kernel = Kernel::new(echo());
    let (mut stdout, theirs) = io::pipe().unwrap();
    let mut command = kernel.command();
    command.stdin(stdin).stdout(theirs);
    let mut live = Live::start(command);
    let printed = read_bytes(&mut stdout, 1 << 24);
    assert_eq!(live.wait().code(), Some(0));
    printed
}

#[test]
fn a_closed_stdin_is_the_end_of_input() {
    let run = shell("exec \"$0\" \"$@\" <&-", &Kernel::new(echo()));
    assert_eq!((run.code(), run.printed()), (0, String::new()));
}

#[test]
fn a_closed_stdout_takes_everything() {
    let run = shell("exec \"$0\" \"$@\" >&-", &Kernel::new(hello()));
    assert_eq!((run.code(), run.printed()), (0, String::new()));
    let run = shell("exec \"$0\" \"$@\" <&- >&- 2>&-", &Kernel::new(hello()));
    assert_eq!((run.code(), run.printed()), (0, String::new()));
}

#[test]
fn a_reader_that_has_had_enough_ends_the_monitor_with_success() {
    // Also when its stdin stays open, and when SIGPIPE is ignored or not.
    for redirect in ["</dev/null", "</dev/zero"] {
        let script = format!("( \"$0\" \"$@\" {redirect}; echo \"status $?\" >&2 ) | head -c 1 | od -An -tu1");
        let run = shell(&script, &Kernel::new(print_forever()));
        assert_eq!(String::from_utf8_lossy(&run.stderr), "status 0\n");
        assert_eq!(String::from_utf8_lossy(&run.stdout).trim(), "0");
    }
    let kernel = Kernel::new(print_forever());
    let mut command = kernel.command();
    let (mut reader, theirs) = UnixStream::pair().unwrap();
    command.stdin(Stdio::null()).stdout(OwnedFd::from(theirs));
    let mut live = Live::start(command);
    read_bytes(&mut reader, 1);
    drop(reader);
    assert_eq!(live.wait().code(), Some(0));
}

#[test]
fn a_disk_that_is_full_is_an_error_of_the_host() {
    let run = shell("exec \"$0\" \"$@\" >/dev/full", &Kernel::new(hello()));
    assert_eq!(run.code(), 125);
    assert!(run.printed().starts_with("vmm-min: HOST_STDOUT: write to stdout: No space left"), "{}", run.printed());
}

/// Starts a guest that prints forever, and lets it fill what it prints to.
fn blocked(kernel: &Kernel, stdout: impl Into<Stdio>, stdin: impl Into<Stdio>) -> Live {
    let mut command = kernel.command();
    command.stdin(stdin).stdout(stdout);
    let live = Live::start(command);
    live.until_asleep();
    live
}

#[test]
fn a_reader_that_stops_costs_no_processor_time_and_no_byte() {
    let kernel = Kernel::new(print_forever());
    let (pipe, pipe_end) = host::small_pipe();
    let (socket, socket_end) = UnixStream::pair().unwrap();
    // A stdin with something to read must not keep the monitor awake either.
    let (stdin, mut writer) = io::pipe().unwrap();
    writer.write_all(b"waiting").unwrap();
    let cases: [(File, Stdio, Stdio); 2] = [
        (OwnedFd::from(pipe).into(), pipe_end.into(), stdin.into()),
        (OwnedFd::from(socket).into(), OwnedFd::from(socket_end).into(), Stdio::null()),
    ];
    for (mut reader, theirs, stdin) in cases {
        let mut live = blocked(&kernel, theirs, stdin);
        let before = host::cpu_ticks(live.child.id());
        // Processor time is counted over some time: there is nothing to wait for.
        assert!(!live.ends_within(Duration::from_millis(300)));
        let used = host::cpu_ticks(live.child.id()) - before;
        assert!(used <= 1, "{used} ticks of 10 ms while blocked");
        // More than any of them holds, so the guest has gone on.
        let count = 20_000;
        let read = read_bytes(&mut reader, count);
        let expected: Vec<u8> = (0..=255).cycle().take(count).collect();
        assert!(read == expected, "{} bytes", read.len());
        live.send(libc::SIGTERM);
        live.wait();
    }
}

#[test]
fn a_signal_ends_a_monitor_that_waits_for_its_reader() {
    let kernel = Kernel::new(print_forever());
    let (_reader, theirs) = host::small_pipe();
    let mut live = blocked(&kernel, theirs, Stdio::null());
    live.send(libc::SIGTERM);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&live.wait()), Some(libc::SIGTERM));
}

guest!(
    print_4104_and_reset,
    "Prints eight bytes more than a page, which the transmit FIFO takes, then resets itself: by a triple fault, or by PSCI.",
    x86_64: [
        "mov edx, 0x3f8",
        "mov ecx, 4104",
        "2: out dx, al",
        "dec ecx",
        "jnz 2b",
        "push 0",
        "push 0",
        "lidt [rsp]",
        "ud2",
    ],
    aarch64: [
        "mov x1, #0x09000000",
        "mov w2, #4104",
        "2: strb w2, [x1]",
        "subs w2, w2, #1",
        "b.ne 2b",
        "mov w0, #0x84000000",
        "add w0, w0, #9",
        "hvc #0",
    ],
);

#[test]
fn a_signal_ends_a_monitor_that_waits_to_tell_of_a_fault() {
    let kernel = Kernel::new(print_4104_and_reset());
    let (_reader, theirs) = host::small_pipe();
    let mut live = blocked(&kernel, theirs, Stdio::null());
    live.send(libc::SIGTERM);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&live.wait()), Some(libc::SIGTERM));
}

#[test]
fn a_file_is_continued_where_its_offset_is() {
    let scratch = Scratch::new("stdio");
    let path = scratch.file("out");
    fs::write(&path, "0123456789").unwrap();
    let kernel = Kernel::new(hello());
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(4)).unwrap();
    let mut command = kernel.command();
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap());
    assert_eq!(Live::start(command).wait().code(), Some(0));
    assert_eq!(fs::read(&path).unwrap(), b"0123x56789");
    // Whoever shares the file goes on behind it, as in (monitor; echo) >file.
    assert_eq!(file.stream_position().unwrap(), 5);
    let run = shell(&format!("\"$0\" \"$@\" >>{0}; echo y >>{0}", path.display()), &kernel);
    assert_eq!(run.code(), 0);
    assert_eq!(fs::read(&path).unwrap(), b"0123x56789xy\n");
}

#[test]
fn a_log_keeps_its_ends_within_its_limit() {
    let scratch = Scratch::new("stdio");
    let path = scratch.file("out");
    fs::write(&path, bytes(8 << 20)).unwrap();
    let kernel = Kernel::new(print_forever());
    let mut command = kernel.command();
    let log = OpenOptions::new().append(true).open(&path).unwrap();
    command.args(["--log-limit", "1"]).stdin(Stdio::null()).stdout(log);
    let room = || fs::metadata(&path).unwrap().blocks() * 512;
    assert!(room() >= 8 << 20);
    let mut live = Live::start(command);
    wait_until("the log has a hole", || room() <= 4 << 20);
    live.send(libc::SIGKILL);
    live.wait();
    let log = fs::read(&path).unwrap();
    assert!(log[..1 << 20] == bytes(1 << 20), "the first MiB");
    assert!(log[1 << 20..6 << 20].iter().all(|byte| *byte == 0), "a hole");
    let written = &log[8 << 20..];
    assert!(written.iter().enumerate().all(|(at, byte)| *byte == at.to_le_bytes()[0]), "the last bytes");
}

#[test]
fn stdin_may_be_a_file() {
    let scratch = Scratch::new("stdio");
    fs::write(scratch.file("in"), bytes(10_000)).unwrap();
    let mut file = File::open(scratch.file("in")).unwrap();
    file.seek(SeekFrom::Start(1000)).unwrap();
    assert!(echoed(file) == bytes(10_000)[1000..]);
    assert_eq!(echoed(Stdio::null()), b"");
}

#[test]
fn stdin_may_be_a_pipe_that_is_written_late() {
    let (theirs, writer) = io::pipe().unwrap();
    let kernel = Kernel::new(echo());
    late(kernel.command(), theirs, writer, drop);
}

#[test]
fn stdin_may_be_a_socket_that_is_written_late() {
    let (theirs, writer) = UnixStream::pair().unwrap();
    // Closed for writing only: the socket as such may stay open.
    let kernel = Kernel::new(echo());
    late(kernel.command(), OwnedFd::from(theirs), writer, |writer| writer.shutdown(Shutdown::Write).unwrap());
}

#[test]
fn stdin_and_stdout_may_be_pipes_of_another_user() {
    // As in `sudo -u other vmm-min | less`: such a pipe cannot be opened again under /proc/self/fd.
    let help = Run::new("setpriv").arg("--help").outcome();
    if !help.is_ok_and(|help| help.printed().contains("--reuid")) || Run::new("id").arg("-u").finish().stdout != b"0\n"
    {
        println!("SKIP: needs root, to be somebody else with a KVM device, and setpriv of util-linux");
        return;
    }
    let script = "mount -t tmpfs -o mode=755 none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/kvm c 10 232
        cp \"$0\" /dev/vmm-min; exec setpriv --reuid 65534 --regid 65534 --clear-groups /dev/vmm-min \"$@\"";
    let kernel = Kernel::new(echo());
    let own = kernel.command();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-euc", script]).arg(own.get_program()).args(own.get_args());
    let (theirs, writer) = io::pipe().unwrap();
    late(command, theirs, writer, drop);
}

/// Types byte after byte into an echo guest, each when the one before has come back.
fn late<W: Write>(mut command: Command, stdin: impl Into<Stdio>, mut writer: W, close: impl Fn(W)) {
    let (mut stdout, theirs): (PipeReader, _) = io::pipe().unwrap();
    command.stdin(stdin).stdout(theirs);
    let mut live = Live::start(command);
    for byte in 0..100u8 {
        writer.write_all(&[byte]).unwrap();
        assert_eq!(read_bytes(&mut stdout, 1), [byte]);
    }
    close(writer);
    assert_eq!(live.wait().code(), Some(0));
    assert_eq!(read_bytes(&mut stdout, 1), b"");
}

#[test]
fn stdin_may_be_a_terminal_whose_user_ends_the_input() {
    let pty = Pty::open().unwrap();
    let before = pty.modes().unwrap();
    let kernel = Kernel::new(echo());
    let mut live = Live::on_terminal(kernel.command(), &pty, |command| {
        command.stdout(Stdio::piped());
    });
    (&pty.user).write_all(b"line\n\x04").unwrap();
    assert_eq!(read_bytes(live.child.stdout.as_mut().unwrap(), 6), b"line\n");
    assert_eq!(live.wait().code(), Some(0));
    // stdout is none, so this was no session: the terminal kept its mode.
    assert_eq!(pty.modes().unwrap(), before);
}

#[test]
fn stdout_may_be_a_socket_or_a_terminal() {
    let kernel = Kernel::new(print_64k());
    let expected: Vec<u8> = (0..65536u32).map(|n| (n ^ (n >> 8)).to_le_bytes()[0]).collect();
    let (mut reader, theirs) = UnixStream::pair().unwrap();
    let mut command = kernel.command();
    command.stdin(Stdio::null()).stdout(OwnedFd::from(theirs));
    let mut live = Live::start(command);
    assert!(read_bytes(&mut reader, 65537) == expected);
    assert_eq!(live.wait().code(), Some(0));

    let pty = Pty::open().unwrap();
    let kernel = Kernel::new(hello());
    let mut command = kernel.command();
    command.stdin(Stdio::null()).stdout(pty.terminal().unwrap());
    let mut live = Live::start(command);
    assert_eq!(live.wait().code(), Some(0));
    assert_eq!(read_bytes(&mut &pty.user, 1), b"x");
}

#[test]
fn stdout_may_be_the_users_end_of_a_terminal() {
    // Opened again by its path, it would be another terminal.
    let pty = Pty::open().unwrap();
    let mut programs = File::from(pty.terminal().unwrap());
    // A line feed ends a line of the terminal's input.
    let kernel = Kernel::of_code(&print_and_end(b'\n', 10));
    let mut command = kernel.command();
    command.stdin(Stdio::null()).stdout(pty.user.try_clone().unwrap());
    assert_eq!(Live::start(command).wait().code(), Some(10));
    assert_eq!(read_bytes(&mut programs, 1), b"\n");
}

/// Runs the echo guest on descriptors that the caller keeps; their flags must be as before, during and after it.
fn keeps_flags(stdin: OwnedFd, stdout: OwnedFd, type_in: impl FnOnce(), read_one: impl FnOnce()) {
    let kernel = Kernel::new(echo());
    let before = [host::flags(&stdin), host::flags(&stdout)];
    let mut command = kernel.command();
    command.stdin(stdin.try_clone().unwrap()).stdout(stdout.try_clone().unwrap());
    let mut live = Live::start(command);
    type_in();
    read_one();
    live.send(libc::SIGTERM);
    live.wait();
    assert_eq!([host::flags(&stdin), host::flags(&stdout)], before, "flags are {before:?}");
}

#[test]
fn the_callers_descriptors_keep_their_flags() {
    let (stdin, mut writer) = io::pipe().unwrap();
    let (mut reader, stdout) = io::pipe().unwrap();
    let type_in = || writer.write_all(b"a").unwrap();
    let read_one = || assert_eq!(read_bytes(&mut reader, 1), b"a");
    keeps_flags(stdin.into(), stdout.into(), type_in, read_one);

    let (stdin, mut writer) = UnixStream::pair().unwrap();
    let (mut reader, stdout) = UnixStream::pair().unwrap();
    let type_in = || writer.write_all(b"a").unwrap();
    let read_one = || assert_eq!(read_bytes(&mut reader, 1), b"a");
    keeps_flags(stdin.into(), stdout.into(), type_in, read_one);

    let pty = Pty::open().unwrap();
    let (mut reader, stdout) = io::pipe().unwrap();
    let type_in = || (&pty.user).write_all(b"a\n").unwrap();
    let read_one = || assert_eq!(read_bytes(&mut reader, 1), b"a");
    keeps_flags(pty.terminal().unwrap(), stdout.into(), type_in, read_one);
}

#[test]
fn input_waits_for_a_slow_guest_and_none_is_lost() {
    let kernel = Kernel::new(echo());
    // More than the pipe, the monitor and the UART hold together; each byte is six exits, of 100 µs and more in the arm64 lab.
    let input = bytes(12_500);
    let (stdin, mut writer) = host::small_pipe();
    let mut command = kernel.command();
    command.stdin(stdin).stdout(Stdio::piped());
    let mut live = Live::start(command);
    let to_write = input.clone();
    let writing = std::thread::spawn(move || writer.write_all(&to_write));
    let output = read_bytes(live.child.stdout.as_mut().unwrap(), 1 << 24);
    assert!(output == input, "{} of {} bytes", output.len(), input.len());
    writing.join().unwrap().unwrap();
    assert_eq!(live.wait().code(), Some(0));
}

guest!(
    asks_once,
    "Asks for input once, counts what comes until nothing has for 1,000 looks, and prints the count's low and high byte.",
    x86_64: [
        "mov edx, 0x3fc",
        "mov al, 0x07",
        "out dx, al",
        "xor ebx, ebx",
        "2: mov ecx, 1000",
        "3: mov edx, 0x3fd",
        "in al, dx",
        "test al, 0x01",
        "jnz 4f",
        "dec ecx",
        "jnz 3b",
        "mov edx, 0x3f8",
        "mov al, bl",
        "out dx, al",
        "mov al, bh",
        "out dx, al",
        "mov edx, 0x500",
        "xor eax, eax",
        "out dx, al",
        "4: mov edx, 0x3f8",
        "in al, dx",
        "inc ebx",
        "jmp 2b",
    ],
    aarch64: [
        "mov x1, #0x09000000",
        "mov w0, #0x07",
        "strb w0, [x1, #4]",
        "mov w3, #0",
        "2: mov w2, #1000",
        "3: ldrb w0, [x1, #5]",
        "tbnz w0, #0, 4f",
        "subs w2, w2, #1",
        "b.ne 3b",
        "strb w3, [x1]",
        "lsr w3, w3, #8",
        "strb w3, [x1]",
        "mov x1, #0x09010000",
        "strb wzr, [x1]",
        "4: ldrb w0, [x1]",
        "add w3, w3, #1",
        "b 2b",
    ],
);

#[test]
fn a_guest_gets_as_much_as_it_asked_for() {
    let kernel = Kernel::new(asks_once());
    let run = kernel.run().stdin(bytes(5000)).finish();
    assert_eq!((run.stdout, run.status.code()), (2048u16.to_le_bytes().to_vec(), Some(0)));
}

#[test]
fn a_guest_that_takes_no_input_leaves_it_to_others() {
    // (monitor; cat) <file: what the guest did not ask for is still there.
    let script = "printf 'for cat' | ( \"$0\" \"$@\"; cat )";
    let run = shell(script, &Kernel::new(hello()));
    assert_eq!(run.printed(), "xfor cat");
    let kernel = Kernel::new(print_and_spin());
    let (mut reader, writer) = io::pipe().unwrap();
    (&writer).write_all(b"kept").unwrap();
    drop(writer);
    let mut command = kernel.command();
    command.stdin(reader.try_clone().unwrap()).stdout(Stdio::piped());
    let mut live = Live::start(command);
    read_bytes(live.child.stdout.as_mut().unwrap(), 1);
    live.send(libc::SIGTERM);
    live.wait();
    let mut kept = String::new();
    reader.read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "kept");
}

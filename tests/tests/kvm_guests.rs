//! One guest for each behaviour of the machine, host half and guest half together.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use machinen_fixtures::guest;
use machinen_fixtures::guests::{
    RESET_ERROR, echo, hello, print_64k, print_and_end, print_and_halt, print_and_reset, print_and_spin,
};
use machinen_tests::host;
use machinen_tests::monitor::{Kernel, LIMIT, Live, read_bytes, runs_until_a_signal, vmm_min, wait_until};

/// Runs the guest with 64 MiB; returns what it printed.
fn printed_by(kernel: &Kernel) -> Vec<u8> {
    let run = kernel.run().limit(LIMIT).finish();
    assert_eq!((run.code(), run.stderr.escape_ascii().to_string()), (0, String::new()), "{}", run.printed());
    run.stdout
}

/// The same, as words of a test's failure.
#[track_caller]
fn assert_prints(kernel: &Kernel, expected: &[u8]) {
    let printed = printed_by(kernel);
    assert_eq!(printed.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

#[test]
fn hello_prints_and_ends() {
    assert_prints(&Kernel::new(hello()), b"x");
}

#[test]
fn echo_gives_back_every_byte_until_the_break() {
    let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let run = Kernel::new(echo()).run().stdin(bytes.clone()).finish();
    assert_eq!((run.code(), run.stdout), (0, bytes));
}

#[test]
fn the_exit_register_is_the_exit_code() {
    for code in [0u8, 1, 2, 41, 124, 125, 126, 127, 128, 137, 254, 255] {
        let run = Kernel::of_code(&print_and_end(code, code)).run().finish();
        assert_eq!((run.status.code(), run.stdout), (Some(code.into()), vec![code]));
    }
}

#[test]
fn a_halted_and_a_spinning_guest_run_until_a_signal() {
    runs_until_a_signal(print_and_halt());
    runs_until_a_signal(print_and_spin());
}

guest!(
    last_byte_and_beyond,
    "Of 64 MiB: writes and reads the last byte, and the first byte that is no RAM.",
    x86_64: [
        "mov ebx, 0x3ffffff",
        "mov byte ptr [rbx], 0x5a",
        "inc ebx",
        "mov byte ptr [rbx], 0x5b",
        "mov edx, 0x3f8",
        "mov al, [rbx - 1]",
        "out dx, al",
        "mov al, [rbx]",
        "out dx, al",
        // The next RAM would be at 64 MiB + 2 MiB if the slack of the mapping were visible.
        "mov eax, [rbx + 0x200000]",
        "out dx, al",
        "mov edx, 0x500",
        "xor eax, eax",
        "out dx, al",
    ],
    aarch64: [
        "mov x1, #0x43ff0000",
        "movk x1, #0xffff",
        "mov w0, #0x5a",
        "strb w0, [x1]",
        "add x2, x1, #1",
        "mov w0, #0x5b",
        "strb w0, [x2]",
        "mov x3, #0x09000000",
        "ldrb w0, [x1]",
        "strb w0, [x3]",
        "ldrb w0, [x2]",
        "strb w0, [x3]",
        // As above.
        "add x2, x2, #0x200, lsl #12",
        "ldr w0, [x2]",
        "strb w0, [x3]",
        "mov x1, #0x09010000",
        "strb wzr, [x1]",
    ],
);

#[test]
fn ram_ends_where_it_should_and_beyond_are_ones() {
    assert_prints(&Kernel::new(last_byte_and_beyond()), b"\x5a\xff\xff");
}

guest!(
    high_memory,
    "Writes and reads the first byte above 4 GiB and the last below 5 GiB.",
    x86_64: [
        // A page directory at 0x20000 for the fifth GiB; the root's first table is at 0xa000.
        "mov rax, 0x100000083",
        "mov [0x20000], rax",
        "mov rax, 0x13fe00083",
        "mov [0x20000 + 511 * 8], rax",
        "mov qword ptr [0xa000 + 4 * 8], 0x20003",
        "mov rax, cr3",
        "mov cr3, rax",
        "mov rbx, 0x100000000",
        "mov byte ptr [rbx], 'f'",
        "mov rcx, 0x13fffffff",
        "mov byte ptr [rcx], 'l'",
        "mov edx, 0x3f8",
        "mov al, [rbx]",
        "out dx, al",
        "mov al, [rcx]",
        "out dx, al",
        "mov edx, 0x500",
        "xor eax, eax",
        "out dx, al",
    ],
    aarch64: [
        // All of RAM is in one piece from 1 GiB on, and there is no MMU in the way.
        "mov x2, #0x100000000",
        "mov w0, #0x66",
        "strb w0, [x2]",
        "mov x3, #0x3fffffff",
        "movk x3, #1, lsl #32",
        "mov w0, #0x6c",
        "strb w0, [x3]",
        "mov x1, #0x09000000",
        "ldrb w0, [x2]",
        "strb w0, [x1]",
        "ldrb w0, [x3]",
        "strb w0, [x1]",
        "mov x1, #0x09010000",
        "strb wzr, [x1]",
    ],
);

#[test]
fn ram_goes_on_above_4_gib() {
    let kernel = Kernel::new(high_memory());
    let run = vmm_min().args(["-m", "4096", "--kernel"]).arg(kernel.path()).finish();
    assert_eq!((run.code(), run.printed()), (0, "fl".to_owned()));
}

guest!(
    unmapped,
    "Writes to and reads from an address (and a port) that nothing answers, in every width; prints how many reads were ones.",
    x86_64: [
        "mov edx, 0x600",
        "mov eax, 0x12345678",
        "out dx, al",
        "out dx, ax",
        "out dx, eax",
        "xor ebx, ebx",
        "xor eax, eax",
        "in al, dx",
        "cmp eax, 0xff",
        "jne 3f",
        "inc ebx",
        "xor eax, eax",
        "in ax, dx",
        "cmp eax, 0xffff",
        "jne 3f",
        "inc ebx",
        "xor eax, eax",
        "in eax, dx",
        "cmp eax, -1",
        "jne 3f",
        "inc ebx",
        // 512 MiB: mapped by the boot tables, no RAM.
        "mov edi, 0x20000000",
        "mov [rdi], al",
        "mov [rdi], ax",
        "mov [rdi], eax",
        "mov [rdi], rax",
        "xor eax, eax",
        "mov rax, [rdi]",
        "cmp rax, -1",
        "jne 3f",
        "inc ebx",
        "xor eax, eax",
        "mov ax, [rdi]",
        "cmp eax, 0xffff",
        "jne 3f",
        "inc ebx",
        "3: mov edx, 0x3f8",
        "lea eax, [rbx + '0']",
        "out dx, al",
        "mov edx, 0x500",
        "xor eax, eax",
        "out dx, al",
    ],
    aarch64: [
        "mov x1, #0x20000000",
        "mov w3, #0",
        "strb w0, [x1]",
        "strh w0, [x1]",
        "str w0, [x1]",
        "str x0, [x1]",
        "ldr x2, [x1]",
        "cmn x2, #1",
        "b.ne 3f",
        "add w3, w3, #1",
        "ldr w2, [x1]",
        "cmn w2, #1",
        "b.ne 3f",
        "add w3, w3, #1",
        "ldrh w2, [x1]",
        "mov w4, #0xffff",
        "cmp w2, w4",
        "b.ne 3f",
        "add w3, w3, #1",
        "ldrb w2, [x1]",
        "cmp w2, #0xff",
        "b.ne 3f",
        "add w3, w3, #1",
        // Right behind the UART's registers.
        "mov x1, #0x09000000",
        "ldrb w2, [x1, #8]",
        "cmp w2, #0xff",
        "b.ne 3f",
        "add w3, w3, #1",
        "3: add w0, w3, #0x30",
        "mov x1, #0x09000000",
        "strb w0, [x1]",
        "mov x1, #0x09010000",
        "strb wzr, [x1]",
    ],
);

#[test]
fn what_nothing_answers_ignores_writes_and_reads_as_ones() {
    assert_prints(&Kernel::new(unmapped()), b"5");
}

#[test]
fn a_reset_is_the_guests_error_after_its_output() {
    let run = Kernel::new(print_and_reset()).run().finish();
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!((run.code(), run.stdout.as_slice()), (125, &b"r"[..]), "{stderr}");
    // Where a triple fault happened is told by a KVM that still knows it.
    let words = match cfg!(target_arch = "x86_64") {
        true => [" by a triple fault at rip 0x10", " by a triple fault: kernel panic or restart"],
        false => [": kernel panic or restart"; 2],
    };
    let known = words.map(|words| format!("vmm-min: {RESET_ERROR}: the guest reset itself{words}"));
    assert!(known.iter().any(|known| stderr.starts_with(known)), "{stderr}");
}

guest!(
    power_off,
    "Prints `a`, then switches the machine off: by the sleep control register, or by PSCI. Ends with 3 when it goes on, and
     when the sleep status is not 0.",
    x86_64: [
        "mov edx, 0x502",
        "in al, dx",
        "test al, al",
        "jnz 3f",
        // Sleep type 5 without and then with the enable bit.
        "mov edx, 0x501",
        "mov al, 0x14",
        "out dx, al",
        "mov edx, 0x3f8",
        "mov al, 'a'",
        "out dx, al",
        "mov edx, 0x501",
        "mov al, 0x34",
        "out dx, al",
        "3: mov edx, 0x500",
        "mov al, 3",
        "out dx, al",
    ],
    aarch64: [
        "mov x1, #0x09000000",
        "mov w0, #0x61",
        "strb w0, [x1]",
        "mov w0, #0x84000000",
        "add w0, w0, #8",
        "hvc #0",
        "mov x1, #0x09010000",
        "mov w0, #3",
        "strb w0, [x1]",
    ],
);

#[test]
fn power_off_ends_with_0() {
    assert_prints(&Kernel::new(power_off()), b"a");
}

guest!(
    storm,
    "Writes 100,000 times to a port, or an address, that nothing answers.",
    x86_64: [
        "mov ecx, 100000",
        "mov edx, 0x80",
        "2: out dx, al",
        "dec ecx",
        "jnz 2b",
        "mov edx, 0x500",
        "xor eax, eax",
        "out dx, al",
    ],
    aarch64: [
        "mov x1, #0x20000000",
        "mov w2, #0x86a0",
        "movk w2, #1, lsl #16",
        "2: strb w0, [x1]",
        "subs w2, w2, #1",
        "b.ne 2b",
        "mov x1, #0x09010000",
        "strb wzr, [x1]",
    ],
);

#[test]
fn a_storm_of_writes_is_survived() {
    assert_prints(&Kernel::new(storm()), b"");
}

#[test]
fn a_flood_reaches_a_slow_reader_complete_and_in_order() {
    let kernel = Kernel::new(print_64k());
    let mut command = kernel.command();
    // A pair of sockets takes less than a pipe, and so fills up.
    let (mut reader, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    command.stdin(Stdio::null()).stdout(std::os::fd::OwnedFd::from(theirs));
    let mut live = Live::start(command);
    let mut bytes = Vec::new();
    for _ in 0..8 {
        let process = live.child.id();
        // Asleep: full, or just for a moment; both are well.
        wait_until("the guest is held or has ended", || host::is_asleep(process) || live.ends_within(Duration::ZERO));
        bytes.extend(read_bytes(&mut reader, 4096));
    }
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(live.wait().code(), Some(0));
    let expected: Vec<u8> = (0..65536u32).map(|n| (n ^ (n >> 8)).to_le_bytes()[0]).collect();
    assert!(bytes == expected, "{} bytes came", bytes.len());
}

guest!(
    wide_writes,
    "Sends a string, on x86_64 by rep outsb; then writes 2 and 4 bytes to the UART and shows the registers that they reach.",
    x86_64: [
        "lea rsi, [rip + 4f]",
        "mov ecx, 26",
        "mov edx, 0x3f8",
        "rep outsb",
        // Transmitter: `2`; interrupt enable register: 0x0f.
        "mov eax, 0x0f32",
        "out dx, ax",
        "inc edx",
        "in al, dx",
        "dec edx",
        "out dx, al",
        // Transmitter: `4`; interrupt enable: 5; FIFO control: 0; line control: 0x1b.
        "mov eax, 0x1b000534",
        "out dx, eax",
        "inc edx",
        "in al, dx",
        "dec edx",
        "out dx, al",
        "add edx, 3",
        "in al, dx",
        "sub edx, 3",
        "out dx, al",
        // Two registers in one read: interrupt enable above what was received (nothing).
        "in ax, dx",
        "mov al, ah",
        "out dx, al",
        "mov edx, 0x500",
        "xor eax, eax",
        "out dx, al",
        "4: .ascii \"abcdefghijklmnopqrstuvwxyz\"",
    ],
    aarch64: [
        // As above.
        "mov x1, #0x09000000",
        "adr x2, 4f",
        "mov w3, #26",
        "2: ldrb w0, [x2], #1",
        "strb w0, [x1]",
        "subs w3, w3, #1",
        "b.ne 2b",
        "mov w0, #0x0f32",
        "strh w0, [x1]",
        "ldrb w0, [x1, #1]",
        "strb w0, [x1]",
        "mov w0, #0x0534",
        "movk w0, #0x1b00, lsl #16",
        "str w0, [x1]",
        "ldrb w0, [x1, #1]",
        "strb w0, [x1]",
        "ldrb w0, [x1, #3]",
        "strb w0, [x1]",
        "ldrh w0, [x1]",
        "lsr w0, w0, #8",
        "strb w0, [x1]",
        "mov x1, #0x09010000",
        "strb wzr, [x1]",
        "4: .ascii \"abcdefghijklmnopqrstuvwxyz\"",
    ],
);

#[test]
fn a_string_goes_to_one_register_and_a_wide_write_to_several() {
    assert_prints(&Kernel::new(wide_writes()), b"abcdefghijklmnopqrstuvwxyz2\x0f4\x05\x1b\x05");
}

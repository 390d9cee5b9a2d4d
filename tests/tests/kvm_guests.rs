//! One guest for each behaviour of the machine, host half and guest half together.

// Its guests are of x86_64 instructions.
#![cfg(target_arch = "x86_64")]

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use machinen_fixtures::guests::{echo, hello, print_64k, print_and_halt, print_and_spin};
use machinen_fixtures::{LOAD_ADDRESS, elf, guest};
use machinen_tests::host;
use machinen_tests::monitor::{Kernel, LIMIT, Live, read_bytes, vmm_min, wait_until};

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
        // mov edx, 0x500; mov al, code; out dx, al
        let code_bytes = [0xba, 0x00, 0x05, 0x00, 0x00, 0xb0, code, 0xee];
        let kernel = Kernel::of_bytes(&elf(&code_bytes, LOAD_ADDRESS, 8));
        let run = kernel.run().finish();
        assert_eq!((run.status.code(), run.printed()), (Some(code.into()), String::new()));
    }
}

#[test]
fn a_halted_and_a_spinning_guest_run_until_a_signal() {
    for guest in [print_and_halt(), print_and_spin()] {
        let kernel = Kernel::new(guest);
        let mut command = kernel.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut live = Live::start(command);
        assert_eq!(read_bytes(live.child.stdout.as_mut().unwrap(), 1), b"r");
        // That it has not ended cannot be waited for.
        assert!(!live.ends_within(Duration::from_millis(100)));
        live.send(libc::SIGTERM);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&live.wait()), Some(libc::SIGTERM));
    }
}

guest!(
    last_byte_and_beyond,
    "Of 64 MiB: writes and reads the last byte, and the first byte that is no RAM.",
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
);

#[test]
fn ram_ends_where_it_should_and_beyond_are_ones() {
    assert_prints(&Kernel::new(last_byte_and_beyond()), b"\x5a\xff\xff");
}

guest!(
    high_memory,
    "Maps the second and third 2 MiB from 4 GiB and the last ones below 5 GiB, writes and reads there.",
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
);

#[test]
fn ram_goes_on_above_4_gib() {
    let kernel = Kernel::new(high_memory());
    let run = vmm_min().args(["-m", "4096", "--kernel"]).arg(kernel.path()).finish();
    assert_eq!((run.code(), run.printed()), (0, "fl".to_owned()));
}

guest!(
    unmapped,
    "Writes to and reads from a port and an address that nothing answers, in every width.",
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
);

#[test]
fn what_nothing_answers_ignores_writes_and_reads_as_ones() {
    assert_prints(&Kernel::new(unmapped()), b"5");
}

guest!(
    top_of_ports,
    "Accesses four bytes from port 0xfffe: the last two do not exist.",
    "mov edx, 0xfffe",
    "out dx, eax",
    "in eax, dx",
    "mov edx, 0x500",
    "xor eax, eax",
    "out dx, al",
);

#[test]
fn an_access_over_the_last_port_is_harmless() {
    assert_prints(&Kernel::new(top_of_ports()), b"");
}

guest!(
    triple_fault,
    "Prints `t`, then faults without an interrupt table.",
    "mov edx, 0x3f8",
    "mov al, 't'",
    "out dx, al",
    "sub rsp, 16",
    "mov qword ptr [rsp], 0",
    "mov qword ptr [rsp + 8], 0",
    "lidt [rsp]",
    "ud2",
);

#[test]
fn a_triple_fault_is_the_guests_error_after_its_output() {
    let run = Kernel::new(triple_fault()).run().finish();
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!((run.code(), run.stdout.as_slice()), (125, &b"t"[..]), "{stderr}");
    // Where it happened is told by a KVM that still knows it.
    let [known, unknown] = [" at rip 0x10", ": kernel panic or restart"]
        .map(|place| format!("vmm-min: GUEST_TRIPLE_FAULT: the guest reset itself by a triple fault{place}"));
    assert!(stderr.starts_with(&known) || stderr.starts_with(&unknown), "{stderr}");
}

guest!(pub reset, "Pulls the reset line.", "mov edx, 0x64", "mov al, 0xfe", "out dx, al", "2: jmp 2b");
guest!(
    pub other_keyboard_command,
    "Writes to the reset port what is not a reset, then ends with 3.",
    "mov edx, 0x64",
    "mov al, 0xff",
    "out dx, al",
    "mov edx, 0x500",
    "mov al, 3",
    "out dx, al",
);
guest!(
    pub power_off,
    "Reads the sleep status, writes sleep type 5 without and then with the enable bit; ends with 3 when the status is \
     not 0.",
    "mov edx, 0x502",
    "in al, dx",
    "test al, al",
    "jnz 3f",
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
);

#[test]
fn reset_line_and_power_off_end_with_0() {
    assert_prints(&Kernel::new(reset()), b"");
    assert_eq!(Kernel::new(other_keyboard_command()).run().finish().code(), 3);
    assert_prints(&Kernel::new(power_off()), b"a");
}

guest!(
    storm,
    "Writes 100,000 times to a port that nothing answers.",
    "mov ecx, 100000",
    "mov edx, 0x80",
    "2: out dx, al",
    "dec ecx",
    "jnz 2b",
    "mov edx, 0x500",
    "xor eax, eax",
    "out dx, al",
);

#[test]
fn a_storm_of_port_writes_is_survived() {
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
    "Sends a string by rep outsb; then writes 2 and 4 bytes to the UART and shows the registers that they reach.",
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
);

#[test]
fn a_string_goes_to_one_register_and_a_wide_write_to_several() {
    assert_prints(&Kernel::new(wide_writes()), b"abcdefghijklmnopqrstuvwxyz2\x0f4\x05\x1b\x05");
}

guest!(
    wide_strings,
    "Sends words and double words by rep outsw and rep outsd: each of them is split into registers by itself.",
    // Line control with the divisor latch: both bytes of a word then reach the latch, and none is sent.
    "mov edx, 0x3fb",
    "mov al, 0x83",
    "out dx, al",
    "lea rsi, [rip + 4f]",
    "mov ecx, 3",
    "mov edx, 0x3f8",
    "rep outsw",
    // The latch holds the last word.
    "in ax, dx",
    "mov ebx, eax",
    "mov edx, 0x3fb",
    "mov al, 0x03",
    "out dx, al",
    "mov edx, 0x3f8",
    "mov eax, ebx",
    "out dx, al",
    "mov al, ah",
    "out dx, al",
    "mov edx, 0x500",
    "xor eax, eax",
    "out dx, al",
    "4: .ascii \"abcdyz\"",
);

#[test]
fn each_word_of_a_string_is_split_by_itself() {
    // The high byte leaves by a write of one byte; the interrupt enable register keeps what it had.
    assert_prints(&Kernel::new(wide_strings()), b"yz");
}

guest!(
    show_boot_parameters,
    "Prints registers as bytes (stack pointer, flags, boot parameters' address), the zero page and the command line.",
    "mov rbx, rsi",
    "mov rax, rsp",
    "pushfq",
    "push rax",
    "push rsi",
    "mov rsi, rsp",
    "mov ecx, 24",
    "mov edx, 0x3f8",
    "rep outsb",
    "mov rsi, rbx",
    "mov ecx, 4096",
    "rep outsb",
    "mov esi, [rbx + 0x228]",
    "mov ecx, 2048",
    "rep outsb",
    "mov edx, 0x500",
    "xor eax, eax",
    "out dx, al",
);

#[test]
fn the_guest_starts_as_the_boot_protocol_says() {
    let kernel = Kernel::new(show_boot_parameters());
    let run = kernel.run().args(["--cmdline", "own=1 last"]).finish();
    assert_eq!((run.code(), run.stdout.len()), (0, 24 + 4096 + 2048), "{}", run.printed());
    let (registers, rest) = run.stdout.split_at(24);
    let (zero_page, cmdline) = rest.split_at(4096);
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(word(registers, 0), 0x7000, "boot parameters");
    assert_eq!(word(registers, 8), 0x8ff0, "stack");
    assert_eq!(word(registers, 16) & (1 << 9), 0, "interrupts are off");
    assert_eq!(&zero_page[0x202..0x206], b"HdrS");

    let cmdline = cmdline.split(|byte| *byte == 0).next().unwrap();
    let words: Vec<&str> = std::str::from_utf8(cmdline).unwrap().split(' ').collect();
    assert_eq!(words[..6], ["console=ttyS0", "quiet", "loglevel=1", "reboot=t", "panic=-1", "cryptomgr.notests"]);
    let (seconds, nanoseconds) = words[6].strip_prefix("machinen.epoch=").unwrap().split_once('.').unwrap();
    assert!(seconds.parse::<u64>().unwrap() > 1_700_000_000);
    assert_eq!((nanoseconds.len(), nanoseconds.parse::<u32>().is_ok()), (9, true));
    // Two devices are always there: free-page reporting and entropy.
    let devices = ["virtio_mmio.device=4096@0xd0000000:5", "virtio_mmio.device=4096@0xd0001000:6"];
    assert_eq!(words[7..], [&devices[..], &["own=1", "last"]].concat());

    let map: Vec<(u64, u64, u8)> = (0..usize::from(zero_page[0x1e8]))
        .map(|index| 0x2d0 + index * 20)
        .map(|at| (word(zero_page, at), word(zero_page, at + 8), zero_page[at + 16]))
        .collect();
    let high = 0x10_0000;
    assert_eq!(map, [(0, 0x9_fc00, 1), (0xe_0000, 0x2_0000, 2), (high, (64 << 20) - high, 1)]);
}

guest!(
    show_io_apic,
    "Maps the I/O APIC and prints its version register, then a redirection entry that it wrote.",
    // A page directory at 0x20000 for the fourth GiB.
    "mov eax, 0xfec00083",
    "mov [0x20000 + 502 * 8], rax",
    "mov qword ptr [0xa000 + 3 * 8], 0x20003",
    "mov rax, cr3",
    "mov cr3, rax",
    "mov ebx, 0xfec00000",
    "mov dword ptr [rbx], 1",
    "mov eax, [rbx + 0x10]",
    "call 2f",
    "mov dword ptr [rbx], 0x3e",
    "mov dword ptr [rbx + 0x10], 0x12345",
    "mov eax, [rbx + 0x10]",
    "call 2f",
    // Not 32 bits: reads as ones.
    "movzx eax, byte ptr [rbx + 0x10]",
    "call 2f",
    "mov edx, 0x500",
    "xor eax, eax",
    "out dx, al",
    "2: mov edx, 0x3f8",
    "mov ecx, 4",
    "3: out dx, al",
    "shr eax, 8",
    "dec ecx",
    "jnz 3b",
    "ret",
);

#[test]
fn the_io_apic_answers_in_words_of_32_bits() {
    let words = [0x0017_0011u32, 0x0001_2345 & !0x1000, 0xff];
    let expected: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_prints(&Kernel::new(show_io_apic()), &expected);
}

//! What the machine has on x86_64 only: ports and the lines behind them, string instructions, the boot parameters, the I/O APIC.

#![forbid(unsafe_code)]

use machinen_fixtures::{Guest, guest};
use machinen_tests::monitor::Kernel;
use machinen_tests::only_on;

macro_rules! on_x86_64 {
    () => {
        only_on!("x86_64", "ports, string instructions, the zero page and the I/O APIC are x86_64's; see kvm_aarch64");
    };
}

/// Runs the guest to its exit code 0.
#[track_caller]
fn assert_prints(guest: Guest, expected: &[u8]) {
    let run = Kernel::new(guest).run().finish();
    assert_eq!((run.code(), run.stderr.escape_ascii().to_string()), (0, String::new()), "{}", run.printed());
    assert_eq!(run.stdout.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

guest!(
    top_of_ports,
    "Accesses four bytes from port 0xfffe: the last two do not exist.",
    x86_64: [
        "mov edx, 0xfffe",
        "out dx, eax",
        "in eax, dx",
        "mov edx, 0x500",
        "xor eax, eax",
        "out dx, al",
    ],
);

#[test]
fn an_access_over_the_last_port_is_harmless() {
    on_x86_64!();
    assert_prints(top_of_ports(), b"");
}

guest!(
    reset,
    "Pulls the reset line.",
    x86_64: [
        "mov edx, 0x64",
        "mov al, 0xfe",
        "out dx, al",
        "2: jmp 2b",
    ],
);

guest!(
    other_keyboard_command,
    "Writes to the reset port what is not a reset, then ends with 3.",
    x86_64: [
        "mov edx, 0x64",
        "mov al, 0xff",
        "out dx, al",
        "mov edx, 0x500",
        "mov al, 3",
        "out dx, al",
    ],
);
#[test]
fn the_reset_line_ends_with_0() {
    on_x86_64!();
    assert_prints(reset(), b"");
    assert_eq!(Kernel::new(other_keyboard_command()).run().finish().code(), 3);
}

guest!(
    wide_strings,
    "Sends words and double words by rep outsw and rep outsd: each of them is split into registers by itself.",
    x86_64: [
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
    ],
);

#[test]
fn each_word_of_a_string_is_split_by_itself() {
    on_x86_64!();
    // The high byte leaves by a write of one byte; the interrupt enable register keeps what it had.
    assert_prints(wide_strings(), b"yz");
}

guest!(
    show_boot_parameters,
    "Prints registers as bytes (stack pointer, flags, boot parameters' address), the zero page and the command line.",
    x86_64: [
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
    ],
);

#[test]
fn the_guest_starts_as_the_boot_protocol_says() {
    on_x86_64!();
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
    x86_64: [
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
    ],
);

#[test]
fn the_io_apic_answers_in_words_of_32_bits() {
    on_x86_64!();
    let words = [0x0017_0011u32, 0x0001_2345 & !0x1000, 0xff];
    let expected: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_prints(show_io_apic(), &expected);
}

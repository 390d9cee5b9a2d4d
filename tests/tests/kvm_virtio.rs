//! virtio registers as a guest of a few instructions sees them, on the real bus.

#![forbid(unsafe_code)]

use machinen_fixtures::guest;
use machinen_tests::monitor::Kernel;

guest!(
    pub stops_a_device,
    "Finds the first virtio device, makes a queue of it ready that lies outside RAM, and hands over the device's status.",
    x86_64: [
        // The first GiB is mapped; the fourth, where the devices are, by a directory of two-MiB pages at 2 MiB.
        "mov edi, 0x200000",
        "mov eax, 0xc0000083",
        "mov ecx, 512",
        "2: mov [rdi], eax",
        "mov dword ptr [rdi + 4], 0",
        "add eax, 0x200000",
        "add rdi, 8",
        "dec ecx",
        "jnz 2b",
        "mov dword ptr [0xa018], 0x200003",
        "mov rax, cr3",
        "mov cr3, rax",
        "mov ebx, 0xd0000000",
        "mov eax, [rbx]",
        "cmp eax, 0x74726976",
        "jne 3f",
        "mov dword ptr [rbx + 0x70], 1",
        "mov dword ptr [rbx + 0x70], 3",
        "mov dword ptr [rbx + 0x84], 0x100",
        "mov dword ptr [rbx + 0x44], 1",
        "mov eax, [rbx + 0x70]",
        "jmp 4f",
        "3: mov eax, 99",
        "4: mov edx, 0x500",
        "out dx, al",
    ],
    aarch64: [
        "mov x1, #0x0a000000",
        "ldr w0, [x1]",
        "mov w2, #0x6976",
        "movk w2, #0x7472, lsl #16",
        "cmp w0, w2",
        "mov w0, #99",
        "b.ne 3f",
        "mov w2, #1",
        "mov w3, #3",
        "str w2, [x1, #0x70]",
        "str w3, [x1, #0x70]",
        "mov w0, #0x100",
        "str w0, [x1, #0x84]",
        "str w2, [x1, #0x44]",
        "ldr w0, [x1, #0x70]",
        "3: mov x1, #0x09010000",
        "strb w0, [x1]",
    ],
);

#[test]
fn a_device_that_the_guest_has_stopped_is_named_and_the_guest_lives() {
    let finished = Kernel::new(stops_a_device()).run().finish();
    assert_eq!(finished.code(), 64 + 3, "needs reset, driver, acknowledge: {}", finished.printed());
    let said = String::from_utf8_lossy(&finished.stderr).into_owned();
    let message = "vmm-min: GUEST_VIRTIO: virtio device 0 stopped until the guest resets it: queue outside RAM\n";
    assert!(said.starts_with(message) && said.lines().count() == 2, "{said}");
}

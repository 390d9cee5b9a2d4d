//! What the machine has on aarch64 only: PSCI, the GIC and its timer, the device tree; and what a fault there is.

#![forbid(unsafe_code)]

use machinen_fixtures::guest;
use machinen_tests::monitor::{Kernel, runs_until_a_signal};
use machinen_tests::only_on;

macro_rules! on_aarch64 {
    () => {
        only_on!("aarch64", "PSCI, the GIC and the device tree are aarch64's; see kvm_x86_64");
    };
}

guest!(
    psci,
    "Prints PSCI's version and the answer to CPU_ON for a processor that there is not, 4 bytes each.",
    aarch64: [
        "mov w0, #0x84000000",
        "hvc #0",
        // The call has cleared it.
        "mov x1, #0x09000000",
        "bl 2f",
        "mov x0, #0xc4000000",
        "add x0, x0, #3",
        "mov x1, #1",
        "mov x2, #0x40200000",
        "mov x3, #0",
        "hvc #0",
        "mov x1, #0x09000000",
        "bl 2f",
        "mov x1, #0x09010000",
        "strb wzr, [x1]",
        "2: mov w4, #4",
        "3: strb w0, [x1]",
        "lsr w0, w0, #8",
        "subs w4, w4, #1",
        "b.ne 3b",
        "ret",
    ],
);

#[test]
fn psci_has_version_1_and_one_processor() {
    on_aarch64!();
    let run = Kernel::new(psci()).run().finish();
    assert_eq!((run.code(), run.stdout.len()), (0, 8), "{}", run.printed());
    let (version, answer) = run.stdout.split_at(4);
    assert_eq!(version[2..], [1, 0], "its major version");
    // INVALID_PARAMETERS. Source: Arm DEN0022, 5.2.2.
    assert_eq!(answer, (-2i32).to_le_bytes());
}

guest!(
    takes_a_timer_interrupt,
    "Has the virtual timer fire and hands over the number of the interrupt that it then gets from a GICv3.",
    aarch64: [
        // The redistributor: awake; all of the processor's own interrupts in group 1, the timer's on.
        "mov x1, #0x080a0000",
        "str wzr, [x1, #0x14]",
        "add x1, x1, #0x10, lsl #12",
        "mov w0, #-1",
        "str w0, [x1, #0x80]",
        "mov w0, #0x08000000",
        "str w0, [x1, #0x100]",
        // The distributor: group 1, affinity routing.
        "mov x1, #0x08000000",
        "mov w0, #0x12",
        "str w0, [x1]",
        // ICC_PMR_EL1: any priority; ICC_IGRPEN1_EL1.
        "mov x0, #0xff",
        "msr S3_0_C4_C6_0, x0",
        "mov x0, #1",
        "msr S3_0_C12_C12_7, x0",
        "isb",
        "mov x0, #1000",
        "msr cntv_tval_el0, x0",
        "mov x0, #1",
        "msr cntv_ctl_el0, x0",
        "isb",
        // ICC_IAR1_EL1; 1023: nothing yet.
        "2: wfi",
        "mrs x0, S3_0_C12_C12_0",
        "cmp w0, #1023",
        "b.eq 2b",
        "mov x1, #0x09010000",
        "strb w0, [x1]",
    ],
);

#[test]
fn the_virtual_timer_interrupts() {
    on_aarch64!();
    let run = Kernel::new(takes_a_timer_interrupt()).run().finish();
    assert_eq!((run.code(), run.printed()), (27, String::new()));
}

guest!(
    takes_the_uarts_interrupt,
    "Lets the UART interrupt for its empty transmitter. Prints the interrupt's number, the number of the next one when the
     UART was not looked at, and the lower half of the interrupt identification, which ends it. Hands over 1 when there
     is another one then, 0 when there is none.",
    aarch64: [
        // As above; shared interrupt 0 is number 32. GICD_ICFGR2: a level, as the device tree says; KVM starts with edges.
        "mov x5, #0x08000000",
        "mov w0, #0x12",
        "str w0, [x5]",
        "mov w0, #1",
        "str wzr, [x5, #0xc08]",
        "str w0, [x5, #0x84]",
        "str w0, [x5, #0x104]",
        "mov x0, #0xff",
        "msr S3_0_C4_C6_0, x0",
        "mov x0, #1",
        "msr S3_0_C12_C12_7, x0",
        "isb",
        "mov x1, #0x09000000",
        "mov w0, #2",
        "strb w0, [x1, #1]",
        "bl 2f",
        "mov w6, w0",
        // ICC_EOIR1_EL1.
        "msr S3_0_C12_C12_1, x0",
        "isb",
        "bl 2f",
        "mov w7, w0",
        "ldrb w8, [x1, #2]",
        "and w8, w8, #0xf",
        "msr S3_0_C12_C12_1, x0",
        "isb",
        "mrs x9, S3_0_C12_C12_0",
        "strb wzr, [x1, #1]",
        "strb w6, [x1]",
        "strb w7, [x1]",
        "strb w8, [x1]",
        "cmp w9, #1023",
        "cset w0, ne",
        "mov x1, #0x09010000",
        "strb w0, [x1]",
        "2: wfi",
        "mrs x0, S3_0_C12_C12_0",
        "cmp w0, #1023",
        "b.eq 2b",
        "ret",
    ],
);

#[test]
fn a_devices_interrupt_is_a_level() {
    on_aarch64!();
    let run = Kernel::new(takes_the_uarts_interrupt()).run().finish();
    assert_eq!((run.code(), run.stdout), (0, vec![32, 32, 2]));
}

guest!(
    show_start,
    "Prints x0 to x3, the exception level, the interrupt masks and SCTLR_EL1, 8 bytes each, then the device tree.",
    aarch64: [
        "mrs x4, CurrentEL",
        "mrs x5, DAIF",
        "mrs x6, SCTLR_EL1",
        "mov x10, #0x09000000",
        "mov x8, x0",
        "bl 2f",
        "mov x8, x1",
        "bl 2f",
        "mov x8, x2",
        "bl 2f",
        "mov x8, x3",
        "bl 2f",
        "mov x8, x4",
        "bl 2f",
        "mov x8, x5",
        "bl 2f",
        "mov x8, x6",
        "bl 2f",
        "ldr w9, [x0, #4]",
        "rev w9, w9",
        "3: ldrb w8, [x0], #1",
        "strb w8, [x10]",
        "subs w9, w9, #1",
        "b.ne 3b",
        "mov x1, #0x09010000",
        "strb wzr, [x1]",
        "2: mov w9, #8",
        "4: strb w8, [x10]",
        "lsr x8, x8, #8",
        "subs w9, w9, #1",
        "b.ne 4b",
        "ret",
    ],
);

#[test]
fn the_guest_starts_as_the_boot_protocol_says() {
    on_aarch64!();
    let run = Kernel::new(show_start()).run().finish();
    assert_eq!((run.code(), run.stdout.len() > 56), (0, true), "{}", run.printed());
    let words: Vec<u64> =
        run.stdout[..56].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words[..4], [0x4000_0000, 0, 0, 0], "the device tree's address, and nothing else");
    assert_eq!(words[4..6], [1 << 2, 0xf << 6], "EL1, and all interrupts masked");
    // M, C: the MMU and the data cache.
    assert_eq!(words[6] & 0b101, 0, "{:#x}", words[6]);
}

/// The device tree is read with the monitor's own reader, which is there on this architecture only.
#[cfg(target_arch = "aarch64")]
mod tree {
    use super::*;
    use machinen_tests::monitor::{Scratch, assert_refused};
    use vmm_min::arch::aarch64::node::{Node, Tree};

    fn shown(args: &[&str]) -> Tree {
        let run = Kernel::new(show_start()).run().args(args).finish();
        assert_eq!(run.code(), 0, "{}", run.printed());
        Tree::parse(&run.stdout[56..]).unwrap()
    }

    fn child<'a>(node: &'a Node, name: &str) -> &'a Node {
        node.children.iter().find(|child| child.name == name).unwrap_or_else(|| panic!("{name}: {node:?}"))
    }

    pub fn says_what_there_is() {
        let tree = shown(&["--cmdline", "own=1 last"]);
        let chosen = child(&tree.root, "chosen");
        let cmdline = std::str::from_utf8(chosen.get("bootargs").unwrap()).unwrap().strip_suffix('\0').unwrap();
        let words: Vec<&str> = cmdline.split(' ').collect();
        assert_eq!(words[..5], ["console=ttyS0", "quiet", "loglevel=1", "panic=-1", "cryptomgr.notests"]);
        let (seconds, nanoseconds) = words[5].strip_prefix("machinen.epoch=").unwrap().split_once('.').unwrap();
        assert!(seconds.parse::<u64>().unwrap() > 1_700_000_000);
        assert_eq!((nanoseconds.len(), nanoseconds.parse::<u32>().is_ok()), (9, true));
        assert_eq!(words[6..], ["own=1", "last"]);
        let ram = [0x4000_0000u64, 64 << 20].map(u64::to_be_bytes).concat();
        assert_eq!(child(&tree.root, "memory@40000000").get("reg"), Some(&ram[..]));
        // Two devices are always there: free-page reporting and entropy.
        let count = tree.root.children.iter().filter(|node| node.name.starts_with("virtio_mmio@")).count();
        assert_eq!(count, 2);
        let again = shown(&[]);
        assert_ne!(child(&again.root, "chosen").get("rng-seed"), chosen.get("rng-seed"), "a seed is used once");
    }

    pub fn may_be_the_users() {
        let mut tree = shown(&[]);
        tree.root.children.push(Node::new("mine").strings("compatible", &["my,device"]));
        let scratch = Scratch::new("dtb");
        let path = scratch.file("tree");
        std::fs::write(&path, tree.to_bytes().unwrap()).unwrap();
        let path = path.to_str().unwrap();
        let shown = shown(&["--dtb", path, "--cmdline", "own"]);
        assert_eq!(child(&shown.root, "mine").get("compatible"), Some(&b"my,device\0"[..]));
        assert!(child(&shown.root, "chosen").get("bootargs").unwrap().ends_with(b" own\0"));
        std::fs::write(path, "no tree").unwrap();
        assert_refused(&Kernel::new(show_start()).run().args(["--dtb", path]).finish(), "DTB_MALFORMED");
    }
}

#[test]
fn the_device_tree_says_what_there_is() {
    on_aarch64!();
    #[cfg(target_arch = "aarch64")]
    tree::says_what_there_is();
}

#[test]
fn the_device_tree_may_be_the_users() {
    on_aarch64!();
    #[cfg(target_arch = "aarch64")]
    tree::may_be_the_users();
}

guest!(
    faults_without_vectors,
    "Prints `r`, then runs what is no instruction; the exception is taken to where there is no RAM, as is what follows.",
    aarch64: [
        "mov x1, #0x09000000",
        "mov w0, #0x72",
        "strb w0, [x1]",
        ".inst 0",
    ],
);

#[test]
fn a_fault_without_vectors_goes_on_forever_and_takes_a_signal() {
    on_aarch64!();
    // x86_64 has a triple fault for that.
    runs_until_a_signal(faults_without_vectors());
}

guest!(
    stores_a_pair,
    "Prints `r`, then stores two registers to the UART by one instruction, which the processor does not describe.",
    aarch64: [
        "mov x1, #0x09000000",
        "mov w0, #0x72",
        "strb w0, [x1]",
        "stp w0, w0, [x1]",
    ],
);

#[test]
fn an_access_that_the_processor_does_not_describe_is_the_guests_error() {
    on_aarch64!();
    let run = Kernel::new(stores_a_pair()).run().finish();
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!((run.code(), run.stdout.as_slice()), (125, &b"r"[..]), "{stderr}");
    let expected =
        "vmm-min: GUEST_NOT_EMULATED: KVM could not emulate an instruction of the guest at pc 0x4020000c\n  hint: ";
    assert!(stderr.starts_with(expected) && stderr.lines().count() == 2, "{stderr}");
}

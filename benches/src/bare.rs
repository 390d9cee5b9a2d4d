//! machinen-bare: the KVM calls that a machine cannot do without, in the best order, and nothing else.
//!
//! The yardstick for `start.*`: no files, no arguments checked, no console but one byte. Prints that byte on stdout
//! when the guest does, and on stderr the microseconds from the open of /dev/kvm to the guest's first exit, then
//! those of each step. `machinen-bare MIB [irqchip]`: the second word puts KVM_CREATE_IRQCHIP where the split
//! interrupt controller is.

use std::io::Write;
use std::time::Instant;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_enable_cap, kvm_msr_entry, kvm_regs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit};
use machinen_fixtures::{LOAD_ADDRESS, guests};

const PAGE_TABLES: usize = 0x9000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mib: usize = arguments.next().and_then(|mib| mib.parse().ok()).expect("usage: machinen-bare MIB [irqchip]");
    let in_kernel = arguments.next().as_deref() == Some("irqchip");
    let begin = Instant::now();
    let mut steps = Vec::with_capacity(16);
    let mut last = begin;
    let mut step = |name: &'static str| {
        let now = Instant::now();
        steps.push((name, now - last));
        last = now;
    };

    let kvm = Kvm::new().expect("open /dev/kvm");
    step("open");
    let vm = kvm.create_vm().expect("KVM_CREATE_VM");
    step("create_vm");
    let bytes = mib << 20;
    // SAFETY: an anonymous mapping at an address of the kernel's choice replaces nothing.
    let ram = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(ram, libc::MAP_FAILED, "mmap");
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: bytes as u64,
        userspace_addr: ram.addr() as u64,
    };
    // SAFETY: the mapping lives as long as the process.
    unsafe { vm.set_user_memory_region(slot) }.expect("KVM_SET_USER_MEMORY_REGION");
    step("slot");
    if in_kernel {
        vm.create_irq_chip().expect("KVM_CREATE_IRQCHIP");
    } else {
        let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [24, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&split).expect("KVM_CAP_SPLIT_IRQCHIP");
    }
    step("irqchip");
    let mut vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
    step("create_vcpu");
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("KVM_GET_SUPPORTED_CPUID");
    step("get_supported_cpuid");
    vcpu.set_cpuid2(&cpuid).expect("KVM_SET_CPUID2");
    step("set_cpuid2");
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry(0x1a0, 1), entry(0x2ff, 0x806)]).expect("two entries");
    vcpu.set_msrs(&msrs).expect("KVM_SET_MSRS");
    step("set_msrs");

    let put = |at: usize, bytes: &[u8]| {
        // SAFETY: all that is put lies in the first MiB and a page of RAM, which is at least 2 MiB.
        unsafe { ram.cast::<u8>().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    };
    put(usize::try_from(LOAD_ADDRESS).expect("1 MiB"), guests::hello().code);
    put(PAGE_TABLES, &(PAGE_TABLES as u64 + 0x1003).to_le_bytes());
    put(PAGE_TABLES + 0x1000, &(PAGE_TABLES as u64 + 0x2003).to_le_bytes());
    put(PAGE_TABLES + 0x2000, &0x83u64.to_le_bytes());
    let mut sregs = vcpu.get_sregs().expect("KVM_GET_SREGS");
    (sregs.cs.selector, sregs.cs.limit, sregs.cs.l, sregs.cs.db, sregs.cs.g) = (0x10, 0xffff_ffff, 1, 0, 1);
    sregs.cs.base = 0;
    sregs.cr3 = PAGE_TABLES as u64;
    sregs.cr4 |= 1 << 5;
    sregs.cr0 |= (1 << 31) | 1;
    sregs.efer |= (1 << 8) | (1 << 10);
    vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");
    vcpu.set_regs(&kvm_regs { rip: LOAD_ADDRESS, rsp: 0x8ff0, rflags: 2, ..Default::default() }).expect("KVM_SET_REGS");
    step("registers");
    let byte = match vcpu.run().expect("KVM_RUN") {
        VcpuExit::IoOut(0x3f8, data) => data[0],
        other => panic!("unexpected exit {other:?}"),
    };
    step("run");
    let total = begin.elapsed();
    let mut stdout = std::io::stdout();
    stdout.write_all(&[byte]).and_then(|()| stdout.flush()).expect("stdout");
    let steps: Vec<String> = steps.iter().map(|(name, time)| format!("{name} {}", time.as_micros())).collect();
    eprintln!("{} {}", total.as_micros(), steps.join(" "));
}

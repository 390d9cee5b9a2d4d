//! Split interrupt controller, CPUID, MSRs, page tables and 64-bit mode.

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_enable_cap, kvm_msr_entry, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use machinen_fixtures::LOAD_ADDRESS;

use crate::{Ram, Steps};

/// Where RAM begins.
pub const RAM_START: u64 = 0;
const PAGE_TABLES: u64 = 0x9000;

/// The vCPU, and nothing else that has to stay.
pub fn platform(kvm: &Kvm, vm: &VmFd, in_kernel: bool, steps: &mut Steps) -> (VcpuFd, ()) {
    if in_kernel {
        vm.create_irq_chip().expect("KVM_CREATE_IRQCHIP");
    } else {
        let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [24, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&split).expect("KVM_CAP_SPLIT_IRQCHIP");
    }
    steps.end("irqchip");
    let vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
    steps.end("create_vcpu");
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("KVM_GET_SUPPORTED_CPUID");
    steps.end("get_supported_cpuid");
    vcpu.set_cpuid2(&cpuid).expect("KVM_SET_CPUID2");
    steps.end("set_cpuid2");
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry(0x1a0, 1), entry(0x2ff, 0x806)]).expect("two entries");
    vcpu.set_msrs(&msrs).expect("KVM_SET_MSRS");
    steps.end("set_msrs");
    (vcpu, ())
}

/// Page tables for the first 2 MiB, and the registers.
pub fn start(vcpu: &VcpuFd, ram: &Ram) {
    ram.put(PAGE_TABLES, &(PAGE_TABLES + 0x1003).to_le_bytes());
    ram.put(PAGE_TABLES + 0x1000, &(PAGE_TABLES + 0x2003).to_le_bytes());
    ram.put(PAGE_TABLES + 0x2000, &0x83u64.to_le_bytes());
    let mut sregs = vcpu.get_sregs().expect("KVM_GET_SREGS");
    (sregs.cs.selector, sregs.cs.limit, sregs.cs.l, sregs.cs.db, sregs.cs.g) = (0x10, 0xffff_ffff, 1, 0, 1);
    sregs.cs.base = 0;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 |= 1 << 5;
    sregs.cr0 |= (1 << 31) | 1;
    sregs.efer |= (1 << 8) | (1 << 10);
    vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");
    vcpu.set_regs(&kvm_regs { rip: LOAD_ADDRESS, rsp: 0x8ff0, rflags: 2, ..Default::default() }).expect("KVM_SET_REGS");
}

/// The byte that the guest printed.
pub fn printed(exit: &VcpuExit<'_>) -> u8 {
    match exit {
        VcpuExit::IoOut(0x3f8, data) => data[0],
        other => panic!("unexpected exit {other:?}"),
    }
}

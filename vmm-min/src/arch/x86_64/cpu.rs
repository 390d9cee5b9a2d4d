//! The vCPU: what it says it is, and the state in which it starts.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vm_memory::GuestAddress;

use super::tables;
use crate::error::{Error, Result};

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE_WRITE_BACK: u64 = (1 << 11) | 6;

/// Width of a guest-physical address.
pub fn physical_address_bits() -> u32 {
    let highest = std::arch::x86_64::__cpuid(0x8000_0000).eax;
    if highest < 0x8000_0008 { 36 } else { std::arch::x86_64::__cpuid(0x8000_0008).eax & 0xff }
}

/// The host's CPUID with KVM's own leaves, as one processor with one thread.
pub fn set_cpuid(kvm: &Kvm, vcpu: &VcpuFd) -> Result<()> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    describe_one_thread(&mut cpuid, kvm.check_extension(Cap::TscDeadlineTimer));
    vcpu.set_cpuid2(&cpuid).map_err(Error::kvm("KVM_SET_CPUID2"))
}

/// Source: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.
fn describe_one_thread(cpuid: &mut CpuId, tsc_deadline: bool) {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                // Initial APIC id 0, one logical processor.
                entry.ebx = (entry.ebx & 0x0000_ffff) | (1 << 16);
                entry.ecx |= 1 << 31;
                entry.ecx = (entry.ecx & !(1 << 24)) | (u32::from(tsc_deadline) << 24);
                entry.edx &= !(1 << 28);
            }
            // Cache topology: each cache serves one thread of one core.
            0x4 | 0x8000_001d => entry.eax &= 0x3fff,
            // x2APIC topology: no level exists.
            0xb | 0x1f => {
                entry.eax = 0;
                entry.ebx = 0;
                entry.edx = 0;
            }
            0x8000_0008 => entry.ecx = 0,
            0x8000_001e => {
                entry.eax = 0;
                entry.ebx &= !0xffff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
}

/// Model-specific registers that firmware would have set.
pub fn set_msrs(vcpu: &VcpuFd) -> Result<()> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
    ])
    .expect("two entries fit");
    vcpu.set_msrs(&msrs).map(drop).map_err(Error::kvm("KVM_SET_MSRS"))
}

/// 64-bit mode, paging on, at `entry`, as the Linux boot protocol asks (Documentation/arch/x86/boot.rst, "64-bit
/// boot protocol"): rsi points to the boot parameters, interrupts are off.
pub fn set_registers(vcpu: &VcpuFd, entry: GuestAddress) -> Result<()> {
    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
    let code = segment(tables::CODE_SELECTOR, true);
    let data = segment(tables::DATA_SELECTOR, false);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = tables::GDT;
    sregs.gdt.limit = tables::GDT_LIMIT;
    sregs.cr3 = tables::PAGE_TABLES;
    sregs.cr4 |= 1 << 5; // PAE
    sregs.cr0 |= (1 << 31) | 1; // PG, PE
    sregs.efer |= (1 << 8) | (1 << 10); // LME, LMA
    vcpu.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: entry.0,
        rsi: tables::ZERO_PAGE,
        rsp: tables::STACK,
        rbp: tables::STACK,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))
}

/// A flat segment that agrees with its descriptor in the GDT.
fn segment(selector: u16, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: if code { 11 } else { 3 },
        present: 1,
        dpl: 0,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn the_guest_sees_one_thread_whatever_the_host_has() {
        let leaf = |function| kvm_cpuid_entry2 {
            function,
            eax: 0xffff_ffff,
            ebx: 0xffff_ffff,
            ecx: 0xffff_ffff,
            edx: 0xffff_ffff,
            ..Default::default()
        };
        let mut cpuid = CpuId::from_entries(&[leaf(1), leaf(4), leaf(0xb), leaf(0x8000_0008)]).expect("four");
        describe_one_thread(&mut cpuid, false);
        let leaves = cpuid.as_slice();
        assert_eq!(leaves[0].ebx >> 16, 1, "APIC id 0, one logical processor");
        assert_eq!(leaves[0].ecx >> 31, 1, "hypervisor present");
        assert_eq!(leaves[0].ecx & (1 << 24), 0, "no deadline timer without KVM's");
        assert_eq!(leaves[0].edx & (1 << 28), 0, "no hyper-threading");
        assert_eq!(leaves[1].eax >> 14, 0);
        assert_eq!(leaves[2].ebx, 0);
        assert_eq!(leaves[3].ecx, 0);
    }
}

//! The state in which the vCPU starts.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
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

//! What differs between processors: how the monitor learns the exit code.

/// Hands `code` to the monitor, which then ends the VM at once. Returns where there is no such register.
#[cfg(target_arch = "x86_64")]
pub fn exit_register(code: u8) {
    const PORT: u16 = 0x500;
    // SAFETY: ioperm only asks for the port; the write happens when it was granted, and the port belongs to the
    // monitor (docs/rootfs-contract.md). On other machines nothing answers there.
    unsafe {
        if libc::ioperm(PORT.into(), 1, 1) == 0 {
            core::arch::asm!("out dx, al", in("dx") PORT, in("al") code, options(nomem, nostack, preserves_flags));
        }
    }
}

/// Hands `code` to the monitor, which then ends the VM at once. Returns where the register cannot be reached.
#[cfg(target_arch = "aarch64")]
pub fn exit_register(code: u8) {
    /// In a block of 64 KiB of its own, so that it begins a page whatever the kernel's pages are.
    const ADDRESS: libc::off_t = 0x0901_0000;
    // SAFETY: the mapping is new and of at least one byte. The write happens when there is one, and the address belongs
    // to the monitor (docs/rootfs-contract.md); this program runs as PID 1 of its guests only. The store is one that the
    // processor describes to the monitor: a byte, from a register, without changing the base.
    unsafe {
        let memory = libc::open(c"/dev/mem".as_ptr(), libc::O_RDWR | libc::O_SYNC | libc::O_CLOEXEC);
        if memory < 0 {
            return;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let page = libc::mmap(core::ptr::null_mut(), 1, protection, libc::MAP_SHARED, memory, ADDRESS);
        if page != libc::MAP_FAILED {
            core::arch::asm!("strb {code:w}, [{page}]", code = in(reg) u32::from(code), page = in(reg) page,
                options(nostack, preserves_flags));
        }
    }
}

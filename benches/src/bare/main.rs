//! machinen-bare: the KVM calls that a machine cannot do without, in the best order, and nothing else.
//!
//! The yardstick for `start.*`: no files, no arguments checked, no console but one byte. Prints that byte on stdout
//! when the guest does, and on stderr the microseconds from the open of /dev/kvm to the guest's first exit, then
//! those of each step. `machinen-bare MIB [irqchip]`: on x86_64 the second word puts KVM_CREATE_IRQCHIP where the split
//! interrupt controller is.

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod arch;

use std::io::Write;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use machinen_fixtures::{LOAD_ADDRESS, guests};

/// The time of each step.
pub struct Steps {
    times: Vec<(&'static str, Duration)>,
    last: Instant,
}

impl Steps {
    /// What is called `name` is done now.
    pub fn end(&mut self, name: &'static str) {
        let now = Instant::now();
        self.times.push((name, now - self.last));
        self.last = now;
    }
}

/// The guest's RAM, as long as the process.
pub struct Ram {
    start: *mut u8,
    bytes: usize,
}

impl Ram {
    fn new(vm: &VmFd, bytes: usize) -> Ram {
        // SAFETY: an anonymous mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED, "mmap");
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: arch::RAM_START,
            memory_size: bytes as u64,
            userspace_addr: start.addr() as u64,
        };
        // SAFETY: the mapping lives as long as the process.
        unsafe { vm.set_user_memory_region(slot) }.expect("KVM_SET_USER_MEMORY_REGION");
        Ram { start: start.cast(), bytes }
    }

    /// Puts bytes at a guest's address.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        let at = usize::try_from(address - arch::RAM_START).expect("an address in RAM");
        assert!(at + bytes.len() <= self.bytes, "RAM has at least 4 MiB");
        // SAFETY: just checked to lie in the mapping, and the guest does not run.
        unsafe { self.start.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mib: usize = arguments.next().and_then(|mib| mib.parse().ok()).expect("usage: machinen-bare MIB [irqchip]");
    let in_kernel = arguments.next().as_deref() == Some("irqchip");
    let begin = Instant::now();
    let mut steps = Steps { times: Vec::with_capacity(16), last: begin };

    let kvm = Kvm::new().expect("open /dev/kvm");
    steps.end("open");
    let vm = kvm.create_vm().expect("KVM_CREATE_VM");
    steps.end("create_vm");
    let ram = Ram::new(&vm, mib << 20);
    steps.end("slot");
    let (mut vcpu, _controller) = arch::platform(&kvm, &vm, in_kernel, &mut steps);
    ram.put(LOAD_ADDRESS, guests::hello().code);
    arch::start(&vcpu, &ram);
    steps.end("registers");
    let byte = arch::printed(&vcpu.run().expect("KVM_RUN"));
    steps.end("run");
    let total = begin.elapsed();
    let mut stdout = std::io::stdout();
    stdout.write_all(&[byte]).and_then(|()| stdout.flush()).expect("stdout");
    let steps: Vec<String> = steps.times.iter().map(|(name, time)| format!("{name} {}", time.as_micros())).collect();
    eprintln!("{} {}", total.as_micros(), steps.join(" "));
}

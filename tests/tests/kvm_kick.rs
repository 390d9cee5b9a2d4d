//! What the monitor's signals rely on: KVM, signal masks and O_ASYNC, asked of the host's kernel itself.
//!
//! Tests of a thread's signals send them to the thread, so that tests may run beside each other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use machinen_fixtures::guests::{echo, hello, print_and_halt, print_and_spin};
use machinen_fixtures::{Guest, LOAD_ADDRESS};
use machinen_tests::host;
use machinen_tests::monitor::{Kernel, Live, read_bytes};
use machinen_tests::pty::Pty;
use vm_memory::GuestAddress;
use vmm_min::arch::{self, Boot, Platform, Register, Registers, Step};
use vmm_min::kick::{Kick, Signal};
use vmm_min::ram::{Ram, Range};
use vmm_min::sys;

/// A machine of the monitor's parts, in this thread.
struct Machine {
    vm: VmFd,
    platform: Platform,
    kick: Kick,
    _ram: Ram,
}

impl Machine {
    fn new(guest: Guest) -> Machine {
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        let ram = Ram::new(&arch::ranges(4 << 20)).unwrap();
        ram.register(&vm).unwrap();
        assert!(ram.write(GuestAddress(LOAD_ADDRESS), guest.code));
        let kick = Kick::new().unwrap();
        let mut platform = Platform::new(&kvm, &vm, &kick).unwrap();
        let (entry, cmdline) = (GuestAddress(LOAD_ADDRESS), String::new());
        let boot = Boot { entry, initrd: None, cmdline, devices: 0, dtb: None };
        platform.prepare(&ram, &boot).unwrap();
        Machine { vm, platform, kick, _ram: ram }
    }

    fn run(&mut self, seen: &mut Seen) -> Step {
        self.platform.run(&self.vm, seen).unwrap()
    }
}

/// What a guest wrote.
#[derive(Default)]
struct Seen(Vec<(Register, u8)>);

impl Registers for Seen {
    fn read(&mut self, _: Register) -> u8 {
        0
    }

    fn write(&mut self, register: Register, value: u8) -> vmm_min::error::Result<Step> {
        self.0.push((register, value));
        Ok(Step::Continue)
    }

    fn read_memory(&mut self, _address: u64, _bytes: &mut [u8]) {}

    fn write_memory(&mut self, _address: u64, _bytes: &[u8]) {}
}

/// Sends a signal to the thread that calls.
fn signal_self(signal: libc::c_int) {
    // SAFETY: both calls take integers.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal) };
    assert_eq!(result, 0, "tgkill: {}", io::Error::last_os_error());
}

#[test]
fn a_signal_ends_a_halted_and_a_spinning_guest_in_every_round() {
    for guest in [print_and_halt(), print_and_spin()] {
        let kernel = Kernel::new(guest);
        for round in 0..100 {
            let mut command = kernel.command();
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            let mut live = Live::start(command);
            assert_eq!(read_bytes(live.child.stdout.as_mut().unwrap(), 1), b"r");
            live.send(libc::SIGTERM);
            assert_eq!(live.wait().signal(), Some(libc::SIGTERM), "round {round}");
        }
    }
}

#[test]
fn what_is_typed_while_the_guest_runs_reaches_it_in_every_round() {
    let kernel = Kernel::new(echo());
    let mut command = kernel.command();
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut live = Live::start(command);
    let mut stdin = live.child.stdin.take().unwrap();
    for round in 0..200u8 {
        io::Write::write_all(&mut stdin, &[round]).unwrap();
        assert_eq!(read_bytes(live.child.stdout.as_mut().unwrap(), 1), [round]);
    }
}

#[test]
fn a_pending_signal_interrupts_every_run_until_it_is_drained() {
    let mut machine = Machine::new(hello());
    let mut seen = Seen::default();
    for signal in [libc::SIGTERM, libc::SIGIO, libc::SIGINT] {
        signal_self(signal);
        for _ in 0..3 {
            assert_eq!(machine.run(&mut seen), Step::Kicked);
        }
        let expected = (signal != libc::SIGIO).then_some(Signal(signal));
        assert_eq!(machine.kick.drain().unwrap().end, expected);
        assert_eq!(machine.kick.drain().unwrap().end, None);
    }
    assert_eq!(seen.0, [], "no instruction ran");
    assert_eq!(machine.run(&mut seen), Step::Continue);
    assert_eq!(seen.0, [(Register::Uart(0), b'x')]);
}

#[test]
fn a_signal_that_is_blocked_interrupts_a_guest_that_runs_already() {
    let mut machine = Machine::new(print_and_halt());
    let mut seen = Seen::default();
    assert_eq!(machine.run(&mut seen), Step::Continue);
    // SAFETY: gettid takes nothing.
    let (process, thread) = (std::process::id(), unsafe { libc::gettid() });
    let sender = std::thread::spawn(move || {
        let state = format!("/proc/{process}/task/{thread}/stat");
        // Asleep: inside KVM_RUN, as the guest has halted.
        while !std::fs::read_to_string(&state).unwrap().contains(") S ") {
            std::thread::yield_now();
        }
        // SAFETY: the call takes integers.
        unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGHUP) };
    });
    assert_eq!(machine.run(&mut seen), Step::Kicked);
    sender.join().unwrap();
    assert_eq!(machine.kick.drain().unwrap().end, Some(Signal(libc::SIGHUP)));
}

/// A descriptor that a system call returned.
fn owned(fd: libc::c_int) -> OwnedFd {
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: a system call just returned it, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Whether the descriptor can notify by SIGIO, as the monitor asks.
fn notifies(fd: &impl AsFd) -> bool {
    let notifies = sys::notify_by_signal(fd.as_fd(), true).unwrap();
    assert_eq!(host::flags(fd) & libc::O_ASYNC != 0, notifies, "read back");
    assert!(!sys::notify_by_signal(fd.as_fd(), false).unwrap());
    assert_eq!(host::flags(fd) & libc::O_ASYNC, 0, "and off again");
    notifies
}

#[test]
fn what_has_no_notice_says_so() {
    // SAFETY: each call takes integers, and the results are checked by owned().
    let silent = unsafe {
        let own_pid = libc::getpid();
        [
            ("eventfd", owned(libc::eventfd(0, 0))),
            ("timerfd", owned(libc::timerfd_create(libc::CLOCK_MONOTONIC, 0))),
            ("epoll", owned(libc::epoll_create1(0))),
            ("pidfd", owned(i32::try_from(libc::syscall(libc::SYS_pidfd_open, own_pid, 0)).unwrap())),
        ]
    };
    for (name, fd) in silent {
        assert!(!notifies(&fd), "{name}");
    }
    assert!(!notifies(&std::fs::File::open("/dev/null").unwrap()), "/dev/null");
}

#[test]
fn what_a_console_is_made_of_has_notice() {
    let (reader, writer) = io::pipe().unwrap();
    assert!(notifies(&reader) && notifies(&writer), "pipe");
    let (one, other) = UnixStream::pair().unwrap();
    assert!(notifies(&one) && notifies(&other), "Unix socket");
    assert!(notifies(&std::net::TcpListener::bind("127.0.0.1:0").unwrap()), "TCP socket");
    assert!(notifies(&std::net::UdpSocket::bind("127.0.0.1:0").unwrap()), "UDP socket");
    let pty = Pty::open().unwrap();
    assert!(notifies(&pty.user) && notifies(&pty.terminal().unwrap()), "pty");
    // SAFETY: the call takes an integer.
    assert!(notifies(&owned(unsafe { libc::inotify_init1(0) })), "inotify");
}

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`, as the libc at hand wants it.
const KVM_SET_SIGNAL_MASK: u32 = 0x4004_ae8b;

fn set_mask(vcpu: &VcpuFd, length: u32) -> Result<(), i32> {
    let mut mask = [0u8; 4 + 128];
    mask[..4].copy_from_slice(&length.to_ne_bytes());
    // SAFETY: the kernel reads the length and at most that many bytes, 128 being the longest set here.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK as _, mask.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or_default()) }
}

#[test]
fn the_kernels_signal_set_has_8_bytes() {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    assert_eq!(set_mask(&vcpu, 8), Ok(()));
    for length in [0, 4, 7, 9, 16, 128] {
        assert_eq!(set_mask(&vcpu, length), Err(libc::EINVAL), "{length}");
    }
}

/// How a read that a KVM_RUN left for gets into the registers: what differs between processors.
#[cfg(target_arch = "x86_64")]
mod read {
    use super::*;

    pub const CODE_ADDRESS: u64 = 0x1000;
    /// in al, dx; out dx, al: in real mode.
    pub const CODE: &[u8] = &[0xec, 0xee];
    pub const NEXT: u64 = CODE_ADDRESS + 1;
    pub const BEFORE: u64 = 0x1111;
    pub const AFTER: u64 = 0x115a;

    pub fn start(_vm: &VmFd, vcpu: &VcpuFd) {
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rip, regs.rflags, regs.rax, regs.rdx) = (CODE_ADDRESS, 2, BEFORE, 0x3f8);
        vcpu.set_regs(&regs).unwrap();
    }

    pub fn data(exit: VcpuExit<'_>) -> &mut [u8] {
        match exit {
            VcpuExit::IoIn(0x3f8, data) => data,
            exit => panic!("a port read expected: {exit:?}"),
        }
    }

    /// What was read, and the next instruction's address.
    pub fn registers(vcpu: &VcpuFd) -> (u64, u64) {
        let regs = vcpu.get_regs().unwrap();
        (regs.rax, regs.rip)
    }

    pub fn is_write(exit: &VcpuExit<'_>) -> bool {
        matches!(exit, VcpuExit::IoOut(0x3f8, [0x5a]))
    }
}

#[cfg(target_arch = "aarch64")]
mod read {
    use super::*;

    pub const CODE_ADDRESS: u64 = LOAD_ADDRESS;
    /// ldrb w0, [x1]; strb w0, [x1]
    pub const CODE: &[u8] = &[0x20, 0, 0x40, 0x39, 0x20, 0, 0, 0x39];
    pub const NEXT: u64 = CODE_ADDRESS + 4;
    pub const BEFORE: u64 = 0x1111;
    pub const AFTER: u64 = 0x5a;

    const DEVICE: u64 = 0x0900_0000;

    /// KVM's number of a register: KVM_REG_ARM64, KVM_REG_SIZE_U64, KVM_REG_ARM_CORE; x0 to x30, sp, pc.
    const fn number(index: u64) -> u64 {
        0x6030_0000_0010_0000 + 2 * index
    }

    pub fn start(vm: &VmFd, vcpu: &VcpuFd) {
        let mut init = Default::default();
        vm.get_preferred_target(&mut init).unwrap();
        vcpu.vcpu_init(&init).unwrap();
        for (index, value) in [(0, BEFORE), (1, DEVICE), (32, CODE_ADDRESS)] {
            vcpu.set_one_reg(number(index), &u64::to_ne_bytes(value)).unwrap();
        }
    }

    pub fn data(exit: VcpuExit<'_>) -> &mut [u8] {
        match exit {
            VcpuExit::MmioRead(DEVICE, data) => data,
            exit => panic!("a read of the device expected: {exit:?}"),
        }
    }

    /// What was read, and the next instruction's address.
    pub fn registers(vcpu: &VcpuFd) -> (u64, u64) {
        let get = |index| {
            let mut value = [0; 8];
            vcpu.get_one_reg(number(index), &mut value).unwrap();
            u64::from_ne_bytes(value)
        };
        (get(0), get(32))
    }

    pub fn is_write(exit: &VcpuExit<'_>) -> bool {
        matches!(exit, VcpuExit::MmioWrite(DEVICE, [0x5a]))
    }
}

#[test]
fn a_read_lands_in_the_registers_on_the_next_run() {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let start = GuestAddress(read::CODE_ADDRESS & !((2 << 20) - 1));
    let ram = Ram::new(&[Range { start, bytes: 2 << 20 }]).unwrap();
    ram.register(&vm).unwrap();
    assert!(ram.write(GuestAddress(read::CODE_ADDRESS), read::CODE));
    let mut vcpu = vm.create_vcpu(0).unwrap();
    read::start(&vm, &vcpu);
    read::data(vcpu.run().unwrap()).copy_from_slice(&[0x5a]);
    assert_eq!(read::registers(&vcpu).0, read::BEFORE, "not yet");
    vcpu.set_kvm_immediate_exit(1);
    assert_eq!(vcpu.run().map(|_| ()).unwrap_err().errno(), libc::EINTR);
    assert_eq!(read::registers(&vcpu), (read::AFTER, read::NEXT), "settled, and no instruction more");
    vcpu.set_kvm_immediate_exit(0);
    assert!(read::is_write(&vcpu.run().unwrap()));
}

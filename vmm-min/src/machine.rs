//! One virtual machine, from files to its end.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvm_ioctls::{Kvm, VmFd};

use crate::arch::{self, Boot, Dtb, End, Platform, Step};
use crate::boot::source::{Role, Source};
use crate::boot::{load_initrd, load_kernel};
use crate::bus::Bus;
use crate::config::Config;
use crate::ctl::Ctl;
use crate::device::console::Console;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::kick::Kick;
use crate::ram::Ram;
use crate::stats::Stats;
use crate::sys;
use crate::terminal::Terminal;
use crate::trace::Trace;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::Blk;
use crate::virtio::device::Device;
use crate::virtio::fs::Fs;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;

/// No kernel file is larger.
const MOST_KERNEL_BYTES: u64 = 1 << 30;
const KVM_DEVICE: &str = "/dev/kvm";
/// The version that KVM has had since Linux 2.6.22.
const KVM_API_VERSION: i32 = 12;

/// Boots the guest that `config` describes and runs it to its end; `warn` is told what does not end it. `start` is when
/// this program was started.
///
/// The order matters: files first, because reading them may take long and signals still have their usual effect;
/// RAM before the interrupt controller, because a slot that comes later waits for a grace period; the terminal
/// last, because nothing after it can fail for a reason of the user's.
pub fn run(config: &Config, start: Instant, warn: &dyn Fn(&Error)) -> Result<End> {
    take_place(config)?;
    let trace = Trace::open(config.trace.as_deref())?;
    if trace.is_on() {
        trace.mark_past("vmm-min", start.elapsed());
    }
    let ram_bytes = config.memory_mib << 20;
    let kernel = Source::open(Role::Kernel, &config.kernel, MOST_KERNEL_BYTES)?;
    let initrd = config.initrd.as_deref().map(|path| Source::open(Role::Initrd, path, ram_bytes)).transpose()?;
    let dtb = config.dtb.as_deref().map(read_dtb).transpose()?;

    let mut devices = devices(config)?;

    let (kvm, vm) = open_kvm()?;
    trace.mark("KVM ready");
    let ram = Ram::new(&arch::ranges(ram_bytes))?;
    ram.register(&vm)?;
    let window = arch::kernel_window(ram_bytes);
    let loaded = load_kernel(&ram, window, &kernel)?;
    let initrd = initrd.map(|initrd| load_initrd(&ram, window, loaded, &initrd)).transpose()?;

    trace.mark("kernel loaded");

    let kick = Kick::new()?;
    if !config.vsock.is_empty() {
        // From here on signals end the machine in good order, so that its sockets are removed.
        devices.push(Device::Vsock(Vsock::open(&config.vsock)?));
    }
    let ctl = config.ctl.as_deref().map(Ctl::open).transpose()?;
    let mut platform = Platform::new(&kvm, &vm, &kick)?;
    let stdio = Stdio::look(config.tty);
    let cmdline = cmdline(config, stdio.session, devices.len());
    let boot = Boot { entry: loaded.entry, initrd, cmdline, devices: devices.len(), dtb };
    platform.prepare(&ram, &boot)?;

    let console = Console::new(stdio.session, config.log_mib)?;
    let terminal = if stdio.terminal { Some(Terminal::new(io::stdin().as_fd())?) } else { None };
    let mut bus = Bus::new(ram, devices, console, kick, terminal);
    bus.end_at_first_byte(config.boot_test);
    bus.control(ctl, config.root_disk.is_some());
    trace.mark("first instruction");
    bus.trace(trace);
    let end = run_to_end(&vm, &mut platform, &mut bus, warn)?;
    bus.finish(end)
}

fn read_dtb(path: &str) -> Result<Dtb> {
    let most = arch::MOST_DTB_BYTES;
    let source = Source::open(Role::Dtb, path, most)?;
    let mut bytes = vec![0; usize::try_from(source.bytes.min(most)).unwrap_or(0)];
    source.read_head(&mut bytes)?;
    Ok(Dtb { path: path.into(), bytes })
}

/// Takes the place among the processes that the user wants.
fn take_place(config: &Config) -> Result<()> {
    if config.detach {
        sys::new_session().map_err(|cause| Error::host("HOST_SESSION", "setsid", cause))?;
    }
    let Some(parent) = config.parent else { return Ok(()) };
    match sys::die_with(parent).map_err(|cause| Error::host("HOST_PARENT", "prctl(PR_SET_PDEATHSIG)", cause))? {
        true => Ok(()),
        false => {
            let cause = io::ErrorKind::NotFound.into();
            Err(Error::host("HOST_PARENT", format!("parent {parent}: it has ended, or it is another"), cause))
        }
    }
}

/// The loop. Errors of the guest come after its last output.
fn run_to_end(vm: &VmFd, platform: &mut Platform, bus: &mut Bus, warn: &dyn Fn(&Error)) -> Result<End> {
    let mut step = bus.settle()?;
    loop {
        match step {
            Step::End(end) => return Ok(end),
            Step::Continue | Step::Kicked => {}
        }
        step = match platform.run(vm, bus) {
            Ok(Step::Kicked) => bus.woken()?,
            Ok(step) => step,
            Err(error) => {
                // The console explains a fault better than we can; who ends the monitor meanwhile did not see it.
                return match bus.finish(End::PowerOff)? {
                    End::Signal(signal) => Ok(End::Signal(signal)),
                    _ => Err(error),
                };
            }
        };
        // Twice: a line that falls with the access and rises with what the host brings is an edge, not a level.
        set_lines(vm, platform, bus)?;
        if step == Step::Continue {
            step = bus.settle()?;
            set_lines(vm, platform, bus)?;
        }
        bus.take_fault().iter().for_each(warn);
    }
}

fn set_lines(vm: &VmFd, platform: &mut Platform, bus: &Bus) -> Result<()> {
    bus.lines().try_for_each(|(line, level)| platform.set_irq(vm, line, level))
}

/// The virtio devices, in the order of their slots; disks first, so that the root disk is the first of all.
fn devices(config: &Config) -> Result<Vec<Device>> {
    let mut devices = Vec::with_capacity(arch::MOST_DEVICES);
    if let Some(root) = &config.root_disk {
        let mut disk = Disk::open(&root.path, root.access)?;
        config.root_layer.iter().try_for_each(|layer| disk.lay(layer))?;
        devices.push(Device::Blk(Blk::new(disk)));
    }
    for disk in &config.disks {
        devices.push(Device::Blk(Blk::new(Disk::open(&disk.path, disk.access)?)));
    }
    devices.push(Device::Balloon(Balloon::new(Stats::open(config.stats_file.as_deref())?)));
    devices.push(Device::Rng(Rng::default()));
    if let Some(net) = &config.net {
        devices.push(Device::Net(Net::open(net)?));
    }
    for share in &config.shares {
        devices.push(Device::Fs(Fs::open(share, config.shares.len())?));
    }
    Ok(devices)
}

fn open_kvm() -> Result<(Kvm, VmFd)> {
    let kvm = Kvm::new().map_err(|error| {
        let cause = io::Error::from_raw_os_error(error.errno());
        let (code, hint) = match cause.kind() {
            io::ErrorKind::NotFound => {
                ("KVM_MISSING", "load the module (modprobe kvm-amd or kvm-intel) or switch virtualization on")
            }
            io::ErrorKind::PermissionDenied => ("KVM_PERMISSION", "join its group: sudo usermod -aG kvm $USER"),
            _ => ("KVM_UNAVAILABLE", "is a KVM module loaded for this processor?"),
        };
        Error::Host { code, operation: format!("open of {KVM_DEVICE}"), cause, hint: hint.into() }
    })?;
    check_version(kvm.get_api_version())?;
    let vm = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
    Ok((kvm, vm))
}

fn check_version(version: i32) -> Result<()> {
    match version {
        KVM_API_VERSION => Ok(()),
        // The ioctl itself failed.
        ..0 => Err(unsupported(format!("{KVM_DEVICE} does not answer as KVM"))),
        other => Err(too_old(&format!("API version {KVM_API_VERSION} (it has {other})"))),
    }
}

/// The host's KVM lacks `what`.
pub fn too_old(what: &str) -> Error {
    unsupported(format!("the host's KVM lacks {what}"))
}

fn unsupported(operation: String) -> Error {
    let cause = io::ErrorKind::Unsupported.into();
    Error::Host { code: "KVM_TOO_OLD", operation, cause, hint: "Linux 5.10 or newer is needed".into() }
}

/// What stdin and stdout are.
struct Stdio {
    /// The line carries a terminal session.
    session: bool,
    /// stdin is the terminal of that session.
    terminal: bool,
}

impl Stdio {
    fn look(forced: bool) -> Stdio {
        let terminal = io::stdin().is_terminal();
        let session = forced || (terminal && io::stdout().is_terminal());
        Stdio { session, terminal: session && terminal }
    }
}

/// Base words, ours, the user's: the kernel takes the last of two equal ones.
fn cmdline(config: &Config, session: bool, devices: usize) -> String {
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut words = format!("{} machinen.epoch={}.{:09}", arch::BASE_CMDLINE, epoch.as_secs(), epoch.subsec_nanos());
    words.push_str(&arch::device_words(devices));
    if session {
        words.push_str(" machinen.tty=1");
    }
    if let Some(own) = &config.cmdline {
        words.push(' ');
        words.push_str(own);
    }
    words
}

/// Reports the time to the first byte, for `--boot-test`.
pub fn first_byte_report(time: Duration, json: bool) -> String {
    let us = time.as_micros();
    if json { format!("{{\"first_byte_us\":{us}}}") } else { format!("vmm-min: first byte after {us} us") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_api_versions_are_refused() {
        assert!(check_version(12).is_ok());
        for version in [-1, 0, 11, 13] {
            assert_eq!(check_version(version).expect_err("refused").code(), "KVM_TOO_OLD");
        }
    }
}

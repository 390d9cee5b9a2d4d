//! GICv3, or GICv2 where that is all there is, and the program counter.

use std::ptr;

use kvm_bindings::{
    KVM_ARM_VCPU_PSCI_0_2, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, KVM_VGIC_V2_ADDR_TYPE_CPU,
    KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuExit, VcpuFd, VmFd};
use machinen_fixtures::LOAD_ADDRESS;

use crate::{Ram, Steps};

/// Where RAM begins.
pub const RAM_START: u64 = 0x4000_0000;
const DISTRIBUTOR: u64 = 0x0800_0000;
const CPU_INTERFACE: u64 = 0x0801_0000;
const REDISTRIBUTOR: u64 = 0x080a_0000;
static INTERRUPTS: u32 = 64;
/// The number that KVM has for the program counter, in words of 32 bits in `struct kvm_regs`.
const PC: u64 = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (2 * 32);

/// The vCPU and the interrupt controller. There is one kind of that only, KVM's own.
pub fn platform(_kvm: &Kvm, vm: &VmFd, _in_kernel: bool, steps: &mut Steps) -> (VcpuFd, DeviceFd) {
    let vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
    steps.end("create_vcpu");
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).expect("KVM_ARM_PREFERRED_TARGET");
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    vcpu.vcpu_init(&init).expect("KVM_ARM_VCPU_INIT");
    steps.end("vcpu_init");
    let create = |kind| vm.create_device(&mut kvm_create_device { type_: kind, fd: 0, flags: 0 });
    let v3 = [(KVM_VGIC_V3_ADDR_TYPE_DIST, DISTRIBUTOR), (KVM_VGIC_V3_ADDR_TYPE_REDIST, REDISTRIBUTOR)];
    let v2 = [(KVM_VGIC_V2_ADDR_TYPE_DIST, DISTRIBUTOR), (KVM_VGIC_V2_ADDR_TYPE_CPU, CPU_INTERFACE)];
    let (controller, places) = match create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3) {
        Ok(controller) => (controller, v3),
        Err(_) => (create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2).expect("KVM_CREATE_DEVICE"), v2),
    };
    set(&controller, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &raw const INTERRUPTS);
    for (kind, address) in places {
        set(&controller, KVM_DEV_ARM_VGIC_GRP_ADDR, kind, &raw const address);
    }
    set::<u64>(&controller, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, ptr::null());
    steps.end("irqchip");
    (vcpu, controller)
}

/// Sets an attribute to what `value` points to.
fn set<T>(controller: &DeviceFd, group: u32, attribute: u32, value: *const T) {
    let attribute = kvm_device_attr { group, attr: attribute.into(), addr: value.addr() as u64, flags: 0 };
    controller.set_device_attr(&attribute).expect("KVM_SET_DEVICE_ATTR");
}

/// The registers; the MMU is off.
pub fn start(vcpu: &VcpuFd, _ram: &Ram) {
    vcpu.set_one_reg(PC, &LOAD_ADDRESS.to_ne_bytes()).expect("KVM_SET_ONE_REG");
}

/// The byte that the guest printed.
pub fn printed(exit: &VcpuExit<'_>) -> u8 {
    match exit {
        VcpuExit::MmioWrite(0x0900_0000, data) => data[0],
        other => panic!("unexpected exit {other:?}"),
    }
}

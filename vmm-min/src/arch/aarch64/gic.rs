//! The interrupt controller, which is KVM's: GICv3, or GICv2 where the processor has only that.
//!
//! Source: Documentation/virt/kvm/devices/arm-vgic-v3.rst and arm-vgic.rst in Linux; KVM API documentation, 4.25
//! KVM_IRQ_LINE.

use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr, kvm_device_type,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::fdt::Gic;
use super::layout;
use crate::error::{Error, Result};

/// Interrupts that are a processor's own; the shared ones come after them.
const OWN: usize = 32;

/// Makes the controller, when there is a vCPU.
pub fn make(vm: &VmFd) -> Result<(Gic, DeviceFd)> {
    let create =
        |kind| vm.create_device(&mut device(kind)).map_err(Error::kvm("KVM_CREATE_DEVICE(KVM_DEV_TYPE_ARM_VGIC)"));
    let (gic, controller) = match create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3) {
        Ok(controller) => (Gic::V3, controller),
        Err(_) => (Gic::V2, create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2)?),
    };
    let places = match gic {
        Gic::V2 => {
            [(KVM_VGIC_V2_ADDR_TYPE_DIST, layout::DISTRIBUTOR), (KVM_VGIC_V2_ADDR_TYPE_CPU, layout::CPU_INTERFACE)]
        }
        Gic::V3 => {
            [(KVM_VGIC_V3_ADDR_TYPE_DIST, layout::DISTRIBUTOR), (KVM_VGIC_V3_ADDR_TYPE_REDIST, layout::REDISTRIBUTOR)]
        }
    };
    let interrupts = u32::try_from(OWN + layout::LINES).expect("a small number");
    set(&controller, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &raw const interrupts)?;
    for (kind, address) in places {
        set(&controller, KVM_DEV_ARM_VGIC_GRP_ADDR, kind, &raw const address)?;
    }
    set::<u64>(&controller, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, std::ptr::null())?;
    Ok((gic, controller))
}

fn device(kind: kvm_device_type) -> kvm_create_device {
    kvm_create_device { type_: kind, fd: 0, flags: 0 }
}

/// Sets an attribute to what `value` points to, which KVM reads during the call.
fn set<T>(controller: &DeviceFd, group: u32, attribute: u32, value: *const T) -> Result<()> {
    let attribute = kvm_device_attr { group, attr: attribute.into(), addr: value.addr() as u64, flags: 0 };
    controller.set_device_attr(&attribute).map_err(Error::kvm("KVM_SET_DEVICE_ATTR(KVM_DEV_ARM_VGIC)"))
}

/// The levels of the lines that KVM was told.
#[derive(Debug, Default)]
pub struct Lines([bool; layout::LINES]);

impl Lines {
    /// Line `line` is at `level` now. KVM takes levels, so it is told of changes only.
    pub fn set(&mut self, vm: &VmFd, line: usize, level: bool) -> Result<()> {
        let Some(told) = self.0.get_mut(line).filter(|told| **told != level) else { return Ok(()) };
        *told = level;
        let number = u32::try_from(OWN + line).expect("a small number");
        vm.set_irq_line((KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT) | number, level)
            .map_err(Error::kvm("KVM_IRQ_LINE"))
    }
}

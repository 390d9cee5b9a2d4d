//! The device tree: what the machine has and where, what to boot, and a seed.
//!
//! Sources: Devicetree Specification 0.4, 3 (standard nodes); Documentation/devicetree/bindings in Linux: arm/psci,
//! timer/arm,arch_timer, interrupt-controller/arm,gic and arm,gic-v3, serial/8250, virtio/mmio, rng/microsoft,vmgenid.

use super::layout;
use super::node::{Node, Tree};
use crate::arch::Boot;
use crate::ram::Range;
use crate::virtio::mmio::WINDOW_BYTES;

/// Bytes of the seed for the kernel's random numbers.
pub const SEED_BYTES: usize = 64;

/// Version of the interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gic {
    /// GICv2.
    V2,
    /// GICv3.
    V3,
}

/// How other nodes refer to the interrupt controller.
const GIC_PHANDLE: u32 = 1;
/// First number of an interrupt of three: shared, or a processor's own.
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
/// Third number: level, active high; rising edge.
const LEVEL_HIGH: u32 = 4;
const EDGE_RISING: u32 = 1;
/// Bytes of the VM generation id.
pub const GENERATION_ID_BYTES: usize = 16;
/// In the third number with GICv2: for processor 0.
const FIRST_PROCESSOR: u32 = 1 << 8;
/// The processor's own interrupts for its timers, as KVM has them: secure, physical, virtual, hypervisor.
const TIMERS: [u32; 4] = [13, 14, 11, 10];
/// What the divisor of a 16550's baud rate counts, of the original one.
const UART_HZ: u32 = 1_843_200;

/// The device tree of a machine whose RAM is `ram`.
pub fn tree(boot: &Boot, ram: Range, gic: Gic, seed: &[u8; SEED_BYTES]) -> Tree {
    let mut root = Node::new("")
        .strings("compatible", &["linux,dummy-virt"])
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[2])
        .cells("interrupt-parent", &[GIC_PHANDLE])
        .child(chosen(boot, seed))
        .child(memory(ram))
        .child(processor())
        .child(Node::new("psci").strings("compatible", &["arm,psci-1.0", "arm,psci-0.2"]).strings("method", &["hvc"]))
        .child(timer(gic))
        .child(controller(gic))
        .child(uart())
        .child(reserved())
        .child(generation_id());
    root.children.extend((0..boot.devices).map(virtio));
    Tree { root, reserved: Vec::new() }
}

fn chosen(boot: &Boot, seed: &[u8; SEED_BYTES]) -> Node {
    let mut node = Node::new("chosen").strings("stdout-path", &[&format!("/{}", uart().name)]);
    set_chosen(&mut node, boot, seed);
    node
}

/// Sets what to boot in the node `chosen`.
pub fn set_chosen(node: &mut Node, boot: &Boot, seed: &[u8; SEED_BYTES]) {
    node.set("bootargs", [boot.cmdline.as_bytes(), &[0]].concat());
    node.set("rng-seed", seed.to_vec());
    let [start, end] = ["linux,initrd-start", "linux,initrd-end"];
    node.properties.retain(|(name, _)| name != start && name != end);
    if let Some((at, bytes)) = boot.initrd {
        node.set(start, at.0.to_be_bytes().to_vec());
        node.set(end, (at.0 + bytes).to_be_bytes().to_vec());
    }
}

/// RAM.
pub fn memory(ram: Range) -> Node {
    let name = format!("memory@{:x}", ram.start.0);
    Node::new(name).strings("device_type", &["memory"]).wide("reg", &[ram.start.0, ram.bytes])
}

fn processor() -> Node {
    let processor = Node::new("cpu@0")
        .strings("device_type", &["cpu"])
        .strings("compatible", &["arm,armv8"])
        .strings("enable-method", &["psci"])
        .cells("reg", &[0]);
    Node::new("cpus").cells("#address-cells", &[1]).cells("#size-cells", &[0]).child(processor)
}

fn timer(gic: Gic) -> Node {
    let target = if gic == Gic::V2 { FIRST_PROCESSOR } else { 0 };
    let interrupts: Vec<u32> = TIMERS.iter().flat_map(|timer| [PRIVATE, *timer, target | LEVEL_HIGH]).collect();
    Node::new("timer")
        .strings("compatible", &["arm,armv8-timer"])
        .cells("interrupts", &interrupts)
        .bytes("always-on", &[])
}

fn controller(gic: Gic) -> Node {
    let (compatible, at, bytes) = match gic {
        Gic::V2 => ("arm,cortex-a15-gic", layout::CPU_INTERFACE, layout::CPU_INTERFACE_BYTES),
        Gic::V3 => ("arm,gic-v3", layout::REDISTRIBUTOR, layout::REDISTRIBUTOR_BYTES),
    };
    Node::new(format!("intc@{:x}", layout::DISTRIBUTOR))
        .strings("compatible", &[compatible])
        .bytes("interrupt-controller", &[])
        .cells("#interrupt-cells", &[3])
        .cells("#address-cells", &[0])
        .wide("reg", &[layout::DISTRIBUTOR, layout::DISTRIBUTOR_BYTES, at, bytes])
        .cells("phandle", &[GIC_PHANDLE])
}

fn uart() -> Node {
    Node::new(format!("serial@{:x}", layout::UART))
        .strings("compatible", &["ns16550a"])
        .wide("reg", &[layout::UART, layout::UART_BYTES])
        .cells("interrupts", &line(layout::UART_IRQ))
        .cells("clock-frequency", &[UART_HZ])
        .cells("reg-shift", &[0])
}

/// Memory that is the VM generation id's: the guest's kernel is not to have it mapped as memory.
fn reserved() -> Node {
    let page = Node::new(format!("vmgenid@{:x}", layout::GENERATION_ID))
        .wide("reg", &[layout::GENERATION_ID, layout::GENERATION_BYTES])
        .bytes("no-map", &[]);
    Node::new("reserved-memory")
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[2])
        .bytes("ranges", &[])
        .child(page)
}

fn generation_id() -> Node {
    let number = u32::try_from(layout::GENERATION_IRQ).expect("a line number");
    Node::new(format!("rng@{:x}", layout::GENERATION_ID))
        .strings("compatible", &["microsoft,vmgenid"])
        .wide("reg", &[layout::GENERATION_ID, GENERATION_ID_BYTES as u64])
        .cells("interrupts", &[SHARED, number, EDGE_RISING])
}

/// The virtio device in `slot`.
pub fn virtio(slot: usize) -> Node {
    let start = layout::VIRTIO_START + slot as u64 * WINDOW_BYTES;
    Node::new(format!("virtio_mmio@{start:x}"))
        .strings("compatible", &["virtio,mmio"])
        .wide("reg", &[start, WINDOW_BYTES])
        .cells("interrupts", &line(layout::virtio_irq(slot)))
        // What a device reads and writes is what the processor sees.
        .bytes("dma-coherent", &[])
}

fn line(number: usize) -> [u32; 3] {
    [SHARED, u32::try_from(number).expect("a line number"), LEVEL_HIGH]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;
    use vm_memory::GuestAddress;

    /// As dtc(1) would print it, but for numbers, which are always words.
    fn print(node: &Node, depth: usize, text: &mut String) {
        let indent = "    ".repeat(depth);
        let name = if node.name.is_empty() { "/" } else { &node.name };
        writeln!(text, "{indent}{name} {{").expect("a string");
        for (name, value) in &node.properties {
            writeln!(text, "{indent}    {name}{};", print_value(name, value)).expect("a string");
        }
        node.children.iter().for_each(|child| print(child, depth + 1, text));
        writeln!(text, "{indent}}};").expect("a string");
    }

    fn print_value(name: &str, value: &[u8]) -> String {
        let strings = ["compatible", "device_type", "method", "enable-method", "bootargs", "stdout-path"];
        if value.is_empty() {
            return String::new();
        }
        if strings.contains(&name) {
            let text = std::str::from_utf8(value).expect("text").strip_suffix('\0').expect("a terminated string");
            return format!(" = \"{}\"", text.replace('\0', "\", \""));
        }
        let (words, rest) = value.as_chunks();
        assert!(rest.is_empty(), "{name} is of words");
        let words: Vec<String> = words.iter().map(|word| format!("{:#x}", u32::from_be_bytes(*word))).collect();
        format!(" = <{}>", words.join(" "))
    }

    fn printed(boot: &Boot, gic: Gic) -> String {
        let seed = std::array::from_fn(|index| index.to_le_bytes()[0]);
        let ram = Range { start: GuestAddress(layout::RAM_START), bytes: 128 << 20 };
        let bytes = tree(boot, ram, gic, &seed).to_bytes().expect("a tree");
        let mut text = String::new();
        print(&Tree::parse(&bytes).expect("what was written").root, 0, &mut text);
        text
    }

    fn boot(initrd: bool, devices: usize) -> Boot {
        Boot {
            entry: GuestAddress(0x4020_0000),
            initrd: initrd.then_some((GuestAddress(0x47f0_0000), 0x1234)),
            cmdline: "console=ttyS0 quiet".into(),
            devices,
            dtb: None,
        }
    }

    #[test]
    fn the_tree_with_gicv3_and_two_devices() {
        assert_eq!(printed(&boot(true, 2), Gic::V3), include_str!("gicv3.golden"));
    }

    #[test]
    fn the_tree_with_gicv2_and_nothing_else() {
        assert_eq!(printed(&boot(false, 0), Gic::V2), include_str!("gicv2.golden"));
    }

    #[test]
    fn the_largest_tree_has_room() {
        let mut boot = boot(true, layout::MOST_DEVICES);
        boot.cmdline = "x".repeat(4096);
        let ram = Range { start: GuestAddress(layout::RAM_START), bytes: 128 << 20 };
        let bytes = tree(&boot, ram, Gic::V3, &[0; SEED_BYTES]).to_bytes().expect("a tree");
        assert!(bytes.len() as u64 <= layout::FDT_BYTES, "{} bytes", bytes.len());
    }
}

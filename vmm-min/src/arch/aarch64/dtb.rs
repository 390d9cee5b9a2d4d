//! A user's device tree instead of the monitor's: what changes from one machine to the next is put in its place.

use super::fdt::{SEED_BYTES, memory, set_chosen, virtio};
use super::node::{Node, Tree};
use crate::arch::Boot;
use crate::ram::Range;

/// The tree in `bytes` with this machine's memory, virtio devices, command line, initrd and seed. The rest is the user's:
/// where the interrupt controller and the UART are said to be is where the monitor has them, or the guest finds neither.
///
/// Errors: what is wrong with it.
pub fn patched(bytes: &[u8], boot: &Boot, ram: Range, seed: &[u8; SEED_BYTES]) -> Result<Tree, &'static str> {
    let mut tree = Tree::parse(bytes)?;
    let root = &mut tree.root;
    for cells in ["#address-cells", "#size-cells"] {
        if root.get(cells) != Some(&[0, 0, 0, 2]) {
            return Err("its root does not have addresses and sizes of two cells");
        }
    }
    if root.get("interrupt-parent").is_none() {
        return Err("its root names no interrupt-parent");
    }
    root.children.retain(|node| !is_memory(node) && !is_virtio(node));
    root.children.push(memory(ram));
    root.children.extend((0..boot.devices).map(virtio));
    let chosen = match root.children.iter().position(|node| node.name == "chosen") {
        Some(index) => &mut root.children[index],
        None => {
            root.children.insert(0, Node::new("chosen"));
            &mut root.children[0]
        }
    };
    set_chosen(chosen, boot, seed);
    Ok(tree)
}

fn is_memory(node: &Node) -> bool {
    node.get("device_type") == Some(b"memory\0")
}

fn is_virtio(node: &Node) -> bool {
    node.get("compatible").is_some_and(|names| names.split(|byte| *byte == 0).any(|name| name == b"virtio,mmio"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::aarch64::fdt::{self, Gic};
    use vm_memory::GuestAddress;

    fn boot(initrd: bool, cmdline: &str, devices: usize) -> Boot {
        Boot {
            entry: GuestAddress(0x4020_0000),
            initrd: initrd.then_some((GuestAddress(0x4100_0000), 0x1000)),
            cmdline: cmdline.into(),
            devices,
            dtb: None,
        }
    }

    fn ram(mib: u64) -> Range {
        Range { start: GuestAddress(0x4000_0000), bytes: mib << 20 }
    }

    fn patch(tree: &Tree) -> Result<Tree, &'static str> {
        patched(&tree.to_bytes().expect("a tree"), &boot(false, "new", 1), ram(64), &[7; SEED_BYTES])
    }

    #[test]
    fn the_machine_is_put_in_and_the_rest_stays() {
        let mut old = fdt::tree(&boot(true, "old", 3), ram(128), Gic::V3, &[0; SEED_BYTES]);
        old.root.children.push(Node::new("mine").strings("compatible", &["my,device"]));
        old.root.children[0].set("mine", vec![1]);
        old.reserved.push((0x4400_0000, 0x1000));
        let new = patch(&old).expect("a good tree");
        let chosen = &new.root.children[0];
        assert_eq!(chosen.get("bootargs"), Some(b"new\0".as_slice()));
        assert_eq!((chosen.get("linux,initrd-start"), chosen.get("mine")), (None, Some([1].as_slice())));
        assert_eq!(chosen.get("rng-seed"), Some([7; SEED_BYTES].as_slice()));
        assert!(chosen.get("stdout-path").is_some());
        let names: Vec<&str> = new.root.children.iter().map(|node| node.name.as_str()).collect();
        let kept = [
            "chosen",
            "cpus",
            "psci",
            "timer",
            "intc@8000000",
            "serial@9000000",
            "reserved-memory",
            "rng@401f0000",
            "mine",
        ];
        assert_eq!(names, [&kept[..], &["memory@40000000", "virtio_mmio@a000000"]].concat());
        assert_eq!(new.root.children[9], memory(ram(64)));
        assert_eq!(new.reserved, old.reserved);
    }

    #[test]
    fn a_tree_without_chosen_gets_one() {
        let root = Node::new("").cells("#address-cells", &[2]).cells("#size-cells", &[2]);
        let root = root.cells("interrupt-parent", &[1]);
        let new = patch(&Tree { root, reserved: vec![] }).expect("a good tree");
        assert_eq!(new.root.children[0].get("bootargs"), Some(b"new\0".as_slice()));
    }

    #[test]
    fn what_the_nodes_would_not_fit_into_is_refused() {
        let root = Node::new("").cells("#address-cells", &[1]).cells("#size-cells", &[1]);
        assert!(patch(&Tree { root, reserved: vec![] }).is_err());
        let root = Node::new("").cells("#address-cells", &[2]).cells("#size-cells", &[2]);
        assert!(patch(&Tree { root, reserved: vec![] }).is_err(), "no interrupt controller");
        assert!(patched(b"no tree", &boot(false, "", 0), ram(64), &[0; SEED_BYTES]).is_err());
    }
}

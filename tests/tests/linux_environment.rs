//! What every test that boots Linux relies on is there, wherever it runs.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;

use machinen_tests::lab::Arch;
use machinen_tests::{asset, bin, rootfs};

#[test]
fn kvm_makes_machines() {
    let kvm = kvm_ioctls::Kvm::new().unwrap();
    kvm.create_vm().unwrap().create_vcpu(0).unwrap();
}

#[test]
fn the_programs_are_static_executables() {
    for name in ["vmm-min", "machinen-mkinitramfs", "init"] {
        let mut magic = [0; 4];
        File::open(bin(name)).unwrap().read_exact(&mut magic).unwrap();
        assert_eq!(&magic, b"\x7fELF", "{name}");
    }
}

#[test]
fn the_assets_are_whole() {
    assert!(asset("vmlinuz").metadata().unwrap().len() > 1 << 20);
    assert!(asset("busybox").metadata().unwrap().len() > 1 << 20);
    let rootfs = File::open(asset(&rootfs(Arch::OWN))).unwrap();
    let mut archive = tar::Archive::new(rootfs);
    let mut entries = archive.entries().unwrap();
    assert!(entries.any(|entry| entry.unwrap().path().unwrap().ends_with("usr/sbin/criu")));
    let order = std::fs::read_to_string(asset("modules/order")).unwrap();
    assert!(order.lines().all(|name| asset(&format!("modules/{name}.ko")).exists()));
}

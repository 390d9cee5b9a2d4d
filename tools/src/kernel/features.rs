//! What our features need of a kernel: options of its configuration, and modules where it has them as such.

use super::config::{Config, State};

/// Processors for which a need exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Any,
    X86,
    Arm,
}

/// One need: any of these options will do; the first is the one to recommend.
type Need = (On, &'static [&'static str]);

/// One feature.
#[derive(Debug)]
pub struct Feature {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is good for, in a few words.
    pub what: &'static str,
    needs: &'static [Need],
    /// Modules to load for it, where they are not built in. A `?` after a name: do without where there is none.
    pub modules: &'static [&'static str],
}

const fn any(options: &'static [&'static str]) -> Need {
    (On::Any, options)
}

/// Every feature, in the order in which a guest needs them.
pub static FEATURES: &[Feature] = &[
    Feature {
        name: "boot",
        what: "reach /init and hand over an exit code",
        needs: &[
            any(&["BLK_DEV_INITRD"]),
            any(&["BINFMT_ELF"]),
            any(&["DEVTMPFS"]),
            any(&["PROC_FS"]),
            any(&["SYSFS"]),
            any(&["TMPFS"]),
            any(&["UNIX98_PTYS"]),
            any(&["FUTEX"]),
            any(&["EPOLL"]),
            any(&["VIRTIO_MMIO"]),
            (On::X86, &["SERIAL_8250_CONSOLE"]),
            (On::X86, &["X86_IOPL_IOPERM"]),
            (On::X86, &["KVM_GUEST"]),
            (On::X86, &["X86_MPPARSE", "ACPI"]),
            (On::X86, &["VIRTIO_MMIO_CMDLINE_DEVICES", "ACPI"]),
            (On::Arm, &["SERIAL_OF_PLATFORM", "SERIAL_AMBA_PL011_CONSOLE"]),
            (On::Arm, &["OF"]),
        ],
        modules: &["virtio_mmio"],
    },
    Feature {
        name: "disk",
        what: "a root file system on a disk",
        needs: &[any(&["VIRTIO_BLK"]), any(&["EXT4_FS"])],
        modules: &["virtio_blk", "ext4"],
    },
    Feature {
        name: "overlay",
        what: "a directory of the host as squashfs under a writable layer",
        needs: &[
            any(&["OVERLAY_FS"]),
            any(&["SQUASHFS"]),
            any(&["SQUASHFS_XATTR"]),
            any(&["SQUASHFS_ZSTD"]),
            any(&["SQUASHFS_LZ4"]),
            any(&["SQUASHFS_ZLIB"]),
        ],
        modules: &["overlay", "squashfs"],
    },
    Feature {
        name: "net",
        what: "a network interface",
        needs: &[any(&["VIRTIO_NET"]), any(&["INET"]), any(&["IPV6"]), any(&["PACKET"]), any(&["UNIX"])],
        modules: &["virtio_net"],
    },
    Feature {
        name: "vsock",
        what: "exec, copy and other talk with the guest",
        needs: &[any(&["VSOCKETS"]), any(&["VIRTIO_VSOCKETS"])],
        modules: &["vmw_vsock_virtio_transport"],
    },
    Feature {
        name: "memory",
        what: "free memory goes back to the host",
        needs: &[any(&["VIRTIO_BALLOON"]), any(&["PAGE_REPORTING"])],
        modules: &["virtio_balloon"],
    },
    Feature {
        name: "rng",
        what: "entropy of the host",
        needs: &[any(&["HW_RANDOM_VIRTIO"])],
        modules: &["virtio_rng"],
    },
    Feature {
        name: "shares",
        what: "directories shared with the host",
        needs: &[any(&["FUSE_FS"]), any(&["VIRTIO_FS"])],
        modules: &["virtiofs"],
    },
    Feature {
        name: "criu",
        what: "freeze processes and restore them elsewhere",
        needs: &[
            any(&["CHECKPOINT_RESTORE"]),
            any(&["KCMP"]),
            any(&["NAMESPACES"]),
            any(&["PID_NS"]),
            any(&["NET_NS"]),
            any(&["PROC_CHILDREN"]),
            any(&["PROC_PAGE_MONITOR"]),
            // For dumps in steps, which there are not on aarch64.
            (On::X86, &["MEM_SOFT_DIRTY"]),
            any(&["USERFAULTFD"]),
            any(&["EVENTFD"]),
            any(&["FHANDLE"]),
            any(&["INOTIFY_USER"]),
            any(&["SECCOMP_FILTER"]),
            any(&["HUGETLBFS"]),
            any(&["VETH"]),
            any(&["UNIX_DIAG"]),
            any(&["INET_DIAG"]),
            any(&["INET_UDP_DIAG"]),
            any(&["PACKET_DIAG"]),
            any(&["NETLINK_DIAG"]),
            any(&["NETFILTER_XT_MARK"]),
            any(&["TUN"]),
        ],
        modules: &["tcp_diag", "udp_diag", "unix_diag", "af_packet_diag", "netlink_diag", "veth", "tun?"],
    },
    Feature {
        name: "clones",
        what: "a copy of a whole VM gets new randomness and the right time",
        needs: &[(On::X86, &["PARAVIRT_CLOCK"]), (On::X86, &["VMGENID"]), (On::Arm, &["VMGENID"])],
        modules: &[],
    },
];

/// The feature of this name.
pub fn find(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.name == name)
}

/// The names of all, for messages.
pub fn names() -> String {
    let names: Vec<&str> = FEATURES.iter().map(|feature| feature.name).collect();
    names.join(", ")
}

/// How a configuration supports a feature.
#[derive(Debug, PartialEq, Eq)]
pub struct Support {
    /// `No` when any need is not met, `Module` when some are only met by modules.
    pub state: State,
    /// Options that are modules.
    pub modules: Vec<&'static str>,
    /// Options to switch on.
    pub missing: Vec<&'static str>,
}

impl Feature {
    /// Looks its needs up in `config`.
    pub fn support(&self, config: &Config) -> Support {
        let (mut modules, mut missing) = (Vec::new(), Vec::new());
        // A configuration that names no processor is held to what all need.
        let is = |on| match on {
            On::Any => true,
            On::X86 => config.get("X86") != State::No || config.get("X86_64") != State::No,
            On::Arm => config.get("ARM64") != State::No,
        };
        for (_, options) in self.needs.iter().filter(|(on, _)| is(*on)) {
            match options.iter().max_by_key(|name| config.get(name)) {
                Some(best) if config.get(best) == State::Module => modules.push(*best),
                Some(best) if config.get(best) == State::No => missing.push(options[0]),
                _ => {}
            }
        }
        let state = match (missing.is_empty(), modules.is_empty()) {
            (false, _) => State::No,
            (true, false) => State::Module,
            (true, true) => State::Yes,
        };
        Support { state, modules, missing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_module_and_missing() {
        let disk = find("disk").expect("there");
        let of = |text: &str| disk.support(&Config::parse(text));
        assert_eq!(of("CONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=y").state, State::Yes);
        let mixed = of("CONFIG_VIRTIO_BLK=m\nCONFIG_EXT4_FS=y");
        assert_eq!((mixed.state, mixed.modules, mixed.missing), (State::Module, vec!["VIRTIO_BLK"], vec![]));
        let missing = of("CONFIG_VIRTIO_BLK=m");
        assert_eq!((missing.state, missing.missing), (State::No, vec!["EXT4_FS"]));
    }

    #[test]
    fn one_of_several_options_is_enough_and_other_processors_do_not_count() {
        let boot = find("boot").expect("there");
        let missing = |text: &str| boot.support(&Config::parse(text)).missing;
        let x86 = missing("CONFIG_X86_64=y\nCONFIG_ACPI=y");
        assert!(!x86.contains(&"X86_MPPARSE") && !x86.contains(&"OF") && x86.contains(&"KVM_GUEST"), "{x86:?}");
        assert!(missing("CONFIG_X86_64=y").contains(&"X86_MPPARSE"));
        let arm = missing("CONFIG_ARM64=y");
        assert!(arm.contains(&"OF") && !arm.contains(&"KVM_GUEST"), "{arm:?}");
        let needs_it =
            |text: &str| find("criu").expect("there").support(&Config::parse(text)).missing.contains(&"MEM_SOFT_DIRTY");
        assert!(needs_it("CONFIG_X86_64=y") && !needs_it("CONFIG_ARM64=y"));
    }

    #[test]
    fn names_are_unique() {
        for feature in FEATURES {
            assert!(std::ptr::eq(find(feature.name).expect("there"), feature), "{}", feature.name);
        }
    }
}

//! The file systems that PID 1 mounts, as a table.

use core::ffi::CStr;
use libc::{MS_NODEV, MS_NOEXEC, MS_NOSUID, c_ulong};

/// One call of mount(2); the target is created when it is missing.
#[derive(Debug)]
pub struct Mount {
    /// Absolute path of the mount point.
    pub target: &'static CStr,
    /// File system type; also given as the source, which these types ignore.
    pub fstype: &'static CStr,
    /// `MS_*` flags.
    pub flags: c_ulong,
    /// Options of the file system.
    pub options: &'static CStr,
    /// False where a kernel may be built without it and the command may live without it.
    pub required: bool,
}

/// First, alone: without it there may be no console to say that another one failed.
pub const DEV: Mount =
    Mount { target: c"/dev", fstype: c"devtmpfs", flags: MS_NOSUID, options: c"mode=0755", required: true };

/// The others, in order.
pub const TABLE: [Mount; 6] = [
    Mount { target: c"/proc", fstype: c"proc", flags: MS_NOSUID | MS_NODEV | MS_NOEXEC, options: c"", required: true },
    Mount { target: c"/sys", fstype: c"sysfs", flags: MS_NOSUID | MS_NODEV | MS_NOEXEC, options: c"", required: true },
    Mount {
        target: c"/dev/pts",
        fstype: c"devpts",
        flags: MS_NOSUID | MS_NOEXEC,
        options: c"gid=5,mode=620,ptmxmode=666",
        required: true,
    },
    Mount { target: c"/dev/shm", fstype: c"tmpfs", flags: MS_NOSUID | MS_NODEV, options: c"mode=1777", required: true },
    Mount { target: c"/run", fstype: c"tmpfs", flags: MS_NOSUID | MS_NODEV, options: c"mode=0755", required: true },
    Mount {
        target: c"/sys/fs/cgroup",
        fstype: c"cgroup2",
        flags: MS_NOSUID | MS_NODEV | MS_NOEXEC,
        options: c"",
        required: false,
    },
];

/// Links in /dev that programs expect: target, name.
pub const LINKS: [(&CStr, &CStr); 4] = [
    (c"/proc/self/fd", c"/dev/fd"),
    (c"/proc/self/fd/0", c"/dev/stdin"),
    (c"/proc/self/fd/1", c"/dev/stdout"),
    (c"/proc/self/fd/2", c"/dev/stderr"),
];

#[cfg(test)]
mod tests {
    use super::{DEV, TABLE};

    #[test]
    fn a_mount_comes_after_the_one_it_lies_in() {
        let targets: Vec<&str> = [&DEV].into_iter().chain(&TABLE).map(|mount| mount.target.to_str().unwrap()).collect();
        for (index, target) in targets.iter().enumerate() {
            assert!(target.starts_with('/') && !target.ends_with('/'));
            let hidden = targets[index + 1..].iter().find(|later| {
                target.strip_prefix(**later).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
            assert_eq!(hidden, None, "{target} would be hidden");
        }
    }
}

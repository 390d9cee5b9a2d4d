//! The file systems that PID 1 mounts, as a table, and the list of all that are mounted.

use alloc::ffi::CString;
use alloc::vec::Vec;
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

/// Next: what tells about the machine, its disks among it.
pub const KERNEL: [Mount; 2] = [
    Mount { target: c"/proc", fstype: c"proc", flags: MS_NOSUID | MS_NODEV | MS_NOEXEC, options: c"", required: true },
    Mount { target: c"/sys", fstype: c"sysfs", flags: MS_NOSUID | MS_NODEV | MS_NOEXEC, options: c"", required: true },
];

/// The others, in order.
pub const TABLE: [Mount; 4] = [
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

/// On a root that cannot be written.
pub const TMP: Mount =
    Mount { target: c"/tmp", fstype: c"tmpfs", flags: MS_NOSUID | MS_NODEV, options: c"mode=1777", required: true };

/// Links in /dev that programs expect: target, name.
pub const LINKS: [(&CStr, &CStr); 4] = [
    (c"/proc/self/fd", c"/dev/fd"),
    (c"/proc/self/fd/0", c"/dev/stdin"),
    (c"/proc/self/fd/1", c"/dev/stdout"),
    (c"/proc/self/fd/2", c"/dev/stderr"),
];

/// A file system that is mounted (proc_pid_mounts(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub target: CString,
    /// Its type.
    pub fstype: Vec<u8>,
}

impl Mounted {
    /// It is of a type that keeps nothing on a disk: one of those that PID 1 mounts itself.
    #[must_use]
    pub fn is_of_memory(&self) -> bool {
        let mut own = [&DEV].into_iter().chain(&KERNEL).chain(&TABLE);
        own.any(|mount| mount.fstype.to_bytes() == self.fstype)
    }
}

/// Reads the text of `/proc/self/mounts`: what is mounted, in the order of mounting. Lines of another shape are skipped.
pub fn parse(text: &[u8]) -> impl Iterator<Item = Mounted> {
    text.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ').skip(1);
        let (target, fstype) = (unescape(fields.next()?), fields.next()?);
        Some(Mounted { target: CString::new(target).ok()?, fstype: fstype.into() })
    })
}

/// What has to be unmounted before the disks are as after a clean unmount, in this order: what is not of memory, and what is
/// mounted in that, whatever it is (the /proc of a chroot). The root, which cannot be, is not among it.
#[must_use]
pub fn to_unmount(text: &[u8]) -> Vec<CString> {
    let mut list: Vec<CString> = Vec::new();
    for mounted in parse(text).filter(|mounted| mounted.target.as_c_str() != c"/") {
        let target = mounted.target.to_bytes();
        let lies_in = |above: &CString| {
            target.strip_prefix(above.to_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        if !mounted.is_of_memory() || list.iter().any(lies_in) {
            list.push(mounted.target);
        }
    }
    list.reverse();
    list
}

/// Reads the text of `/proc/swaps` (proc_swaps(5)): the files and devices in use. Its first line is a heading.
pub fn parse_swaps(text: &[u8]) -> impl Iterator<Item = CString> {
    let lines = text.split(|&byte| byte == b'\n').skip(1);
    let names = lines.filter_map(|line| line.split(|byte| byte.is_ascii_whitespace()).find(|name| !name.is_empty()));
    names.filter_map(|name| CString::new(unescape(name)).ok())
}

/// Blanks, newlines and backslashes stand there as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), field);
    while let Some((&first, after)) = rest.split_first() {
        let (byte, after) = octal(rest).unwrap_or((first, after));
        bytes.push(byte);
        rest = after;
    }
    bytes
}

/// The byte that a backslash and three octal digits at the start stand for, and what comes after them.
fn octal(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, rest) = text.strip_prefix(b"\\")?.split_at_checked(3)?;
    let digits = core::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    Some((u8::from_str_radix(digits, 8).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::{DEV, KERNEL, TABLE, parse, parse_swaps, to_unmount};
    use proptest::prelude::{any, prop, proptest};

    #[test]
    fn a_mount_comes_after_the_one_it_lies_in() {
        let targets: Vec<&str> =
            [&DEV].into_iter().chain(&KERNEL).chain(&TABLE).map(|mount| mount.target.to_str().unwrap()).collect();
        for (index, target) in targets.iter().enumerate() {
            assert!(target.starts_with('/') && !target.ends_with('/'));
            let hidden = targets[index + 1..].iter().find(|later| {
                target.strip_prefix(**later).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
            assert_eq!(hidden, None, "{target} would be hidden");
        }
    }
    #[test]
    fn mounted_file_systems_come_in_order_with_their_names_as_they_are() {
        let text =
            b"/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\nx /a\\040b\\134c\\0 overlay rw,lowerdir=/ 0 0\n\nodd\n";
        let list: Vec<_> = parse(text).map(|m| (m.target.clone().into_string().unwrap(), m.is_of_memory())).collect();
        let expected = [("/", false), ("/proc", true), ("/a b\\c\\0", false)];
        assert_eq!(list, expected.map(|(target, memory)| (target.to_owned(), memory)));
        assert_eq!(parse(text).last().unwrap().fstype, b"overlay");
    }

    #[test]
    fn what_is_mounted_in_a_disk_goes_before_it() {
        let text =
            b"/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /mnt ext4 rw 0 0\n\
            proc /mnt/proc proc rw 0 0\ntmpfs /mnt2 tmpfs rw 0 0\ntmpfs /mnt tmpfs rw 0 0\nover /work overlay rw 0 0\n";
        assert_eq!(to_unmount(text), [c"/work", c"/mnt", c"/mnt/proc", c"/mnt"].map(ToOwned::to_owned));
        assert!(to_unmount(b"").is_empty());
    }

    #[test]
    fn swap_files_are_named() {
        let text = b"Filename\t\t\tType\tSize\n/a\\040swap    file\t16380\t0\t-2\n/dev/vdb  partition\t1\n";
        assert_eq!(parse_swaps(text).collect::<Vec<_>>(), [c"/a swap".to_owned(), c"/dev/vdb".to_owned()]);
        assert_eq!(parse_swaps(b"").count() + parse_swaps(b"Filename\n").count(), 0);
    }

    proptest! {
        #[test]
        fn what_the_kernel_writes_is_read_back(target in prop::collection::vec(1..=u8::MAX, 1..30)) {
            let written: Vec<u8> = target.iter().flat_map(|&byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                byte => vec![byte],
            }).collect();
            let line = [b"/dev/vdb ", &written[..], b" ext4 rw,relatime 0 0\n"].concat();
            assert_eq!(parse(&line).next().unwrap().target.to_bytes(), target);
        }

        #[test]
        fn any_text_is_read(text in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&text).for_each(drop);
            let _ = to_unmount(&text);
            parse_swaps(&text).for_each(drop);
        }
    }
}

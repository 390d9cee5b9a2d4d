//! CRIU's command lines, what it says, and what a bundle says of the main command in it.

pub mod gate;
pub mod images;
pub mod lazy;
pub mod log;
pub mod workload;

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use self::workload::{Terminal, Workload};
use crate::wire::request::Tcp;

/// Where the bundle's share is mounted.
pub const BUNDLE: &str = "/run/machinen/bundle";
/// Where CRIU works: its logs and its socket.
pub const WORK: &str = "/run/machinen";
/// What was waited for at earlier lazy restores, in a bundle.
pub const FAULTS: &str = "faults";
/// CRIU's log of a dump, in [`WORK`].
pub const DUMP_LOG: &str = "dump.log";
/// CRIU's log of a restore, in [`WORK`].
pub const RESTORE_LOG: &str = "restore.log";
/// The log of what brings memory, in [`WORK`].
pub const LAZY_LOG: &str = "lazy.log";

/// Where CRIU finds the stdin, stdout and stderr of what it restores, and its terminal.
pub const STDIO_FDS: [i32; 4] = [4, 5, 6, 7];
/// Where the server of memory says that it is ready.
pub const STATUS_FD: i32 = 4;

/// CRIU's action script: this program, which is in no file of the image's that others could change.
pub const SCRIPT: &str = "/proc/1/exe";

/// Deleted files that are still open go into the bundle up to this size.
const GHOST_BYTES: &str = "536870912";

/// Words, of which none has a NUL in it.
type Words = Vec<String>;

fn words(list: &[&str]) -> Words {
    list.iter().map(|word| String::from(*word)).collect()
}

/// What dumps and restores have in common: nothing is done about cgroups, which belong to the guest; locks of files, and
/// sockets of the file system whose other end is not dumped, are.
fn both(verb: &str, images: &str, log: &str, tcp: Tcp) -> Words {
    let mut all = words(&["criu", verb, "--images-dir", images, "--work-dir", WORK, "--log-file", log, "-v4"]);
    all.extend(words(&["--manage-cgroups=ignore", "--ext-unix-sk", "--file-locks"]));
    match tcp {
        Tcp::Refuse => {}
        Tcp::Close => all.push("--tcp-close".into()),
        // There is no iptables in most images, and none is needed with this.
        Tcp::Keep => all.extend(words(&["--tcp-established", "--network-lock", "nftables"])),
    }
    all
}

/// The words of a dump.
#[must_use]
pub fn dump(workload: &Workload, images: &str, leave_running: bool, timeout_s: Option<u32>, hold: bool) -> Words {
    let mut all = both("dump", images, DUMP_LOG, workload.tcp);
    all.extend([String::from("--tree"), format!("{}", workload.pid)]);
    all.extend(words(&["--ghost-limit", GHOST_BYTES]));
    if leave_running {
        all.push("--leave-running".into());
    }
    if hold {
        all.extend(words(&["--action-script", SCRIPT]));
    }
    if let Some(seconds) = timeout_s {
        all.extend([String::from("--timeout"), format!("{seconds}")]);
    }
    if let Some(Terminal { device, file_system, .. }) = workload.terminal {
        all.extend([String::from("--external"), format!("tty[{device:x}:{file_system:x}]")]);
    }
    all
}

/// The words of a restore: the old terminal and pipes are replaced by those with the numbers of [`STDIO_FDS`].
#[must_use]
pub fn restore(workload: &Workload, images: &str, tcp: Tcp, lazy: bool) -> Words {
    let tcp = if tcp == Tcp::Refuse { workload.tcp } else { tcp };
    let mut all = both("restore", images, RESTORE_LOG, tcp);
    all.push("--restore-detached".into());
    if lazy {
        all.push("--lazy-pages".into());
    }
    let mut inherit = |fd: i32, what: String| all.extend([String::from("--inherit-fd"), format!("fd[{fd}]:{what}")]);
    let [stdin, stdout, stderr, tty] = STDIO_FDS;
    if let Some(Terminal { device, file_system, .. }) = workload.terminal {
        inherit(tty, format!("tty[{device:x}:{file_system:x}]"));
    }
    let mut seen = Vec::new();
    for (fd, inode) in [stdin, stdout, stderr].into_iter().zip(workload.pipes) {
        if let Some(inode) = inode.filter(|inode| !seen.contains(inode)) {
            seen.push(inode);
            inherit(fd, format!("pipe:[{inode}]"));
        }
    }
    all
}

/// The words of the server of memory.
#[must_use]
pub fn lazy_pages(images: &str) -> Words {
    let mut all = words(&["criu", "lazy-pages", "--images-dir", images, "--work-dir", WORK, "--log-file", LAZY_LOG]);
    all.extend([String::from("-v4"), String::from("--status-fd"), format!("{STATUS_FD}")]);
    all
}

/// A path in [`WORK`] or another directory.
#[must_use]
pub fn path(directory: &str, name: &str) -> CString {
    CString::new(format!("{directory}/{name}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{Tcp, Terminal, Workload, dump, lazy_pages, restore};

    fn line(words: &[String]) -> String {
        words.join(" ")
    }

    #[test]
    fn pipes_are_replaced_by_number() {
        let workload = Workload { pid: 1000, pipes: [Some(7), Some(8), Some(9)], ..Workload::default() };
        let text = line(&restore(&workload, "/b/img", Tcp::Refuse, false));
        assert!(text.ends_with(
            "--restore-detached --inherit-fd fd[4]:pipe:[7] --inherit-fd fd[5]:pipe:[8] --inherit-fd fd[6]:pipe:[9]"
        ));
        assert!(!text.contains("tcp") && !text.contains("lazy") && !text.contains("tty"));
        // One pipe for both outputs is one.
        let together = Workload { pipes: [None, Some(8), Some(8)], ..workload };
        let text = line(&restore(&together, "/b/img", Tcp::Close, true));
        assert!(
            text.ends_with("--restore-detached --lazy-pages --inherit-fd fd[5]:pipe:[8]")
                && text.contains("--tcp-close")
        );
        let text = line(&dump(&together, "/b/img", true, Some(5), true));
        assert!(text.starts_with("criu dump --images-dir /b/img --work-dir /run/machinen --log-file dump.log -v4 "));
        assert!(
            text.contains(" --tree 1000 ")
                && text.ends_with(" --leave-running --action-script /proc/1/exe --timeout 5")
        );
    }

    #[test]
    fn a_terminal_is_outside() {
        let terminal = Some(Terminal { device: 0x8800, file_system: 0x10, rows: 24, columns: 80 });
        let workload = Workload { pid: 1000, terminal, tcp: Tcp::Keep, ..Workload::default() };
        assert!(line(&dump(&workload, "/b", false, None, false)).ends_with(" --external tty[8800:10]"));
        let text = line(&restore(&workload, "/b", Tcp::Refuse, false));
        assert!(text.ends_with(" --inherit-fd fd[7]:tty[8800:10]") && text.contains(" --tcp-established "));
        assert!(line(&restore(&workload, "/b", Tcp::Close, false)).contains(" --tcp-close "));
        assert!(line(&lazy_pages("/b")).ends_with("-v4 --status-fd 4"));
    }
}

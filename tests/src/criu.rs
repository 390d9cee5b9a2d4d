//! Guests whose main command is dumped by CRIU or restored. The bundle is on a disk that they have in turn.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use machinen_abi::body::{Exit, Reason};
use machinen_abi::frame::Kind;
use machinen_abi::open::{Operation, Tag};

use crate::agent::{Client, End, MODULES, Machine, Outcome};
use crate::bundles::CRIU_MODULES;
use crate::e2fs::E2fs;
use crate::guest::Scratch;
use crate::lab::Arch;
use crate::{Run, asset, bin, rootfs};

/// The kernel that is made for guests.
pub const TUNED: &str = "vmlinux-tuned";
/// Debian's.
pub const STOCK: &str = "vmlinux";

/// A field of a first frame.
pub type Field<'a> = (Tag, &'a [u8]);

/// Where the guests have the disk of bundles.
pub const AT: Field<'static> = (Tag::Directory, b"/b");

/// The image of the guests' root file system, made where it is not in the cache.
///
/// # Panics
/// When that fails.
#[must_use]
pub fn root(e2fs: &E2fs) -> PathBuf {
    let run = Run::new(bin("machinen-rootfs-img")).env("MACHINEN_E2FSCK", e2fs.e2fsck());
    let made = run.arg(asset(&rootfs(Arch::OWN))).limit(Duration::from_secs(100)).finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    String::from_utf8(made.stdout).unwrap().trim_end().into()
}

/// A root file system, and a disk for bundles.
#[derive(Debug)]
pub struct Disks {
    _scratch: Scratch,
    root: PathBuf,
    bundle: PathBuf,
}

impl Disks {
    /// The second has so many MiB.
    ///
    /// # Panics
    /// When they cannot be made.
    #[must_use]
    pub fn new(mib: u64) -> Self {
        let (scratch, e2fs) = (Scratch::new(), E2fs::new());
        let (root, bundle) = (root(&e2fs), scratch.path("bundle"));
        e2fs.make(&bundle, mib, None);
        Self { _scratch: scratch, root, bundle }
    }

    /// A guest of Debian with the disk of bundles at `/b`, and the stream for its main command.
    ///
    /// # Panics
    /// When it does not boot.
    #[must_use]
    pub fn boot(&self, kernel: &str, access: &str) -> (Machine, Client) {
        self.boot_by(None, kernel, access)
    }

    /// The same, where this program is to become /init.
    ///
    /// # Panics
    /// As [`Disks::boot`].
    #[must_use]
    pub fn boot_by(&self, first: Option<&str>, kernel: &str, access: &str) -> (Machine, Client) {
        let machine = Machine::boot(|bridges| {
            let scratch = Scratch::new();
            let initrd = scratch.path("initrd");
            let mut make = Run::new(bin("machinen-mkinitramfs")).arg("minimal").arg(&initrd);
            make = make.args(["--root", "/dev/vda", "--agent"]);
            if kernel == STOCK {
                for name in MODULES.iter().chain(&["virtio_blk"]).chain(&CRIU_MODULES) {
                    make = make.arg("--module").arg(asset(&format!("modules/{name}.ko")));
                }
            }
            let made = make.finish();
            assert_eq!(made.code(), 0, "{}", made.printed());
            let mut command = Command::new(bin("vmm-min"));
            if let Some(first) = first {
                // A second archive, which the kernel unpacks over the first.
                let more = archive("first", &fs::read(bin(first)).unwrap());
                File::options().append(true).open(&initrd).unwrap().write_all(&more).unwrap();
                command.args(["--cmdline", "rdinit=/first"]);
            }
            command.arg("--kernel").arg(asset(kernel)).arg("--initrd").arg(initrd).args(["-m", "1024"]).args(bridges);
            command.arg("--root-disk").arg(&self.root);
            command.arg("--disk").arg(format!("{}:{access}", self.bundle.display()));
            (command, scratch)
        });
        let main = machine.ready();
        let option = if access == "ro" { "-r" } else { "-w" };
        let mounted = machine.run(&format!("mkdir -p /b && mount {option} /dev/vdb /b"));
        assert_eq!(mounted.triple(), (String::new(), String::new(), 0));
        (machine, main)
    }

    /// Restores the bundle in a new guest.
    #[must_use]
    pub fn restore(&self, kernel: &str, fields: &[Field<'_>]) -> (Machine, Client) {
        let (machine, mut main) = self.boot(kernel, "ro");
        main.open(Operation::Restore, &[&[AT], fields].concat());
        (machine, main)
    }
}

/// An initramfs of one program (newc, as Documentation/driver-api/early-userspace/buffer-format.rst has it).
fn archive(name: &str, program: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for (name, content) in [(name, program), ("TRAILER!!!", b"")] {
        let fields = [1, 0o100_755, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        let fields: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        for part in [format!("070701{fields}{name}\0").as_bytes(), content] {
            all.extend(part);
            all.resize(all.len().next_multiple_of(4), 0);
        }
    }
    all
}

/// Asks for a dump into the bundle at [`AT`], and hears it to its end.
#[must_use]
pub fn dump(machine: &Machine, fields: &[Field<'_>]) -> Outcome {
    let mut client = machine.connect();
    client.open(Operation::Dump, &[&[AT], fields].concat());
    client.outcome()
}

/// Dumps, which ends the machine. Returns what the main command had printed, and the dump.
///
/// # Panics
/// When it does not.
pub fn dump_and_end(machine: Machine, main: Client, fields: &[Field<'_>]) -> (Outcome, Outcome) {
    let dumped = dump(&machine, fields);
    assert_eq!(dumped.end, End::Exit(Exit::Code(0)), "{dumped:?}");
    let outcome = main.outcome();
    assert_eq!(outcome.end, End::Failed(Reason::Dumped, 0, "the main command was dumped".into()));
    assert_eq!(machine.finish(), (0, String::new()));
    (outcome, dumped)
}

/// The time from each mark to the next, for whoever reads the test's output.
pub fn print_marks(what: &str, outcome: &Outcome) {
    let mut marks = outcome.marks.clone();
    marks.sort_by_key(|(_, time)| *time);
    let since: Vec<String> =
        marks.windows(2).map(|pair| format!("{} +{} ms", pair[1].0, (pair[1].1 - pair[0].1) / 1_000_000)).collect();
    println!("{what}: {}", since.join(", "));
}

/// Waits for the first output of a counter, which begins with this number.
///
/// # Panics
/// When it does not.
pub fn expect_first(main: &mut Client, number: u32) {
    let bytes = main.expect(Kind::Output);
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with(&format!("{number}\n")), "{text} does not begin with {number}");
}

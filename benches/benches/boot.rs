//! `boot.*`: from the start of vmm-min to the first byte of the guest's command, with the tuned and the stock kernel.
//!
//! Beside it, in the same rounds, QEMU's microvm with the same kernel file, initrd, memory and command-line words, without any
//! device but the serial line. Where the host's KVM boots no Linux all of it happens in the lab, once by its clock, and
//! once (`…_counted`) with its clock counting instructions: figures that repeat whatever else this machine does.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use machinen_benches::{Report, Samples, output, program};
use machinen_fixtures::TempFile;
use machinen_tests::lab::{self, Arch, Job, Lab};
use machinen_tests::runner::place::Place;
use serde_json::{Value, json};

const QEMU: &str = "qemu-system-x86_64";
const FIRMWARE: &str = "/usr/share/qemu";
const MIB: &str = "512";
/// In the lab a warm-up for each kernel and command is one boot: page cache and vmm-min's own cache are then full.
const WARM_UP: u32 = 2;
/// Seconds for each kernel; less than ROUNDS then have to do, and the row says how many.
const SECONDS: u32 = 240;
const ROUNDS: u32 = 50;
/// They differ by a thousandth.
const COUNTED_ROUNDS: u32 = 5;
/// Of the lab, its boot included.
const LIMIT: Duration = Duration::from_mins(30);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A kernel to boot, by the name of its rows.
struct Kernel {
    name: &'static str,
    file: &'static str,
    /// What makes it.
    make: &'static str,
    /// How it finds the I/O APIC in QEMU: by ACPI, or by the firmware's MP table.
    acpi: &'static str,
}

/// Both as ELF files, which QEMU enters by their PVH note; as a bzImage each guest would decompress itself first.
const KERNELS: [Kernel; 2] = [
    Kernel { name: "boot.tuned", file: "vmlinux-tuned", make: "make kernel", acpi: "off" },
    Kernel { name: "boot.stock", file: "vmlinux", make: "make lab", acpi: "on" },
];

fn main() -> Result<()> {
    let mut report = Report::default();
    let place = Place::probe(program("vmm-min").parent().unwrap_or(Path::new(".")))?;
    for kernel in KERNELS {
        let rows = |suffix: &str| [format!("{}{suffix}", kernel.name), format!("{}_qemu{suffix}", kernel.name)];
        let path = Arch::OWN.assets_dir().join(kernel.file);
        if !path.exists() {
            rows("")
                .iter()
                .for_each(|row| report.missing(row, &format!("{} is missing: {}", path.display(), kernel.make)));
            continue;
        }
        for (suffix, rounds, counting) in [("", ROUNDS, false), ("_counted", COUNTED_ROUNDS, true)] {
            if counting && place.linux {
                continue;
            }
            let bench = Bench { kernel: &kernel, path: &path, rounds, counting };
            let [ours, qemu] = rows(suffix);
            match if place.linux { bench.on_host() } else { bench.in_lab() } {
                Ok(said) => add(&mut report, &said, &ours, &qemu),
                Err(why) => [ours, qemu].iter().for_each(|row| report.missing(row, &why.to_string())),
            }
        }
    }
    Ok(report.finish()?)
}

/// Reads what machinen-rounds said of `vmm` and `qemu`, and adds two rows and their ratio.
fn add(report: &mut Report, said: &str, ours: &str, qemu: &str) {
    let mut errors: BTreeMap<String, String> = BTreeMap::new();
    let mut samples: BTreeMap<String, Samples> = BTreeMap::new();
    for line in said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let name = line["name"].as_str().unwrap_or_default().to_string();
        match line["us"].as_f64() {
            Some(us) => samples.entry(name).or_default().push(us / 1000.0),
            None => drop(errors.insert(name, line["error"].as_str().unwrap_or_default().to_string())),
        }
    }
    for (row, name) in [(ours, "vmm"), (qemu, "qemu")] {
        match (errors.get(name), samples.get(name)) {
            (None, Some(samples)) => report.measured(row, "ms", samples),
            (Some(why), _) => report.missing(row, why),
            (None, None) => report.missing(row, "no figure came"),
        }
    }
    if let (true, Some(vmm), Some(other)) = (errors.is_empty(), samples.get("vmm"), samples.get("qemu")) {
        report.value(&format!("{ours} / qemu"), "ratio", vmm.percentile(50) / other.percentile(50));
    }
}

/// One kernel, one way to measure.
struct Bench<'a> {
    kernel: &'a Kernel,
    path: &'a Path,
    rounds: u32,
    counting: bool,
}

impl Bench<'_> {
    /// The lines of machinen-rounds, run here.
    fn on_host(&self) -> Result<String> {
        let initrd = initrd()?;
        let file = |path: &Path| path.to_string_lossy().into_owned();
        let commands =
            self.commands(&file(&program("vmm-min")), &file(self.path), &file(initrd.path()), FIRMWARE).to_string();
        let commands = TempFile::new("boot", commands.as_bytes())?;
        let mut rounds = Command::new(program("machinen-rounds"));
        rounds.args(self.numbers()).arg(commands.path());
        output(&mut rounds)
    }

    /// The same, run in the lab.
    fn in_lab(&self) -> Result<String> {
        let initrd = initrd()?;
        let commands = TempFile::new(
            "boot",
            self.commands("/b/vmm-min", "/b/kernel", "/b/initrd", "/b/qemu").to_string().as_bytes(),
        )?;
        // QEMU's dynamic linker wants its cache, as on any host.
        let [warm_up, rounds, seconds] = self.numbers();
        let script = format!("ldconfig && exec /b/machinen-rounds {warm_up} {rounds} {seconds} /b/commands");
        let mut job = Job::new(["sh", "-c", &script]);
        (job.counting, job.limit) = (self.counting, LIMIT);
        let mut file = |host: PathBuf, lab: &str| job.files.push((host, lab.into()));
        file(program("vmm-min"), "/b/vmm-min");
        file(program("machinen-rounds"), "/b/machinen-rounds");
        file(self.path.to_owned(), "/b/kernel");
        file(initrd.path().to_owned(), "/b/initrd");
        file(commands.path().to_owned(), "/b/commands");
        file("/sbin/ldconfig".into(), "/bin/ldconfig");
        job.files.extend(qemu_files()?);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let outcome = Lab::open(Arch::OWN)?.run(&job, &mut stdout, &mut stderr)?;
        match outcome.code {
            0 => Ok(String::from_utf8(stdout)?),
            code => {
                Err(format!("machinen-rounds in the lab: exit code {code}: {}", String::from_utf8_lossy(&stderr))
                    .into())
            }
        }
    }

    fn numbers(&self) -> [String; 3] {
        // Seconds of a clock that counts instructions are no seconds of ours.
        [WARM_UP, self.rounds, if self.counting { u32::MAX } else { SECONDS }].map(|number| number.to_string())
    }

    /// The commands for machinen-rounds.
    fn commands(&self, vmm: &str, kernel: &str, initrd: &str, firmware: &str) -> Value {
        let words = format!("{} machinen.epoch=1790000000.000000000", vmm_min::arch::BASE_CMDLINE);
        let machine = format!("microvm,accel=kvm,acpi={},pit=off,pic=off,rtc=off,x-option-roms=off", self.kernel.acpi);
        json!({
            "vmm": [vmm, "--memory", MIB, "--kernel", kernel, "--initrd", initrd],
            "qemu": [
                QEMU, "-L", firmware, "-M", machine, "-cpu", "host", "-m", MIB, "-nodefaults", "-no-user-config", "-no-reboot",
                "-display", "none", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd, "-append", words,
            ],
        })
    }
}

/// An initramfs of nothing but /init, which is also its own command: as that it prints a line and ends.
fn initrd() -> Result<TempFile> {
    let file = TempFile::new("initrd", b"")?;
    output(Command::new(program("machinen-mkinitramfs")).args(["minimal", "--cmd", "/init"]).arg(file.path()))?;
    Ok(file)
}

/// QEMU with what it links and the firmware of microvm: path here, path in the lab.
fn qemu_files() -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut files = lab::program::files(lab::Arch::OWN, QEMU).ok_or("qemu-system-x86_64 is missing: make deps")?;
    for entry in fs::read_dir(FIRMWARE)?.filter_map(std::result::Result::ok) {
        let name = entry.file_name();
        let wanted = ["bios-microvm.bin", "qboot.rom", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin"];
        if wanted.iter().any(|wanted| OsStr::new(wanted) == name) {
            files.push((fs::canonicalize(entry.path())?, Path::new("/b/qemu").join(name)));
        }
    }
    Ok(files)
}

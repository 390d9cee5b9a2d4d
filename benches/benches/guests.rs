//! `run.true`, `exec.*`, `mem.overhead`: whole commands and messages, as a user of the toolkit sees them.
//!
//! Beside them, in the same rounds: the bare boot of the same kernel to its first byte; the same command, and the same message,
//! to a process of the host. machinen-guests measures, in the lab where the host's KVM boots no Linux.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use machinen_benches::{Report, Samples, output, program};
use machinen_fixtures::TempFile;
use machinen_tests::lab::{Arch, Job, Lab};
use machinen_tests::runner::place::Place;
use serde_json::Value;

const ROUNDS: &str = "50";
/// Of the first part; less than ROUNDS then have to do.
const SECONDS: &str = "240";
const LIMIT: Duration = Duration::from_mins(20);
const KERNEL: &str = "vmlinux-tuned";
const ROWS: [&str; 8] = [
    "run.true ms",
    "run.true_boot ms",
    "exec.true ms",
    "exec.true_here ms",
    "exec.rtt us",
    "exec.rtt_here us",
    "exec.exits_per_message exits",
    "mem.overhead KiB",
];
const RATIOS: [(&str, &str); 3] =
    [("run.true ms", "run.true_boot ms"), ("exec.true ms", "exec.true_here ms"), ("exec.rtt us", "exec.rtt_here us")];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut report = Report::default();
    let said = match measure() {
        Ok(said) => said,
        Err(why) => {
            ROWS.iter().for_each(|row| report.missing(name(row), &why.to_string()));
            return Ok(report.finish()?);
        }
    };
    let mut samples: BTreeMap<String, Samples> = BTreeMap::new();
    let mut errors: BTreeMap<String, String> = BTreeMap::new();
    for line in said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let row = line["name"].as_str().unwrap_or_default().to_string();
        match line["value"].as_f64() {
            Some(value) => samples.entry(row).or_default().push(value),
            None => drop(errors.insert(row, line["error"].as_str().unwrap_or_default().into())),
        }
    }
    for row in ROWS {
        let unit = row.split_once(' ').map_or("", |(_, unit)| unit);
        match samples.get(row) {
            Some(samples) => report.measured(name(row), unit, samples),
            None => report.missing(name(row), errors.get(row).map_or("no figure came", String::as_str)),
        }
    }
    for (row, beside) in RATIOS {
        if let (Some(ours), Some(other)) = (samples.get(row), samples.get(beside)) {
            let ratio = ours.percentile(50) / other.percentile(50);
            report.value(&format!("{} / {}", name(row), name(beside)), "ratio", ratio);
        }
    }
    Ok(report.finish()?)
}

fn name(row: &str) -> &str {
    row.split_once(' ').map_or(row, |(name, _)| name)
}

/// The lines of machinen-guests.
fn measure() -> Result<String> {
    let kernel = Arch::OWN.assets_dir().join(KERNEL);
    if !kernel.exists() {
        return Err(format!("{} is missing: make kernel", kernel.display()).into());
    }
    let initrd = TempFile::new("initrd", b"")?;
    let mut pack = Command::new(program("machinen-mkinitramfs"));
    output(pack.args(["minimal", "--cmd", "/init"]).arg(initrd.path()))?;
    let image = image()?;
    let place = Place::probe(program("vmm-min").parent().unwrap_or(Path::new(".")))?;
    if place.linux {
        let mut guests = Command::new(program("machinen-guests"));
        guests.arg(program("machinen-run")).args([ROUNDS, SECONDS]).arg(&image).arg(initrd.path());
        return output(guests.env("MACHINEN_KERNEL", kernel));
    }
    let script = "mount -t debugfs debugfs /sys/kernel/debug; \
        exec /b/machinen-guests /b/machinen-run \"$@\" /b/image /b/initrd";
    let mut job = Job::new(["sh", "-c", script, "sh", ROUNDS, SECONDS]);
    job.limit = LIMIT;
    job.env = [("MACHINEN_KERNEL", "/b/kernel"), ("XDG_RUNTIME_DIR", "/run"), ("TMPDIR", "/tmp")]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
    for name in ["vmm-min", "init", "machinen-run", "machinen-guests"] {
        job.files.push((program(name), Path::new("/b").join(name)));
    }
    job.files.extend([
        (kernel, "/b/kernel".into()),
        (initrd.path().to_owned(), "/b/initrd".into()),
        (image, "/b/image".into()),
    ]);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let outcome = Lab::open(Arch::OWN)?.run(&job, &mut stdout, &mut stderr)?;
    match outcome.code {
        0 => Ok(String::from_utf8(stdout)?),
        code => {
            Err(format!("machinen-guests in the lab: exit code {code}: {}", String::from_utf8_lossy(&stderr)).into())
        }
    }
}

/// An image of busybox's programs, in the cache.
fn image() -> Result<PathBuf> {
    let root = std::env::temp_dir().join(format!("machinen-guests-{}", std::process::id()));
    fs::create_dir_all(root.join("bin"))?;
    let made = (|| {
        fs::copy(Arch::OWN.assets_dir().join("busybox"), root.join("bin/busybox"))?;
        for name in ["true", "cat", "sleep"] {
            symlink("busybox", root.join("bin").join(name))?;
        }
        output(Command::new(program("machinen-rootfs-img")).args(["--size", "32M"]).arg(&root))
    })();
    fs::remove_dir_all(&root)?;
    Ok(PathBuf::from(made?.trim_end()))
}

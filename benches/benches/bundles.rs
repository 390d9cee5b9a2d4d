//! `criu.*`: how long it takes until processes of a bundle, or of another machine, go on; with heaps of two sizes. `share.*`: files in a
//! share beside the same files on the guest's own disk.
//!
//! Of `criu.*` the whole command is timed, from its execve to the first answer of the process to what was on its stdin. machinen-bundles
//! measures those, and python3 in a guest the others; all in the lab where the host's KVM boots no Linux.

#![forbid(unsafe_code)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use machinen_benches::{Report, Samples, output, program};
use machinen_tests::lab::{Arch, Job, Lab};
use machinen_tests::runner::place::Place;
use serde_json::Value;

const ROUNDS: &str = "50";
/// Of the rounds; less of them then have to do.
const SECONDS: &str = "900";
const LIMIT: Duration = Duration::from_mins(40);
/// Two machines whose copies are made, the copy, and what they are copied by, all in memory.
const LAB_MIB: u32 = 8192;
const KERNEL: &str = "vmlinux-tuned";
const TOOLS: [&str; 7] =
    ["vmm-min", "init", "machinen-run", "machinen-snapshot", "machinen-restore", "machinen-fork", "machinen-bundles"];
const ROWS: [&str; 6] = [
    "criu.restore_lazy_16",
    "criu.restore_lazy_512",
    "criu.restore_hinted_16",
    "criu.restore_hinted_512",
    "criu.restore_eager_16",
    "criu.restore_eager_512",
];
/// With the words after it: rounds and seconds of machinen-bundles, rounds and words of FILES.
const SCRIPT: &str = r#"set -e
mkdir -p "$DIR/share"
"$TOOLS/machinen-bundles" "$TOOLS" "$1" "$2" "$IMAGE" "$DIR"
exec "$TOOLS/machinen-run" -m 1024 --share "$DIR/share:/share" "$IMAGE" -- python3 -c "$4" "$3""#;
/// Of [`FILES`]. Each takes one to two minutes in the lab.
const FILE_ROUNDS: &str = "3";
/// Writes, reads and removes 10,000 files of 1 KiB, and one of 256 MiB, here and there; what was written is on its disk, and what is read
/// is not in memory.
const FILES: &str = r#"
import json, os, shutil, sys, time
small, big = os.urandom(1024), os.urandom(1 << 20)
def timed(name, work):
    begin = time.monotonic()
    work()
    print(json.dumps({"name": f"share.{name} ms", "value": (time.monotonic() - begin) * 1e3}), flush=True)
def write_small():
    os.mkdir(top)
    for n in range(10000):
        with open(f"{top}/{n}", "wb", buffering=0) as file: file.write(small)
    os.sync()
def read_small():
    for n in range(10000):
        with open(f"{top}/{n}", "rb", buffering=0) as file: assert file.read() == small
def write_big():
    with open(f"{top}/big", "wb", buffering=0) as file:
        for n in range(256): assert file.write(big) == len(big)
        os.fsync(file.fileno())
def read_big():
    with open(f"{top}/big", "rb", buffering=0) as file:
        for n in range(256): assert file.read(len(big)) == big
def forget():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file: file.write("3")
for n in range(int(sys.argv[1])):
    for where, top in ("", "/share/files"), ("_disk", "/var/tmp/files"):
        timed("small_write" + where, write_small)
        forget()
        timed("small_read" + where, read_small)
        timed("big_write" + where, write_big)
        forget()
        timed("big_read" + where, read_big)
        timed("remove" + where, lambda: shutil.rmtree(top))
        forget()
"#;
/// The targets of the first two are 1.2 and 0.5.
const RATIOS: [[&str; 2]; 11] = [
    ["criu.restore_lazy_512", "criu.restore_lazy_16"],
    ["criu.restore_lazy_512", "criu.restore_eager_512"],
    ["criu.restore_hinted_16", "criu.restore_lazy_16"],
    ["criu.restore_hinted_512", "criu.restore_lazy_512"],
    ["criu.restore_eager_512", "criu.restore_eager_16"],
    ["criu.fork_512", "criu.fork_16"],
    ["share.small_write", "share.small_write_disk"],
    ["share.small_read", "share.small_read_disk"],
    ["share.big_write", "share.big_write_disk"],
    ["share.big_read", "share.big_read_disk"],
    ["share.remove", "share.remove_disk"],
];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut report = Report::default();
    match measure() {
        Ok(said) => rows(&said, &mut report),
        Err(why) => ROWS.iter().for_each(|row| report.missing(row, &why.to_string())),
    }
    Ok(report.finish()?)
}

/// What was said, in the order in which it was begun; and the ratios.
fn rows(said: &str, report: &mut Report) {
    let mut all: Vec<(String, Samples)> = Vec::new();
    for line in said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let Some((row, value)) = line["name"].as_str().zip(line["value"].as_f64()) else { continue };
        match all.iter_mut().find(|(name, _)| name == row) {
            Some((_, samples)) => samples.push(value),
            None => {
                let mut samples = Samples::default();
                samples.push(value);
                all.push((row.to_owned(), samples));
            }
        }
    }
    for (row, samples) in &all {
        let (name, unit) = row.rsplit_once(' ').unwrap_or((row, ""));
        report.measured(name, unit, samples);
    }
    let median = |name| {
        let found = all.iter().find(|(row, _)| row.strip_suffix(" ms") == Some(name));
        found.map(|(_, samples)| samples.percentile(50))
    };
    for [one, other] in RATIOS {
        if let (Some(ours), Some(theirs)) = (median(one), median(other)) {
            report.value(&format!("{one} / {other}"), "ratio", ours / theirs);
        }
    }
}

/// The lines of machinen-bundles.
fn measure() -> Result<String> {
    let assets = Arch::OWN.assets_dir();
    let kernel = assets.join(KERNEL);
    let tar = assets.join(format!("rootfs-debian-{}.tar", Arch::OWN.debian()));
    if let Some(missing) = [&kernel, &tar].into_iter().find(|path| !path.exists()) {
        return Err(format!("{} is missing: make kernel rootfs", missing.display()).into());
    }
    let image = PathBuf::from(output(Command::new(program("machinen-rootfs-img")).arg(tar))?.trim_end());
    let tools = program("vmm-min").parent().unwrap_or(Path::new(".")).to_owned();
    let place = Place::probe(&tools)?;
    if place.linux {
        let dir = std::env::temp_dir().join(format!("machinen-bundles-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let mut both = Command::new("sh");
        both.args(["-c", SCRIPT, "sh", ROUNDS, SECONDS, FILE_ROUNDS, FILES]);
        both.envs([("TOOLS", &tools), ("DIR", &dir), ("IMAGE", &image), ("MACHINEN_KERNEL", &kernel)]);
        let said = output(&mut both);
        std::fs::remove_dir_all(&dir)?;
        return said;
    }
    let mut job = Job::new(["sh", "-c", SCRIPT, "sh", ROUNDS, SECONDS, FILE_ROUNDS, FILES]);
    job.limit = LIMIT;
    job.memory_mib = LAB_MIB;
    job.env = [
        ("TOOLS", "/b"),
        ("DIR", "/d"),
        ("IMAGE", "/b/image.img"),
        ("MACHINEN_KERNEL", "/b/kernel"),
        ("XDG_RUNTIME_DIR", "/run"),
        ("TMPDIR", "/tmp"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    job.files.extend(TOOLS.map(|name| (program(name), Path::new("/b").join(name))));
    job.files.extend([(kernel, "/b/kernel".into()), (image, "/b/image.img".into())]);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let outcome = Lab::open(Arch::OWN)?.run(&job, &mut stdout, &mut stderr)?;
    match outcome.code {
        0 => Ok(String::from_utf8(stdout)?),
        code => {
            Err(format!("machinen-bundles in the lab: exit code {code}: {}", String::from_utf8_lossy(&stderr)).into())
        }
    }
}

//! `tools.*`: what the image tools take for a corpus and for a quarter of it, beside the programs that do the same.
//!
//! Everything lies on a tmpfs where there is one. `MACHINEN_BENCH_ROUNDS` changes the number of rounds.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use machinen_benches::corpus::{self, Scratch};
use machinen_benches::{Order, Report, Samples, program};

const WARM_UP: usize = 2;
const ROUNDS: usize = 50;
/// Corpus, tar file, image, unpacked copy and archives at once.
const ROOM_BYTES: u64 = 4 << 30;
/// The whole corpus and a part of it, with the suffix of its rows.
const PARTS: [(usize, &str); 2] = [(1, ""), (4, "_quarter")];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is timed: the name of its row, a script, and one that runs before it, untimed.
///
/// `$B` is the directory of our programs; `cold` and `warm` are caches; `tree` is the corpus, `c.tar` its tar file. A tar
/// file that was just touched is hashed again.
const KINDS: [(&str, &str, &str); 13] = [
    ("tools.rootfs_img", "MACHINEN_CACHE_DIR=cold $B/machinen-rootfs-img c.tar", "rm -rf cold"),
    ("tools.tar_x_and_mke2fs_d", "tar -C x -xf c.tar && mke2fs -q -F -t ext4 -d x x.img 2G", "rm -rf x x.img; mkdir x"),
    ("tools.rootfs_img_hit", "MACHINEN_CACHE_DIR=warm $B/machinen-rootfs-img c.tar", ":"),
    ("tools.rootfs_img_hit_touched", "MACHINEN_CACHE_DIR=warm $B/machinen-rootfs-img t.tar", "touch t.tar"),
    ("tools.sha256sum", "sha256sum c.tar", ":"),
    ("tools.mountdisk", "MACHINEN_CACHE_DIR=cold $B/machinen-mountdisk tree up.img", "rm -rf cold up.img"),
    (
        "tools.mksquashfs",
        "mksquashfs tree s.img -comp zstd -Xcompression-level 1 -noappend -quiet -no-progress",
        "rm -f s.img",
    ),
    ("tools.mountdisk_hit", "MACHINEN_CACHE_DIR=warm $B/machinen-mountdisk tree up.img", "rm -f up.img"),
    ("tools.stat_walk", "find tree -printf '%s\\n'", ":"),
    ("tools.mkinitramfs", "$B/machinen-mkinitramfs --init $B/init rootfs tree o.cpio", "rm -f o.cpio"),
    ("tools.find_cpio", "cd tree && find . | cpio --quiet -H newc -o >../p.cpio", "rm -f p.cpio"),
    ("tools.tar_c", "tar -C tree -cf n.tar .", "rm -f n.tar"),
    ("tools.nothing", ":", ":"),
];

/// Ratios: of which row to which, and the target in the name.
const RATIOS: [(&str, &str); 5] = [
    ("tools.rootfs_img", "tools.tar_x_and_mke2fs_d"),
    ("tools.rootfs_img_hit_touched", "tools.sha256sum"),
    ("tools.mountdisk", "tools.mksquashfs"),
    ("tools.mountdisk_hit", "tools.stat_walk"),
    ("tools.mkinitramfs", "tools.find_cpio"),
];

fn main() -> Result<()> {
    let rounds = std::env::var("MACHINEN_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let mut report = Report::default();
    let mut whole = None;
    for (part, suffix) in PARTS {
        match measure(part, rounds) {
            Ok(samples) => {
                add(&mut report, &samples, suffix);
                match &whole {
                    None => whole = Some(samples),
                    Some(whole) => growth(&mut report, whole, &samples),
                }
            }
            Err(why) => {
                for (name, ..) in KINDS {
                    report.missing(&format!("{name}{suffix}"), &why.to_string());
                }
            }
        }
    }
    Ok(report.finish()?)
}

/// Milliseconds of each kind.
fn measure(part: usize, rounds: usize) -> Result<[Samples; KINDS.len()]> {
    let scratch = Scratch::new(ROOM_BYTES)?;
    let dir = scratch.path();
    corpus::make(&dir.join("tree"), part)?;
    run(dir, "tar -C tree -cf c.tar . && cp c.tar t.tar && sleep 1.1")?;
    let mut samples: [Samples; KINDS.len()] = Default::default();
    let mut order = Order::<{ KINDS.len() }>::default();
    for round in 0..WARM_UP + rounds {
        for index in order.shuffled() {
            let (_, script, before) = KINDS[index];
            run(dir, before)?;
            let ms = run(dir, script)?;
            if round >= WARM_UP {
                samples[index].push(ms);
            }
        }
    }
    Ok(samples)
}

/// Milliseconds that a script takes.
fn run(dir: &Path, script: &str) -> Result<f64> {
    let programs = program("x").parent().map(Path::to_path_buf).unwrap_or_default();
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(dir).env("B", fs::canonicalize(programs)?);
    let begin = Instant::now();
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    let ms = begin.elapsed().as_secs_f64() * 1e3;
    if output.status.success() {
        return Ok(ms);
    }
    Err(format!("{script}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()).into())
}

fn p50(samples: &[Samples; KINDS.len()], name: &str) -> f64 {
    let index = KINDS.iter().position(|kind| kind.0 == name);
    index.map_or(f64::NAN, |index| samples[index].percentile(50))
}

fn add(report: &mut Report, samples: &[Samples; KINDS.len()], suffix: &str) {
    for ((name, ..), samples) in KINDS.iter().zip(samples) {
        report.measured(&format!("{name}{suffix}"), "ms", samples);
    }
    for (over, under) in RATIOS {
        let name = format!("{over}{suffix} / {}", under.trim_start_matches("tools."));
        report.value(&name, "ratio", p50(samples, over) / p50(samples, under));
    }
}

/// How the cost grows: the whole corpus over its quarter, for a cost in proportion 4.
fn growth(report: &mut Report, whole: &[Samples; KINDS.len()], quarter: &[Samples; KINDS.len()]) {
    for (name, _) in RATIOS {
        report.value(&format!("{name} / {name}_quarter"), "ratio", p50(whole, name) / p50(quarter, name));
    }
}

//! Tests in the lab: the job on the host's side, and the loop inside.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::discover::Executable;
use super::execute::{Setting, execute};
use super::record::{Line, Record, Test, Verdict};
use crate::lab::{Arch, Job, Lab, program};
use crate::rootfs;

/// Where things are in the lab. `/tmp` is the large file system.
const RUNNER: &str = "/tmp/lab/machinen-test";
const PLAN: &str = "/tmp/lab/plan.json";
const BIN_DIR: &str = "/tmp/lab/bin";
const ASSETS: &str = "/tmp/lab/assets";

/// The programs and assets that tests may ask for; those that exist are brought in.
const BINS: &[&str] = &[
    "vmm-min",
    "init",
    "machinen-mkinitramfs",
    "machinen-rootfs-img",
    "machinen-mountdisk",
    "machinen-net",
    "machinen-run",
    "machinen-exec",
    "machinen-attach",
    "machinen-cp",
    "machinen-snapshot",
    "machinen-restore",
    "machinen-fork",
    "machinen-stop",
    "machinen-ls",
    "machinen-gc",
    "machinen-logs",
    "machinen-mem",
    "machinen",
    "machinen-probe",
    "machinen-traffic",
    "machinen-vsock-peer",
    "machinen-without-userfaultfd",
    "machinen-sleep",
];
const SHARED_ASSETS: &[&str] = &["vmlinuz", "vmlinux", "busybox", "modules", "vmlinux-tuned", "pjdfstest", "fsx"];

/// Programs that tests may ask for; passt starts the second, for processors with AVX2.
const PROGRAMS: [&str; 6] = ["passt", "passt.avx2", "e2fsck", "mke2fs", "mksquashfs", "tmux"];
/// What tmux reads: of the terminal that it is itself, and of its characters.
const TMUX_FILES: [&str; 2] = ["/lib/terminfo/s/screen", "/usr/lib/locale/C.utf8/LC_CTYPE"];

/// The lab's memory holds all files and the guests; the host gives only what is touched.
const MEMORY_MIB: u32 = 6144;
const BOOT: Duration = Duration::from_mins(1);

/// So many labs are started in one run.
const LABS: usize = 6;

/// Runs tests in a lab of the architecture until `deadline`, telling `line` what happens. When a test hangs, or the lab ends in
/// it, the emulator may be to blame: all that is open, this test for a second time, gets another lab. Tests that no lab got to
/// have failed.
pub fn run(
    arch: Arch,
    executables: &[(Executable, Vec<Test>)],
    setting: &Setting,
    deadline: Instant,
    line: &mut dyn FnMut(Line),
) {
    let mut open = executables.to_vec();
    let mut hung: Vec<(Test, String)> = Vec::new();
    for lab in 1..=LABS {
        let mut ended = Vec::new();
        let stop = run_one(arch, &open, setting, deadline, &mut |read| {
            line(match read {
                Line::Started(test) => Line::Started(test),
                Line::Ended(record) => {
                    ended.push(record.test.clone());
                    Line::Ended(over_first_try(record, &hung))
                }
            });
        });
        close(&mut open, &ended);
        match stop.at {
            _ if open.is_empty() => return,
            Some(at) if lab < LABS && Instant::now() < deadline => {
                if hung.iter().all(|(test, _)| *test != at) {
                    hung.push((at, stop.why));
                } else {
                    close(&mut open, std::slice::from_ref(&at));
                    line(Line::Ended(failed(at, stop.why)));
                }
            }
            at => return fail(&open, at.as_ref(), &stop.why, line),
        }
    }
}

fn close(open: &mut Vec<(Executable, Vec<Test>)>, ended: &[Test]) {
    open.iter_mut().for_each(|(_, tests)| tests.retain(|test| !ended.contains(test)));
    open.retain(|(_, tests)| !tests.is_empty());
}

fn failed(test: Test, why: String) -> Record {
    Record { test, verdict: Verdict::Failed(why), elapsed: Duration::ZERO }
}

/// Why a lab ended, which may have been before its tests did.
struct Stop {
    /// The test that ran, or hung.
    at: Option<Test>,
    why: String,
}

/// A second try that passed tells of the first.
fn over_first_try(record: Record, hung: &[(Test, String)]) -> Record {
    match hung.iter().find(|(test, _)| *test == record.test) {
        Some((_, output)) if record.verdict == Verdict::Passed => {
            Record { verdict: Verdict::PassedAgain(output.clone()), ..record }
        }
        _ => record,
    }
}

fn fail(open: &[(Executable, Vec<Test>)], at: Option<&Test>, why: &str, line: &mut dyn FnMut(Line)) {
    for test in open.iter().flat_map(|(_, tests)| tests) {
        let why = match at {
            Some(at) if at != test => format!("not run: the last lab ended in {at}"),
            _ => why.to_owned(),
        };
        line(Line::Ended(failed(test.clone(), why)));
    }
}

/// Runs tests in one lab, until one hangs. What ended is told; gives why others did not.
fn run_one(
    arch: Arch,
    executables: &[(Executable, Vec<Test>)],
    setting: &Setting,
    deadline: Instant,
    line: &mut dyn FnMut(Line),
) -> Stop {
    let (mut at, mut hung) = (None, None);
    let mut stderr = Vec::new();
    let mut lines = Lines::new(|read| match read {
        Line::Ended(Record { test, verdict: Verdict::Hung(why), .. }) => hung = Some(Stop { at: Some(test), why }),
        Line::Ended(record) => {
            at = None;
            line(Line::Ended(record));
        }
        Line::Started(test) => {
            at = Some(test.clone());
            line(Line::Started(test));
        }
    });
    let mut why = match job(arch, executables, setting, deadline) {
        Ok((job, plan)) => {
            let result = Lab::open(arch).and_then(|lab| lab.run(&job, &mut lines, &mut stderr));
            // The lab has ended: nobody reads the plan any more.
            let _ = fs::remove_file(plan);
            match result {
                Ok(outcome) => format!("the runner in the lab ended with {}", outcome.code),
                Err(error) => error.to_string(),
            }
        }
        Err(error) => error,
    };
    if !stderr.is_empty() {
        why = format!("{why}\nthe runner in the lab said:\n{}", String::from_utf8_lossy(&stderr));
    }
    hung.unwrap_or(Stop { at, why })
}

/// The lab's job, and the file on the host that holds its plan.
fn job(
    arch: Arch,
    executables: &[(Executable, Vec<Test>)],
    setting: &Setting,
    deadline: Instant,
) -> Result<(Job, PathBuf), String> {
    let mut job = Job::new([RUNNER, "--inside", PLAN]);
    job.memory_mib = MEMORY_MIB;
    // Each test has its own limit inside; this one is for a lab that hangs.
    let count: usize = executables.iter().map(|(_, tests)| tests.len()).sum();
    let all = (setting.limit + Duration::from_secs(5)) * u32::try_from(count).unwrap_or(u32::MAX);
    job.limit = (BOOT + all).min(deadline.saturating_duration_since(Instant::now()));
    job.silence = BOOT + setting.limit;
    job.env.push(("TMPDIR".into(), "/tmp".into()));
    if crate::soak() {
        job.env.push(("MACHINEN_SOAK".into(), "1".into()));
    }

    job.files.push((setting.bin_dir.join("machinen-test"), RUNNER.into()));
    let mut entries = Vec::new();
    for (index, (executable, tests)) in executables.iter().enumerate() {
        let path = format!("/tmp/lab/tests/{index}");
        let names: Vec<&str> = tests.iter().map(|test| test.name.as_str()).collect();
        entries.push(json!({"path": path, "label": executable.label, "tests": names}));
        job.files.push((executable.path.clone(), path.into()));
    }
    for (names, from, to) in [(BINS, setting.bin_dir, BIN_DIR), (SHARED_ASSETS, setting.assets, ASSETS)] {
        let present = names.iter().filter(|name| from.join(name).exists());
        job.files.extend(present.map(|name| (from.join(name), Path::new(to).join(name))));
    }
    let rootfs = rootfs(arch);
    if setting.assets.join(&rootfs).exists() {
        job.files.push((setting.assets.join(&rootfs), Path::new(ASSETS).join(&rootfs)));
    }
    job.files.extend(TMUX_FILES.iter().filter(|file| Path::new(file).exists()).map(|file| (file.into(), file.into())));
    job.files.extend(PROGRAMS.iter().filter_map(|name| program::files(arch, name)).flatten());
    let plan = std::env::temp_dir().join(format!(".machinen-test-{}-{}.json", std::process::id(), arch.name()));
    let limit_ms = u64::try_from(setting.limit.as_millis()).unwrap_or(u64::MAX);
    let text = json!({"limit_ms": limit_ms, "foreign": setting.foreign, "executables": entries});
    fs::write(&plan, text.to_string()).map_err(|error| format!("cannot write {}: {error}", plan.display()))?;
    job.files.push((plan.clone(), PLAN.into()));
    Ok((job, plan))
}

/// The runner's other half, in the lab: runs a plan's tests one by one, up to the first that hangs, and writes a line of JSON for
/// each.
///
/// # Errors
/// When the plan cannot be read, or the lines not be written.
pub fn inside(plan: &Path) -> Result<(), String> {
    let text = fs::read_to_string(plan).map_err(|error| format!("cannot read {}: {error}", plan.display()))?;
    let broken = || format!("{} is no plan", plan.display());
    let plan: Value = serde_json::from_str(&text).map_err(|_| broken())?;
    let limit = Duration::from_millis(plan["limit_ms"].as_u64().ok_or_else(broken)?);
    let foreign = plan["foreign"].as_bool().ok_or_else(broken)?;
    let setting = Setting { bin_dir: Path::new(BIN_DIR), assets: Path::new(ASSETS), limit, foreign };
    for executable in plan["executables"].as_array().ok_or_else(broken)? {
        let path = Path::new(executable["path"].as_str().ok_or_else(broken)?);
        let label = executable["label"].as_str().ok_or_else(broken)?;
        for name in executable["tests"].as_array().ok_or_else(broken)? {
            let test = Test { label: label.to_owned(), name: name.as_str().ok_or_else(broken)?.to_owned() };
            tell(&Line::Started(test.clone()))?;
            let record = suspect(execute(path, Path::new("/tmp"), test, &setting));
            let hung = matches!(record.verdict, Verdict::Hung(_));
            tell(&Line::Ended(record))?;
            if hung {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// What a test says that waited in vain ([`crate::Run`], [`crate::session`], [`crate::monitor`], [`crate::agent`]) or was killed
/// itself.
const HUNG: [&str; 4] =
    ["killed at its limit", "waited too long", "nothing happens any more", "nothing comes from the agent"];

/// Tells a test that hung from one that failed. The emulated machine stands still now and then: in most runs of the whole set
/// not once, and in one run from some point on in every guest that sleeps.
fn suspect(record: Record) -> Record {
    match record.verdict {
        Verdict::Failed(output) if HUNG.iter().any(|words| output.contains(words)) => {
            Record { verdict: Verdict::Hung(output), ..record }
        }
        _ => record,
    }
}

fn tell(line: &Line) -> Result<(), String> {
    let text = line.to_json() + "\n";
    io::stdout().write_all(text.as_bytes()).map_err(|error| format!("cannot write a result: {error}"))
}

/// A writer that gives complete lines to a function.
struct Lines<F> {
    partial: Vec<u8>,
    take: F,
}

impl<F: FnMut(Line)> Lines<F> {
    fn new(take: F) -> Self {
        Self { partial: Vec::new(), take }
    }
}

impl<F: FnMut(Line)> Write for Lines<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            if let Some(line) = Line::from_json(&String::from_utf8_lossy(&line)) {
                (self.take)(line);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::Lines;
    use crate::runner::record::{Line, Test};

    #[test]
    fn lines_are_taken_when_they_are_complete() {
        let line = Line::Started(Test { label: "l".into(), name: "ü".into() });
        let text = format!("noise\n{}\n", line.to_json());
        let mut taken = Vec::new();
        let mut lines = Lines::new(|line| taken.push(line));
        for byte in text.as_bytes() {
            lines.write_all(&[*byte]).unwrap();
        }
        assert_eq!(taken, [line]);
    }
}

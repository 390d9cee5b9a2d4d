//! Runs one test.

use std::path::Path;
use std::time::Duration;

use super::record::{Record, Test, Verdict};
use crate::{Finished, Run};

/// Where a test runs, and what it gets.
#[derive(Clone, Debug)]
pub struct Setting<'a> {
    /// For `MACHINEN_TEST_BIN_DIR`.
    pub bin_dir: &'a Path,
    /// For `MACHINEN_TEST_ASSETS`.
    pub assets: &'a Path,
    /// The time after which it is killed, and has failed.
    pub limit: Duration,
    /// The names of the tests are of another architecture's build, and may not all be in this one.
    pub foreign: bool,
}

/// Runs a test of the executable, in `dir`.
#[must_use]
pub fn execute(executable: &Path, dir: &Path, test: Test, setting: &Setting) -> Record {
    // Terse: the other format begins the line that the test's first line of output then continues.
    let run = Run::new(executable)
        .args(["--exact", &test.name, "--nocapture", "--format", "terse", "--test-threads", "1"])
        .env("MACHINEN_TEST_BIN_DIR", setting.bin_dir)
        .env("MACHINEN_TEST_ASSETS", setting.assets)
        .env("RUST_BACKTRACE", "0")
        .dir(dir)
        .limit(setting.limit)
        .merged();
    match run.outcome() {
        Ok(finished) => Record { test, verdict: verdict(&finished, setting), elapsed: finished.elapsed },
        Err(error) => {
            let verdict = Verdict::Failed(format!("cannot run {}: {error}", executable.display()));
            Record { test, verdict, elapsed: Duration::ZERO }
        }
    }
}

fn verdict(finished: &Finished, setting: &Setting) -> Verdict {
    let output = finished.printed();
    match finished.code() {
        _ if finished.killed => {
            Verdict::Failed(format!("{output}\nkilled at its limit of {} s", setting.limit.as_secs_f32()))
        }
        0 => judge(output, setting.foreign),
        code if code > 128 => Verdict::Failed(format!("{output}\nkilled by signal {}", code - 128)),
        _ => Verdict::Failed(output),
    }
}

/// The verdict of an executable that ended with 0.
fn judge(output: String, foreign: bool) -> Verdict {
    let skip = output.lines().find_map(|line| line.strip_prefix("SKIP: "));
    let result = output.lines().rfind(|line| line.starts_with("test result: ok.")).unwrap_or_default();
    match skip {
        Some(reason) => Verdict::Skipped(reason.to_owned()),
        None if result.contains(" 1 passed") => Verdict::Passed,
        None if foreign && output.contains("\nrunning 0 tests\n") => Verdict::Absent,
        None if result.contains(" 1 ignored") => Verdict::Skipped("ignored".to_owned()),
        None => Verdict::Failed(format!("{output}\nthe test did not run")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Verdict, judge};

    fn judge_result(before: &str, counts: &str) -> Verdict {
        judge(
            format!(
                "\nrunning 1 test\n{before}.\ntest result: ok. {counts}; 0 measured; 7 filtered out; finished in 0.00s\n\n"
            ),
            false,
        )
    }

    #[test]
    fn a_test_passes_only_when_it_ran() {
        assert_eq!(judge_result("", "1 passed; 0 failed; 0 ignored"), Verdict::Passed);
        assert_eq!(judge_result("", "0 passed; 0 failed; 1 ignored"), Verdict::Skipped("ignored".into()));
        assert!(matches!(judge_result("", "0 passed; 0 failed; 0 ignored"), Verdict::Failed(_)));
        assert!(matches!(judge(String::new(), false), Verdict::Failed(_)));
    }

    #[test]
    fn a_test_may_be_in_the_build_of_another_architecture_only() {
        let nothing = "\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; finished in 0.00s\n\n";
        assert_eq!(judge(nothing.to_owned(), true), Verdict::Absent);
        assert!(matches!(judge(nothing.to_owned(), false), Verdict::Failed(_)));
    }

    #[test]
    fn a_skip_needs_a_line_of_its_own() {
        let passed = "1 passed; 0 failed; 0 ignored";
        assert_eq!(judge_result("x\nSKIP: no disk\n", passed), Verdict::Skipped("no disk".into()));
        assert_eq!(judge_result("a SKIP: no\n", passed), Verdict::Passed);
    }
}

//! What the runner prints.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

use super::record::{Record, Test, Verdict};
use crate::lab::Arch;

const SLOWEST: usize = 10;

/// The results so far; prints failures and skips as they come.
#[derive(Debug)]
pub struct Report {
    total: usize,
    records: Vec<(Arch, Record)>,
    terminal: bool,
}

impl Report {
    /// For that many tests.
    #[must_use]
    pub fn new(total: usize) -> Self {
        Self { total, records: Vec::new(), terminal: stdout().is_terminal() }
    }

    /// Shows on a terminal what is going on.
    pub fn started(&self, test: &Test) {
        if self.terminal {
            let line: String = format!("[{}/{}] {test}", self.records.len(), self.total).chars().take(78).collect();
            print!("\r\x1b[K{line}");
            // Progress that cannot be shown is none.
            let _ = stdout().flush();
        }
    }

    /// Takes a result.
    pub fn ended(&mut self, arch: Arch, record: Record) {
        if let Some(text) = describe(arch, &record) {
            if self.terminal {
                print!("\r\x1b[K");
            }
            print!("{text}");
        }
        self.records.push((arch, record));
    }

    /// Takes a test that is not run, for this reason; the table has it.
    pub fn left_out(&mut self, arch: Arch, test: Test, why: &str) {
        let verdict = Verdict::Skipped(why.to_owned());
        self.records.push((arch, Record { test, verdict, elapsed: Duration::ZERO }));
    }

    /// Clears the progress line.
    pub fn finish(&self) {
        if self.terminal {
            print!("\r\x1b[K");
        }
    }

    /// The slowest tests, the architectures beside each other when there is more than one and, as the last line, the counts.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut slowest: Vec<&(Arch, Record)> =
            self.records.iter().filter(|(_, record)| !record.elapsed.is_zero()).collect();
        slowest.sort_by_key(|(_, record)| std::cmp::Reverse(record.elapsed));
        let mut text = String::from("slowest:\n");
        for (arch, record) in slowest.iter().take(SLOWEST) {
            let _ = writeln!(text, "  {}  {}{}", seconds(record.elapsed), of(*arch), record.test);
        }
        if self.records.iter().any(|(arch, _)| *arch != Arch::OWN) {
            text += &self.table();
        }
        let [passed, failed, skipped] = self.counts();
        let _ = writeln!(text, "{passed} passed, {failed} failed, {skipped} skipped");
        text
    }

    /// Each file of tests that an emulated architecture has part in: how many tests passed of how many there are, on each, and why
    /// others did not, or were not run.
    fn table(&self) -> String {
        let mut files: BTreeMap<&str, [Vec<&Record>; 2]> = BTreeMap::new();
        for (arch, record) in &self.records {
            files.entry(&record.test.label).or_default()[usize::from(*arch != Arch::OWN)].push(record);
        }
        files.retain(|_, [_, foreign]| !foreign.is_empty());
        let foreign = self.records.iter().map(|(arch, _)| *arch).find(|arch| *arch != Arch::OWN);
        let names = [Arch::OWN, foreign.unwrap_or(Arch::OWN)].map(Arch::name);
        let mut text = format!("passed, of all tests:{:17}{:>11}{:>11}\n", "", names[0], names[1]);
        for (label, columns) in &files {
            let counts = columns.each_ref().map(|records| {
                let passed = records.iter().filter(|record| has_passed(&record.verdict)).count();
                if records.is_empty() { "-".to_owned() } else { format!("{passed}/{}", records.len()) }
            });
            let _ = writeln!(text, "  {label:36}{:>11}{:>11}", counts[0], counts[1]);
            for (records, name) in columns.iter().zip(names) {
                let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
                for record in records {
                    let why = match &record.verdict {
                        Verdict::Skipped(why) => why,
                        verdict if has_passed(verdict) => continue,
                        _ => "failed",
                    };
                    reasons.entry(why).or_default().push(&record.test.name);
                }
                for (why, tests) in reasons {
                    let which = if tests.len() == records.len() { "all".to_owned() } else { tests.join(", ") };
                    let name = if why.starts_with("not for ") { String::new() } else { format!("{name}, ") };
                    let _ = writeln!(text, "    {name}{why}: {which}");
                }
            }
        }
        text
    }

    /// Whether tests ran and none failed.
    #[must_use]
    pub fn is_success(&self) -> bool {
        !self.records.is_empty() && self.counts()[1] == 0
    }

    /// Passed, failed, skipped.
    fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for (_, record) in &self.records {
            match record.verdict {
                Verdict::Passed | Verdict::PassedAgain(_) => counts[0] += 1,
                Verdict::Failed(_) | Verdict::Hung(_) | Verdict::Absent => counts[1] += 1,
                Verdict::Skipped(_) => counts[2] += 1,
            }
        }
        counts
    }
}

fn has_passed(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Passed | Verdict::PassedAgain(_))
}

/// What stands before a test's name: the architecture, unless it is this host's.
fn of(arch: Arch) -> String {
    if arch == Arch::OWN { String::new() } else { format!("{} ", arch.name()) }
}

/// What is printed about a result at once.
fn describe(arch: Arch, record: &Record) -> Option<String> {
    let Record { test, verdict, elapsed } = record;
    let of = of(arch);
    match verdict {
        Verdict::Passed | Verdict::Absent => None,
        Verdict::Skipped(reason) => Some(format!("skip {}  {of}{test}: {reason}\n", seconds(*elapsed))),
        Verdict::Failed(output) | Verdict::PassedAgain(output) | Verdict::Hung(output) => {
            let again = matches!(verdict, Verdict::PassedAgain(_));
            let mut text = match again {
                true => format!("hung {}  {of}{test}: passed in another lab; the first try said\n", seconds(*elapsed)),
                false => format!("FAIL {}  {of}{test}\n", seconds(*elapsed)),
            };
            for line in output.trim_matches('\n').lines() {
                let _ = writeln!(text, "    {line}");
            }
            Some(text)
        }
    }
}

fn seconds(time: Duration) -> String {
    format!("{:6.2}s", time.as_secs_f32())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Report, describe};
    use crate::lab::Arch;
    use crate::runner::record::{Record, Test, Verdict};

    const OTHER: Arch = if matches!(Arch::OWN, Arch::X86_64) { Arch::Aarch64 } else { Arch::X86_64 };

    fn record(name: &str, verdict: Verdict, ms: u64) -> Record {
        let test = Test { label: "p::t".into(), name: name.into() };
        Record { test, verdict, elapsed: Duration::from_millis(ms) }
    }

    #[test]
    fn the_summary_has_the_slowest_first_and_the_counts_last() {
        let mut report = Report { total: 0, records: Vec::new(), terminal: false };
        assert!(!report.is_success());
        for index in 0..12 {
            report.ended(Arch::OWN, record(&format!("t{index:02}"), Verdict::Passed, index * 100 + 1));
        }
        assert!(report.is_success());
        report.ended(Arch::OWN, record("bad", Verdict::Failed("why".into()), 5000));
        report.ended(Arch::OWN, record("no", Verdict::Skipped("reason".into()), 0));
        assert!(!report.is_success());
        let summary = report.summary();
        let lines: Vec<&str> = summary.lines().collect();
        assert_eq!(lines.len(), 12);
        assert_eq!(lines[1], "    5.00s  p::t bad");
        assert_eq!(lines[2], "    1.10s  p::t t11");
        assert_eq!(lines[11], "12 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn architectures_stand_beside_each_other() {
        let mut report = Report { total: 0, records: Vec::new(), terminal: false };
        for name in ["a", "b", "c", "d"] {
            report.ended(Arch::OWN, record(name, Verdict::Passed, 1));
        }
        report.ended(OTHER, record("a", Verdict::Passed, 1));
        report.ended(OTHER, record("b", Verdict::Failed("why".into()), 1));
        report.left_out(OTHER, record("c", Verdict::Passed, 0).test, "in make soak");
        report.left_out(OTHER, record("d", Verdict::Passed, 0).test, "in make soak");
        let summary = report.summary();
        let lines: Vec<&str> = summary.lines().skip_while(|line| !line.starts_with("passed")).collect();
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["p::t", "4/4", "1/4"]);
        let expected =
            [format!("    {}, failed: b", OTHER.name()), format!("    {}, in make soak: c, d", OTHER.name())];
        assert_eq!(lines[2..4], expected);
        assert_eq!(lines[4..], ["5 passed, 1 failed, 2 skipped"]);
    }

    #[test]
    fn only_what_needs_attention_is_described() {
        assert_eq!(describe(Arch::OWN, &record("a", Verdict::Passed, 120)), None);
        let skipped = describe(Arch::OWN, &record("a", Verdict::Skipped("no disk".into()), 120));
        assert_eq!(skipped.as_deref(), Some("skip   0.12s  p::t a: no disk\n"));
        let failed = describe(Arch::OWN, &record("a", Verdict::Failed("\nx\ny\n".into()), 120));
        assert_eq!(failed.as_deref(), Some("FAIL   0.12s  p::t a\n    x\n    y\n"));
    }
}

//! What the runner prints.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

use super::record::{Record, Test, Verdict};

const SLOWEST: usize = 10;

/// The results so far; prints failures and skips as they come.
#[derive(Debug)]
pub struct Report {
    total: usize,
    records: Vec<Record>,
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
    pub fn ended(&mut self, record: Record) {
        if let Some(text) = describe(&record) {
            if self.terminal {
                print!("\r\x1b[K");
            }
            print!("{text}");
        }
        self.records.push(record);
    }

    /// Clears the progress line.
    pub fn finish(&self) {
        if self.terminal {
            print!("\r\x1b[K");
        }
    }

    /// The slowest tests and, as the last line, the counts.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut slowest: Vec<&Record> = self.records.iter().filter(|record| !record.elapsed.is_zero()).collect();
        slowest.sort_by_key(|record| std::cmp::Reverse(record.elapsed));
        let mut text = String::from("slowest:\n");
        for record in slowest.iter().take(SLOWEST) {
            let _ = writeln!(text, "  {}  {}", seconds(record.elapsed), record.test);
        }
        let [passed, failed, skipped] = self.counts();
        let _ = writeln!(text, "{passed} passed, {failed} failed, {skipped} skipped");
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
        for record in &self.records {
            match record.verdict {
                Verdict::Passed | Verdict::PassedAgain(_) => counts[0] += 1,
                Verdict::Failed(_) | Verdict::Hung(_) => counts[1] += 1,
                Verdict::Skipped(_) => counts[2] += 1,
            }
        }
        counts
    }
}

/// What is printed about a result at once.
fn describe(record: &Record) -> Option<String> {
    let Record { test, verdict, elapsed } = record;
    match verdict {
        Verdict::Passed => None,
        Verdict::Skipped(reason) => Some(format!("skip {}  {test}: {reason}\n", seconds(*elapsed))),
        Verdict::Failed(output) | Verdict::PassedAgain(output) | Verdict::Hung(output) => {
            let again = matches!(verdict, Verdict::PassedAgain(_));
            let mut text = match again {
                true => format!("hung {}  {test}: passed in another lab; the first try said\n", seconds(*elapsed)),
                false => format!("FAIL {}  {test}\n", seconds(*elapsed)),
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
    use crate::runner::record::{Record, Test, Verdict};

    fn record(name: &str, verdict: Verdict, ms: u64) -> Record {
        let test = Test { label: "p::t".into(), name: name.into() };
        Record { test, verdict, elapsed: Duration::from_millis(ms) }
    }

    #[test]
    fn the_summary_has_the_slowest_first_and_the_counts_last() {
        let mut report = Report { total: 0, records: Vec::new(), terminal: false };
        assert!(!report.is_success());
        for index in 0..12 {
            report.ended(record(&format!("t{index:02}"), Verdict::Passed, index * 100 + 1));
        }
        assert!(report.is_success());
        report.ended(record("bad", Verdict::Failed("why".into()), 5000));
        report.ended(record("no", Verdict::Skipped("reason".into()), 0));
        assert!(!report.is_success());
        let summary = report.summary();
        let lines: Vec<&str> = summary.lines().collect();
        assert_eq!(lines.len(), 12);
        assert_eq!(lines[1], "    5.00s  p::t bad");
        assert_eq!(lines[2], "    1.10s  p::t t11");
        assert_eq!(lines[11], "12 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn only_what_needs_attention_is_described() {
        assert_eq!(describe(&record("a", Verdict::Passed, 120)), None);
        let skipped = describe(&record("a", Verdict::Skipped("no disk".into()), 120));
        assert_eq!(skipped.as_deref(), Some("skip   0.12s  p::t a: no disk\n"));
        let failed = describe(&record("a", Verdict::Failed("\nx\ny\n".into()), 120));
        assert_eq!(failed.as_deref(), Some("FAIL   0.12s  p::t a\n    x\n    y\n"));
    }
}

//! A test, its result, and the lines that carry results out of the lab.

use std::time::Duration;

use serde_json::{Value, json};

/// A test of an executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// The executable's label.
    pub label: String,
    /// The test's name in it.
    pub name: String,
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It passed at the second try; the first hung, with this output.
    PassedAgain(String),
    /// It hung, with this output, in a lab that is therefore not trusted any more.
    Hung(String),
    /// It passed without testing, for this reason.
    Skipped(String),
    /// It failed, with this output.
    Failed(String),
    /// It is not in this architecture's build.
    Absent,
}

/// The result of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which test.
    pub test: Test,
    /// How it ended.
    pub verdict: Verdict,
    /// How long it took.
    pub elapsed: Duration,
}

/// A line from inside the lab.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A test has started.
    Started(Test),
    /// A test has ended.
    Ended(Record),
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} {}", self.label, self.name)
    }
}

impl Line {
    /// One line of JSON, without the line's end.
    #[must_use]
    pub fn to_json(&self) -> String {
        let (test, verdict) = match self {
            Self::Started(test) => (test, None),
            Self::Ended(record) => (&record.test, Some(record)),
        };
        let mut line = json!({"label": test.label, "name": test.name});
        if let Some(record) = verdict {
            let (word, text) = match &record.verdict {
                Verdict::Passed => ("passed", ""),
                Verdict::PassedAgain(output) => ("again", output.as_str()),
                Verdict::Hung(output) => ("hung", output.as_str()),
                Verdict::Skipped(reason) => ("skipped", reason.as_str()),
                Verdict::Failed(output) => ("failed", output.as_str()),
                Verdict::Absent => ("absent", ""),
            };
            line["verdict"] = word.into();
            line["text"] = text.into();
            line["us"] = u64::try_from(record.elapsed.as_micros()).unwrap_or(u64::MAX).into();
        }
        line.to_string()
    }

    /// Reads such a line; `None` when it is something else.
    #[must_use]
    pub fn from_json(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let text = |key: &str| line[key].as_str().map(str::to_owned);
        let test = Test { label: text("label")?, name: text("name")? };
        let Some(verdict) = text("verdict") else { return Some(Self::Started(test)) };
        let verdict = match verdict.as_str() {
            "passed" => Verdict::Passed,
            "again" => Verdict::PassedAgain(text("text")?),
            "hung" => Verdict::Hung(text("text")?),
            "skipped" => Verdict::Skipped(text("text")?),
            "failed" => Verdict::Failed(text("text")?),
            "absent" => Verdict::Absent,
            _ => return None,
        };
        let elapsed = Duration::from_micros(line["us"].as_u64()?);
        Some(Self::Ended(Record { test, verdict, elapsed }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Line, Record, Test, Verdict};

    #[test]
    fn lines_survive_the_way() {
        let test = Test { label: "p::t".into(), name: "m::n".into() };
        let output = "a\n\"b\"\u{0}\u{fffd}".to_owned();
        let verdicts = [
            Verdict::Passed,
            Verdict::PassedAgain(output.clone()),
            Verdict::Hung(output.clone()),
            Verdict::Skipped("no disk".into()),
            Verdict::Absent,
            Verdict::Failed(output),
        ];
        for verdict in verdicts {
            let line = Line::Ended(Record { test: test.clone(), verdict, elapsed: Duration::from_micros(1_234_567) });
            assert!(!line.to_json().contains('\n'));
            assert_eq!(Line::from_json(&line.to_json()), Some(line));
        }
        let line = Line::Started(test);
        assert_eq!(Line::from_json(&line.to_json()), Some(line));
    }

    #[test]
    fn other_lines_are_refused() {
        for line in ["", "noise", "{}", r#"{"label":"a"}"#, r#"{"label":"a","name":"b","verdict":"odd"}"#] {
            assert_eq!(Line::from_json(line), None, "{line}");
        }
    }
}

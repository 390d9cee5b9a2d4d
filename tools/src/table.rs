//! Text for people: aligned columns, sizes, ages.

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Rows of columns.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    to_the_right: Vec<bool>,
}

impl Table {
    /// A table with these heads; the columns of numbers are aligned to the right.
    pub fn new(heads: &[&str], numbers: &[&str]) -> Table {
        let row = heads.iter().map(|head| (*head).to_owned()).collect();
        Table { rows: vec![row], to_the_right: heads.iter().map(|head| numbers.contains(head)).collect() }
    }

    /// Adds a row. A cell that is empty is shown as `-`, and nothing in one moves a terminal's cursor.
    pub fn add(&mut self, row: Vec<String>) {
        let cell = |text: String| match text {
            text if text.is_empty() => "-".to_owned(),
            text if text.chars().any(char::is_control) => printable(&text),
            text => text,
        };
        self.rows.push(row.into_iter().map(cell).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = vec![0; self.to_the_right.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut line = String::new();
        for row in &self.rows {
            line.clear();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.to_the_right) {
                if *right {
                    write!(line, "{cell:>width$}  ")?;
                } else {
                    write!(line, "{cell:<width$}  ")?;
                }
            }
            line.truncate(line.trim_end().len());
            line.push('\n');
            f.write_str(&line)?;
        }
        Ok(())
    }
}

/// The text without control characters.
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { printable.extend(c.escape_default()) } else { printable.push(c) }
    }
    printable
}

/// Bytes in MiB, as `12M`; at least 1.
pub fn mib(bytes: u64) -> String {
    format!("{}M", bytes.div_ceil(1 << 20))
}

/// How long ago a time in milliseconds since 1970 was; empty for 0.
pub fn age(unix_ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if unix_ms == 0 { String::new() } else { duration(now.saturating_sub(Duration::from_millis(unix_ms))) }
}

fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns() {
        let mut table = Table::new(&["NAME", "PID", "X"], &["PID"]);
        table.add(vec!["naïve".into(), "7".into(), "a\nb\u{1b}".into()]);
        table.add(vec!["b".into(), "1234".into(), String::new()]);
        assert_eq!(table.to_string(), "NAME    PID  X\nnaïve     7  a\\nb\\u{1b}\nb      1234  -\n");
    }

    #[test]
    fn sizes_and_ages() {
        assert_eq!((mib(0), mib(1), mib(3 << 20)), ("0M".into(), "1M".into(), "3M".into()));
        let text = [0, 59, 60, 3599, 3600, 86399, 86400].map(|seconds| duration(Duration::from_secs(seconds)));
        assert_eq!(text, ["0s", "59s", "1m", "59m", "1h", "23h", "1d"]);
        assert_eq!((age(0), age(u64::MAX)), (String::new(), "0s".into()));
    }
}

//! What the benches share: percentiles, rows and the report file.

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "clock_gettime, poll and a hook before exec")]
pub mod process;

pub mod corpus;

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// Values of one figure, in one unit.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value below which `percent` of all lie (nearest rank). NaN when there is none.
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(rank).copied().unwrap_or(f64::NAN)
    }
}

/// The rows of one bench program.
#[derive(Default)]
pub struct Report {
    rows: Vec<Value>,
}

impl Report {
    /// A measured figure.
    pub fn measured(&mut self, name: &str, unit: &str, samples: &Samples) {
        let p50 = samples.percentile(50);
        self.row(name, json!(p50), unit, samples.count(), json!(p50), json!(samples.percentile(99)));
    }

    /// A figure that was counted or computed, not sampled.
    pub fn value(&mut self, name: &str, unit: &str, value: f64) {
        self.row(name, json!(value), unit, 1, json!(value), json!(value));
    }

    /// A figure that could not be had here.
    pub fn missing(&mut self, name: &str, why: &str) {
        self.rows.push(json!({ "name": name, "value": null, "n": 0, "host": host(), "skipped": why }));
    }

    fn row(&mut self, name: &str, value: Value, unit: &str, n: usize, p50: Value, p99: Value) {
        self.rows.push(json!({
            "name": name, "value": value, "unit": unit, "n": n, "p50": p50, "p99": p99, "host": host(),
        }));
    }

    /// Prints the table and merges the rows into `target/bench/report.json`, replacing rows of the same name.
    pub fn finish(self) -> io::Result<()> {
        print!("{}", self.table());
        let path = target_dir().join("bench/report.json");
        let mut all: Vec<Value> =
            fs::read(&path).ok().and_then(|old| serde_json::from_slice(&old).ok()).unwrap_or_default();
        all.retain(|old| self.rows.iter().all(|new| new["name"] != old["name"]));
        all.extend(self.rows);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        fs::write(&path, format!("{:#}\n", Value::Array(all)))?;
        println!("\n{}", path.display());
        Ok(())
    }

    fn table(&self) -> String {
        let mut table = format!("{:<44} {:>12} {:>12} {:<6} {:>5}\n", "name", "p50", "p99", "unit", "n");
        for row in &self.rows {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_string();
            let line = match row["skipped"].as_str() {
                Some(why) => writeln!(table, "{:<44} not run: {why}", text("name")),
                None => writeln!(
                    table,
                    "{:<44} {:>12.3} {:>12.3} {:<6} {:>5}",
                    text("name"),
                    row["p50"].as_f64().unwrap_or(f64::NAN),
                    row["p99"].as_f64().unwrap_or(f64::NAN),
                    text("unit"),
                    row["n"],
                ),
            };
            line.expect("writing to a string");
        }
        table
    }
}

/// The kinds of a bench in a new order each round: a process may pay for the end of the one before it.
#[derive(Debug)]
pub struct Order<const N: usize> {
    indices: [usize; N],
    random: Random,
}

impl<const N: usize> Default for Order<N> {
    fn default() -> Self {
        Order { indices: std::array::from_fn(|index| index), random: Random::default() }
    }
}

impl<const N: usize> Order<N> {
    /// The next order.
    pub fn shuffled(&mut self) -> [usize; N] {
        for last in (1..N).rev() {
            self.indices.swap(last, self.random.below(last + 1));
        }
        self.indices
    }
}

/// The same numbers in each run: a xorshift generator.
#[derive(Clone, Debug)]
pub struct Random(u32);

impl Default for Random {
    fn default() -> Self {
        Random(0x9e37_79b9)
    }
}

impl Random {
    /// The next 32 bits.
    pub fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.bits()).unwrap_or(0) % bound
    }

    /// A number in [0, 1).
    pub fn fraction(&mut self) -> f64 {
        f64::from(self.bits()) / (f64::from(u32::MAX) + 1.0)
    }
}

/// The workspace's target directory.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => dir.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target"),
    }
}

/// A program of the release build for this architecture's musl target.
pub fn program(name: &str) -> PathBuf {
    target_dir().join(format!("{}-unknown-linux-musl/release/{name}", std::env::consts::ARCH))
}

/// What a program prints. Error: it failed; what it said.
pub fn output(command: &mut Command) -> Result<String, Box<dyn Error>> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(
            format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()).into()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Kernel and processor, for the `host` column.
fn host() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    format!("Linux {}, {}", release.trim(), model.trim_start_matches([' ', '\t', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut samples = Samples::default();
        for value in (1..=100).rev() {
            samples.push(f64::from(value));
        }
        assert_eq!((samples.percentile(50), samples.percentile(99), samples.percentile(100)), (50.0, 99.0, 100.0));
        assert!(Samples::default().percentile(50).is_nan());
    }
}

//! What a tool tells a person while it works: phases with their times, and how far a long one is.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Between two signs of life.
const INTERVAL: Duration = Duration::from_millis(100);

/// The phases of one run, in order.
#[derive(Debug)]
pub struct Phases {
    tool: &'static str,
    verbose: bool,
    terminal: bool,
    begin: Instant,
    last: Instant,
    shown: Option<Instant>,
    done: Vec<(&'static str, f64)>,
}

impl Phases {
    /// Starts the clock; with `verbose` each phase is printed to standard error when it ends.
    pub fn new(tool: &'static str, verbose: bool) -> Self {
        let now = Instant::now();
        let terminal = std::io::stderr().is_terminal();
        Phases { tool, verbose, terminal, begin: now, last: now, shown: None, done: Vec::new() }
    }

    /// Ends a phase: all the time since the one before.
    pub fn end(&mut self, name: &'static str) {
        let now = Instant::now();
        let ms = (now - self.last).as_secs_f64() * 1e3;
        self.last = now;
        self.clear();
        self.done.push((name, ms));
        if self.verbose {
            self.say(&format!("{name} {ms:.1} ms\n"));
        }
    }

    /// A note for those who asked for them.
    pub fn note(&mut self, text: &str) {
        if self.verbose {
            self.clear();
            self.say(&format!("{text}\n"));
        }
    }

    /// A note for everybody.
    pub fn warn(&mut self, text: &str) {
        self.clear();
        self.say(&format!("{text}\n"));
    }

    /// How far a phase is; shown on a terminal only, and not for short ones.
    pub fn progress(&mut self, name: &str, done: u64, total: u64) {
        let since = self.shown.unwrap_or(self.last);
        if self.terminal && since.elapsed() >= INTERVAL {
            self.shown = Some(Instant::now());
            let percent = (done * 100).checked_div(total).unwrap_or(100).min(100);
            self.say(&format!("{name} {percent} %\r"));
        }
    }

    fn clear(&mut self) {
        if self.shown.take().is_some() {
            let _ = std::io::stderr().write_all(b"\r\x1b[K");
        }
    }

    fn say(&self, text: &str) {
        // With standard error gone there is nobody to tell.
        let _ = std::io::stderr().write_all(format!("{}: {text}", self.tool).as_bytes());
    }

    /// For `--json`: the phases, and `total_ms`.
    pub fn to_json(&self) -> (Value, Value) {
        let round = |ms: f64| (ms * 1e3).round() / 1e3;
        let phases = self.done.iter().map(|(name, ms)| json!({ "name": name, "ms": round(*ms) })).collect();
        (phases, json!(round(self.begin.elapsed().as_secs_f64() * 1e3)))
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        self.clear();
    }
}

//! Marks of a machine's start as a Chrome trace (Trace Event Format) and as a table.

use serde_json::{Value, json};

/// A point of time in ns since 1970, and its name.
pub type Mark = (u64, String);

/// A trace for chrome://tracing or ui.perfetto.dev: each phase lasts from its mark's predecessor to its mark.
pub fn chrome(marks: &[Mark]) -> Value {
    let marks = sorted(marks);
    let us = |ns: u64| json!(ns as f64 / 1e3);
    let phases = marks.windows(2).map(|pair| {
        let (start, end) = (pair[0].0, pair[1].0);
        json!({"name": pair[1].1, "cat": "start", "ph": "X", "ts": us(start), "dur": us(end - start), "pid": 1, "tid": 1})
    });
    let points = marks
        .iter()
        .map(|(ns, name)| json!({"name": name, "cat": "mark", "ph": "i", "ts": us(*ns), "s": "g", "pid": 1, "tid": 1}));
    json!({"displayTimeUnit": "ms", "traceEvents": phases.chain(points).collect::<Vec<_>>()})
}

/// A table for people: ms since the first mark, ms since the mark before, the name.
pub fn table(marks: &[Mark]) -> String {
    let marks = sorted(marks);
    let Some((first, _)) = marks.first().cloned() else { return String::new() };
    let ms = |ns: u64| ns as f64 / 1e6;
    let mut last = first;
    let mut text = String::from("  at ms    + ms  \n");
    for (ns, name) in marks {
        text.push_str(&format!("{:7.1} {:7.1}  {name}\n", ms(ns - first), ms(ns - last)));
        last = ns;
    }
    text
}

fn sorted(marks: &[Mark]) -> Vec<Mark> {
    let mut marks = marks.to_vec();
    marks.sort();
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_phases_in_order() {
        let marks = [(2_500_000, "b".to_string()), (1_000_000, "a".to_string())];
        let trace = chrome(&marks);
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!((events.len(), &events[0]["name"], &events[0]["dur"]), (3, &json!("b"), &json!(1500.0)));
        assert_eq!(table(&marks), "  at ms    + ms  \n    0.0     0.0  a\n    1.5     1.5  b\n");
        assert_eq!(table(&[]), "");
    }
}

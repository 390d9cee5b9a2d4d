//! machinen-bundles: times restores and forks as whole commands, each to the first answer of what goes on.
//!
//! usage: machinen-bundles TOOLS ROUNDS SECONDS IMAGE DIR
//!
//! TOOLS is the directory of the tools, IMAGE has python3 and criu, DIR is where bundles and traces go; the kernel is MACHINEN_KERNEL. Prints
//! one object a line: `name` and `value`, in the unit of its name's end, or `name` and `error`. It is static, so that it also runs in
//! the lab.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use machinen_benches::process::Started;
use machinen_benches::{Order, output};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const LIMIT: Duration = Duration::from_mins(2);
const WARM_UP: u32 = 1;
/// Rounds with a trace, for the phases.
const TRACED: u32 = 3;
const MIB: &str = "1024";
/// Has so many MiB of heap, of which each page was written, and answers each byte by one of them.
const WORK: &str = r#"
import os, sys
heap = bytearray(int(sys.argv[1]) << 20)
for at in range(0, len(heap), 4096): heap[at] = 1 + at // 4096 % 255
print("ready", flush=True)
while os.read(0, 1): print(heap[len(heap) // 2], flush=True)
"#;

/// What is timed: name, heap in MiB, how, and every how many rounds.
const KINDS: [(&str, &str, How, u32); 8] = [
    ("criu.restore_lazy_16", "16", How::Lazy, 1),
    ("criu.restore_lazy_512", "512", How::Lazy, 1),
    ("criu.restore_hinted_16", "16", How::Hinted, 1),
    ("criu.restore_hinted_512", "512", How::Hinted, 1),
    ("criu.restore_eager_16", "16", How::Eager, 1),
    ("criu.restore_eager_512", "512", How::Eager, 5),
    ("criu.fork_16", "16", How::Fork, 5),
    ("criu.fork_512", "512", How::Fork, 25),
];

#[derive(Clone, Copy, PartialEq)]
enum How {
    /// Without a hint of an earlier restore.
    Lazy,
    /// With that of the last one.
    Hinted,
    Eager,
    Fork,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("machinen-bundles: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [tools, rounds, seconds, image, dir] = &words[..] else {
        return Err("usage: machinen-bundles TOOLS ROUNDS SECONDS IMAGE DIR".into());
    };
    let (rounds, budget): (u32, _) = (rounds.parse()?, Duration::from_secs(seconds.parse()?));
    let place = Place { tools: tools.into(), image: image.clone(), dir: dir.into() };
    let sources = ["16", "512"].map(|heap| place.source(heap));
    for (heap, source) in ["16", "512"].iter().zip(sources) {
        place.dump(heap, source?)?;
    }
    let sources = ["16", "512"].map(|heap| place.source(heap));
    let mut order = Order::<{ KINDS.len() }>::default();
    let begin = Instant::now();
    for round in 0..WARM_UP + rounds {
        for (name, heap, how, each) in order.shuffled().map(|index| KINDS[index]) {
            if round < WARM_UP || (round - WARM_UP).is_multiple_of(each) {
                let ms = place.time(heap, how, None)?;
                if round >= WARM_UP {
                    say(name, "ms", ms);
                }
            }
        }
        if round >= WARM_UP && begin.elapsed() > budget {
            break;
        }
    }
    for (name, heap, how, _) in KINDS.iter().cycle().take(KINDS.len() * TRACED as usize) {
        let trace = place.dir.join("trace");
        place.time(heap, *how, Some(&trace))?;
        for (phase, ms) in phases(&std::fs::read(&trace)?)? {
            say(&format!("{name}: {phase}"), "ms", ms);
        }
    }
    for source in sources {
        let mut source = source?;
        drop(source.stdin.take());
        source.wait()?;
    }
    Ok(())
}

fn say(name: &str, unit: &str, value: f64) {
    println!("{}", json!({ "name": format!("{name} {unit}"), "value": value }));
}

struct Place {
    tools: PathBuf,
    image: String,
    dir: PathBuf,
}

impl Place {
    fn tool(&self, name: &str) -> Command {
        Command::new(self.tools.join(format!("machinen-{name}")))
    }

    fn bundle(&self, heap: &str) -> PathBuf {
        self.dir.join(format!("bundle-{heap}"))
    }

    /// A machine with such a heap, named after it, that is ready.
    fn source(&self, heap: &str) -> Result<Child> {
        let mut run = self.tool("run");
        run.args(["--name", &format!("heap{heap}"), "-m", MIB, &self.image, "--", "python3", "-c", WORK, heap]);
        let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut ready = [0; 6];
        let stdout = child.stdout.as_mut().ok_or("no stdout")?;
        stdout.read_exact(&mut ready).map_err(|error| format!("the machine with a heap of {heap} MiB: {error}"))?;
        Ok(child)
    }

    /// Makes the machine the bundle that is restored from.
    fn dump(&self, heap: &str, mut source: Child) -> Result<()> {
        let begin = Instant::now();
        output(self.tool("snapshot").arg(format!("heap{heap}")).arg(self.bundle(heap)))?;
        say(&format!("criu.snapshot_{heap}"), "ms", begin.elapsed().as_secs_f64() * 1e3);
        source.wait()?;
        Ok(())
    }

    /// Milliseconds from execve to the answer, after which it ends.
    fn time(&self, heap: &str, how: How, trace: Option<&Path>) -> Result<f64> {
        let mut command = self.tool(if how == How::Fork { "fork" } else { "restore" });
        if matches!(how, How::Lazy | How::Hinted) {
            command.arg("--lazy");
        }
        let faults = self.bundle(heap).join("faults");
        if how == How::Lazy && faults.exists() {
            std::fs::remove_file(&faults)?;
        }
        let before = lines(&faults);
        if let Some(trace) = trace {
            command.arg("--trace").arg(trace);
        }
        match how {
            How::Fork => command.arg(format!("heap{heap}")),
            How::Lazy | How::Hinted | How::Eager => command.arg(self.bundle(heap)),
        };
        let (theirs, mut input) = io::pipe()?;
        input.write_all(b"x")?;
        let mut started = Started::with_input(&mut command, theirs.into(), LIMIT)?;
        drop(input);
        // The command holds the other end of the pipe.
        drop(command);
        let status = started.child.wait()?;
        if matches!(how, How::Lazy | How::Hinted) {
            // Those that it had until its end, and that were not known.
            let name = if how == How::Lazy { "lazy" } else { "hinted" };
            say(&format!("criu.restore_{name}_{heap}: faults"), "1", (lines(&faults) - before) as f64);
        }
        match started.first_byte_ns {
            Some(ns) if status.success() => Ok(started.us(ns) / 1e3),
            _ => Err(format!("restore of {heap} MiB: {status}: {}", started.messages()?.trim()).into()),
        }
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// The steps that a trace tells of, in ms.
fn phases(trace: &[u8]) -> Result<Vec<(String, f64)>> {
    let trace: Value = serde_json::from_slice(trace)?;
    let events = trace["traceEvents"].as_array().ok_or("a trace without events")?;
    let phases = events.iter().filter(|event| event["ph"] == "X");
    let phases = phases.filter_map(|event| Some((event["name"].as_str()?.to_owned(), event["dur"].as_f64()? / 1e3)));
    Ok(phases.collect())
}

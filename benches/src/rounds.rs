//! machinen-rounds: runs commands in turn and times each from execve to its first byte on stdout.
//!
//! usage: machinen-rounds WARM_UP ROUNDS SECONDS FILE
//!
//! FILE is JSON, `{"NAME": ["PROGRAM", "ARGUMENT", …], …}`. Each command is killed when the byte has come. Prints one object a line:
//! `name` and `us`, or `name` and `error`, after which that command is left out. Stops after ROUNDS, or after the first round that ends
//! later than SECONDS. It is static, so that it also runs where nothing else is: in the lab.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use machinen_benches::process::Started;
use serde_json::json;

/// No boot takes longer, not even in the lab.
const LIMIT: Duration = Duration::from_mins(2);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("machinen-rounds: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [warm_up, rounds, seconds, file] = &words[..] else {
        return Err("usage: machinen-rounds WARM_UP ROUNDS SECONDS FILE".into());
    };
    let (warm_up, rounds): (u32, u32) = (warm_up.parse()?, rounds.parse()?);
    let budget = Duration::from_secs(seconds.parse()?);
    let mut commands: BTreeMap<String, Vec<String>> = serde_json::from_slice(&std::fs::read(file)?)?;
    let begin = Instant::now();
    for round in 0..warm_up + rounds {
        commands.retain(|name, argv| match first_byte(argv) {
            Ok(us) => {
                if round >= warm_up {
                    println!("{}", json!({ "name": name, "us": us }));
                }
                true
            }
            Err(why) => {
                println!("{}", json!({ "name": name, "error": why.to_string() }));
                false
            }
        });
        if round >= warm_up && begin.elapsed() > budget {
            break;
        }
    }
    Ok(())
}

fn first_byte(argv: &[String]) -> Result<f64, Box<dyn std::error::Error>> {
    let (program, arguments) = argv.split_first().ok_or("no program")?;
    let mut started = Started::new(Command::new(program).args(arguments), LIMIT)?;
    // It may have ended by itself, since nobody reads on.
    let _ = started.child.kill();
    let status = started.child.wait()?;
    match started.first_byte_ns {
        Some(ns) => Ok(started.us(ns)),
        None => Err(format!("{status}, nothing on stdout: {}", started.messages()?.trim()).into()),
    }
}

//! vmm-min: arguments in, exit status out.

#![forbid(unsafe_code)]

use std::env;
use std::io::Write;
use std::process::exit;
use std::time::Instant;

use vmm_min::arch::End;
use vmm_min::config::{self, Request};
use vmm_min::error::Error;
use vmm_min::heap::Heap;
use vmm_min::{kick, machine};

#[global_allocator]
static HEAP: Heap = Heap;

/// The machine could not start, or the guest crashed.
const FAILED: i32 = 125;

fn main() {
    let start = Instant::now();
    let arguments: Result<Vec<String>, _> = env::args_os().skip(1).map(std::ffi::OsString::into_string).collect();
    let (arguments, json) = match arguments {
        Ok(arguments) => {
            let json = config::wants_json(&arguments);
            (arguments, json)
        }
        Err(bad) => exit(fail(&Error::usage("USAGE", format!("argument {bad:?} is not valid UTF-8"), ""), false)),
    };
    let status = match config::parse(&arguments, &|name| env::var_os(name)) {
        Ok(Request::Print(text)) => {
            // A closed reader (`| head`) is no failure.
            let _: std::io::Result<()> = std::io::stdout().write_all(text.as_bytes());
            0
        }
        Ok(Request::Run(config)) => match machine::run(&config) {
            Ok(End::Code(code)) => code.into(),
            Ok(End::PowerOff | End::Reset | End::OutputClosed) => 0,
            Ok(End::FirstByte(moment)) => {
                eprintln!("{}", machine::first_byte_report(moment - start, json));
                0
            }
            Ok(End::Signal(signal)) => {
                kick::die_by(signal);
                // Only a signal without a deadly default action gets here.
                FAILED
            }
            Err(error) => fail(&error, json),
        },
        Err(error) => fail(&error, json),
    };
    exit(status);
}

/// Prints one block on stderr; returns the exit status.
fn fail(error: &Error, json: bool) -> i32 {
    if json {
        eprintln!("{}", error.to_json());
    } else {
        eprintln!("vmm-min: {}: {error}", error.code());
        if !error.hint().is_empty() {
            eprintln!("  hint: {}", error.hint());
        }
    }
    FAILED
}

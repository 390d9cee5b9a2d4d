//! vmm-min: arguments in, exit status out.

#![forbid(unsafe_code)]

use std::env;
use std::io::{ErrorKind, Write};
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
        Ok(Request::Print(text)) => match std::io::stdout().write_all(text.as_bytes()) {
            // A reader that has read enough (`| head`) is no failure.
            Err(cause) if cause.kind() != ErrorKind::BrokenPipe => {
                fail(&Error::host("HOST_STDOUT", "write to stdout", cause), json)
            }
            _ => 0,
        },
        Ok(Request::Run(config)) => match machine::run(&config, start, &|error| report(error, json)) {
            Ok(End::Code(code)) => code.into(),
            Ok(End::PowerOff | End::Reset | End::OutputClosed) => 0,
            Ok(End::FirstByte(moment)) => {
                say(&machine::first_byte_report(moment - start, json));
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
    report(error, json);
    FAILED
}

/// Prints one block on stderr.
fn report(error: &Error, json: bool) {
    if json {
        say(&error.to_json());
    } else if error.hint().is_empty() {
        say(&format!("vmm-min: {}: {error}", error.code()));
    } else {
        say(&format!("vmm-min: {}: {error}\n  hint: {}", error.code(), error.hint()));
    }
}

/// One block on stderr. Where that cannot be written to, the exit status has to do.
fn say(text: &str) {
    let _: std::io::Result<()> = writeln!(std::io::stderr(), "{text}");
}

//! /init: PID 1 of the guest. Prepares the system, runs one command, hands its exit code to the monitor.

#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod child;
mod console;
mod prepare;
mod relay;
mod runtime;
mod sys;

use alloc::format;
use alloc::string::String;
use core::ffi::{c_char, c_int};
use core::fmt::Arguments;

use guest_init::config::{self, Command};
use guest_init::status::REFUSED;

/// Why there is no command to run: one line for the console.
type Refused = String;

#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    if sys::own_pid() != 1 {
        say(format_args!("it is the first process of a machinen guest and runs as PID 1 only"));
        return REFUSED.into();
    }
    let code = run().unwrap_or_else(|why| {
        say(format_args!("{why}"));
        REFUSED
    });
    end(code)
}

/// The order of things; returns the exit code of the command.
fn run() -> Result<u8, Refused> {
    prepare::devices()?;
    console::open_stdio()?;
    prepare::file_systems()?;
    sys::disable_reset_key();
    let words = prepare::command_line()?;
    if !words.tty {
        console::set_raw()?;
    }
    prepare::clock(&words)?;
    prepare::loopback()?;
    prepare::modules()?;
    let command = command(words.tty)?;
    if words.tty { relay::terminal(&command) } else { relay::bytes(&command) }
}

fn command(tty: bool) -> Result<Command, Refused> {
    let refused = |why: Arguments<'_>| format!("/machinen-config.json: {why}");
    let json = sys::read_file(c"/machinen-config.json").map_err(|errno| refused(format_args!("{errno}")))?;
    config::parse(&json, tty).map_err(|refusal| refused(format_args!("{refusal}")))
}

/// One line on the console, or nowhere when there is none.
fn say(what: Arguments<'_>) {
    let line = format!("init: {what}\n");
    let mut rest = line.as_bytes();
    while let Ok(count @ 1..) = sys::write_stderr(rest) {
        rest = &rest[count..];
    }
}

/// Ends the VM. File systems are written out first; processes that are left end with it.
fn end(code: u8) -> ! {
    console::drain();
    sys::sync();
    arch::exit_register(code);
    sys::power_off()
}

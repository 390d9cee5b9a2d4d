//! /init: PID 1 of the guest. Prepares the system, runs one command, hands its exit code to the monitor.

#![no_std]
#![no_main]

extern crate alloc;

mod agent;
mod arch;
mod child;
mod console;
mod disk;
mod gate;
mod network;
mod overlay;
mod prepare;
mod relay;
mod root;
mod runtime;
mod share;
mod shutdown;
mod sys;
mod work;

use alloc::format;
use alloc::string::String;
use core::ffi::{c_char, c_int};
use core::fmt::{self, Arguments};

use guest_init::config::{Config, Refusal};
use guest_init::status::REFUSED;

use crate::agent::points::Points;
use crate::sys::Errno;

/// Why there is no command to run: one line for the console.
type Refused = String;

#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    if let Some(code) = gate::pass() {
        return code;
    }
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
    let mut points = Points::default();
    points.add("init");
    prepare::devices()?;
    console::open_stdio()?;
    prepare::kernel()?;
    sys::disable_reset_key();
    let words = prepare::command_line()?;
    if !words.tty {
        console::set_raw()?;
    }
    prepare::clock(&words)?;
    let net = words.net.map_err(|bad| format!("machinen.net: {bad}"))?;
    prepare::loopback()?;
    prepare::modules()?;
    points.add("modules");
    let mut config = read_config().map_err(|(_, why)| why)?;
    let disks = config.disks().map_err(refused)?;
    let shares = config.shares().map_err(refused)?;
    if let Some(root) = &disks.root {
        config = config.over(root::switch(root)?);
    }
    prepare::file_systems()?;
    prepare::host_name();
    disks.mounts.iter().try_for_each(overlay::mount)?;
    shares.iter().try_for_each(share::mount)?;
    points.add("root");
    if let Some(net) = net {
        network::configure(&net)?;
    }
    if config.agent().map_err(refused)? {
        return agent::serve(&config, points);
    }
    let command = config.command(words.tty).map_err(refused)?;
    if words.tty { relay::terminal(&command) } else { relay::bytes(&command) }
}

/// The configuration in the root that is mounted now.
fn read_config() -> Result<Config, (Errno, Refused)> {
    let json = sys::read_file(c"/machinen-config.json").map_err(|errno| (errno, refused(errno)))?;
    Config::parse(&json).map_err(|refusal: Refusal| (Errno(libc::EINVAL), refused(refusal)))
}

fn refused(why: impl fmt::Display) -> Refused {
    format!("/machinen-config.json: {why}")
}

/// One line on the console, or nowhere when there is none.
fn say(what: Arguments<'_>) {
    let line = format!("init: {what}\n");
    let mut rest = line.as_bytes();
    while let Ok(count @ 1..) = sys::write_stderr(rest) {
        rest = &rest[count..];
    }
}

/// Ends the VM. What is on disks is complete then; processes that are left end before that, or with the machine.
fn end(code: u8) -> ! {
    if sys::own_pid() != 1 {
        // A child of PID 1's own program that came upon something impossible.
        sys::exit_now(code);
    }
    shutdown::finish();
    sys::drain_stderr();
    sys::sync();
    arch::exit_register(code);
    sys::power_off()
}

//! What the tools that run a command in a guest share: the standard streams, the terminal, the environment, the end.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::agent::channel::Channel;
use crate::agent::relay::{Out, Over};
use crate::agent::terminal::{self, Raw};
use crate::diagnostic::Diagnostic;
use crate::error::{Error, Result};
use crate::program::EXIT_TOOL;
use machinen_abi::body::Size;

/// Exit code at the end of a time limit, as of timeout(1).
pub const EXIT_LIMIT: u8 = 124;

/// This process's standard streams for a command in a guest.
#[derive(Debug)]
pub struct Stdio {
    /// The command gets a terminal.
    pub terminal: bool,
}

impl Stdio {
    /// A terminal where standard input and output are one; `forced` and `forbidden` decide otherwise.
    pub fn look(forced: bool, forbidden: bool) -> Stdio {
        let both = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        Stdio { terminal: !forbidden && (forced || both) }
    }

    /// Size of the command's terminal.
    pub fn size(&self) -> Option<Size> {
        self.terminal.then(|| terminal::size(std::io::stdin()))
    }

    /// Takes the user's terminal for the command's.
    ///
    /// # Errors
    /// `RUN_TERMINAL`.
    pub fn raw(&self) -> Result<Option<Raw>> {
        let stdin = std::io::stdin();
        (self.terminal && stdin.is_terminal()).then(|| Raw::enter(stdin.as_fd())).transpose()
    }

    /// Variables of this process that a terminal needs.
    pub fn env(&self) -> Vec<OsString> {
        let term = std::env::var_os("TERM").filter(|_| self.terminal);
        term.into_iter().map(|term| pair("TERM", term)).collect()
    }
}

/// Standard input, output and error. What this process then writes to its standard output goes nowhere.
///
/// # Errors
/// `RUN_STDIO`.
pub fn channels() -> Result<(Channel, Out, Out)> {
    let failed = |cause: std::io::Error| Error::host("RUN_STDIO", "open a standard stream", cause);
    let input = Channel::input(std::io::stdin().as_fd()).map_err(failed)?;
    let output = Channel::output(std::io::stdout().as_fd()).map_err(failed)?;
    let error = Channel::output(std::io::stderr().as_fd()).map_err(failed)?;
    // So that the channel is all that holds it, and its reader sees its end when the command closes it.
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").map_err(failed)?;
    rustix::stdio::dup2_stdout(null).map_err(|cause| failed(cause.into()))?;
    Ok((input, Out::To(output), Out::To(error)))
}

/// `NAME=value` as it is; of `NAME` alone this process's value, and where it has none, the guest shall not have one.
pub fn env_item(item: &str) -> std::result::Result<OsString, String> {
    match item.split_once('=') {
        Some(("", _)) => Err(format!("-e {item}: the name is empty")),
        None if item.is_empty() => Err("-e: the name is empty".into()),
        Some(_) => Ok(item.into()),
        None => Ok(std::env::var_os(item).map_or_else(|| item.into(), |value| pair(item, value))),
    }
}

fn pair(name: &str, value: OsString) -> OsString {
    let mut item = OsString::from(name);
    item.push("=");
    item.push(value);
    item
}

/// A number of seconds; 0 is no limit.
pub fn seconds(text: &str) -> std::result::Result<Option<Duration>, String> {
    let wrong = || format!("--timeout {text}: not a number of seconds");
    let number: f64 = text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| wrong())?;
    let limit = Duration::try_from_secs_f64(number).map_err(|_| wrong())?;
    Ok(Some(limit).filter(|limit| !limit.is_zero()))
}

/// The time at which a limit ends; none where it is too far away to matter.
pub fn deadline(limit: Option<Duration>) -> Option<Instant> {
    limit.and_then(|limit| Instant::now().checked_add(limit))
}

/// What a tool ends with when its command is over; `lost` says why there is no end.
///
/// # Errors
/// What the user is to be told.
pub fn end(over: Over, limit: Option<Duration>, lost: impl FnOnce() -> Error) -> std::result::Result<u8, Diagnostic> {
    match over {
        Over::Exit(exit) => Ok(exit.status()),
        // Who writes to a reader that has gone has done enough.
        Over::OutputClosed | Over::Left | Over::Started | Over::Marked => Ok(0),
        Over::Signal(signal) => Ok(u8::try_from(signal).map_or(EXIT_TOOL, |signal| 128_u8.saturating_add(signal))),
        Over::Refused(refusal) => Err(refusal.error().diagnostic(refusal.status())),
        Over::Lost => Err(lost().diagnostic(EXIT_TOOL)),
        Over::Limit => {
            let seconds = limit.unwrap_or_default().as_secs_f64();
            Err(Error::new("RUN_TIMEOUT", format!("the command had not ended after {seconds} s"))
                .diagnostic(EXIT_LIMIT))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_variables() {
        assert_eq!(seconds("1.5"), Ok(Some(Duration::from_millis(1500))));
        assert_eq!((seconds("0"), seconds("5s")), (Ok(None), Ok(Some(Duration::from_secs(5)))));
        assert!(["", "x", "-1", "nan", "inf", "1e999"].iter().all(|bad| seconds(bad).is_err()));
        assert_eq!(env_item("A=b=c"), Ok("A=b=c".into()));
        assert_eq!(env_item("MACHINEN_NOT_SET"), Ok("MACHINEN_NOT_SET".into()));
        assert_eq!(env_item("PATH"), Ok(pair("PATH", std::env::var_os("PATH").unwrap())));
        assert!(env_item("=x").is_err() && env_item("").is_err());
    }

    #[test]
    fn ends_are_exit_codes() {
        let lost = || Error::new("X", "x");
        assert_eq!(end(Over::Signal(15), None, lost), Ok(143));
        assert_eq!(end(Over::OutputClosed, None, lost), Ok(0));
        assert_eq!(end(Over::Limit, Some(Duration::from_secs(2)), lost).unwrap_err().exit, 124);
        assert_eq!(end(Over::Lost, None, lost).unwrap_err().exit, 125);
    }
}

//! What every tool's `main` does: arguments to a call, its text to standard output, its failure to an exit code.

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use argh::FromArgs;

use crate::args::{message, prepare};
use crate::diagnostic::{Diagnostic, EXIT_FAILURE, EXIT_USAGE};

/// A tool's name and its codes for what happens here.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// Name of the program.
    pub name: &'static str,
    /// Code of bad arguments.
    pub usage: &'static str,
    /// Code of an output that cannot be written.
    pub output: &'static str,
}

/// What a tool's work came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Text for standard output.
    pub text: String,
    /// Exit code, when the text could be written.
    pub exit: u8,
}

impl From<String> for Said {
    fn from(text: String) -> Self {
        Said { text, exit: 0 }
    }
}

impl From<()> for Said {
    fn from((): ()) -> Self {
        Said::default()
    }
}

impl Tool {
    /// Parses this process's arguments and calls `run`; prints what it says.
    ///
    /// `version` tells whether the arguments ask for it. An output whose reader went away is no failure.
    pub fn main<A: FromArgs, S: Into<Said>>(
        self,
        version: impl Fn(&A) -> bool,
        run: impl FnOnce(A) -> Result<S, Diagnostic>,
    ) -> ExitCode {
        // Wanted even for errors in the arguments, so it is looked for before they are parsed.
        let json = std::env::args_os().any(|arg| arg == "--json");
        let usage = |message: String| {
            let hint = format!("see {} --help", self.name);
            Diagnostic::new(self.usage, message).hint(hint).usage().report(self.name, json)
        };
        let words = match prepare(std::env::args_os().skip(1)) {
            Ok(words) => words,
            Err((number, text)) => return usage(format!("argument {number}: {text}: is not UTF-8")),
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let args = match A::from_args(&[self.name], &words) {
            Ok(args) => args,
            Err(exit) if exit.status.is_ok() => return self.print(exit.output, json, EXIT_FAILURE),
            Err(exit) => return usage(message(&exit.output)),
        };
        if version(&args) {
            return self.print(format!("{} {}\n", self.name, env!("CARGO_PKG_VERSION")), json, EXIT_FAILURE);
        }
        match run(args) {
            Ok(said) => self.print(said, json, EXIT_FAILURE),
            Err(diagnostic) => diagnostic.report(self.name, json),
        }
    }

    /// Prints what was said; `failed` is the exit code when that cannot be done.
    fn print(self, said: impl Into<Said>, json: bool, failed: u8) -> ExitCode {
        let said = said.into();
        match std::io::stdout().write_all(said.text.as_bytes()) {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => {
                let why = machinen_initramfs::error::reason(&e);
                let diagnostic = Diagnostic::new(self.output, format!("write: standard output: {why}"));
                Diagnostic { exit: failed, ..diagnostic }.report(self.name, json)
            }
            _ => ExitCode::from(said.exit),
        }
    }
}

/// `main` of a tool that runs a command in a guest: what comes after `--` is the command's, as bytes.
///
/// `short` are the letters of switches that may be given together, as in `-it`. Exit codes: what `run` gives; 125 for every
/// failure that names no other.
pub fn main_of_command<A: FromArgs>(
    tool: Tool,
    short: &str,
    version: impl Fn(&A) -> bool,
    run: impl FnOnce(A, Option<Vec<OsString>>) -> Result<Said, Diagnostic>,
) -> ExitCode {
    let mut own: Vec<OsString> = std::env::args_os().skip(1).collect();
    let dashes = own.iter().position(|arg| arg == "--");
    let command = dashes.map(|at| own.split_off(at + 1));
    // Wanted even for errors in the arguments, so it is looked for before they are parsed.
    let json = own.iter().any(|arg| arg == "--json");
    let report = |diagnostic: Diagnostic| {
        let is_usual = diagnostic.exit == EXIT_FAILURE || diagnostic.exit == EXIT_USAGE;
        let exit = if is_usual { EXIT_TOOL } else { diagnostic.exit };
        Diagnostic { exit, ..diagnostic }.report(tool.name, json)
    };
    let usage = |message: String| {
        report(Diagnostic::new(tool.usage, message).hint(format!("see {} --help; a command comes after --", tool.name)))
    };
    let own = own.into_iter().flat_map(|word| apart(word, short)).collect();
    let words = match prepare(if short.contains('v') { shares(own) } else { own }) {
        Ok(words) => words,
        Err((number, text)) => return usage(format!("argument {number}: {text}: is not UTF-8")),
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = match A::from_args(&[tool.name], &words) {
        Ok(args) if version(&args) => Ok(Said::from(format!("{} {}\n", tool.name, env!("CARGO_PKG_VERSION")))),
        Ok(args) => run(args, command),
        Err(exit) if exit.status.is_ok() => Ok(Said::from(with_command(&exit.output))),
        Err(exit) => return usage(message(&exit.output)),
    };
    match said {
        Ok(said) => tool.print(said, json, EXIT_TOOL),
        Err(diagnostic) => report(diagnostic),
    }
}

/// A help text with what comes after `--`, of which argh knows nothing: its usage ends with ` [--] [<word...>]`.
fn with_command(help: &str) -> String {
    let Some((usage, (word, rest))) =
        help.split_once(" [--] [<").and_then(|(usage, rest)| Some((usage, rest.split_once("...>]")?)))
    else {
        return help.to_owned();
    };
    let command = match word {
        "image" => " [-- COMMAND...]",
        "name" if !usage.contains("machinen-attach") => " -- COMMAND...",
        _ => "",
    };
    format!("{usage} {}{command}{rest}", word.to_uppercase())
}

/// Exit code of a tool that runs a command, for everything that fails before the command runs.
pub const EXIT_TOOL: u8 = 125;

/// `-v HOST:GUEST` is a share, which may be refused as one; `-v` before anything else is the switch that it always was.
fn shares(mut words: Vec<OsString>) -> Vec<OsString> {
    let names_two_places = |word: &OsString| word.to_string_lossy().contains(':') && !Path::new(word).exists();
    for at in 1..words.len() {
        if words[at - 1] == "-v" && names_two_places(&words[at]) {
            words[at - 1] = "--share".into();
        }
    }
    words
}

/// Switches given together, one by one.
fn apart(word: OsString, short: &str) -> Vec<OsString> {
    let letters = word.to_str().and_then(|word| word.strip_prefix('-')).unwrap_or_default();
    if letters.len() < 2 || !letters.chars().all(|letter| short.contains(letter)) {
        return vec![word];
    }
    letters.chars().map(|letter| OsString::from(format!("-{letter}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v_is_a_share_before_two_places_and_a_switch_before_anything_else() {
        for (words, expected) in [
            (&["-v", "a:/b", "image"][..], &["--share", "a:/b", "image"][..]),
            (&["-v", "/a b:/c:ro", "-v", "image"], &["--share", "/a b:/c:ro", "-v", "image"]),
            (&["-v", "/images/debian.tar"], &["-v", "/images/debian.tar"]),
            (&["-v", "-p", "127.0.0.1:80:80"], &["-v", "-p", "127.0.0.1:80:80"]),
            (&["-v", ".:w", "image"], &["--share", ".:w", "image"]),
            (&["-itv", ".:/w", "x"], &["-i", "-t", "--share", ".:/w", "x"]),
            (&["-v"], &["-v"]),
        ] {
            let words = words.iter().map(OsString::from).flat_map(|word| apart(word, "dtTiv")).collect();
            assert_eq!(shares(words), expected);
        }
    }
}

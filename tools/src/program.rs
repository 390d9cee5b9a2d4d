//! What every tool's `main` does: arguments to a call, its text to standard output, its failure to an exit code.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use argh::FromArgs;

use crate::args::prepare;
use crate::diagnostic::Diagnostic;

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
            Err(exit) if exit.status.is_ok() => return self.print(exit.output, json),
            Err(exit) => {
                let text: Vec<&str> = exit.output.split_whitespace().collect();
                let mut text = text.join(" ").replace('\0', "-");
                // argh starts its messages with a capital letter.
                if let Some(first) = text.get_mut(..1) {
                    first.make_ascii_lowercase();
                }
                return usage(text);
            }
        };
        if version(&args) {
            return self.print(format!("{} {}\n", self.name, env!("CARGO_PKG_VERSION")), json);
        }
        match run(args) {
            Ok(said) => self.print(said, json),
            Err(diagnostic) => diagnostic.report(self.name, json),
        }
    }

    fn print(self, said: impl Into<Said>, json: bool) -> ExitCode {
        let said = said.into();
        match std::io::stdout().write_all(said.text.as_bytes()) {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => {
                let why = machinen_initramfs::error::reason(&e);
                Diagnostic::new(self.output, format!("write: standard output: {why}")).report(self.name, json)
            }
            _ => ExitCode::from(said.exit),
        }
    }
}

//! How a tool reports a failure: a stable code, a line that says what, where and why, a hint, and an exit code.

use std::process::ExitCode;

/// Exit code for arguments that mean nothing, in tools that run no guest command.
pub const EXIT_USAGE: u8 = 2;
/// Exit code for everything else that fails.
pub const EXIT_FAILURE: u8 = 1;

/// One failure, ready to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable code, as `MKINITRAMFS_USAGE`.
    pub code: &'static str,
    /// What failed, on what, why: lower case, no full stop.
    pub message: String,
    /// The command or change that mends it.
    pub hint: Option<String>,
    /// Whether the same call may succeed later with nothing changed.
    pub retryable: bool,
    /// Exit code of the tool.
    pub exit: u8,
}

impl Diagnostic {
    /// A failure with exit code [`EXIT_FAILURE`], without hint, not to be retried.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Diagnostic { code, message, hint: None, retryable: false, exit: EXIT_FAILURE }
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Makes it a usage error.
    pub fn usage(mut self) -> Self {
        self.exit = EXIT_USAGE;
        self
    }

    /// The text for standard error: a block for people, or with `json` one line for programs. Ends with a newline.
    pub fn render(&self, tool: &str, json: bool) -> String {
        if json {
            let value = serde_json::json!({
                "tool": tool, "code": self.code, "message": self.message,
                "retryable": self.retryable, "hint": self.hint,
            });
            return format!("{value}\n");
        }
        let mut text = format!("{tool}: {}: {}\n", self.code, self.message);
        if let Some(hint) = &self.hint {
            text.push_str(&format!("  hint: {hint}\n"));
        }
        text
    }

    /// Prints it in one write and gives the exit code.
    pub fn report(&self, tool: &str, json: bool) -> ExitCode {
        use std::io::Write;
        // With standard error gone there is nobody left to tell.
        let _ = std::io::stderr().write_all(self.render(tool, json).as_bytes());
        ExitCode::from(self.exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let diagnostic = Diagnostic::new("X_Y", "open: \"a\": no").hint("try b");
        let block = "t: X_Y: open: \"a\": no\n  hint: try b\n";
        assert_eq!(diagnostic.render("t", false), block);
        let line = diagnostic.render("t", true);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["message"], "open: \"a\": no");
        assert_eq!(value["retryable"], false);
        assert_eq!(line.matches('\n').count(), 1);
    }
}

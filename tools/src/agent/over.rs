//! What a command in a guest came to, as its streams tell it.

use machinen_abi::body::Exit;

use super::Refusal;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// The command ended.
    Exit(Exit),
    /// The agent refused or failed.
    Refused(Refusal),
    /// The stream ended without a word: the machine is gone.
    Lost,
    /// The reader of standard output or error is gone: who writes there has done enough.
    OutputClosed,
    /// This process was told to end by SIGINT or SIGTERM, twice.
    Signal(i32),
    /// The time was over.
    Limit,
    /// The user left it alone.
    Left,
    /// It has started; asked for by [`Relay::until_started`](super::relay::Relay::until_started).
    Started,
    /// It has come to a mark; asked for by [`Relay::run_until`](super::relay::Relay::run_until).
    Marked,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// How it ended.
    pub over: Over,
    /// Points of time in ns since 1970.
    pub marks: Vec<(u64, String)>,
    /// What was kept of its output.
    pub output: Vec<u8>,
    /// What was kept of its errors.
    pub error: Vec<u8>,
}

impl Done {
    /// What a command came to that nothing was heard of.
    pub fn nothing(over: Over) -> Done {
        Done { over, marks: Vec::new(), output: Vec::new(), error: Vec::new() }
    }
}

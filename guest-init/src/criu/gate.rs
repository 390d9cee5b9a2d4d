//! The gate of a dump: CRIU's action script, which CRIU waits for when all is written and the processes still stand still.
//!
//! CRIU starts it at several points and says by a variable which one it is. Its end decides at the last, `post-dump`: with 0 the
//! processes get what the dump was to do to them (they end, or go on), with anything else the dump has failed, and they go on.
//! A script that is killed counts as one that failed. CRIU closes all descriptors of the script's, so it finds its pipes by their names in /proc.

use alloc::format;
use alloc::string::String;

use machinen_abi::body::TAKEN;

/// CRIU's variable: the point.
pub const ACTION: &core::ffi::CStr = c"CRTOOLS_SCRIPT_ACTION";
/// The worker's variables: where to say that the point has come, and where the answer is.
pub const TOLD: &core::ffi::CStr = c"MACHINEN_DUMP_TOLD";
/// See [`TOLD`].
pub const ANSWER: &core::ffi::CStr = c"MACHINEN_DUMP_ANSWER";

/// A descriptor of a process, as a variable of this name.
#[must_use]
pub fn variable(name: &core::ffi::CStr, pid: i32, descriptor: i32) -> String {
    format!("{}=/proc/{pid}/fd/{descriptor}", name.to_string_lossy())
}

/// Whether CRIU waits for the host's word at this point.
#[must_use]
pub fn holds(action: &[u8]) -> bool {
    action == b"post-dump"
}

/// Whether the dump is taken, by what came of the host, or of its worker; `None` is an end without a word.
#[must_use]
pub fn is_taken(word: Option<u8>) -> bool {
    word == Some(TAKEN)
}

#[cfg(test)]
mod tests {
    use super::{TOLD, holds, is_taken, variable};

    #[test]
    fn only_the_last_point_holds_and_only_one_word_takes() {
        assert_eq!(variable(TOLD, 7, 9), "MACHINEN_DUMP_TOLD=/proc/7/fd/9");
        let others: [&[u8]; 5] = [b"pre-dump", b"network-lock", b"network-unlock", b"", b"post-dump2"];
        assert!(holds(b"post-dump") && !others.into_iter().any(holds));
        assert!(is_taken(Some(b'c')) && !is_taken(Some(b'n')) && !is_taken(None));
    }
}

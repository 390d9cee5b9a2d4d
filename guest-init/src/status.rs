//! Exit codes: from a wait status to what the VM exits with.

/// /init refuses or fails: bad configuration, a module that does not load.
pub const REFUSED: u8 = 125;
/// The command was found but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;

/// The exit code for a status of wait(2): the command's own, or 128 + the signal that killed it.
///
/// `None` for a process that has not ended (stopped or continued).
#[must_use]
pub fn exit_code(wait_status: i32) -> Option<u8> {
    let code = if libc::WIFEXITED(wait_status) {
        libc::WEXITSTATUS(wait_status)
    } else if libc::WIFSIGNALED(wait_status) {
        128 + libc::WTERMSIG(wait_status)
    } else {
        return None;
    };
    u8::try_from(code).ok()
}

#[cfg(test)]
mod tests {
    use super::exit_code;

    #[test]
    fn an_exit_code_is_passed_on() {
        for code in 0..=255_u8 {
            assert_eq!(exit_code(i32::from(code) << 8), Some(code));
        }
    }

    #[test]
    fn a_signal_gives_128_and_its_number_with_or_without_a_core() {
        for signal in 1..=64_u8 {
            assert_eq!(exit_code(i32::from(signal)), Some(128 + signal));
            assert_eq!(exit_code(i32::from(signal) | 0x80), Some(128 + signal));
        }
    }

    #[test]
    fn a_stopped_or_continued_process_has_not_ended() {
        assert_eq!(exit_code(0x137f), None);
        assert_eq!(exit_code(0xffff), None);
    }
}

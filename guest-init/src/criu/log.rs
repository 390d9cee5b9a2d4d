//! What CRIU's logs say to a person.

use alloc::string::String;
use alloc::vec::Vec;

/// Lines of errors that make a message.
const MOST_LINES: usize = 4;

/// The last errors of a log in one line: without times and places in CRIU's source, and without those that name no cause.
/// Empty when there is none.
#[must_use]
pub fn last_errors(log: &[u8]) -> String {
    let lines = log.split(|&byte| byte == b'\n').filter_map(|line| {
        let line = String::from_utf8_lossy(line);
        let (_, text) = line.split_once("Error (")?;
        let text = text.split_once("): ").map_or(text, |(_, text)| text).trim();
        // The first says only that, the second is one for each program that CRIU tries.
        let nothing = text.ends_with("FAILED.") || text.starts_with("exited, status=");
        (!nothing && !text.is_empty()).then(|| String::from(text))
    });
    let mut all: Vec<String> = lines.collect();
    all.dedup();
    all.split_off(all.len().saturating_sub(MOST_LINES)).join("; ")
}

/// The version in a log's first lines; empty when there is none.
#[must_use]
pub fn version(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log.get(..log.len().min(4096)).unwrap_or_default());
    let rest = text.split_once("Version: ").map_or("", |(_, rest)| rest);
    rest.split_whitespace().next().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::{last_errors, version};

    const LOG: &[u8] = b"(00.000000) Version: 3.17.1 (gitid 0)\n\
        (00.083924) Error (criu/util.c:642): exited, status=127\n\
        (00.084279) Error (criu/netfilter.c:105): Iptables configuration failed\n\
        (00.084339) Error (criu/sk-tcp.c:77): tcp: Failed to lock TCP connection 29\n\
        (00.088798) Error (criu/cr-dump.c:1635): Dump files (pid: 1000) failed with -1\n\
        (00.094226) Unlock network\n\
        (00.094714) Error (criu/cr-dump.c:2053): Dumping FAILED.\n";

    #[test]
    fn errors_are_said_without_places() {
        let errors = "Iptables configuration failed; tcp: Failed to lock TCP connection 29; \
            Dump files (pid: 1000) failed with -1";
        assert_eq!((last_errors(LOG), version(LOG)), (errors.into(), "3.17.1".into()));
        assert_eq!((last_errors(b""), version(b"")), (String::new(), String::new()));
        let many =
            b"Error (a): 1\nError (a): 2\nError (a): 2\nError (a): 3\nError (a): 4\nError (a): 5\n\xffError (a): \xff";
        assert_eq!(last_errors(many), "3; 4; 5; \u{fffd}");
    }
}

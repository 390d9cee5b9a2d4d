//! What a lazy restore still has to bring.

use std::path::Path;
use std::time::{Duration, Instant};

use machinen_abi::open::Operation;
use serde_json::Value;

use crate::agent;
use crate::agent::relay::{Out, Over, Relay};
use crate::agent::request::Request;
use crate::registry::Entry;

/// In an entry: memory of the machine's processes comes when it is needed.
pub(crate) const LAZY: &str = "lazy";
/// Who lists machines does not wait for one that says nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pages that are still to come, of the machine in `dir`, as its agent says; `None` where it was not restored lazily, or does not
/// answer.
pub(crate) fn pages_pending(dir: &Path, entry: &Entry) -> Option<u64> {
    entry.other.get(LAZY).and_then(Value::as_bool).filter(|lazy| *lazy)?;
    let limit = Instant::now() + PATIENCE;
    let (wire, first) = agent::ask(dir, &Request::new(Operation::Stats), Some(limit)).ok()?;
    let mut relay = Relay::new(wire, None, Out::Keep(Vec::new()), Out::Nowhere);
    relay.begin_with(first);
    let done = relay.limit(Some(limit)).run().ok()?;
    matches!(done.over, Over::Exit(exit) if exit.status() == 0).then(|| parse(&done.output)).flatten()
}

/// A name and a number in a line each.
fn parse(output: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(output).ok()?;
    text.lines().find_map(|line| line.strip_prefix("pending ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_that_is_lazy_is_asked() {
        let mut entry = Entry::new();
        assert_eq!(pages_pending(Path::new("/"), &entry), None);
        entry.other.insert(LAZY.into(), true.into());
        assert_eq!(pages_pending(Path::new("/"), &entry), None);
    }

    #[test]
    fn the_number_is_found_in_what_an_agent_may_say() {
        assert_eq!(parse(b"total 9\nserved 2\npending 7\nfaults 1\npage_bytes 4096\n"), Some(7));
        for bad in [&b""[..], b"pending", b"pending \n", b"pending -1\n", b"pending x\n", b"\xff", b"spending 3\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}

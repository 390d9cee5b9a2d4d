//! What a lazy restore still has to bring, and what it was waited for.

use std::collections::HashSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use machinen_abi::fault::{Fault, MOST_FAULTS};
use machinen_abi::open::{Operation, Tag};
use serde_json::Value;

use super::meta::{self, RESTORED_FROM};
use super::seal::is_own;
use crate::agent;
use crate::agent::relay::{Out, Over, Relay};
use crate::agent::request::Request;
use crate::outfile::Outfile;
use crate::registry::Entry;

/// In an entry: memory of the machine's processes comes when it is needed.
pub(crate) const LAZY: &str = "lazy";
/// Who lists machines does not wait for one that says nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// In a bundle: pages that were waited for at lazy restores of it, a [`Fault`] a line, the earliest first.
const FAULTS: &str = "faults";
/// No such file is longer: a line has at most 10, 1, 16 and 1 bytes.
const MOST_BYTES: u64 = 28 * MOST_FAULTS as u64;
/// An end is not put off for longer.
const RECORD_LIMIT: Duration = Duration::from_secs(1);

fn is_lazy(entry: &Entry) -> bool {
    entry.other.get(LAZY).and_then(Value::as_bool).unwrap_or(false)
}

/// Pages that are still to come, of the machine in `dir`, as its agent says; `None` where it was not restored lazily, or does not
/// answer.
pub(crate) fn pages_pending(dir: &Path, entry: &Entry) -> Option<u64> {
    if !is_lazy(entry) {
        return None;
    }
    parse(&ask(dir, Request::new(Operation::Stats), PATIENCE)?)
}

fn ask(dir: &Path, request: Request, limit: Duration) -> Option<Vec<u8>> {
    let limit = Some(Instant::now() + limit);
    let (wire, first) = agent::ask(dir, &request, limit).ok()?;
    let mut relay = Relay::new(wire, None, Out::Last(Vec::new()), Out::Nowhere);
    relay.begin_with(first);
    let done = relay.limit(limit).run().ok()?;
    matches!(done.over, Over::Exit(exit) if exit.status() == 0).then_some(done.output)
}

/// A name and a number in a line each.
fn parse(output: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(output).ok()?;
    text.lines().find_map(|line| line.strip_prefix("pending ")?.parse().ok())
}

/// Has a machine that was restored lazily, and is about to end, say what its processes had to wait for, and keeps that in its bundle for
/// the next restore. Only where this user may write there, and nobody else: it is a hint.
pub(crate) fn record_faults(dir: &Path, entry: &Entry, limit: Duration) {
    let Some(Value::String(bundle)) = entry.other.get(RESTORED_FROM).filter(|_| is_lazy(entry)) else { return };
    let request = Request::new(Operation::Stats).with(Tag::Lazy, []);
    if let Some(found) = ask(dir, request, limit.min(RECORD_LIMIT)).and_then(|said| faults(&said)) {
        // A bundle on a medium that cannot be written has none.
        let _ = add(Path::new(bundle), &found);
    }
}

/// What a guest, or a file, says; nothing where a line is anything else.
fn faults(said: &[u8]) -> Option<Vec<Fault>> {
    let lines = said.split_inclusive(|byte| *byte == b'\n').take(MOST_FAULTS);
    lines.map(|line| Fault::parse(line.strip_suffix(b"\n")?)).collect()
}

fn add(bundle: &Path, found: &[Fault]) -> io::Result<()> {
    if !is_own(&fs::symlink_metadata(bundle)?) || !bundle.join(meta::NAME).is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let path = bundle.join(FAULTS);
    let before = read(&path).and_then(|text| faults(&text)).unwrap_or_default();
    let mut seen = HashSet::new();
    let all: Vec<Fault> = before
        .iter()
        .chain(found)
        .filter(|fault| seen.insert((fault.pid, fault.address)))
        .take(MOST_FAULTS)
        .copied()
        .collect();
    if all == before {
        return Ok(());
    }
    let text: String = all.iter().map(|fault| format!("{fault}\n")).collect();
    let file = Outfile::create_new(&path)?;
    file.file().set_permissions(Permissions::from_mode(0o600))?;
    file.file().write_all(text.as_bytes())?;
    file.commit()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path).ok()?;
    let mut text = Vec::new();
    if file.metadata().ok()?.is_file() {
        file.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    }
    Some(text)
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
        entry.other.insert(RESTORED_FROM.into(), "/nowhere".into());
        record_faults(Path::new("/"), &entry, RECORD_LIMIT);
    }

    #[test]
    fn the_number_is_found_in_what_an_agent_may_say() {
        assert_eq!(parse(b"total 9\nserved 2\npending 7\nfaults 1\npage_bytes 4096\n"), Some(7));
        for bad in [&b""[..], b"pending", b"pending \n", b"pending -1\n", b"pending x\n", b"\xff", b"spending 3\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_bundle_keeps_what_was_waited_for_once() {
        let bundle = std::env::temp_dir().join(format!("machinen-faults-{}", std::process::id()));
        fs::create_dir_all(&bundle).unwrap();
        fs::set_permissions(&bundle, Permissions::from_mode(0o700)).unwrap();
        let path = bundle.join(FAULTS);
        let page = |number: u64| Fault { pid: 7, address: number << 12 };
        let text = || fs::read_to_string(&path).unwrap();
        assert!(add(&bundle, &[page(1)]).is_err(), "it is no bundle");
        fs::write(bundle.join(meta::NAME), "{}").unwrap();
        add(&bundle, &[page(2), page(1), page(2)]).unwrap();
        assert_eq!(text(), "7 2000\n7 1000\n");
        add(&bundle, &[page(1), page(3)]).unwrap();
        assert_eq!(text(), "7 2000\n7 1000\n7 3000\n");
        // A link is replaced, and what is no such file, too.
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        add(&bundle, &[page(1)]).unwrap();
        assert!(text() == "7 1000\n" && !path.is_symlink());
        fs::write(&path, "7 1000\nrubbish\n").unwrap();
        let many: Vec<Fault> = (1..=5000).map(page).collect();
        add(&bundle, &many).unwrap();
        assert_eq!(text().lines().count(), MOST_FAULTS);
        assert!(text().len() as u64 <= MOST_BYTES);
        // Not where others could have put it.
        fs::set_permissions(&bundle, Permissions::from_mode(0o770)).unwrap();
        assert!(add(&bundle, &[page(9)]).is_err());
        fs::remove_dir_all(&bundle).unwrap();
    }

    #[test]
    fn a_guest_says_faults_and_nothing_else() {
        assert_eq!(faults(b""), Some(Vec::new()));
        assert_eq!(faults(b"7 1000\n8 2000\n").map(|all| all.len()), Some(2));
        for bad in [&b"\n"[..], b"7 1000", b"7 1000\n../x\n", b"7 1000\r\n", b"\xff\n"] {
            assert_eq!(faults(bad), None, "{bad:?}");
        }
    }
}

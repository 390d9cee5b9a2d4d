//! What goes through `machinen-run` in bulk: a tree as a tar, in and out, with memory that does not grow.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Read, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::thread;

use machinen_tests::cli::Cli;
use machinen_tests::monitor::wait_until;
use machinen_tests::soak;

const MIB: u64 = 1 << 20;
const FILES: u64 = 16;
/// The most that a tool or the monitor (without the guest's memory) may grow while it all goes through.
const MOST_GROWTH_BYTES: u64 = 4 * MIB;

/// Bytes that depend on the file's number and are no repetition within a file: a xorshift generator.
struct Content(u64, u64);

impl Content {
    fn new(number: u64, bytes: u64) -> Content {
        Content(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, bytes)
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = usize::try_from(self.1).unwrap_or(usize::MAX).min(buffer.len());
        for piece in buffer[..count].chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            piece.copy_from_slice(&self.0.to_le_bytes()[..piece.len()]);
        }
        self.1 -= count as u64;
        Ok(count)
    }
}

fn send(stdin: ChildStdin, bytes: u64) {
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(1 << 16, stdin));
    for number in 0..FILES {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o640);
        header.set_mtime(1_700_000_000 + number);
        // Pieces of 8 bytes, whatever the reader asks for.
        tar.append_data(
            &mut header,
            format!("tree/{number}"),
            io::BufReader::with_capacity(1 << 16, Content::new(number, bytes)),
        )
        .unwrap();
    }
    tar.into_inner().unwrap().flush().unwrap();
}

/// Compares what comes with what went, and calls `at_file` at each file; returns the number of files.
fn compare(stdout: ChildStdout, bytes: u64, mut at_file: impl FnMut()) -> u64 {
    let mut tar = tar::Archive::new(io::BufReader::with_capacity(1 << 16, stdout));
    let mut files = 0;
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let Some(number) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        assert_eq!((entry.size(), entry.header().mode().unwrap() & 0o777), (bytes, 0o640), "{}", path.display());
        at_file();
        let mut content = io::BufReader::with_capacity(1 << 16, Content::new(number, bytes));
        let (mut theirs, mut ours) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            let count = entry.read(&mut theirs).unwrap();
            if count == 0 {
                break;
            }
            content.read_exact(&mut ours[..count]).unwrap();
            assert!(theirs[..count] == ours[..count], "{} differs", path.display());
        }
        assert_eq!((content.buffer().len(), content.get_ref().1), (0, 0), "{} is short", path.display());
        files += 1;
    }
    files
}

/// The most memory that a process has had for itself, apart from what it shares with a guest by mapping it: `VmHWM`.
fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// What the monitor takes beside its guest's memory.
fn monitor_bytes(machines: &Cli) -> u64 {
    let mem = machines.tool("mem", &["--json", "m"]).finish();
    let value: serde_json::Value = serde_json::from_slice(&mem.stdout).unwrap();
    value["monitor_bytes"].as_u64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn a_tree_goes_in_and_comes_back_and_memory_stays() {
    let machines = Cli::new();
    let bytes = if soak() { 1024 * MIB / FILES } else { 64 * MIB / FILES };
    let script = "tar x -C /tmp -f - && tar c -C /tmp -f - tree";
    let mut command = machines.run_command(&["--name", "m"], &["sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    // An entry that makes the guest ready before anything is measured.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_path("tree").unwrap();
    header.set_mode(0o755);
    header.set_size(0);
    header.set_cksum();
    stdin.write_all(header.as_bytes()).unwrap();
    stdin.flush().unwrap();
    wait_until("the guest unpacks", || {
        let exec = machines.exec("m", &["test", "-d", "/tmp/tree"]).outcome();
        exec.is_ok_and(|finished| finished.code() == 0)
    });
    let before = [peak_bytes(pid), monitor_bytes(&machines)];
    let mut most = before;
    let sender = thread::spawn(move || send(stdin, bytes));
    let files = compare(stdout, bytes, || {
        let now = [peak_bytes(pid), monitor_bytes(&machines)];
        most = [0, 1].map(|index| most[index].max(now[index]));
    });
    sender.join().unwrap();
    assert_eq!((files, child.wait().unwrap().code()), (FILES, Some(0)));
    for (what, before, most) in [("machinen-run", before[0], most[0]), ("vmm-min", before[1], most[1])] {
        println!("{what}: {} KiB before, at most {} KiB", before >> 10, most >> 10);
        assert!(most < before + MOST_GROWTH_BYTES, "{what} grew from {before} to {most} bytes");
    }
}

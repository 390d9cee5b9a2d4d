//! The monitor's place among the processes, and its marks of time.

use std::fs;
use std::process::{Command, Stdio};

use machinen_fixtures::guests::{hello, print_and_halt};
use machinen_tests::monitor::{Kernel, Live, Scratch, assert_refused, read_bytes, wait_until};
use machinen_tests::{bin, sys};

#[test]
fn marks_are_in_order_and_in_one_line_each() {
    let scratch = Scratch::new("trace");
    let kernel = Kernel::new(hello());
    let path = scratch.file("trace");
    let run = kernel.run().arg("--trace").arg(&path).finish();
    assert_eq!(run.code(), 0, "{}", run.printed());
    let text = fs::read_to_string(path).unwrap();
    let marks: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = marks.iter().map(|mark| mark["mark"].as_str().unwrap()).collect();
    let expected = ["vmm-min", "KVM ready", "kernel loaded", "first instruction", "first console byte", "exit"];
    assert_eq!(names, expected);
    let times: Vec<u64> = marks.iter().map(|mark| mark["ns"].as_u64().unwrap()).collect();
    assert!(times.is_sorted() && times[0] > 1_700_000_000_000_000_000, "{times:?}");
    assert_refused(&kernel.run().args(["--trace", "/nowhere/trace"]).finish(), "TRACE_FILE");
}

#[test]
fn a_detached_monitor_leads_a_session_of_its_own() {
    let kernel = Kernel::new(print_and_halt());
    let mut command = kernel.command();
    command.arg("--detach").stdin(Stdio::null()).stdout(Stdio::piped());
    // Not by Live: it would make the monitor the leader of a group, which cannot leave.
    let mut child = command.spawn().unwrap();
    assert_eq!(read_bytes(child.stdout.as_mut().unwrap(), 1), b"r");
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let own = child.id().to_string();
    // Group and session, fields 5 and 6 of proc_pid_stat(5).
    assert_eq!(fields[2..4], [own.as_str(), own.as_str()]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_monitor_ends_with_its_parent_however_that_ends() {
    let kernel = Kernel::new(print_and_halt());
    let script = r#""$1" -m 64 --kernel "$2" --die-with-parent $$ </dev/null & echo $!; wait"#;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(bin("vmm-min")).arg(kernel.path()).stdout(Stdio::piped());
    let mut shell = Live::start(command);
    let mut said = read_bytes(shell.child.stdout.as_mut().unwrap(), 1);
    while !said.ends_with(b"\nr") {
        said.extend(read_bytes(shell.child.stdout.as_mut().unwrap(), 1));
    }
    let monitor: u32 = String::from_utf8(said).unwrap().lines().next().unwrap().parse().unwrap();
    let lives = || {
        let stat = fs::read_to_string(format!("/proc/{monitor}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    assert!(lives());
    sys::signal(&shell.child, libc::SIGKILL);
    wait_until("the monitor has ended", || !lives());
    let refused = kernel.run().args(["--die-with-parent", "1"]).finish();
    assert_refused(&refused, "HOST_PARENT");
}

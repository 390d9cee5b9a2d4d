//! Whatever is killed at whatever moment: gc leaves nothing behind, and the name is free.

#![forbid(unsafe_code)]

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use machinen_tests::cli::Cli;
use machinen_tests::monitor::wait_until;
use machinen_tests::{Run, asset, soak};

/// Longer than a machine takes to its command.
const SPAN_MS: u64 = 1500;

fn kill(pid: &str) {
    // It may have ended by itself.
    let _ = Run::new(asset("busybox")).args(["kill", "-9", pid]).outcome();
}

/// The monitors that work in the registry, alive.
fn monitors(cli: &Cli) -> Vec<String> {
    let numbers = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let works_there = |pid: &String| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|directory| directory.starts_with(cli.registry()))
    };
    numbers.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter(works_there).collect()
}

#[test]
fn nothing_is_left_after_a_kill_at_any_moment() {
    let cli = Cli::new();
    let rounds = if soak() { 200 } else { 20 };
    for round in 0..rounds {
        let mut command: Command = cli.run_command(&["--name", "x"], &["sh", "-c", "echo up; cat"]);
        let mut tool = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // The moment is the input of this test: spread over the start and a little more, in no order.
        std::thread::sleep(Duration::from_millis(round * 611 % SPAN_MS));
        let victims = if round % 2 == 0 { vec![tool.id().to_string()] } else { monitors(&cli) };
        victims.iter().for_each(|pid| kill(pid));
        // Where the monitor was not there yet, the end of its input ends the command.
        drop(tool.stdin.take());
        let output = tool.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let told = output.status.code() == Some(125) && said.contains("BOOT_ENDED");
        let is_tools = round % 2 == 0;
        assert!(is_tools || victims.is_empty() || told || output.status.success(), "{round}: {} {said}", output.status);
        wait_until("the monitor has ended", || monitors(&cli).is_empty());
        // One that was being started when its tool was killed holds the lock until it sees that.
        wait_until("gc has removed it", || {
            let gc = cli.tool("gc", &[]).finish();
            assert_eq!(gc.code(), 0, "{round}: {}", gc.printed());
            cli.directories().is_empty()
        });
    }
    let files: Vec<_> = fs::read_dir(cli.registry()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, [".lock"]);
    assert_eq!(cli.run(&["--name", "x"], &["true"]).finish().code(), 0);
}

//! The registry and its tools with real monitors: who holds the lock, what the memory is, how it ends.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use machinen::registry::{Claim, Entry, Process, State};
use machinen_fixtures::guests::print_and_spin;
use machinen_tests::machines::Machines;
use machinen_tests::monitor::{Kernel, LIMIT, Live, wait_until};
use serde_json::Value;

/// A monitor whose guest spins, with the lock as its standard input or as one more descriptor.
fn start(machines: &Machines, kernel: &Kernel, name: &str, by_stdin: bool) -> (Claim, Live) {
    let claim = machines.registry.create(Some(name)).unwrap();
    let mut command = kernel.command();
    command.arg("--stats-file").arg(claim.dir.join("stats")).stdout(File::create(claim.dir.join("boot.log")).unwrap());
    let live = if by_stdin {
        command.stdin(claim.stdin().unwrap());
        Live::start(command)
    } else {
        command.stdin(Stdio::null());
        claim.lend(|| Ok(Live::start(command))).unwrap()
    };
    let mut entry = Entry::new();
    entry.set_process(Process::of(live.child.id()).unwrap());
    entry.memory_mib = 64;
    claim.write(&entry).unwrap();
    let log = claim.dir.join("boot.log");
    wait_until("the guest has printed", || fs::metadata(&log).unwrap().len() > 0);
    (claim, live)
}

#[test]
fn a_monitor_holds_its_lock_to_the_end() {
    let kernel = Kernel::new(print_and_spin());
    let machines = Machines::default();
    for by_stdin in [true, false] {
        for kill in [true, false] {
            let (claim, mut live) = start(&machines, &kernel, "web", by_stdin);
            let id = claim.id.clone();
            drop(claim.keep().unwrap());
            let vm = machines.registry.find("web").unwrap();
            assert_eq!((&vm.state, vm.process().unwrap().pid), (&State::Alive, live.child.id()));
            if kill {
                live.send(9);
            } else {
                // There is no agent.
                let run = machines.tool("machinen-stop").args(["-k", "web"]).finish();
                assert_eq!(run.code(), 0, "{}", run.printed());
            }
            assert_eq!(live.wait().signal(), Some(if kill { 9 } else { 15 }));
            assert!(vm.wait_dead(LIMIT));
            assert!(!machines.tool("machinen-logs").arg("web").finish().stdout.is_empty());
            let removed = machines.registry.gc(false).unwrap();
            assert_eq!(removed.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
        }
    }
}

#[test]
fn the_monitors_memory_is_told_from_the_guests() {
    let kernel = Kernel::new(print_and_spin());
    let machines = Machines::default();
    let (_claim, _live) = start(&machines, &kernel, "web", true);
    let run = machines.tool("machinen-mem").args(["--json", "web"]).finish();
    let value: Value = serde_json::from_slice(&run.stdout).unwrap();
    let bytes = |key: &str| value[key].as_u64().unwrap_or_else(|| panic!("{key}: {value}"));
    assert_eq!((bytes("ceiling_bytes"), bytes("reclaimed_bytes")), (64 << 20, 0));
    assert!(bytes("monitor_bytes") < bytes("pss_bytes") && bytes("pss_bytes") <= bytes("rss_bytes"));
    // The program and its heap, whatever its guest has.
    assert!((100 << 10..8 << 20).contains(&bytes("monitor_bytes")), "{value}");
}

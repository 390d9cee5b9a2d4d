//! SIGKILL at random moments, of everything that a machine consists of: nothing is left afterwards.

#![forbid(unsafe_code)]

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::thread::sleep;

use machinen_tests::cli::Cli;
use machinen_tests::kill::{kill_named, moment, processes, start};
use machinen_tests::monitor::wait_until;
use machinen_tests::soak;

/// No machine has started and ended in less: a moment is somewhere in it.
const LIFE_MS: u64 = 2500;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Monitor,
    /// The attached `machinen-run`.
    Run,
    /// The `machinen-run -d`, which may not have come to its end.
    Detaching,
    Passt,
    /// A command of the guest's, by its agent.
    Command,
    /// A `machinen-exec` whose command writes without end.
    Exec,
    Stop,
    Collector,
}

const VICTIMS: [Victim; 8] = [
    Victim::Monitor,
    Victim::Run,
    Victim::Detaching,
    Victim::Passt,
    Victim::Command,
    Victim::Exec,
    Victim::Stop,
    Victim::Collector,
];

fn round(machines: &Cli, victim: Victim) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let publish = format!("{port}:80");
    let detached = !matches!(victim, Victim::Run);
    let mut flags = vec!["--name", "x", "-p", &publish];
    flags.extend(detached.then_some("-d"));
    let mut run = start(machines.run_command(&flags, &["sleep", "1000"]));
    // These need a machine that is up; the others take it in any state.
    if matches!(victim, Victim::Command | Victim::Exec | Victim::Stop | Victim::Collector) {
        assert!(run.wait().unwrap().success(), "{victim:?}: the machine did not start");
    }
    match victim {
        Victim::Monitor | Victim::Run | Victim::Detaching | Victim::Passt => sleep(moment(LIFE_MS)),
        Victim::Command | Victim::Exec | Victim::Stop | Victim::Collector => {}
    }
    match victim {
        Victim::Monitor => kill_named(machines, "vmm-min"),
        Victim::Passt => kill_named(machines, "passt"),
        Victim::Run | Victim::Detaching => drop(run.kill()),
        Victim::Command => drop(machines.exec("x", &["killall", "-9", "sleep"]).outcome()),
        Victim::Exec | Victim::Stop | Victim::Collector => {
            let mut tool = match victim {
                Victim::Exec => start(machines.command("exec", &["x", "--", "yes"])),
                Victim::Stop => start(machines.command("stop", &["x"])),
                _ => start(machines.command("gc", &[""; 0])),
            };
            sleep(moment(if victim == Victim::Exec { 300 } else { 30 }));
            let _ = tool.kill();
            tool.wait().unwrap();
        }
    }
    if victim == Victim::Run {
        run.wait().unwrap();
        let alive = || processes(&machines.registry());
        wait_until("the machine ends with its tool", || alive().is_empty());
    }
    // It may have come too early to find anybody: then the machine starts as if nothing were.
    run.wait().unwrap();
    // What may rightly live on is stopped; that it does not live any more is as well.
    let stopped = machines.tool("stop", &["-t", "2", "x"]).finish();
    assert!(matches!(stopped.code(), 0 | 1), "{victim:?}: {}", String::from_utf8_lossy(&stopped.stderr));
}

#[test]
fn nothing_is_left_whoever_is_killed() {
    let machines = Cli::new();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let rounds = if soak() { 200 } else { VICTIMS.len() };
    for victim in VICTIMS.into_iter().cycle().take(rounds) {
        round(&machines, victim);
        let registry = machines.registry();
        wait_until(&format!("the processes of {victim:?}'s machine are gone"), || processes(&registry).is_empty());
        let collected = machines.tool("gc", &[]).finish();
        assert_eq!(collected.code(), 0, "{victim:?}: {}", String::from_utf8_lossy(&collected.stderr));
        assert_eq!(machines.directories(), [] as [PathBuf; 0], "{victim:?}");
        assert_eq!(mounts(), before, "{victim:?}");
    }
    let again = machines.run(&["--name", "x"], &["echo", "free"]).finish();
    assert_eq!((again.code(), again.printed().as_str()), (0, "free\n"));
}

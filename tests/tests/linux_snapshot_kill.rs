//! SIGKILL at random and at chosen moments of snapshots, restores and forks: nothing is left, no bundle is taken for whole that is
//! not, and a machine whose snapshot was killed goes on and can be frozen again.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::Instant;

use machinen_tests::bundles::{content, count, find, goes_on, snapshot};
use machinen_tests::cli::Cli;
use machinen_tests::kill::{kill_named, moment, processes, start};
use machinen_tests::monitor::wait_until;
use machinen_tests::soak;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// `machinen-snapshot`.
    Snapshot,
    /// The same, where the processes are to go on.
    Copying,
    Fork,
    /// The monitor of the machine that is frozen.
    Source,
    /// `machinen-restore`.
    Restore,
    /// `machinen-restore --lazy`, which serves memory for some time.
    Lazy,
    /// `machinen-restore -d --lazy`, which may not have come to its end.
    Detaching,
    /// The monitor of the machine that is restored.
    Target,
}

const VICTIMS: [Victim; 8] = [
    Victim::Snapshot,
    Victim::Lazy,
    Victim::Copying,
    Victim::Target,
    Victim::Source,
    Victim::Restore,
    Victim::Fork,
    Victim::Detaching,
];

/// What all rounds have in common.
struct Ground {
    cli: Cli,
    /// A bundle that is whole.
    base: PathBuf,
    /// How long a dump takes, and a restore.
    dump_ms: u64,
    restore_ms: u64,
}

/// Milliseconds since then.
fn since(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_millis()).unwrap()
}

impl Ground {
    fn new() -> Ground {
        let cli = Cli::of_debian();
        let base = cli.path("base");
        count(&cli, "src");
        let started = Instant::now();
        snapshot(&cli, &[], "src", &base);
        let dump_ms = since(started);
        let started = Instant::now();
        let restored = cli.tool("restore", &["-d", "--name", "x", base.to_str().unwrap()]).finish();
        assert_eq!(restored.code(), 0, "{}", restored.printed());
        let restore_ms = since(started);
        assert_eq!(cli.tool("stop", &["-t", "0", "x"]).finish().code(), 0);
        println!("a dump takes {dump_ms} ms, a restore {restore_ms} ms");
        Ground { cli, base, dump_ms, restore_ms }
    }

    fn round(&self, victim: Victim, number: usize) {
        let dir = self.cli.path(&format!("bundle-{number}"));
        match victim {
            Victim::Snapshot | Victim::Copying | Victim::Fork | Victim::Source => self.freeze(victim, &dir),
            Victim::Restore | Victim::Lazy | Victim::Detaching | Victim::Target => self.restore(victim),
        }
        if dir.exists() {
            fs::remove_dir_all(dir).unwrap();
        }
    }

    /// A dump ends before its time.
    fn freeze(&self, victim: Victim, dir: &Path) {
        let cli = &self.cli;
        count(cli, "src");
        let place = dir.to_str().unwrap();
        let mut tool = start(match victim {
            Victim::Fork => cli.command("fork", &["-d", "--name", "x", "src"]),
            Victim::Copying => cli.command("snapshot", &["-l", "src", place]),
            _ => cli.command("snapshot", &["src", place]),
        });
        let limit_ms = self.dump_ms + if victim == Victim::Fork { self.restore_ms } else { self.dump_ms / 4 };
        sleep(moment(limit_ms));
        if victim == Victim::Source {
            kill_named(cli, "vmm-min");
            let status = ends(&mut tool);
            let whole = dir.join("meta.json").exists();
            assert_eq!(status.code(), Some(if whole { 0 } else { 1 }));
        } else {
            let _ = tool.kill();
            ends(&mut tool);
        }
        let is_whole = dir.join("meta.json").exists();
        if !is_whole {
            is_refused(cli, dir);
        }
        // The counter of a machine whose processes have not gone into a bundle.
        if victim != Victim::Source && !(victim == Victim::Snapshot && is_whole) {
            goes_on(cli, "src");
        }
        let again = cli.path("again");
        let freeze = || {
            let done = cli.tool("snapshot", &["-l", "src", again.to_str().unwrap()]).finish();
            if again.exists() {
                fs::remove_dir_all(&again).unwrap();
            }
            done
        };
        match victim {
            Victim::Source => wait_until("the machine is gone", || find(cli, "src").is_none()),
            // It is gone with its dump, or goes on if that was not taken.
            Victim::Snapshot if is_whole => wait_until("the machine is frozen again, or gone", || {
                let done = freeze();
                done.code() == 0 || find(cli, "src").is_none()
            }),
            _ => {
                let done = freeze();
                assert_eq!(done.code(), 0, "{victim:?}: {}", done.printed());
                assert_eq!(cli.exec("src", &["true"]).finish().code(), 0, "{victim:?}");
            }
        }
    }

    /// A restore ends before its time.
    fn restore(&self, victim: Victim) {
        let cli = &self.cli;
        let flags: &[&str] = match victim {
            Victim::Lazy => &["--lazy", "--name", "x"],
            Victim::Detaching => &["-d", "--lazy", "--name", "x"],
            _ => &["--name", "x"],
        };
        let mut tool = start(cli.command("restore", &[flags, &[self.base.to_str().unwrap()]].concat()));
        sleep(moment(self.restore_ms * 3 / 2));
        if victim == Victim::Target {
            // It may be too early to find anybody.
            wait_until("the tool has ended with its machine", || {
                kill_named(cli, "vmm-min");
                tool.try_wait().unwrap().is_some()
            });
        } else {
            let _ = tool.kill();
            ends(&mut tool);
        }
        if matches!(victim, Victim::Restore | Victim::Lazy) {
            wait_until("the machine ends with its tool", || processes(&cli.registry()).is_empty());
        }
    }
}

/// How a program ended.
fn ends(tool: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_until("the tool has ended", || {
        status = tool.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

#[test]
fn nothing_is_left_and_nothing_is_taken_for_whole() {
    let ground = Ground::new();
    let cli = &ground.cli;
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let (before, base) = (mounts(), content(&ground.base));
    let rounds = if soak() { 100 } else { VICTIMS.len() };
    for (number, victim) in VICTIMS.into_iter().cycle().take(rounds).enumerate() {
        ground.round(victim, number);
        for name in ["src", "x"] {
            let stopped = cli.tool("stop", &["-t", "0", name]).finish();
            assert!(matches!(stopped.code(), 0 | 1), "{victim:?}: {}", stopped.printed());
        }
        let registry = cli.registry();
        wait_until(&format!("the processes of {victim:?}'s machines are gone"), || processes(&registry).is_empty());
        let collected = cli.tool("gc", &[]).finish();
        assert_eq!(collected.code(), 0, "{victim:?}: {}", collected.printed());
        assert_eq!(cli.directories(), [] as [PathBuf; 0], "{victim:?}");
        assert_eq!(mounts(), before, "{victim:?}");
        let bundles = fs::read_dir(cli.path("cache/bundles")).map_or(0, Iterator::count);
        assert_eq!(bundles, 0, "{victim:?}");
        assert!(content(&ground.base) == base, "{victim:?} has changed a bundle");
    }
    // What all of them were restored from still can be.
    let restored = cli.tool("restore", &["-d", "--name", "x", ground.base.to_str().unwrap()]).finish();
    assert_eq!(restored.code(), 0, "{}", restored.printed());
    assert_eq!(cli.tool("stop", &["-t", "0", "x"]).finish().code(), 0);
}

/// Nobody takes it for a bundle.
fn is_refused(cli: &Cli, dir: &Path) {
    let refused = cli.tool("restore", &[dir.to_str().unwrap()]).finish();
    let code = if dir.exists() { "BUNDLE_PARTIAL" } else { "BUNDLE_MISSING" };
    assert_eq!(refused.code(), 125, "{}", refused.printed());
    assert!(refused.printed().contains(code), "{}", refused.printed());
}

/// Writes to the root disk, which makes the time longer in which that is saved.
const FILL: &str = "
import os
with open('/fill', 'wb') as f:
    for i in range(64): f.write(bytes([i + 1]) * (1 << 20))
    os.fsync(f.fileno())
";

/// A moment of a snapshot, as the files in its directory show it.
type Moment = (&'static str, fn(&Path) -> bool);

const MOMENTS: [Moment; 4] = [
    ("while it is dumped", |dir| fs::read_dir(dir.join(".guest/img")).is_ok_and(|mut items| items.next().is_some())),
    ("when it is held", |dir| dir.join(".guest/dump.log").exists()),
    ("while the disk is written", |dir| dir.join("root.layer").exists()),
    ("before it is taken", |dir| dir.join("img").exists()),
];

/// So often a moment may be too short to be met.
const TRIES: usize = 50;

#[test]
fn a_machine_whose_snapshot_is_killed_goes_on() {
    let cli = Cli::of_debian();
    let begin = || {
        count(&cli, "src");
        assert_eq!(cli.exec("src", &["python3", "-c", FILL]).finish().code(), 0);
    };
    begin();
    for (what, has_come) in MOMENTS {
        for flags in [&[][..], &["-l"]] {
            let met = (1..=TRIES).any(|number| {
                let dir = cli.path("bundle");
                let mut tool = start(cli.command("snapshot", &[flags, &["src", dir.to_str().unwrap()]].concat()));
                while !has_come(&dir) && tool.try_wait().unwrap().is_none() {
                    std::thread::yield_now();
                }
                let _ = tool.kill();
                ends(&mut tool);
                let is_whole = dir.join("meta.json").exists();
                let left: Vec<_> = content(&dir).into_iter().map(|(path, bytes, _)| (path, bytes)).collect();
                if !is_whole {
                    is_refused(&cli, &dir);
                    goes_on(&cli, "src");
                    println!("{what}, {flags:?}, try {number}: {} files left", left.len());
                }
                fs::remove_dir_all(&dir).unwrap();
                // Of a bundle that is whole nobody knows whether it was taken.
                if is_whole && flags.is_empty() {
                    let _ = cli.tool("stop", &["-t", "0", "src"]).finish();
                    begin();
                }
                !is_whole
            });
            assert!(met, "{what}, {flags:?}");
        }
    }
    // Nothing of all that is in the way of the next.
    snapshot(&cli, &[], "src", &cli.path("last"));
    wait_until("the machine is gone", || find(&cli, "src").is_none());
    assert_eq!(cli.tool("gc", &[]).finish().code(), 0);
    assert_eq!(cli.directories(), [] as [PathBuf; 0]);
}

//! The monitor is one process with one thread, and leaves nothing behind.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use machinen_tests::guest::{Guest, Scratch};
use machinen_tests::session::Session;

/// A guest that has printed its line and now keeps its processor busy.
fn spinning() -> (Session, Scratch) {
    let (command, initrd) = Guest::busybox("echo ready; while :; do :; done").start();
    let mut session = Session::on_pipes(command);
    session.expect("ready\n");
    (session, initrd)
}

/// Processes whose parent is `parent`.
fn children(parent: u32) -> Vec<String> {
    let stats =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("stat")).ok());
    stats
        .filter(|stat| {
            let after_name = stat.rsplit_once(") ").unwrap().1;
            after_name.split(' ').nth(1) == Some(&parent.to_string())
        })
        .collect()
}

#[test]
fn a_running_guest_is_one_thread() {
    let (mut session, _initrd) = spinning();
    let proc = Path::new("/proc").join(session.id().to_string());
    let tasks = fs::read_dir(proc.join("task")).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    // Linux 6.13 and its stable branches list a kernel thread of KVM among the tasks of the process.
    let own: Vec<String> = names.filter(|name| !name.starts_with("kvm-")).collect();
    assert_eq!(own, ["vmm-min\n"]);
    assert_eq!(children(session.id()), Vec::<String>::new());
    let memory = fs::read_to_string(proc.join("smaps_rollup")).unwrap();
    let figure = |name| memory.lines().find(|line| line.starts_with(name)).unwrap_or("unknown");
    println!("a busy guest: {}, {}", figure("Rss:"), figure("Pss:"));
    session.signal(libc::SIGTERM);
    assert_eq!(session.end().signal(), Some(libc::SIGTERM));
}

#[test]
fn signals_end_the_monitor_as_their_sender_expects() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let (mut session, _initrd) = spinning();
        session.signal(signal);
        assert_eq!(session.end().signal(), Some(signal), "{}", session.printed());
        assert_eq!(session.printed(), "ready\n");
    }
}

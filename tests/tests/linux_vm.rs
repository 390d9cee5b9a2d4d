//! The library's machines, from options to their end, in the usual registry of the lab.

#![forbid(unsafe_code)]

use std::fs;
use std::time::Duration;

use machinen::agent::request::Command;
use machinen::vm::{BootOptions, WriteOptions, attach, boot, list};
use machinen_tests::cli::Cli;
use machinen_tests::guest::Scratch;
use machinen_tests::{asset, bin};

fn options(cli: &Cli) -> BootOptions {
    let options = BootOptions::new(cli.image().display().to_string()).kernel(asset("vmlinux-tuned")).memory_mib(256);
    options.vmm(bin("vmm-min")).init(bin("init"))
}

#[test]
fn a_machine_is_used_and_stopped() {
    let (cli, scratch) = (Cli::new(), Scratch::new());
    let vm = boot(&options(&cli).name("lib/used").command(["sleep", "1000"])).unwrap();
    let run = vm.exec(&Command::new(["sh", "-c", "cat; echo err >&2; exit 3"]), b"in\0put").unwrap();
    assert_eq!((run.exit.status(), &run.stdout[..], &run.stderr[..]), (3, &b"in\0put"[..], &b"err\n"[..]));
    let run = vm.exec_pty(&Command::new(["stty", "size"]), b"", 33, 77).unwrap();
    assert_eq!(run.stdout, b"33 77\r\n");
    let error = vm.exec(&Command::new(["no-such-program"]), b"").unwrap_err();
    assert_eq!(error.code(), "EXEC_NOT_FOUND");

    let write = WriteOptions { mode: Some(0o600), append: false, parents: true };
    vm.write_file("/new/dir/file", &[0; 300_000], write).unwrap();
    vm.write_file("/new/dir/file", b"end", WriteOptions { append: true, ..WriteOptions::default() }).unwrap();
    let run = vm.exec(&Command::new(["stat", "-c", "%s %a", "/new/dir/file"]), b"").unwrap();
    assert_eq!(run.stdout, b"300003 600\n");
    scratch.put("tree/a", "1");
    scratch.put("tree/b.o", "2");
    vm.push(scratch.path("tree"), "/tmp/tree", &["*.o".to_owned()]).unwrap();
    vm.pull("/tmp/tree", scratch.path("back"), &[]).unwrap();
    assert_eq!(fs::read(scratch.path("back/a")).unwrap(), b"1");
    assert!(!scratch.path("back/b.o").exists());

    let stats = vm.stats().unwrap();
    assert!(stats.ceiling_bytes == 256 << 20 && stats.resident_bytes.is_some_and(|bytes| bytes > 1 << 20), "{stats:?}");
    let other = attach("lib/used").unwrap();
    assert_eq!(other.id(), vm.id());
    assert_eq!(boot(&options(&cli).name("lib/used")).unwrap_err().code(), "REGISTRY_NAME_TAKEN");
    let dir = vm.dir().to_owned();
    vm.stop(Duration::from_secs(20)).unwrap();
    assert!(!dir.exists());
    assert_eq!(attach("lib/used").unwrap_err().code(), "REGISTRY_VM_NOT_FOUND");
}

#[test]
fn machines_end_with_their_command_by_kill_or_when_dropped() {
    let cli = Cli::new();
    let mut vm = boot(&options(&cli).command(["sh", "-c", "exit 7"])).unwrap();
    assert_eq!(vm.wait().unwrap().status(), 7);
    drop(vm);
    let dirs: Vec<_> = (0..2)
        .map(|at| {
            let vm = boot(&options(&cli).command(["sleep", "1000"])).unwrap();
            let dir = vm.dir().to_owned();
            if at == 0 {
                vm.kill().unwrap()
            } else {
                drop(vm)
            }
            dir
        })
        .collect();
    assert!(dirs.iter().all(|dir| !dir.exists()));

    let detached = boot(&options(&cli).name("lib/detached").command(["sleep", "1000"]).detached()).unwrap();
    let id = detached.id().to_owned();
    drop(detached);
    let vm = attach("lib/detached").unwrap();
    assert_eq!(vm.id(), id);
    vm.stop(Duration::from_secs(20)).unwrap();
    assert!(list().unwrap().iter().all(|vm| vm.id != id || !vm.is_alive()));
    machinen::vm::gc(false).unwrap();
    assert!(list().unwrap().iter().all(|vm| vm.id != id));
}

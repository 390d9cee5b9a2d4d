//! /init in a real guest: the command's exit code, its streams, its surroundings.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use machinen_tests::guest::{Guest, Scratch, monitor};
use machinen_tests::lab::Arch;
use machinen_tests::{Finished, Run, asset, bin};

/// Exit code and everything printed, which for these guests is all there is to see.
fn outcome(finished: &Finished) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (finished.code(), text(&finished.stdout), text(&finished.stderr))
}

fn said(code: i32, stdout: &str) -> (i32, String, String) {
    (code, stdout.to_owned(), String::new())
}

#[test]
fn the_exit_code_and_the_output_are_the_commands() {
    let finished = Guest::busybox("echo out; exit 7").run();
    assert_eq!(outcome(&finished), said(7, "out\n"));
}

#[test]
fn a_file_that_cannot_be_executed_is_126() {
    let finished = Guest::command(&["/etc/motd"]).file("etc/motd", 0o644, "hello").run();
    assert_eq!(outcome(&finished), said(126, "init: /etc/motd: Permission denied\n"));
}

#[test]
fn a_command_that_does_not_exist_is_127() {
    let finished = Guest::command(&["no-such-program", "argument"]).run();
    assert_eq!(outcome(&finished), said(127, "init: no-such-program: not found\n"));
}

#[test]
fn a_command_killed_by_a_signal_is_128_and_the_signal() {
    let finished = Guest::busybox("echo before; kill -9 $$; echo after").run();
    assert_eq!(outcome(&finished), said(137, "before\n"));
}

#[test]
fn a_guest_without_configuration_is_refused() {
    let scratch = Scratch::new();
    let initrd = scratch.path("initrd");
    let made = Run::new(bin("machinen-mkinitramfs")).arg("minimal").arg(&initrd).finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    let finished = monitor(&asset("vmlinux"), &initrd).finish();
    assert_eq!(outcome(&finished), said(125, "init: /machinen-config.json: No such file or directory\n"));
}

#[test]
fn a_word_that_cannot_be_read_is_refused() {
    let finished = Guest::busybox("echo ran").monitor(&["--cmdline", "machinen.epoch=1"]).run();
    assert_eq!(outcome(&finished), said(125, "init: machinen.epoch: not seconds.nanoseconds: 1\n"));
    let finished = Guest::busybox("echo ran").monitor(&["--cmdline", "machinen.net=10.0.2.15"]).run();
    assert_eq!(outcome(&finished), said(125, "init: machinen.net: not ADDRESS/PREFIX: \"10.0.2.15\"\n"));
}

#[test]
fn a_working_directory_that_does_not_exist_is_refused() {
    let finished = Guest::busybox("echo ran").make(&["--cwd", "/no/such"]).run();
    assert_eq!(outcome(&finished), said(125, "init: cwd /no/such: No such file or directory\n"));
}

#[test]
fn a_module_that_does_not_load_is_refused_by_name() {
    // Its symbols are in net_failover, which nobody loads before it.
    let finished = Guest::busybox("echo ran").modules(&["virtio_net"]).run();
    let (code, stdout, stderr) = outcome(&finished);
    assert_eq!((code, stderr.as_str(), stdout.lines().count()), (125, "", 1), "{stdout}");
    assert!(stdout.starts_with("init: module /"), "{stdout}");
    assert!(stdout.ends_with("virtio_net.ko: needs a symbol of a module that is not loaded\n"), "{stdout}");
}

#[test]
fn environment_and_directory_reach_the_command() {
    let guest = Guest::busybox("tr '\\0' '\\n' </proc/$$/environ | sort; pwd");
    let finished = guest.make(&["--env", "A=b=c d", "--env", "EMPTY=", "--env", "HOME=/h", "--cwd", "/bin"]).run();
    // Not the shell's own `env`: it adds to what it got.
    let expected = "A=b=c d\nEMPTY=\nHOME=/h\n\
                    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/bin\n";
    assert_eq!(outcome(&finished), said(0, expected));
}

#[test]
fn every_byte_comes_back_through_cat() {
    // A xorshift generator: all byte values, in runs and pairs that a line discipline would change.
    let mut state = 0x9e37_79b9_u32;
    let mut bytes: Vec<u8> = (0..=255).chain(*b"\r\n\r\r\n\n\xff\xff\0\xff\0\0\x03\x04\x11\x13\x1a\x1c").collect();
    while bytes.len() < 16 << 10 {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.push(state.to_le_bytes()[1]);
    }
    let finished = Guest::command(&["cat"]).stdin(bytes.clone()).run();
    let different = finished.stdout.iter().zip(&bytes).position(|(got, sent)| got != sent);
    assert_eq!((finished.code(), finished.stdout.len(), different), (0, bytes.len(), None));
}

#[test]
fn a_command_that_reads_late_gets_all_of_a_large_stdin() {
    // More than Linux' serial handler takes at once (512 rounds of 256), after a time in which nobody reads.
    let count = 140_000;
    let finished = Guest::busybox("sleep 1; wc -c").stdin(vec![b'x'; count]).run();
    assert_eq!(outcome(&finished), said(0, &format!("{count}\n")));
}

#[test]
fn an_empty_stdin_ends_and_a_background_process_does_not_hold_the_guest() {
    let finished = Guest::busybox("cat; sleep 1000 & echo hi; exit 3").run();
    assert_eq!(outcome(&finished), said(3, "hi\n"));
}

#[test]
fn a_large_output_arrives_complete() {
    // More than the pipes on the way hold. In the lab a byte takes a tenth of a millisecond.
    const LAST: usize = 20_000;
    let finished = Guest::busybox(&format!("seq 1 {LAST}")).run();
    let expected: String = (1..=LAST).map(|number| format!("{number}\n")).collect();
    assert!(expected.len() > 100_000);
    assert_eq!((finished.code(), finished.stdout.len()), (0, expected.len()));
    assert!(finished.stdout == expected.as_bytes());
}

/// Prints the guest's system as `[name]` lines, each followed by what there is to know about it.
const SYSTEM: &str = r#"
section() { echo "[$1]"; }
section process
read -r pid comm state parent group session rest </proc/$$/stat
[ $parent = 1 ] && echo "child of init"
[ $pid = $group ] && [ $pid = $session ] && echo "session leader"
section mounts
while read -r source target type options rest; do echo "$target $type"; done </proc/mounts
section links
for link in fd stdin stdout stderr; do readlink /dev/$link; done
section tmp
stat -c %a /tmp /dev/shm /run
section loopback
cat /sys/class/net/lo/flags
ping -c 1 -w 5 127.0.0.1 >/dev/null && echo answers
section modules
while read -r name rest; do echo $name; done </proc/modules
section cmdline
cat /proc/cmdline
section kernel
uname -srm
section environment
tr '\0' '\n' </proc/$$/environ
section directory
pwd
section orphan
mkfifo /tmp/go
sh -c 'sh -c "echo \$\$ >/tmp/orphan; read line </tmp/go" &'
until [ -s /tmp/orphan ]; do :; done
read -r orphan </tmp/orphan
read -r pid comm state parent rest </proc/$orphan/stat
[ $parent = 1 ] && echo adopted
echo >/tmp/go
while [ -e /proc/$orphan ]; do :; done
echo reaped
section clock
date +%s
"#;

#[test]
fn the_system_is_as_documented() {
    let guest = Guest::busybox(SYSTEM).modules(&["failover", "net_failover", "virtio_net"]);
    let finished = guest.monitor(&["--cmdline", "first.word=1 second.word=\"two words\""]).run();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert_eq!(finished.code(), 0, "{}", finished.printed());
    let printed = finished.printed();
    let sections: BTreeMap<&str, Vec<&str>> = printed
        .split_terminator('[')
        .filter_map(|section| section.split_once("]\n"))
        .map(|(name, text)| (name, text.lines().collect()))
        .collect();
    let expect = |name, lines: &[&str]| assert_eq!(sections[name], lines, "[{name}]");

    expect("process", &["child of init", "session leader"]);
    expect("links", &["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"]);
    expect("tmp", &["1777", "1777", "755"]);
    expect("loopback", &["0x9", "answers"]);
    expect("modules", &["virtio_net", "net_failover", "failover"]);
    expect("environment", &["HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    expect("directory", &["/"]);
    expect("orphan", &["adopted", "reaped"]);
    let mounts = ["/dev devtmpfs", "/proc proc", "/sys sysfs", "/dev/pts devpts", "/dev/shm tmpfs", "/run tmpfs"];
    for mount in mounts.iter().chain(&["/sys/fs/cgroup cgroup2"]) {
        assert!(sections["mounts"].contains(mount), "{mount} is not in {:?}", sections["mounts"]);
    }
    let cmdline = sections["cmdline"][0];
    assert!(cmdline.ends_with(" first.word=1 second.word=\"two words\""), "{cmdline}");
    assert!(cmdline.contains("console=ttyS0") && !cmdline.contains("machinen.tty"), "{cmdline}");
    let kernel = sections["kernel"][0];
    let ending = format!("-cloud-{} {}", Arch::OWN.debian(), Arch::OWN.name());
    assert!(kernel.starts_with("Linux ") && kernel.ends_with(&ending), "{kernel}");
    let clock = Duration::from_secs(sections["clock"][0].parse().unwrap());
    assert!(clock.abs_diff(now) < Duration::from_mins(1), "{clock:?} in the guest, {now:?} here");
}

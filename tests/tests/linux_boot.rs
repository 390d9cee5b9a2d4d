//! Guests of Debian's stock kernel from every layout of initramfs, and how they end.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use machinen_tests::guest::{Guest, LIMIT, Scratch, monitor};
use machinen_tests::lab::Arch;
use machinen_tests::{Finished, Run, asset, bin, rootfs};

/// Runs a line of shell with the two programs and the assets in its `PATH` and variables.
fn shell(line: &str, cache: &Scratch) -> Finished {
    let programs = bin("vmm-min").parent().unwrap().display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    Run::new("sh")
        .args(["-c", line])
        .env("PATH", format!("{programs}:{path}"))
        .env("ROOTFS", asset(&rootfs(Arch::OWN)))
        .env("VMLINUZ", asset("vmlinuz"))
        .env("VMLINUX", asset("vmlinux"))
        .env("MACHINEN_CACHE_DIR", cache.path("cache"))
        .limit(LIMIT)
        .finish()
}

/// The first pipeline, word for word as the README has it, but for the name of another architecture's file.
fn readme_pipeline() -> String {
    let readme = include_str!("../../README.md");
    let from = &readme[readme.find("machinen-mkinitramfs rootfs rootfs-debian").unwrap()..];
    let pipeline = &from[..from.find("echo $?").unwrap() + "echo $?".len()];
    pipeline.replace(&rootfs(Arch::X86_64), &rootfs(Arch::OWN))
}

#[test]
fn one_line_of_shell_boots_debian_and_gets_the_exit_code() {
    let assets = asset("vmlinuz");
    let line = format!("cd {} && {}", assets.parent().unwrap().display(), readme_pipeline());
    let finished = shell(&line, &Scratch::new());
    assert_eq!(finished.printed(), "out\n7\n");
}

#[test]
fn debian_runs_its_programs() {
    let line = r#"machinen-mkinitramfs rootfs "$ROOTFS" --cmd \
                      'sh -c "uname -sr; head -n 1 /etc/os-release; python3 -c \"print(sum(range(101)))\""' - |
                  vmm-min --memory 1024 --kernel "$VMLINUX" --initrd -"#;
    let finished = shell(line, &Scratch::new());
    let printed = finished.printed();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((finished.code(), lines.len()), (0, 3), "{printed}");
    assert!(lines[0].starts_with("Linux 6.12.") && lines[0].contains("-cloud-"), "{printed}");
    assert_eq!(lines[1..], ["PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"", "5050"]);
}

/// Makes an initramfs with these arguments, then `OUT`, and boots it.
fn boot(scratch: &Scratch, args: &[&str]) -> (i32, String) {
    let initrd = scratch.path("initrd");
    let made = Run::new(bin("machinen-mkinitramfs")).args(args).arg(&initrd).finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    let finished = monitor(&asset("vmlinux"), &initrd).finish();
    (finished.code(), finished.printed())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// busybox at `to`, with the programs of the name in `links` beside it.
fn put_busybox(scratch: &Scratch, to: &str, links: &[&str]) {
    scratch.put(to, fs::read(asset("busybox")).unwrap());
    let path: PathBuf = scratch.path(to);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    for link in links {
        symlink("busybox", path.with_file_name(link)).unwrap();
    }
}

#[test]
fn a_minimal_guest_has_nothing_but_init() {
    let scratch = Scratch::new();
    let (code, printed) = boot(&scratch, &["minimal", "--cmd", "/init"]);
    // The only program there refuses to be anything but PID 1, and says so: it ran.
    let expected = "init: it is the first process of a machinen guest and runs as PID 1 only\n";
    assert_eq!((code, printed.as_str()), (125, expected));
}

#[test]
fn a_tiny_guest_gets_the_bundles_configuration() {
    let scratch = Scratch::new();
    scratch.put("bundle/machinen-config.json", r#"{"cmd": ["/from/the/bundle"]}"#);
    scratch.put("bundle/rootfs/from/the/bundle", "this one is to come on a disk");
    let (code, printed) = boot(&scratch, &["tiny", text(&scratch.path("bundle"))]);
    assert_eq!((code, printed.as_str()), (127, "init: /from/the/bundle: not found\n"));
}

#[test]
fn a_bundle_brings_files_and_configuration() {
    let scratch = Scratch::new();
    let config = r#"{"cmd": ["sh", "-c", "cat /etc/motd; echo $A $B; pwd; exit 5"], "env": {"A": "1", "B": "2"}, "cwd": "/etc"}"#;
    scratch.put("bundle/machinen-config.json", config);
    scratch.put("bundle/rootfs/etc/motd", "hello\n");
    put_busybox(&scratch, "bundle/rootfs/bin/busybox", &["sh", "cat"]);
    let (code, printed) = boot(&scratch, &["bundle", text(&scratch.path("bundle")), "--env", "B=flag"]);
    assert_eq!((code, printed.as_str()), (5, "hello\n1 flag\n/etc\n"));
}

#[test]
fn a_workspace_appears_at_its_mount_point() {
    let scratch = Scratch::new();
    scratch.put("work/src/main.c", "int main;\n");
    scratch.put("work/target/large", "left out");
    put_busybox(&scratch, "work/busybox", &["sh"]);
    let command =
        r#"/workspace/sh -c "cd /workspace; ./busybox find . -type f | ./busybox sort; ./busybox cat src/main.c""#;
    let (code, printed) = boot(&scratch, &["workspace", text(&scratch.path("work")), "--cmd", command]);
    assert_eq!((code, printed.as_str()), (0, "./busybox\n./src/main.c\nint main;\n"));
}

#[test]
fn a_guest_finds_the_id_of_its_generation() {
    let finished = Guest::busybox("find /sys/bus/platform/drivers/vmgenid/ -type l | wc -l").run();
    assert_eq!((finished.code(), finished.printed().as_str()), (0, "1\n"));
}

#[test]
fn a_guest_has_the_memory_it_was_given_below_and_above_the_hole() {
    for given_mib in [256, 4096] {
        let guest = Guest::busybox("while read -r name kib unit; do echo $kib; exit; done </proc/meminfo");
        let finished = guest.monitor(&["-m", &given_mib.to_string()]).run();
        let kib: u64 = finished.printed().trim().parse().unwrap();
        let (has_mib, most_for_kernel) = (kib / 1024, 64 + given_mib / 32);
        assert!(has_mib < given_mib && has_mib > given_mib - most_for_kernel, "{has_mib} of {given_mib} MiB");
    }
}

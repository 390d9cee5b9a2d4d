//! `machinen-cp` both ways: trees with everything in them, streams, and what it refuses.

#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use machinen_tests::cli::Cli;
use machinen_tests::guest::Scratch;
use machinen_tests::{Finished, Run, asset, bin, soak};

fn cp(cli: &Cli, args: &[&str]) {
    let finished = cli.tool("cp", args).finish();
    assert_eq!((finished.code(), finished.printed().as_str()), (0, ""), "{args:?}");
}

fn guest(cli: &Cli, script: &str) -> String {
    let finished = cli.exec("m", &["sh", "-c", script]).finish();
    assert_eq!(finished.code(), 0, "{script}: {}", finished.printed());
    finished.printed()
}

fn refused(finished: &Finished, code: &str) {
    assert_eq!(finished.code(), 1, "{}", finished.printed());
    assert!(finished.printed().contains(code), "{}", finished.printed());
}

/// Every file of a tree with its kind, mode, owner, length, time and links' targets, in one order.
fn listing(top: &Path) -> Vec<String> {
    let (mut lines, mut open) = (Vec::new(), vec![top.to_owned()]);
    while let Some(directory) = open.pop() {
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            let found = fs::symlink_metadata(&path).unwrap();
            let target = fs::read_link(&path).unwrap_or_default();
            let bytes = if found.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            lines.push(format!(
                "{} {:o} {}:{} {} {} {} {}",
                path.strip_prefix(top).unwrap().display(),
                found.mode(),
                found.uid(),
                found.gid(),
                if found.is_dir() { 0 } else { found.nlink() },
                found.mtime(),
                target.display(),
                bytes.escape_ascii()
            ));
            if found.is_dir() {
                open.push(path);
            }
        }
    }
    lines.sort();
    lines
}

fn tree(scratch: &Scratch) {
    scratch.put("tree/sub/bytes", (0..=255).collect::<Vec<u8>>());
    scratch.put("tree/empty", "");
    scratch.put("tree/name with spaces\nand a line", "x");
    scratch.put(&format!("tree/{}/deep", "d".repeat(200)), "deep");
    scratch.put("tree/skip.o", "skipped");
    fs::hard_link(scratch.path("tree/sub/bytes"), scratch.path("tree/second")).unwrap();
    symlink("/nowhere", scratch.path("tree/link")).unwrap();
    fs::set_permissions(scratch.path("tree/sub/bytes"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(scratch.path("tree/sub"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_tree_goes_in_and_comes_back() {
    let (cli, scratch) = (Cli::new(), Scratch::new());
    cli.detach("m", &["sleep", "1000"]);
    tree(&scratch);
    let from = scratch.path("tree").display().to_string();
    let back = |name: &str| scratch.path(name).display().to_string();
    // To a name that is not there, into a directory that is, and the content only.
    cp(&cli, &[&from, "m:/tmp/copy"]);
    cp(&cli, &["m:/tmp/copy", &back("back")]);
    assert_eq!(listing(&scratch.path("back")), listing(&scratch.path("tree")));
    fs::remove_file(scratch.path("tree/skip.o")).unwrap();
    cp(&cli, &["-x", "*.o", &from, "m:/tmp"]);
    scratch.put("into/there", "x");
    cp(&cli, &["-x", "sub/by*", "m:/tmp/tree", &back("into")]);
    assert!(!scratch.path("into/tree/sub/bytes").exists() && scratch.path("into/tree/second").exists());
    cp(&cli, &["m:/tmp/tree/.", &back("into")]);
    assert_eq!(fs::read(scratch.path("into/sub/bytes")).unwrap(), fs::read(scratch.path("tree/sub/bytes")).unwrap());
    cp(&cli, &[&format!("{from}/."), "m:/root/"]);
    assert_eq!(
        guest(&cli, "cd /root; stat -c %a sub/bytes; readlink link; cat empty; stat -c %h second"),
        "4751\n/nowhere\n2\n"
    );
    // A file, to a name and into a directory, over what is there.
    scratch.put("file", "one");
    let file = back("file");
    cp(&cli, &[&file, "m:/tmp/f"]);
    scratch.put("file", "two");
    cp(&cli, &[&file, "m:/tmp/f"]);
    cp(&cli, &[&file, "m:/etc/"]);
    assert_eq!(guest(&cli, "cat /tmp/f /etc/file"), "twotwo");
    cp(&cli, &["m:/etc/file", &back("into")]);
    assert_eq!(fs::read(scratch.path("into/file")).unwrap(), b"two");
}

#[test]
fn streams_carry_every_byte() {
    let (cli, scratch) = (Cli::new(), Scratch::new());
    cli.detach("m", &["sleep", "1000"]);
    let bytes: Vec<u8> = (0..=255).cycle().take(1_000_001).collect();
    let written = cli.tool("cp", &["-", "m:/tmp/bytes"]).stdin(bytes.clone()).finish();
    assert_eq!(written.code(), 0, "{}", written.printed());
    let read = cli.tool("cp", &["m:/tmp/bytes", "-"]).finish();
    assert!(read.code() == 0 && read.stdout == bytes, "{} bytes", read.stdout.len());
    // In by exec and tar, and back out.
    let bytes = if soak() { 1_u64 << 30 } else { 32 << 20 };
    let (tool, dir) = (bin("machinen-exec").display().to_string(), scratch.path("").display().to_string());
    let script = format!(
        "head -c {bytes} /dev/urandom >{dir}/big
        tar c -C {dir} big | {tool} m -- tar x -C /tmp -f - && {tool} m -- tar c -C /tmp big | tar x -O | cmp - {dir}/big"
    );
    let run = Run::new(asset("busybox")).args(["sh", "-c", &script]).env("MACHINEN_REGISTRY_DIR", cli.registry());
    let finished = run.limit(std::time::Duration::from_secs(if soak() { 1000 } else { 90 })).finish();
    assert_eq!((finished.code(), finished.printed().as_str()), (0, ""));
}

#[test]
fn what_cannot_be_copied_is_refused() {
    let (cli, scratch) = (Cli::new(), Scratch::new());
    cli.detach("m", &["sleep", "1000"]);
    scratch.put("file", "x");
    scratch.put("dir/x", "x");
    let (file, dir) = (scratch.path("file").display().to_string(), scratch.path("dir").display().to_string());
    refused(&cli.tool("cp", &["m:/nowhere", &dir]).finish(), "EXEC_SYSTEM");
    refused(&cli.tool("cp", &[&file, "m:/nowhere/x"]).finish(), "EXEC_SYSTEM");
    refused(&cli.tool("cp", &[&file, "m:/nowhere/"]).finish(), "COPY_WRITE");
    refused(&cli.tool("cp", &["/nowhere", "m:/tmp"]).finish(), "COPY_READ");
    refused(&cli.tool("cp", &["m:/etc", "-"]).finish(), "COPY_READ");
    refused(&cli.tool("cp", &[&file, "nobody:/tmp"]).finish(), "REGISTRY_VM_NOT_FOUND");
    assert_eq!(cli.tool("cp", &[&file, &dir]).finish().code(), 2);
    assert_eq!(cli.tool("cp", &["m:/a", "m:/b"]).finish().code(), 2);
    // A symlink in the way, on either side, is not followed out.
    guest(&cli, "mkdir /tmp/t; echo secret >/secret; ln -s / /tmp/t/dir");
    // There the agent may put a directory in its place, as tar does.
    let _ = cli.tool("cp", &[&dir, "m:/tmp/t"]).finish();
    assert_eq!(guest(&cli, "ls /x 2>/dev/null || echo none"), "none\n");
    guest(&cli, "rm -r /tmp/t/dir; mkdir /tmp/t/dir; echo evil >/tmp/t/dir/file");
    fs::create_dir(scratch.path("to")).unwrap();
    symlink(scratch.path(""), scratch.path("to/dir")).unwrap();
    let to = scratch.path("to").display().to_string();
    refused(&cli.tool("cp", &["m:/tmp/t/dir", &to]).finish(), "COPY_ESCAPE");
    assert_eq!(fs::read(scratch.path("file")).unwrap(), b"x");
}

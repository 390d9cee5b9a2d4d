//! What the tests of the image tools share.
#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory with a cache of its own, removed in the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machinen-images-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.0).env("MACHINEN_CACHE_DIR", self.path("cache")).env("TMPDIR", &self.0);
        for name in ["MACHINEN_E2FSCK", "MACHINEN_MKSQUASHFS", "MACHINEN_ASSETS_DIR"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        self.command(program).args(args).output().unwrap()
    }

    /// A script with the tool's path in `$T`.
    pub fn script(&self, tool: &str, script: &str) -> Output {
        self.command("sh").args(["-ec", script]).env("T", tool).output().unwrap()
    }

    pub fn run_stdin(&self, program: &str, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(program).args(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// What is in a directory of the cache, without locks and memories.
    pub fn cached(&self, name: &str) -> Vec<String> {
        let Ok(listing) = fs::read_dir(self.path("cache").join(name)) else { return Vec::new() };
        let names = listing.map(|item| item.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|n| !n.starts_with(".lock-") && !n.ends_with(".seen")).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Fails the test unless the program succeeded; gives the lines of its output.
pub fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}: {}", output.status, stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_string).collect()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fails the test unless the program failed with this code and exit code, in one block.
#[track_caller]
pub fn refused(output: &Output, code: &str, exit: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(exit), "{text}");
    assert!(text.contains(&format!(": {code}: ")), "{code}: {text}");
    assert_eq!(output.stdout, b"");
    text
}

/// Fails the test unless e2fsck finds the image clean.
#[track_caller]
pub fn fsck(image: &Path) {
    let done = Command::new("e2fsck").arg("-fn").arg(image).output().expect("e2fsck");
    assert!(done.status.success(), "{}{}", String::from_utf8_lossy(&done.stdout), stderr(&done));
}

/// What debugfs answers.
pub fn debugfs(image: &Path, request: &str) -> String {
    let done = Command::new("debugfs").args(["-R", request]).arg(image).output().expect("debugfs");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An entry of a tar file.
pub fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(0);
    header
}

/// A tar file of plain files.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = header(tar::EntryType::Regular, 0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

//! A Linux guest of busybox's programs: from a command to what became of it.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::{Finished, Run, asset, bin};

/// A guest takes seconds in the lab; this is for one that hangs.
pub const LIMIT: Duration = Duration::from_secs(100);

/// A guest to boot: its root file system, its initramfs and its monitor.
#[derive(Debug)]
pub struct Guest {
    scratch: Scratch,
    root: Vec<(String, u32, Vec<u8>)>,
    make: Vec<String>,
    monitor: Vec<String>,
    stdin: Option<Vec<u8>>,
}

impl Guest {
    /// Runs a script with busybox's `sh`.
    #[must_use]
    pub fn busybox(script: &str) -> Self {
        Self::command(&["sh", "-c", script])
    }

    /// Runs a command; all of busybox's programs are in `/bin`.
    #[must_use]
    pub fn command(words: &[&str]) -> Self {
        let config = serde_json::json!({ "cmd": words }).to_string();
        let guest = Self { scratch: Scratch::new(), root: vec![], make: vec![], monitor: vec![], stdin: None };
        guest.file("machinen-config.json", 0o644, config)
    }

    /// Adds a file to its root file system; `path` has no slash before it.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.root.push((path.to_owned(), mode, content.into()));
        self
    }

    /// Adds arguments for `machinen-mkinitramfs`.
    #[must_use]
    pub fn make(mut self, args: &[&str]) -> Self {
        self.make.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Has /init load modules of the stock kernel, in this order.
    #[must_use]
    pub fn modules(mut self, names: &[&str]) -> Self {
        for name in names {
            let path = asset(&format!("modules/{name}.ko"));
            self.make.extend(["--module".to_owned(), path.display().to_string()]);
        }
        self
    }

    /// Adds arguments for `vmm-min`.
    #[must_use]
    pub fn monitor(mut self, args: &[&str]) -> Self {
        self.monitor.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Gives it these bytes, then the end of its stdin, which otherwise is `/dev/null`.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Boots it and waits for its end.
    ///
    /// # Panics
    /// When there is no initramfs, or it is killed at its limit.
    #[must_use]
    pub fn run(mut self) -> Finished {
        let stdin = self.stdin.take();
        let initrd = self.initrd();
        let run = monitor(&asset("vmlinux"), &initrd).args(&self.monitor);
        match stdin {
            Some(bytes) => run.stdin(bytes).finish(),
            None => run.finish(),
        }
    }

    /// The monitor's command line, for a test that starts it itself, and what has to outlive the guest.
    ///
    /// # Panics
    /// When there is no initramfs.
    #[must_use]
    pub fn start(self) -> (Command, Scratch) {
        let initrd = self.initrd();
        let mut command = Command::new(bin("vmm-min"));
        command.arg("--kernel").arg(asset("vmlinux")).arg("--initrd").arg(initrd).args(&self.monitor);
        (command, self.scratch)
    }

    /// Makes the initramfs only.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        let out = self.scratch.path("initrd");
        let run = Run::new(bin("machinen-mkinitramfs")).args(["rootfs", "-"]).arg(&out).args(&self.make);
        let finished = run.stdin(self.root_tar()).finish();
        assert_eq!(finished.code(), 0, "{}", finished.printed());
        out
    }

    /// Its root file system as a tar file.
    ///
    /// # Panics
    /// When there is no busybox.
    #[must_use]
    pub fn root_tar(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let busybox = fs::read(asset("busybox")).unwrap();
        let files = [("bin/busybox".to_owned(), 0o755, busybox)];
        for (path, mode, content) in files.iter().chain(&self.root) {
            let mut header = header(tar::EntryType::Regular, *mode);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, &content[..]).unwrap();
        }
        let list = Run::new(asset("busybox")).arg("--list").finish();
        for name in list.printed().lines().filter(|name| *name != "busybox") {
            let mut header = header(tar::EntryType::Symlink, 0o777);
            tar.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
        }
        tar.into_inner().unwrap()
    }
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    // A new header has no digits in these fields.
    header.set_size(0);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// The monitor with a kernel and an initramfs.
#[must_use]
pub fn monitor(kernel: &Path, initrd: &Path) -> Run {
    Run::new(bin("vmm-min")).arg("--kernel").arg(kernel).arg("--initrd").arg(initrd).limit(LIMIT)
}

/// A temporary directory that is removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machinen-guest-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file in it, making its directories.
    ///
    /// # Panics
    /// When that fails.
    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is in the directory for what may be removed.
        let _ = fs::remove_dir_all(&self.0);
    }
}

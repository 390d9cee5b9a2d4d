//! `machinen-run` and its siblings under test: an image of busybox's programs, a kernel, and a registry of the test's own.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::e2fs::E2fs;
use crate::guest::{Guest, LIMIT, Scratch};
use crate::lab::Arch;
use crate::{Run, asset, bin, rootfs};

/// What the tools of one test share.
#[derive(Debug)]
pub struct Cli {
    scratch: Scratch,
    image: PathBuf,
    memory_mib: u32,
}

impl Cli {
    /// A registry without machines; the image is made by the first test that wants it.
    ///
    /// # Panics
    /// When there is no image.
    #[must_use]
    pub fn new() -> Self {
        Self { scratch: Scratch::new(), image: image(), memory_mib: 256 }
    }

    /// The same with an image of Debian, which has python3 and criu.
    ///
    /// # Panics
    /// When there is no image.
    #[must_use]
    pub fn of_debian() -> Self {
        let image = shared_image("debian", |run| run.arg(asset(&rootfs(Arch::OWN))));
        Self { scratch: Scratch::new(), image, memory_mib: 1024 }
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// A path in a directory of the test's own.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// The registry's directory.
    #[must_use]
    pub fn registry(&self) -> PathBuf {
        self.scratch.path("registry")
    }

    /// The directories of machines in it.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.registry()) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }

    /// Process number of the monitor of the only machine.
    ///
    /// # Panics
    /// When there is not one.
    #[must_use]
    pub fn monitor(&self) -> u32 {
        let [directory] = &self.directories()[..] else { panic!("one machine expected: {:?}", self.directories()) };
        let entry: serde_json::Value = serde_json::from_slice(&fs::read(directory.join("vm.json")).unwrap()).unwrap();
        entry["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a process number")
    }

    fn variables(&self) -> [(&'static str, PathBuf); 4] {
        [
            ("MACHINEN_REGISTRY_DIR", self.registry()),
            ("MACHINEN_CACHE_DIR", self.scratch.path("cache")),
            ("MACHINEN_KERNEL", asset("vmlinux-tuned")),
            ("MACHINEN_MEMORY", self.memory_mib.to_string().into()),
        ]
    }

    /// A tool with these arguments, to run to its end.
    #[must_use]
    pub fn tool(&self, name: &str, args: &[&str]) -> Run {
        let run = Run::new(bin(&format!("machinen-{name}"))).args(args).limit(LIMIT);
        self.variables().into_iter().fold(run, |run, (name, value)| run.env(name, value))
    }

    /// `machinen-run` of the image with these flags, and this command.
    #[must_use]
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Run {
        self.tool("run", flags).arg(&self.image).arg("--").args(command)
    }

    /// The same, to be started by the test.
    #[must_use]
    pub fn run_command(&self, flags: &[&str], command: &[&str]) -> Command {
        let mut run = self.command("run", flags);
        run.arg(&self.image).arg("--").args(command);
        run
    }

    /// A tool with these arguments, to be started by the test.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, name: &str, args: &[A]) -> Command {
        let mut command = Command::new(bin(&format!("machinen-{name}")));
        command.args(args).envs(self.variables());
        command
    }

    /// `machinen-exec` of this command in this machine.
    #[must_use]
    pub fn exec(&self, name: &str, command: &[&str]) -> Run {
        self.tool("exec", &[&[name, "--"], command].concat())
    }

    /// Leaves a machine of this name running, with this command.
    ///
    /// # Panics
    /// When it does not start.
    pub fn detach(&self, name: &str, command: &[&str]) {
        let finished = self.run(&["-d", "--name", name], command).finish();
        assert_eq!((finished.code(), finished.printed()), (0, format!("{name}\n")));
    }
}

impl Default for Cli {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cli {
    /// No machine outlives its test.
    fn drop(&mut self) {
        for directory in self.directories() {
            let text = fs::read_to_string(directory.join("vm.json")).unwrap_or_default();
            let entry: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            if let Some(pid) = entry["pid"].as_u64() {
                // It may have ended already.
                let _ = Run::new(asset("busybox")).args(["kill", "-9"]).arg(pid.to_string()).outcome();
            }
        }
    }
}

/// The image of busybox's programs.
fn image() -> PathBuf {
    let guest = Guest::command(&["sh", "-c", "echo of the image"]);
    let guest = guest.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n").file("root/.keep", 0o644, "");
    shared_image("busybox", |run| run.arg("-").stdin(guest.root_tar()))
}

/// What `machinen-rootfs-img` makes with these arguments, in a place that all tests of a machine share.
fn shared_image(name: &str, arguments: impl FnOnce(Run) -> Run) -> PathBuf {
    let path = std::env::temp_dir().join(format!("machinen-{name}-{}.img", env!("CARGO_PKG_VERSION")));
    if path.exists() {
        return path;
    }
    let (scratch, e2fs) = (Scratch::new(), E2fs::new());
    let run = arguments(Run::new(bin("machinen-rootfs-img")));
    let made =
        run.env("MACHINEN_CACHE_DIR", scratch.path("")).env("MACHINEN_E2FSCK", e2fs.e2fsck()).limit(LIMIT).finish();
    assert_eq!(made.code(), 0, "{}", made.printed());
    let printed = String::from_utf8(made.stdout).unwrap();
    // Another test may have been faster: both are the same.
    fs::rename(printed.trim_end(), &path).unwrap();
    path
}

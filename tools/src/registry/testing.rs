//! For tests: a registry in a directory that goes away, and machines that are real processes with real locks.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::{Claim, Entry, Process, Registry};

/// Nothing in a test takes longer.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A directory that is removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one, for its owner alone.
    pub fn new() -> Scratch {
        use std::os::unix::fs::DirBuilderExt;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machinen-registry-{}-{number}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A registry in it, whose directory is not there yet.
    pub fn registry(&self) -> Registry {
        Registry::at(self.0.join("registry")).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _: io::Result<()> = std::fs::remove_dir_all(&self.0);
    }
}

/// Held around the start of a process that lives on: a lock that is lent in another thread must not come along.
pub fn spawning() -> MutexGuard<'static, ()> {
    static SPAWNING: Mutex<()> = Mutex::new(());
    SPAWNING.lock().unwrap()
}

/// Waits until no machine but `alive` lives. Between another thread's fork and exec a child has all descriptors.
pub fn until_dead(registry: &Registry, alive: &[&str]) {
    for vm in registry.list().unwrap() {
        assert!(alive.contains(&vm.id.as_str()) || vm.wait_dead(LIMIT));
    }
}

/// A process that holds a machine's lock until it is dropped.
pub struct Holder(pub Child);

impl Holder {
    /// Runs a shell script that inherits the claim's lock. It has begun when it has printed a line.
    pub fn new(claim: &Claim, script: &str) -> Holder {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let _alone = spawning();
        let mut child = command.stderr(claim.lock.try_clone().unwrap()).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        Holder(child)
    }

    pub fn process(&self) -> Process {
        Process::of(self.0.id()).unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _: io::Result<()> = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// A script that ends by SIGTERM, or when nobody holds its standard input any more.
pub const GENTLE: &str = "echo; exec cat >/dev/null";
/// A script that takes no notice of SIGTERM.
pub const DEAF: &str = "trap '' TERM; echo; exec cat >/dev/null";

/// A machine that lives as long as the process.
pub fn machine(registry: &Registry, name: Option<&str>, script: &str) -> (String, Holder) {
    let claim = registry.create(name).unwrap();
    let holder = Holder::new(&claim, script);
    let mut entry = Entry::new();
    entry.set_process(holder.process());
    entry.memory_mib = 64;
    claim.write(&entry).unwrap();
    let id = claim.id.clone();
    drop(claim.keep().unwrap());
    (id, holder)
}

//! Machines without guests: entries in a registry, with processes that hold their locks.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use machinen::registry::{Claim, Entry, Process, Registry};

use crate::monitor::Scratch;
use crate::{Run, bin, sys};

/// A registry in a directory of its own.
#[derive(Debug)]
pub struct Machines {
    scratch: Scratch,
    /// The registry, as the library sees it.
    pub registry: Registry,
}

impl Default for Machines {
    fn default() -> Self {
        Machines::below("registry")
    }
}

impl Machines {
    /// A registry under this name.
    ///
    /// # Panics
    /// When there can be none.
    #[must_use]
    pub fn below(name: &str) -> Machines {
        let scratch = Scratch::new("machines");
        let registry = Registry::at(scratch.file(name)).expect("a registry");
        Machines { scratch, registry }
    }

    /// A directory beside the registry.
    #[must_use]
    pub fn beside(&self, name: &str) -> PathBuf {
        self.scratch.file(name)
    }

    /// A tool that looks into this registry.
    #[must_use]
    pub fn tool(&self, name: &str) -> Run {
        Run::new(bin(name)).env("MACHINEN_REGISTRY_DIR", self.registry.path())
    }

    /// The same, to be started with descriptors of the test's choice.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(bin(name));
        command.env("MACHINEN_REGISTRY_DIR", self.registry.path());
        command
    }

    /// A machine that lives as long as what is returned. `fill` sets what its entry says beyond its process.
    ///
    /// # Panics
    /// When there can be none.
    #[must_use]
    pub fn start(&self, name: Option<&str>, fill: impl FnOnce(&Claim, &mut Entry)) -> Machine {
        self.start_with(name, "echo; exec sleep 1000", fill)
    }

    /// The same, of a shell script that has begun when it has printed something.
    ///
    /// # Panics
    /// When there can be none.
    #[must_use]
    pub fn start_with(&self, name: Option<&str>, script: &str, fill: impl FnOnce(&Claim, &mut Entry)) -> Machine {
        let claim = self.registry.create(name).expect("a name that is free");
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(claim.stdin().expect("a descriptor")).stdout(Stdio::piped());
        sys::confine(&mut command, Vec::new());
        let mut child = command.spawn().expect("a shell");
        child.stdout.take().expect("a pipe").read_exact(&mut [0]).expect("a line");
        let mut entry = Entry::new();
        entry.set_process(Process::of(child.id()).expect("a process"));
        fill(&claim, &mut entry);
        claim.write(&entry).expect("an entry");
        let (id, dir) = (claim.id.clone(), claim.dir.clone());
        drop(claim.keep().expect("a lock"));
        Machine { child, id, dir }
    }
}

/// A process that holds a machine's lock; killed when its owner goes.
#[derive(Debug)]
pub struct Machine {
    /// The process.
    pub child: Child,
    /// The machine's id.
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
}

impl Machine {
    /// Kills it, and waits until its lock is free for those who look.
    ///
    /// # Panics
    /// When it does not end.
    pub fn kill(mut self, machines: &Machines) {
        self.end();
        // A process that another test is starting has its lock until its exec.
        let vm = machines.registry.find_any(&self.id).expect("an entry");
        assert!(vm.wait_dead(crate::monitor::LIMIT));
    }

    fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            sys::kill_group(&self.child);
            let _: std::io::Result<std::process::ExitStatus> = self.child.wait();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

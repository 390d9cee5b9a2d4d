//! ext4 images, made and checked by the programs of Debian's e2fsprogs, which are in the guest's root file system: the lab
//! has no others.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guest::Scratch;
use crate::lab::Arch;
use crate::{Finished, Run, asset, rootfs};

const LOADER: &str = if cfg!(target_arch = "aarch64") { "ld-linux-aarch64.so.1" } else { "ld-linux-x86-64.so.2" };
const PROGRAMS: [&str; 2] = ["mke2fs", "e2fsck"];
const LIBRARIES: [&str; 6] =
    ["libext2fs.so.2", "libe2p.so.2", "libblkid.so.1", "libuuid.so.1", "libcom_err.so.2", "libc.so.6"];

/// The programs, taken out of the root file system.
#[derive(Debug)]
pub struct E2fs(Scratch);

impl E2fs {
    /// Takes them out.
    ///
    /// # Panics
    /// When there is no root file system, or not all of them are in it.
    #[must_use]
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let wanted = || PROGRAMS.iter().chain(&LIBRARIES).chain([&LOADER]);
        let mut archive = tar::Archive::new(File::open(asset(&rootfs(Arch::OWN))).unwrap());
        for entry in archive.entries_with_seek().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            // A library's file has more of its version in its name than what it is loaded by, which links to it.
            let is_library = LIBRARIES.iter().any(|library| name.starts_with(library));
            let found = wanted().find(|wanted| name == **wanted || is_library && name.starts_with(**wanted));
            if let Some(found) = found.filter(|_| entry.header().entry_type().is_file()) {
                entry.unpack(scratch.path(found)).unwrap();
            }
        }
        for name in wanted() {
            assert!(scratch.path(name).exists(), "{name} is not in the root file system");
        }
        Self(scratch)
    }

    fn run(&self, program: &str) -> Run {
        let libraries = self.0.path("");
        let run = Run::new(self.0.path(LOADER)).arg("--library-path").arg(libraries).arg(self.0.path(program));
        run.limit(Duration::from_secs(60))
    }

    /// A script that runs e2fsck, for programs that look for one.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn e2fsck(&self) -> PathBuf {
        let script = self.0.path("e2fsck.sh");
        let [loader, libraries, program] = [LOADER, "", "e2fsck"].map(|name| self.0.path(name).display().to_string());
        fs::write(&script, format!("#!/bin/sh\nexec {loader} --library-path {libraries} {program} \"$@\"\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        script
    }

    /// Makes an image of the files in `tree`, of `mib`.
    ///
    /// # Panics
    /// When that fails.
    pub fn make(&self, image: &Path, mib: u64, tree: Option<&Path>) {
        self.make_with(&[], image, mib, tree);
    }

    /// The same with more words for mke2fs.
    ///
    /// # Panics
    /// When that fails.
    pub fn make_with(&self, words: &[&str], image: &Path, mib: u64, tree: Option<&Path>) {
        File::create(image).unwrap().set_len(mib << 20).unwrap();
        let mut run = self.run("mke2fs").args(["-q", "-F", "-t", "ext4", "-b", "4096"]).args(words);
        if let Some(tree) = tree {
            run = run.arg("-d").arg(tree);
        }
        let made = run.arg(image).finish();
        assert_eq!(made.code(), 0, "{}", made.printed());
    }

    /// Looks for anything that is not as after a clean unmount, and changes nothing.
    #[must_use]
    pub fn check(&self, image: &Path) -> Finished {
        self.run("e2fsck").arg("-fn").arg(image).merged().finish()
    }

    /// Checks an image that should be clean.
    ///
    /// # Panics
    /// When it is not, or its journal would have to be replayed.
    pub fn expect_clean(&self, image: &Path) {
        let checked = self.check(image);
        let printed = checked.printed();
        assert!(checked.code() == 0 && !printed.contains("recover") && !printed.contains("not cleanly"), "{printed}");
    }
}

impl Default for E2fs {
    fn default() -> Self {
        Self::new()
    }
}

/// The directories of a root file system, with busybox's programs in `/bin`.
///
/// # Panics
/// When they cannot be written.
pub fn put_root(root: &Path) {
    for name in ["bin", "dev", "etc", "proc", "sys", "run", "tmp", "root"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let busybox: PathBuf = root.join("bin/busybox");
    fs::copy(asset("busybox"), &busybox).unwrap();
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755)).unwrap();
    for name in Run::new(&busybox).arg("--list").finish().printed().lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
}

//! An output directory that is whole or absent: filled beside its place, then put there at once.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// A directory being filled. Dropped without [`Outdir::commit`], it is removed.
#[derive(Debug)]
pub struct Outdir {
    partial: PathBuf,
    path: PathBuf,
    /// Holds its lock: another writer of the same output waits, and a killed one has let go.
    lock: Option<File>,
}

impl Outdir {
    /// Makes an empty directory to become `path`. What is there may be replaced when it is empty or `is_ours` says so.
    pub fn create(path: &Path, is_ours: impl Fn(&Path) -> bool) -> io::Result<Outdir> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        if let Ok(found) = fs::metadata(path) {
            let replaceable = found.is_dir() && (is_ours(path) || fs::read_dir(path)?.next().is_none());
            if !replaceable {
                return Err(io::Error::other("something else is there already"));
            }
        }
        let mut partial_name = std::ffi::OsString::from(".");
        partial_name.push(name);
        partial_name.push(".partial");
        let partial = path.with_file_name(partial_name);
        let lock = loop {
            match fs::create_dir(&partial) {
                Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(cause),
                _ => {}
            }
            // Gone again, or another one by now: its writer has finished meanwhile.
            let Ok(dir) = File::open(&partial) else { continue };
            dir.lock()?;
            let ours = dir.metadata()?;
            match fs::metadata(&partial) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => break dir,
                _ => {}
            }
        };
        let outdir = Outdir { partial, path: path.to_path_buf(), lock: Some(lock) };
        // What a killed writer left.
        for item in fs::read_dir(&outdir.partial)? {
            let item = item?;
            match item.file_type()?.is_dir() {
                true => fs::remove_dir_all(item.path())?,
                false => fs::remove_file(item.path())?,
            }
        }
        Ok(outdir)
    }

    /// Where to put files until [`Outdir::commit`].
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Gives it its name, in place of what had it.
    pub fn commit(mut self) -> io::Result<()> {
        // Dropped at the end, when a waiting writer can no longer find the directory.
        let _lock = self.lock.take();
        match renameat_with(CWD, &self.partial, CWD, &self.path, RenameFlags::EXCHANGE) {
            Ok(()) => fs::remove_dir_all(&self.partial),
            // Nothing there to exchange with, or a file system that cannot.
            Err(_) => fs::rename(&self.partial, &self.path).inspect_err(|_| {
                let _ = fs::remove_dir_all(&self.partial);
            }),
        }
    }
}

impl Drop for Outdir {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // The failure that led here is the one to report.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_or_absent_and_never_over_something_else() {
        let root = std::env::temp_dir().join(format!("machinen-outdir-{}", std::process::id()));
        let out = root.join("out");
        fs::create_dir_all(root.join(".out.partial/left")).expect("what a killed writer left");
        let ours = |path: &Path| path.join("mark").is_file();
        let fill = |content: &str| {
            let dir = Outdir::create(&out, ours).expect("free");
            fs::write(dir.partial().join("mark"), content).expect("write");
            dir
        };
        drop(fill("dropped"));
        assert!(fs::read_dir(&root).expect("list").next().is_none());
        for content in ["first", "second"] {
            fill(content).commit().expect("in place");
            assert_eq!(fs::read_to_string(out.join("mark")).expect("there"), content);
            assert_eq!(fs::read_dir(&root).expect("list").count(), 1);
            assert_eq!(fs::read_dir(&out).expect("list").count(), 1);
        }
        fs::rename(out.join("mark"), out.join("precious")).expect("rename");
        Outdir::create(&out, ours).expect_err("refused");
        assert!(out.join("precious").exists());
        fs::remove_dir_all(root).expect("clean up");
    }
}

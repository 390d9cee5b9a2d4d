//! An output that is whole or absent: nameless until it is complete, then under its name at once. Or standard output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, linkat};

/// An output being written.
#[derive(Debug)]
pub struct Outfile {
    /// Where the bytes go.
    file: File,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// A stream or device: what is written is out.
    Direct,
    /// No name yet; gets this one.
    Nameless(PathBuf),
    /// Has the first name, gets the second. For file systems without nameless files.
    Temporary(PathBuf, PathBuf),
}

impl Outfile {
    /// Opens `path`, or standard output for `-`.
    ///
    /// What is there and not a regular file is written directly; a symlink's target is replaced, not the symlink.
    pub fn create(path: &str) -> io::Result<Self> {
        if path == "-" {
            let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            let place = Place::Direct;
            return Ok(Outfile { file, place });
        }
        let path = match fs::metadata(path) {
            Ok(found) if !found.is_file() => {
                let file = OpenOptions::new().write(true).open(path)?;
                let place = Place::Direct;
                return Ok(Outfile { file, place });
            }
            Ok(_) => fs::canonicalize(path)?,
            Err(_) => PathBuf::from(path),
        };
        Self::regular(path)
    }

    /// [`Outfile::create`] for a regular file, also when `path` starts with a dash or is a symlink.
    pub fn create_new(path: impl Into<PathBuf>) -> io::Result<Self> {
        Self::regular(path.into())
    }

    fn regular(path: PathBuf) -> io::Result<Self> {
        if path.file_name().is_none() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let dir = directory(&path);
        let flags = i32::try_from(OFlags::TMPFILE.bits()).unwrap_or(0);
        let nameless = OpenOptions::new().write(true).custom_flags(flags).open(dir);
        if let Ok(file) = nameless {
            let place = Place::Nameless(path);
            return Ok(Outfile { file, place });
        }
        let temporary = temporary(&path);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        // Tells a builder at work from one that was killed.
        let _ = file.try_lock();
        let place = Place::Temporary(temporary, path);
        Ok(Outfile { file, place })
    }

    /// The file to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A name under which other programs reach the file while this process lives.
    pub fn reach(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        match &self.place {
            Place::Temporary(temporary, _) => temporary.clone(),
            _ => format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into(),
        }
    }

    /// Whether a file of this name is one that has not got its own yet.
    pub fn is_temporary(name: &str) -> bool {
        name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
    }

    /// Removes a temporary file whose writer is dead.
    pub fn remove_stale(path: &Path) {
        // Between its creation and its lock it looks dead, so a young one is left alone.
        let is_old = |file: &File| Some(file.metadata().ok()?.modified().ok()?.elapsed().ok()? > YOUNG);
        if let Ok(file) = File::open(path)
            && is_old(&file) == Some(true)
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(path);
        }
    }

    /// Whether the bytes would appear on a terminal.
    pub fn is_terminal(&self) -> bool {
        self.file.is_terminal()
    }

    /// Device and inode of the file that will be read under the output's name, now or until it is replaced.
    pub fn identity(&self) -> Option<(u64, u64)> {
        let found = match &self.place {
            Place::Direct => self.file.metadata(),
            Place::Nameless(path) | Place::Temporary(_, path) => fs::metadata(path),
        };
        found.ok().map(|found| (found.dev(), found.ino()))
    }

    /// Gives the file its name, in place of what had it. Without this call nothing stays behind.
    pub fn commit(mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.place, Place::Direct) {
            Place::Direct => Ok(()),
            Place::Nameless(path) => match self.link(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    let temporary = temporary(&path);
                    self.link(&temporary)?;
                    self.place = Place::Temporary(temporary, path);
                    self.commit()
                }
                done => done,
            },
            Place::Temporary(temporary, path) => {
                let renamed = fs::rename(&temporary, &path);
                if renamed.is_err() {
                    self.place = Place::Temporary(temporary, path);
                }
                renamed
            }
        }
    }

    /// [`Outfile::commit`], and when it returns, file and name survive the host.
    pub fn commit_durably(self) -> io::Result<()> {
        self.file.sync_all()?;
        let directory = match &self.place {
            Place::Direct => return Ok(()),
            Place::Nameless(path) | Place::Temporary(_, path) => File::open(directory(path))?,
        };
        self.commit()?;
        directory.sync_all()
    }

    /// [`Outfile::commit`] under another name in the same directory.
    pub fn commit_as(mut self, name: &Path) -> io::Result<()> {
        match &mut self.place {
            Place::Direct => {}
            Place::Nameless(path) | Place::Temporary(_, path) => *path = name.to_owned(),
        }
        self.commit()
    }

    /// [`Outfile::commit`], but what has the name keeps it, and that is a failure.
    pub fn commit_new(mut self) -> io::Result<()> {
        let linked = match &self.place {
            Place::Direct => return Ok(()),
            Place::Nameless(path) => return self.link(path),
            Place::Temporary(temporary, path) => fs::hard_link(temporary, path).map(|()| temporary.clone()),
        };
        let temporary = linked?;
        self.place = Place::Direct;
        fs::remove_file(temporary)
    }

    fn link(&self, path: &Path) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        // The empty path needs a capability on kernels before 6.10, the other way needs /proc.
        if linkat(&self.file, "", CWD, path, AtFlags::EMPTY_PATH).is_ok() {
            return Ok(());
        }
        let proc = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, proc, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
        Ok(())
    }
}

impl Drop for Outfile {
    fn drop(&mut self) {
        if let Place::Temporary(temporary, _) = &self.place {
            // The failure that led here is the one to report.
            let _ = fs::remove_file(temporary);
        }
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Beginning and end of the name of a file that has not got its own yet.
const TEMPORARY: (&str, &str) = (".machinen-", ".tmp");

/// A temporary file that changed this short a time ago has a writer.
const YOUNG: std::time::Duration = std::time::Duration::from_secs(10);

fn temporary(path: &Path) -> PathBuf {
    directory(path).join(format!("{}{}{}", TEMPORARY.0, std::process::id(), TEMPORARY.1))
}

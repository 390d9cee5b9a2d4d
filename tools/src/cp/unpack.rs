//! A tar stream from a guest, unpacked on the host: below one directory, whatever the archive or what is there says.
//!
//! The archive is a guest's, which may be hostile: every directory on the way is opened by itself, without following a
//! symlink, and what is in a file's place is removed, not written to.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod, fchown, futimens,
    linkat, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::bounded::bounded;
use crate::error::{Error, Result};

/// Unpacks `input` below the directory `root`, whose path is `shown`. Owners are kept where this process is root.
///
/// # Errors
/// `COPY_ESCAPE` for an entry that leads out of the directory, `COPY_WRITE` of the host's side. When the archive itself cannot be read
/// its source knows why: `Ok(false)`.
pub(super) fn unpack(input: impl Read, root: &OwnedFd, shown: &Path) -> Result<bool> {
    let owners = rustix::process::geteuid().is_root();
    let mut unpacker = Unpacker { root, shown, owners, directories: Vec::new() };
    let (input, bound) = bounded(input);
    let mut archive = Archive::new(input);
    let Ok(entries) = archive.entries() else { return Ok(false) };
    for entry in entries {
        let Ok(mut entry) = entry else { return Ok(false) };
        bound.content();
        if !unpacker.entry(&mut entry)? {
            return Ok(false);
        }
        bound.headers();
    }
    unpacker.finish()?;
    Ok(true)
}

struct Unpacker<'a> {
    root: &'a OwnedFd,
    shown: &'a Path,
    owners: bool,
    /// Directories and what they get at the end: a mode may forbid writing, and a write changes a time.
    directories: Vec<(PathBuf, Attributes)>,
}

/// What a file gets beside its content.
#[derive(Clone, Debug)]
struct Attributes {
    mode: Mode,
    owner: Option<(Uid, Gid)>,
    times: Timestamps,
}

impl Unpacker<'_> {
    /// Unpacks one entry. `false`: the archive ends within it.
    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<bool> {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(&entry.path_bytes()));
        let parts = self.parts(&path)?;
        let attributes = self.attributes(entry);
        let failed =
            |cause: io::Error| Error::host("COPY_WRITE", format!("write {}", self.shown.join(&path).display()), cause);
        let Some((name, above)) = parts.split_last() else {
            // The top itself, which is there.
            self.directories.push((PathBuf::new(), attributes));
            return Ok(true);
        };
        let parent = self.directory(above, &path)?;
        let at = |result: rustix::io::Result<()>| result.map_err(|cause| failed(cause.into()));
        match entry.header().entry_type() {
            EntryType::Directory => {
                match mkdirat(&parent, *name, Mode::RWXU) {
                    Err(Errno::EXIST) => {
                        drop(open_directory(&parent, name).map_err(|cause| self.in_the_way(&path, cause))?)
                    }
                    made => at(made)?,
                }
                self.directories.push((parts.iter().collect(), attributes));
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                at(clear(&parent, name))?;
                at(symlinkat(std::ffi::OsStr::from_bytes(&target), &parent, *name))?;
                if let Some((uid, gid)) = attributes.owner {
                    at(chownat(&parent, *name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW))?;
                }
                at(utimensat(&parent, *name, &attributes.times, AtFlags::SYMLINK_NOFOLLOW))?;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = PathBuf::from(std::ffi::OsStr::from_bytes(&target));
                let to = self.parts(&target)?;
                let Some((to_name, to_above)) = to.split_last() else { return Err(self.escape(&path)) };
                let to_parent = self.directory(to_above, &target)?;
                at(clear(&parent, name))?;
                at(linkat(&to_parent, *to_name, &parent, *name, AtFlags::empty()))?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                at(clear(&parent, name))?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file =
                    openat(&parent, *name, flags, Mode::RUSR | Mode::WUSR).map_err(|cause| failed(cause.into()))?;
                let mut file = File::from(file);
                if !copy(entry, &mut file).map_err(failed)? {
                    return Ok(false);
                }
                at(attributes.apply(&file))?;
            }
            kind @ (EntryType::Fifo | EntryType::Char | EntryType::Block) => {
                at(clear(&parent, name))?;
                let kind = match kind {
                    EntryType::Fifo => FileType::Fifo,
                    EntryType::Char => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
                let (major, minor) = (number(entry.header().device_major()), number(entry.header().device_minor()));
                at(mknodat(&parent, *name, kind, attributes.mode, rustix::fs::makedev(major, minor)))?;
                if let Some((uid, gid)) = attributes.owner {
                    at(chownat(&parent, *name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW))?;
                }
                at(utimensat(&parent, *name, &attributes.times, AtFlags::SYMLINK_NOFOLLOW))?;
            }
            // Of no meaning for a file.
            _ => {}
        }
        Ok(true)
    }

    /// The names of a path, none of which means another place.
    fn parts<'p>(&self, path: &'p Path) -> Result<Vec<&'p Path>> {
        let mut parts = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => parts.push(Path::new(name)),
                Component::CurDir => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(self.escape(path)),
            }
        }
        Ok(parts)
    }

    /// The directory of these names, made where it is missing.
    fn directory(&self, names: &[&Path], path: &Path) -> Result<OwnedFd> {
        let failed = |cause: Errno| Error::host("COPY_WRITE", format!("open {}", self.shown.display()), cause);
        let mut at = self
            .root
            .as_fd()
            .try_clone_to_owned()
            .map_err(|cause| Error::host("COPY_WRITE", format!("open {}", self.shown.display()), cause))?;
        for name in names {
            at = match open_directory(&at, name) {
                Err(Errno::NOENT) => {
                    mkdirat(&at, *name, Mode::from_raw_mode(0o755)).map_err(failed)?;
                    open_directory(&at, name).map_err(failed)?
                }
                opened => opened.map_err(|cause| self.in_the_way(path, cause))?,
            };
        }
        Ok(at)
    }

    /// Something that is no directory, or a symlink, is where a directory should be.
    fn in_the_way(&self, path: &Path, cause: Errno) -> Error {
        let shown = self.shown.join(path);
        match cause {
            Errno::LOOP | Errno::NOTDIR => Error::new(
                "COPY_ESCAPE",
                format!("write {}: a symlink or file is in the way of a directory", shown.display()),
            )
            .hint("remove it, or choose another destination"),
            cause => Error::host("COPY_WRITE", format!("open {}", shown.display()), cause),
        }
    }

    fn escape(&self, path: &Path) -> Error {
        let name: String =
            path.display().to_string().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        Error::new(
            "COPY_ESCAPE",
            format!("the guest's archive has an entry that leads out of {}: {name}", self.shown.display()),
        )
    }

    fn attributes(&self, entry: &mut Entry<'_, impl Read>) -> Attributes {
        let fine = mtime(entry);
        let header = entry.header();
        let id = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX);
        let owner = id(header.uid()).zip(id(header.gid())).filter(|_| self.owners);
        let whole = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        let (tv_sec, tv_nsec) = fine.unwrap_or((whole, 0));
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec, tv_nsec },
        };
        Attributes {
            mode: Mode::from_raw_mode(header.mode().unwrap_or(0o644) & 0o7777),
            owner: owner.map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid))),
            times,
        }
    }

    /// Gives the directories what is theirs, the deepest first.
    fn finish(self) -> Result<()> {
        for (path, attributes) in self.directories.iter().rev() {
            let names: Vec<&Path> = path.iter().map(Path::new).collect();
            let directory = self.directory(&names, path)?;
            attributes.apply(&directory).map_err(|cause| {
                Error::host("COPY_WRITE", format!("write {}", self.shown.join(path).display()), cause)
            })?;
        }
        Ok(())
    }
}

impl Attributes {
    /// Owner first: changing it takes set-user-id away.
    fn apply(&self, file: impl AsFd) -> rustix::io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        fchmod(&file, self.mode)?;
        futimens(&file, &self.times)
    }
}

/// The time of change in the pax header, with its fraction.
fn mtime(entry: &mut Entry<'_, impl Read>) -> Option<(i64, i64)> {
    let extensions = entry.pax_extensions().ok()??;
    let value = extensions.flatten().find(|one| one.key_bytes() == b"mtime")?.value().ok()?.to_owned();
    let (whole, fraction) = value.split_once('.').unwrap_or((&value, ""));
    let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some((whole.parse().ok()?, nine.parse().ok().filter(|nanos: &i64| (0..1_000_000_000).contains(nanos))?))
}

fn open_directory(at: &OwnedFd, name: &Path) -> rustix::io::Result<OwnedFd> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Removes what is in a file's place; a directory stays, and is an error.
fn clear(parent: &OwnedFd, name: &Path) -> rustix::io::Result<()> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(cause) => Err(cause),
        Ok(found) if FileType::from_raw_mode(found.st_mode).is_dir() => Err(Errno::ISDIR),
        Ok(_) => unlinkat(parent, name, AtFlags::empty()),
    }
}

/// Copies an entry's content. `false`: the archive ends within it.
fn copy(from: &mut impl Read, to: &mut impl io::Write) -> io::Result<bool> {
    let mut chunk = vec![0; 128 << 10];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(true),
            Ok(count) => to.write_all(&chunk[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(false),
        }
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;

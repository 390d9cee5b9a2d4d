//! Unpacks an archive below a directory, as tar does when root runs it; but no link leads it out of there.

use alloc::ffi::CString;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::CStr;

use guest_init::tar::read::{Archive, Fault};
use guest_init::tar::{Entry, Kind, Time, parts};
use guest_init::wire::report::Failed;
use machinen_abi::body::Reason;

use super::{Pipe, Worker, system, write_all};
use crate::sys::{self, Errno, Fd, at};

/// What is being unpacked.
struct Unpack<'a> {
    top: Rc<Fd>,
    name: Option<&'a [u8]>,
    no_owner: bool,
    /// The directory that was used last.
    last: Option<(Vec<u8>, Rc<Fd>)>,
    /// Directories get their times when nothing more is made in them.
    times: Vec<(Vec<u8>, Time)>,
    buffer: Vec<u8>,
}

/// Unpacks the input below `path`, a directory that must be there and itself stays as it is.
pub fn run(worker: &Worker, path: &CStr, no_owner: bool, name: Option<&[u8]>) -> Result<(), Failed> {
    let top = Fd::open(path, libc::O_RDONLY | libc::O_DIRECTORY).map_err(|errno| system(path.to_bytes(), errno))?;
    at::clear_umask();
    worker.begin();
    let buffer = vec![0; 64 << 10];
    let mut unpack = Unpack { top: Rc::new(top), name, no_owner, last: None, times: Vec::new(), buffer };
    let mut archive = Archive::new(Pipe(&worker.input));
    while let Some(entry) = archive.next_entry().map_err(unreadable)? {
        unpack.entry(&entry, &mut archive)?;
    }
    unpack.set_times()
}

fn unreadable(fault: Fault<Errno>) -> Failed {
    let message = format!("the archive: {fault}");
    match fault {
        Fault::Input(Errno(errno)) => Failed { reason: Reason::System, errno, message },
        _ => Failed { reason: Reason::Invalid, errno: 0, message },
    }
}

impl Unpack<'_> {
    fn entry(&mut self, entry: &Entry, archive: &mut Archive<Pipe<'_>>) -> Result<(), Failed> {
        let parts = self.parts(&entry.path)?;
        let Some((last, above)) = parts.split_last() else { return Ok(()) };
        let failed = |errno: Errno| failure(&entry.path, errno);
        let directory = self.directory(above).map_err(failed)?;
        let name = CString::new(last.to_vec()).map_err(|_| escape(&entry.path))?;
        match &entry.kind {
            Kind::Directory => {
                self.make_directory(&directory, &name, entry).map_err(failed)?;
                self.times.push((parts.join(&b'/'), entry.mtime));
                return Ok(());
            }
            Kind::File => {
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
                let file = self.make(&directory, &name, || at::open(&directory, &name, flags)).map_err(failed)?;
                self.copy(&file, entry, archive)?;
                self.set_owner(&directory, &name, entry).map_err(failed)?;
                at::set_mode(&file, entry.mode).map_err(failed)?;
            }
            Kind::HardLink(target) => {
                let target = self.parts(target)?;
                if target == parts {
                    return Ok(());
                }
                let (target_name, above) = target.split_last().ok_or_else(|| escape(&entry.path))?;
                let from = self.directory(above).map_err(failed)?;
                let target_name = CString::new(target_name.to_vec()).map_err(|_| escape(&entry.path))?;
                let link = || at::make_link((&from, &target_name), (&directory, &name));
                // All names have one owner, mode and time, and those are set.
                return self.make(&directory, &name, link).map_err(failed);
            }
            Kind::SymbolicLink(target) => {
                let target = CString::new(target.clone()).map_err(|_| escape(&entry.path))?;
                let link = || at::make_symbolic_link(&target, &directory, &name);
                self.make(&directory, &name, link).map_err(failed)?;
                self.set_owner(&directory, &name, entry).map_err(failed)?;
            }
            Kind::Character(..) | Kind::Block(..) | Kind::Fifo => {
                let (kind, device) = match entry.kind {
                    Kind::Character(major, minor) => (libc::S_IFCHR, (major, minor)),
                    Kind::Block(major, minor) => (libc::S_IFBLK, (major, minor)),
                    _ => (libc::S_IFIFO, (0, 0)),
                };
                let node = || at::make_node(&directory, &name, kind, entry.mode, device);
                self.make(&directory, &name, node).map_err(failed)?;
                self.set_owner(&directory, &name, entry).map_err(failed)?;
            }
        }
        at::set_time(&directory, &name, entry.mtime).map_err(failed)
    }

    fn parts<'b>(&self, path: &'b [u8]) -> Result<Vec<&'b [u8]>, Failed>
    where
        Self: 'b,
    {
        parts(path, self.name).ok_or_else(|| escape(path))
    }

    fn copy(&mut self, file: &Fd, entry: &Entry, archive: &mut Archive<Pipe<'_>>) -> Result<(), Failed> {
        loop {
            match archive.read(&mut self.buffer).map_err(unreadable)? {
                0 => return Ok(()),
                count => write_all(file, &self.buffer[..count]).map_err(|errno| system(&entry.path, errno))?,
            }
        }
    }

    /// Makes something in the place of what has its name.
    fn make<T>(&mut self, directory: &Fd, name: &CStr, make: impl Fn() -> sys::Result<T>) -> sys::Result<T> {
        match make() {
            Err(Errno(libc::EEXIST)) => {}
            result => return result,
        }
        at::remove(directory, name)?;
        // It may have been a directory, and that one.
        self.last = None;
        make()
    }

    /// A directory that is there stays, with the archive's attributes.
    fn make_directory(&mut self, directory: &Fd, name: &CStr, entry: &Entry) -> sys::Result<()> {
        let is_there = at::status(directory, name).is_ok_and(|status| status.kind == libc::S_IFDIR);
        if !is_there {
            self.make(directory, name, || at::make_directory(directory, name, 0o700))?;
        }
        let made = at::open(directory, name, libc::O_RDONLY | libc::O_DIRECTORY)?;
        self.set_owner(directory, name, entry)?;
        at::set_mode(&made, entry.mode)
    }

    fn set_owner(&self, directory: &Fd, name: &CStr, entry: &Entry) -> sys::Result<()> {
        if self.no_owner { Ok(()) } else { at::set_owner(directory, name, entry.uid, entry.gid) }
    }

    /// The directory of these parts, which is made where it is missing.
    fn directory(&mut self, parts: &[&[u8]]) -> sys::Result<Rc<Fd>> {
        if parts.is_empty() {
            return Ok(self.top.clone());
        }
        let path = parts.join(&b'/');
        if let Some((_, directory)) = self.last.as_ref().filter(|(last, _)| *last == path) {
            return Ok(directory.clone());
        }
        let directory = match at::directory_below(&self.top, &c_string(&path)?) {
            Err(Errno(libc::ENOENT)) => self.make_directories(parts)?,
            result => result?,
        };
        let directory = Rc::new(directory);
        self.last = Some((path, directory.clone()));
        Ok(directory)
    }

    fn make_directories(&self, parts: &[&[u8]]) -> sys::Result<Fd> {
        let mut directory = self.top.copy()?;
        for part in parts {
            let name = c_string(part)?;
            directory = match at::directory_below(&directory, &name) {
                Err(Errno(libc::ENOENT)) => {
                    at::make_directory(&directory, &name, 0o755)?;
                    at::directory_below(&directory, &name)?
                }
                result => result?,
            };
        }
        Ok(directory)
    }

    fn set_times(mut self) -> Result<(), Failed> {
        for (path, time) in core::mem::take(&mut self.times) {
            let found = c_string(&path).and_then(|path| at::directory_below(&self.top, &path));
            match found.and_then(|directory| at::set_time(&directory, c".", time)) {
                // Something later in the archive has taken its place.
                Ok(()) | Err(Errno(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {}
                Err(errno) => return Err(system(&path, errno)),
            }
        }
        Ok(())
    }
}

fn c_string(path: &[u8]) -> sys::Result<CString> {
    CString::new(path).map_err(|_| Errno(libc::EINVAL))
}

/// A link in the way, or a way out.
fn failure(path: &[u8], errno: Errno) -> Failed {
    match errno {
        Errno(libc::ELOOP | libc::EXDEV) => {
            let message = format!("{}: a link on the way leads elsewhere", path.escape_ascii());
            Failed { reason: Reason::Escape, errno: errno.0, message }
        }
        errno => system(path, errno),
    }
}

fn escape(path: &[u8]) -> Failed {
    let message = format!("{}: leads out of the destination", path.escape_ascii());
    Failed { reason: Reason::Escape, errno: 0, message }
}

//! Packs a file or directory as an archive, as tar does when root runs it. Sockets are left out.

use alloc::collections::BTreeMap;
use alloc::ffi::CString;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::CStr;

use guest_init::tar::write::{END, header, padding};
use guest_init::tar::{Entry, Kind};
use guest_init::wire::report::Failed;
use machinen_abi::body::Reason;
use machinen_abi::glob::excludes;

use super::{Pipe, Worker, system, write_all};
use crate::sys::at::{self, Status};
use crate::sys::{Errno, Fd};
use guest_init::tar::read::Input;

/// Bytes that are written together.
const BUFFER_BYTES: usize = 64 << 10;

struct Pack<'a> {
    output: &'a Fd,
    exclude: &'a [&'a [u8]],
    waiting: Vec<u8>,
    buffer: Vec<u8>,
    /// Files with several names, and the first of them in the archive.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    /// Bytes of the top's name, with its slash.
    top_bytes: usize,
}

/// Packs `path` under its last part, or `name`.
pub fn run(worker: &Worker, path: &CStr, exclude: &[&[u8]], name: Option<&[u8]>) -> Result<(), Failed> {
    let failed = |errno: Errno| system(path.to_bytes(), errno);
    let end = path.to_bytes().iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let whole = &path.to_bytes()[..end];
    let start = whole.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (above, last) = whole.split_at(start);
    let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| failed(Errno(libc::EINVAL)));
    let above = c_string(if above.is_empty() { b"/" } else { above })?;
    let last = if last.is_empty() { b"." } else { last };
    let directory = Fd::open(&above, libc::O_PATH | libc::O_DIRECTORY).map_err(failed)?;
    let last_name = c_string(last)?;
    at::status(&directory, &last_name).map_err(failed)?;
    let name = name.unwrap_or(if last == b".." { b"." } else { last });
    worker.begin();
    let mut pack = Pack {
        output: &worker.output,
        exclude,
        waiting: Vec::new(),
        buffer: vec![0; BUFFER_BYTES],
        links: BTreeMap::new(),
        top_bytes: name.len() + 1,
    };
    pack.add(&directory, &last_name, name)?;
    pack.write(&END)?;
    pack.flush()
}

impl Pack<'_> {
    fn add(&mut self, directory: &Fd, name: &CStr, path: &[u8]) -> Result<(), Failed> {
        let is_top = path.len() < self.top_bytes;
        if !is_top && self.exclude.iter().any(|pattern| excludes(pattern, &path[self.top_bytes..])) {
            return Ok(());
        }
        let failed = |errno: Errno| system(path, errno);
        let status = match at::status(directory, name) {
            // It was there a moment ago.
            Err(Errno(libc::ENOENT)) if !is_top => return Ok(()),
            status => status.map_err(failed)?,
        };
        match status.kind {
            libc::S_IFDIR => return self.add_directory(directory, name, path),
            libc::S_IFSOCK => return Ok(()),
            _ => {}
        }
        if status.links > 1 {
            if let Some(first) = self.links.get(&status.file) {
                let kind = Kind::HardLink(first.clone());
                return self.write(&header(&entry(path, kind, &status)));
            }
            self.links.insert(status.file, path.to_vec());
        }
        let (major, minor) = status.device;
        let kind = match status.kind {
            libc::S_IFREG => return self.add_file(directory, name, path),
            libc::S_IFLNK => Kind::SymbolicLink(at::read_link(directory, name).map_err(failed)?),
            libc::S_IFCHR => Kind::Character(major, minor),
            libc::S_IFBLK => Kind::Block(major, minor),
            _ => Kind::Fifo,
        };
        self.write(&header(&entry(path, kind, &status)))
    }

    fn add_directory(&mut self, directory: &Fd, name: &CStr, path: &[u8]) -> Result<(), Failed> {
        let failed = |errno: Errno| system(path, errno);
        let inner = at::open(directory, name, libc::O_RDONLY | libc::O_DIRECTORY).map_err(failed)?;
        let status = at::status(&inner, c"").map_err(failed)?;
        let path = [path, b"/"].concat();
        self.write(&header(&entry(&path, Kind::Directory, &status)))?;
        for name in at::names(&inner).map_err(failed)? {
            self.add(&inner, &name, &[&path[..], name.to_bytes()].concat())?;
        }
        Ok(())
    }

    fn add_file(&mut self, directory: &Fd, name: &CStr, path: &[u8]) -> Result<(), Failed> {
        let failed = |errno: Errno| system(path, errno);
        // Should it be something else by now, nothing waits for it.
        let file = at::open(directory, name, libc::O_RDONLY | libc::O_NONBLOCK).map_err(failed)?;
        let status = at::status(&file, c"").map_err(failed)?;
        let entry = Entry { size: status.bytes, ..entry(path, Kind::File, &status) };
        self.write(&header(&entry))?;
        let mut left = entry.size;
        let mut buffer = core::mem::take(&mut self.buffer);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let count = Pipe(&file).read(&mut buffer[..most]).map_err(failed)?;
            if count == 0 {
                let message = format!("{}: it shrank while it was read", path.escape_ascii());
                return Err(Failed { reason: Reason::System, errno: libc::EIO, message });
            }
            self.write(&buffer[..count])?;
            left -= count as u64;
        }
        self.buffer = buffer;
        self.waiting.resize(self.waiting.len() + padding(entry.size), 0);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Failed> {
        let done = write_all(self.output, &self.waiting).map_err(|errno| system(b"the archive", errno));
        self.waiting.clear();
        done
    }
}

fn entry(path: &[u8], kind: Kind, status: &Status) -> Entry {
    let Status { mode, uid, gid, mtime, .. } = *status;
    Entry { path: path.to_vec(), kind, size: 0, mode, uid, gid, mtime }
}

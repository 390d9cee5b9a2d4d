//! Directories, listed.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{self, FileType, RawDir, SeekFrom};
use rustix::io::Errno;

use crate::handles::Open;
use crate::host;
use crate::server::{Server, put32, put64};
use crate::wire::{DIRENT_BYTES, ENTRY_BYTES};

/// For what the host tells at a time.
const BUFFER_BYTES: usize = 8 << 10;

impl Server {
    /// Opens a directory and answers with its handle.
    pub(crate) fn open_directory(&mut self, node: u64) -> Result<(), Errno> {
        self.check_room()?;
        let directory = host::open_directory(self.place(node)?)?;
        let handle = self.handles.add(node, Open::Directory(directory))?;
        put64(&mut self.out, handle);
        put64(&mut self.out, 0);
        Ok(())
    }

    /// Answers with entries from `offset` on, in at most `most` bytes; with `plus` each has its node, looked up.
    pub(crate) fn read_directory(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        most: u64,
        plus: bool,
    ) -> Result<(), Errno> {
        let Open::Directory(directory) = self.handles.get(handle, node)? else { return Err(Errno::BADF) };
        // A copy of the descriptor, as `self` changes meanwhile; they share the position.
        let directory = directory.try_clone().map_err(crate::server::errno)?;
        // Entries that were read and did not fit come again, so where it stands says nothing.
        fs::seek(&directory, SeekFrom::Start(offset))?;
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut entries = RawDir::new(&directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Err(error) if self.out.is_empty() => return Err(error),
                Err(_) => break,
                Ok(entry) => entry,
            };
            let name = entry.file_name();
            let bytes = (DIRENT_BYTES + name.count_bytes()).next_multiple_of(8) + if plus { ENTRY_BYTES } else { 0 };
            if (self.out.len() + bytes) as u64 > most {
                // Nothing at all would be the end.
                return if self.out.is_empty() { Err(Errno::INVAL) } else { Ok(()) };
            }
            let dots = [&b"."[..], b".."].contains(&name.to_bytes());
            let found = if plus && !dots { host::look_up(directory.as_fd(), name).ok() } else { None };
            let mut number = entry.ino();
            if plus {
                let start = self.out.len();
                let entered = found.is_some_and(|place| self.enter(place).is_ok());
                // With every descriptor in use, names are still told.
                if !entered {
                    self.out.resize(start + ENTRY_BYTES, 0);
                }
            }
            if name.to_bytes() == b".."
                && let Some(root) = &self.directory
                && node == crate::wire::ROOT_ID
            {
                number = root.inode;
            }
            put64(&mut self.out, number);
            put64(&mut self.out, entry.next_entry_cookie());
            put32(&mut self.out, u32::try_from(name.count_bytes()).unwrap_or(0));
            put32(&mut self.out, type_number(entry.file_type()));
            self.out.extend_from_slice(name.to_bytes());
            self.out.resize(self.out.len().next_multiple_of(8), 0);
        }
        Ok(())
    }
}

/// `DT_*`.
fn type_number(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        kind => kind.as_raw_mode() >> 12,
    }
}

//! Names: looked up, made, removed, moved.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, RenameFlags};
use rustix::io::Errno;

use crate::host;
use crate::request::Header;
use crate::server::Server;
use crate::wire::MOST_LINK_BYTES;

impl Server {
    /// Answers with the node of `name` in the directory `parent`.
    pub(crate) fn look_up(&mut self, parent: u64, name: &CStr) -> Result<(), Errno> {
        let place = host::look_up(self.place(parent)?, name)?;
        self.enter(place)
    }

    /// Answers with the node that `place` is.
    pub(crate) fn enter(&mut self, place: OwnedFd) -> Result<(), Errno> {
        let stat = host::stat(place.as_fd())?;
        let node = self.nodes.enter(place, &stat, self.most_nodes())?;
        self.put_entry(node, &stat);
        Ok(())
    }

    /// Pairs of node and count, as `FUSE_BATCH_FORGET` has them.
    pub(crate) fn forget_all(&mut self, pairs: &[u8]) {
        for pair in pairs.chunks_exact(16) {
            let long = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte));
            self.nodes.forget(long(&pair[..8]), long(&pair[8..]));
        }
    }

    /// Answers with the content of a link. It is the guest that follows it, in its own world.
    pub(crate) fn read_link(&mut self, node: u64) -> Result<(), Errno> {
        let mut content = [0; MOST_LINK_BYTES + 1];
        let count = fs::readlinkat_raw(self.place(node)?, c"", &mut content[..])?;
        self.out.extend_from_slice(&content[..count]);
        Ok(())
    }

    /// Makes a link with any content.
    pub(crate) fn symlink(&mut self, header: &Header, name: &CStr, target: &CStr) -> Result<(), Errno> {
        self.check_room()?;
        let directory = self.place(header.node)?;
        fs::symlinkat(target, directory, name)?;
        self.made(header, name, FileType::Symlink, 0)
    }

    /// Makes a directory.
    pub(crate) fn make_directory(&mut self, header: &Header, name: &CStr, mode: u32) -> Result<(), Errno> {
        self.check_room()?;
        let directory = self.place(header.node)?;
        host::unmasked(|| fs::mkdirat(directory, name, host::permissions(mode)))?;
        self.made(header, name, FileType::Directory, mode)
    }

    /// Makes a regular file, a FIFO, a socket, or the device 0:0, which opens nothing (overlayfs means «removed» by it).
    ///
    /// Errors: EPERM for other devices: whoever may open files of the host's could use them.
    pub(crate) fn make_node(&mut self, header: &Header, name: &CStr, mode: u32, rdev: u32) -> Result<(), Errno> {
        self.check_room()?;
        let directory = self.place(header.node)?;
        let kind = FileType::from_raw_mode(mode);
        match kind {
            FileType::RegularFile => {
                let file = host::create(directory, name, 0, mode)?;
                return self.given(header, name, file.as_fd(), mode);
            }
            FileType::Fifo | FileType::Socket => {}
            FileType::CharacterDevice if rdev == 0 => {}
            _ => return Err(Errno::PERM),
        }
        host::unmasked(|| fs::mknodat(directory, name, kind, host::permissions(mode), 0))?;
        self.made(header, name, kind, mode)
    }

    /// Gives what was just made under `name` to who asked for it, and answers with its node.
    fn made(&mut self, header: &Header, name: &CStr, kind: FileType, mode: u32) -> Result<(), Errno> {
        let place = host::look_up(self.place(header.node)?, name)?;
        let stat = host::stat(place.as_fd())?;
        // Somebody on the host may have put something else there meanwhile, and that is not to be given away.
        let own = rustix::process::geteuid().as_raw();
        let linked = kind != FileType::Directory && stat.st_nlink != 1;
        if host::kind(&stat) != kind || stat.st_uid != own || linked {
            return Err(Errno::STALE);
        }
        self.given(header, name, place.as_fd(), mode)
    }

    /// The same for what is made for certain. Where it cannot be given it is removed.
    fn given(&mut self, header: &Header, name: &CStr, made: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
        let directory = self.place(header.node)?;
        let place = host::place_of(made)?;
        if let Err(error) = self.owners.give(header, directory, place.as_fd(), mode) {
            let flags = match host::kind(&host::stat(made)?) {
                FileType::Directory => AtFlags::REMOVEDIR,
                _ => AtFlags::empty(),
            };
            let _ = fs::unlinkat(directory, name, flags);
            return Err(error);
        }
        self.enter(place)
    }

    /// Makes a regular file and opens it; one that is there already is opened as it is, unless the guest wants a new one.
    pub(crate) fn create(
        &mut self,
        header: &Header,
        name: &CStr,
        flags: u32,
        mode: u32,
        open_flags: u32,
    ) -> Result<(), Errno> {
        self.check_room()?;
        let exclusive = fs::OFlags::from_bits_retain(flags).contains(fs::OFlags::EXCL);
        match host::create(self.place(header.node)?, name, flags, mode) {
            Ok(file) => {
                self.given(header, name, file.as_fd(), mode)?;
                self.opened(self.entered(), file, flags)
            }
            Err(Errno::EXIST) if !exclusive => {
                self.look_up(header.node, name)?;
                // The guest looks once more for what kind of file it is.
                let place = self.file_place(self.entered()).map_err(|_| Errno::STALE)?;
                let file = host::open(place, flags)?;
                self.truncated(file.as_fd(), flags, open_flags)?;
                self.opened(self.entered(), file, flags)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a regular file without a name and opens it.
    pub(crate) fn create_nameless(&mut self, header: &Header, flags: u32, mode: u32) -> Result<(), Errno> {
        self.check_room()?;
        let directory = self.place(header.node)?;
        let file = host::create_nameless(directory, flags, mode)?;
        let place = host::place_of(file.as_fd())?;
        self.owners.give(header, directory, place.as_fd(), mode)?;
        self.enter(place)?;
        self.opened(self.entered(), file, flags)
    }

    /// The node of the entry that the answer begins with.
    fn entered(&self) -> u64 {
        self.out.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Removes a name.
    pub(crate) fn remove(&mut self, parent: u64, name: &CStr, directory: bool) -> Result<(), Errno> {
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        fs::unlinkat(self.place(parent)?, name, flags)
    }

    /// Moves a name, or exchanges two.
    pub(crate) fn rename(&mut self, from: u64, name: &CStr, to: u64, to_name: &CStr, flags: u32) -> Result<(), Errno> {
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        fs::renameat_with(self.place(from)?, name, self.place(to)?, to_name, flags)
    }

    /// Gives a node one more name, and answers with it.
    pub(crate) fn link(&mut self, directory: u64, node: u64, name: &CStr) -> Result<(), Errno> {
        let place = self.place(node)?;
        host::link(place, self.place(directory)?, name)?;
        let place = place.try_clone_to_owned().map_err(crate::server::errno)?;
        self.enter(place)
    }
}

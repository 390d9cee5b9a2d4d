//! One request after the other: from a checked request to its operation, and the session around them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat, openat};
use rustix::io::Errno;

use crate::handles::Handles;
use crate::host;
use crate::nodes::{Node, Nodes};
use crate::owner::Owners;
use crate::request::{Header, Request};
use crate::wire::{self, MAJOR, MINOR, MOST_DATA_BYTES, MOST_DATA_PAGES, OLDEST_MINOR, init};

/// Where the bytes of reads and writes go: straight between a file and the guest's memory.
pub trait Data {
    /// Reads at most `bytes` from `offset` of `file` to the start of the answer's payload. Returns how many; fewer at the end
    /// of the file or of the room.
    ///
    /// Errors: of the host.
    fn read(&mut self, file: &File, offset: u64, bytes: u64) -> io::Result<u64>;
    /// Writes the first `bytes` of the request's data to `offset` of `file`, or with `append` to its end. Returns how many.
    ///
    /// Errors: of the host, when it was none.
    fn write(&mut self, file: &File, offset: u64, bytes: u64, append: bool) -> io::Result<u64>;
}

/// What to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing.
    Silence,
    /// This error.
    Error(Errno),
    /// [`Server::payload`].
    Payload,
    /// So many bytes that [`Data::read`] has put there.
    Data(u64),
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) place: OwnedFd,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) read_only: bool,
}

/// Why a directory cannot be put in place or taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The guest has mounted what is there.
    Busy,
    /// It is no directory, or the host says so.
    Host(Errno),
}

/// A server for one guest.
#[derive(Debug)]
pub struct Server {
    pub(crate) directory: Option<Directory>,
    pub(crate) owners: Owners,
    /// The guest has mounted it: the minor version that both speak.
    pub(crate) session: Option<u32>,
    pub(crate) nodes: Nodes,
    pub(crate) handles: Handles,
    /// The answer.
    pub(crate) out: Vec<u8>,
    /// Descriptors that it may have.
    most: usize,
}

impl Server {
    /// A server without a directory, with at most `most` open descriptors.
    pub fn new(owners: Owners, most: usize) -> Server {
        let (nodes, handles) = (Nodes::default(), Handles::default());
        Server { directory: None, owners, session: None, nodes, handles, out: Vec::new(), most }
    }

    /// The guest has it mounted.
    pub fn is_mounted(&self) -> bool {
        self.session.is_some()
    }

    /// Makes `root`, opened in whatever way, what the next mount shows.
    ///
    /// Errors: while it is mounted, and for what is no directory.
    pub fn attach(&mut self, root: BorrowedFd<'_>, read_only: bool) -> Result<(), Refused> {
        if self.is_mounted() {
            return Err(Refused::Busy);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = openat(root, c".", flags, Mode::empty()).map_err(Refused::Host)?;
        let stat = host::stat(place.as_fd()).map_err(Refused::Host)?;
        self.directory = Some(Directory { place, device: stat.st_dev, inode: stat.st_ino, read_only });
        Ok(())
    }

    /// Takes the directory away: mounts fail from now on.
    ///
    /// Errors: while it is mounted.
    pub fn detach(&mut self) -> Result<(), Refused> {
        if self.is_mounted() {
            return Err(Refused::Busy);
        }
        self.directory = None;
        Ok(())
    }

    /// The guest is done with it, in whatever way: all that it knew is closed.
    pub fn end_session(&mut self) {
        self.session = None;
        self.nodes = Nodes::default();
        self.handles = Handles::default();
    }

    /// The answer to the last request, where it is [`Reply::Payload`].
    pub fn payload(&self) -> &[u8] {
        &self.out
    }

    /// Does one request: `body` is what follows the header, `room` what the answer's payload may have at most.
    pub fn serve(&mut self, header: &Header, body: &[u8], room: u64, data: &mut dyn Data) -> Reply {
        self.out.clear();
        let done = Request::parse(header, body).and_then(|request| self.perform(header, request, room, data));
        match done {
            _ if header.is_silent() => Reply::Silence,
            Ok(Some(bytes)) => Reply::Data(bytes),
            Ok(None) if self.out.len() as u64 <= room => Reply::Payload,
            Ok(None) => Reply::Error(Errno::INVAL),
            // Of the host's two words for it the guest has no limit to raise.
            Err(Errno::MFILE) => Reply::Error(Errno::NFILE),
            Err(error) => Reply::Error(error),
        }
    }

    /// `Some`: the payload is in place, and so long.
    fn perform(
        &mut self,
        header: &Header,
        request: Request<'_>,
        room: u64,
        data: &mut dyn Data,
    ) -> Result<Option<u64>, Errno> {
        match request {
            Request::Init { major, minor, max_readahead, flags } => self.init(major, minor, max_readahead, flags)?,
            Request::Destroy => self.end_session(),
            Request::Interrupt => {}
            _ if !self.is_mounted() => return Err(Errno::NOTCONN),
            _ if request.modifies() && self.is_read_only() => return Err(Errno::ROFS),
            Request::Read { handle, offset, size } => {
                let (file, _) = self.handles.file(handle, header.node)?;
                let size = size.min(MOST_DATA_BYTES);
                return data.read(file, offset, u64::from(size).min(room)).map(Some).map_err(errno);
            }
            other => self.answer(header, other, room, data)?,
        }
        Ok(None)
    }

    /// Operations whose answer is made here.
    fn answer(&mut self, header: &Header, request: Request<'_>, room: u64, data: &mut dyn Data) -> Result<(), Errno> {
        let node = header.node;
        match request {
            Request::Lookup(name) => self.look_up(node, name),
            Request::Forget(count) => {
                self.nodes.forget(node, count);
                Ok(())
            }
            Request::BatchForget(pairs) => {
                self.forget_all(pairs);
                Ok(())
            }
            Request::GetAttr => self.get_attributes(node),
            Request::SetAttr(set) => self.set_attributes(node, &set),
            Request::ReadLink => self.read_link(node),
            Request::Symlink { name, target } => self.symlink(header, name, target),
            Request::MkNod { name, mode, rdev } => self.make_node(header, name, mode, rdev),
            Request::MkDir { name, mode } => self.make_directory(header, name, mode),
            Request::Unlink(name) => self.remove(node, name, false),
            Request::RmDir(name) => self.remove(node, name, true),
            Request::Rename { name, to, to_name, flags } => self.rename(node, name, to, to_name, flags),
            Request::Link { from, name } => self.link(node, from, name),
            Request::Open { flags, open_flags } => self.open(node, flags, open_flags),
            Request::OpenDir => self.open_directory(node),
            Request::Create { name, flags, mode, open_flags } => self.create(header, name, flags, mode, open_flags),
            Request::TmpFile { flags, mode } => self.create_nameless(header, flags, mode),
            Request::Write { handle, offset, size, write_flags, flags } => {
                self.write(node, (handle, offset, size), write_flags, flags, data)
            }
            Request::StatFs => self.stat_fs(),
            Request::Release { handle } => self.handles.remove(handle, node),
            Request::Fsync { handle, data_only } => self.sync(node, handle, data_only),
            Request::SetXattr { name, value, flags } => self.set_xattr(node, name, value, flags),
            Request::GetXattr { name, size } => self.get_xattr(node, name, size),
            Request::ListXattr { size } => self.list_xattr(node, size),
            Request::RemoveXattr(name) => self.remove_xattr(node, name),
            Request::ReadDir { handle, offset, size, plus } => {
                let most = u64::from(size).min(room).min(MOST_DATA_BYTES.into());
                self.read_directory(node, handle, offset, most, plus)
            }
            Request::Lseek { handle, offset, whence } => self.seek(node, handle, offset, whence),
            Request::Fallocate { handle, offset, length, mode } => self.allocate(node, handle, (offset, length), mode),
            Request::CopyFileRange { from, to, length } => self.copy(from, to, length),
            // Done in perform().
            Request::Init { .. } | Request::Destroy | Request::Interrupt | Request::Read { .. } => Err(Errno::NOSYS),
        }
    }

    fn init(&mut self, major: u32, minor: u32, max_readahead: u32, flags: u32) -> Result<(), Errno> {
        self.end_session();
        let directory = self.directory.as_ref().ok_or(Errno::NODEV)?;
        if major < MAJOR || (major == MAJOR && minor < OLDEST_MINOR) {
            return Err(Errno::PROTO);
        }
        let root = directory.place.try_clone().map_err(errno)?;
        let stat = host::stat(root.as_fd())?;
        put32(&mut self.out, MAJOR);
        put32(&mut self.out, MINOR);
        if major == MAJOR {
            put32(&mut self.out, max_readahead);
            put32(&mut self.out, flags & init::WANTED);
            // Requests in the background: the guest's own choice.
            put32(&mut self.out, 0);
            put32(&mut self.out, MOST_DATA_BYTES);
            // Times are as fine as the host's.
            put32(&mut self.out, 1);
            put32(&mut self.out, MOST_DATA_PAGES.into());
            self.nodes = Nodes::new(Some(Node::new(root, &stat)));
            self.session = Some(minor.min(MINOR));
        }
        // A later major version asks once more, in ours.
        self.out.resize(64, 0);
        Ok(())
    }

    /// The directory is not to be changed.
    pub(crate) fn is_read_only(&self) -> bool {
        self.directory.as_ref().is_none_or(|directory| directory.read_only)
    }

    /// Descriptors that nodes may have.
    pub(crate) fn most_nodes(&self) -> usize {
        self.most.saturating_sub(self.handles.len())
    }

    /// There are descriptors left for a node and a handle of it.
    ///
    /// Errors: ENFILE.
    pub(crate) fn check_room(&self) -> Result<(), Errno> {
        if self.nodes.len() + self.handles.len() + 2 <= self.most { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// The place of a node.
    ///
    /// Errors: ESTALE.
    pub(crate) fn place(&self, node: u64) -> Result<BorrowedFd<'_>, Errno> {
        host::alive(self.nodes.get(node)?.fd.as_ref())
    }

    /// The same, of a regular file.
    ///
    /// Errors: EISDIR, ELOOP of a link, ENXIO of anything else: those are never opened here.
    pub(crate) fn file_place(&self, node: u64) -> Result<BorrowedFd<'_>, Errno> {
        match self.nodes.get(node)?.kind {
            FileType::RegularFile => self.place(node),
            FileType::Directory => Err(Errno::ISDIR),
            FileType::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NXIO),
        }
    }

    /// Attributes of a node.
    pub(crate) fn stat(&self, node: u64) -> Result<Stat, Errno> {
        host::stat(self.place(node)?)
    }
}

/// The guest's number for an error of the host's.
pub(crate) fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

pub(crate) fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

const _: () = assert!(MOST_DATA_BYTES == MOST_DATA_PAGES as u32 * 4096 && wire::OUT_HEADER_BYTES == 16);

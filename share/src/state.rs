//! All that a guest knows, as plain data: what a copy of it needs to go on.
//!
//! Descriptors cannot be kept, so a node is kept by its path below the directory, and is found there again if it is still the
//! same kind of file. One that is not is stale (ESTALE) until the guest looks its name up anew.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, readlinkat};
use rustix::io::Errno;

use crate::handles::{Handles, Open};
use crate::host::{self, FdPath};
use crate::nodes::{Node, Nodes};
use crate::server::Server;
use crate::wire::ROOT_ID;

/// A node, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedNode {
    /// The guest's number.
    pub id: u64,
    /// How often it was looked up.
    pub lookups: u64,
    /// Kind of file: `S_IFMT` bits.
    pub kind: u32,
    /// Device and inode on the host.
    pub identity: (u64, u64),
    /// Below the directory; empty for that itself. `None`: it has no name there any more.
    pub path: Option<Vec<u8>>,
}

/// Something open, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedHandle {
    /// The guest's number.
    pub id: u64,
    /// Of which node.
    pub node: u64,
    /// The guest's flags, of a file. `None`: a directory.
    pub flags: Option<u32>,
}

/// A server, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The guest has mounted the directory: the version that both speak.
    pub session: Option<u32>,
    /// Generations of the next node and the next handle.
    pub generations: (u32, u32),
    /// Nodes, by their numbers' places.
    pub nodes: Vec<SavedNode>,
    /// What is open.
    pub handles: Vec<SavedHandle>,
}

impl Server {
    /// The state. What is deleted or was moved out of the directory has no path.
    pub fn save(&self) -> State {
        let root = self.directory.as_ref().map(|directory| directory.place.as_fd());
        let root = root.and_then(|root| Some((root, path_of(root)?)));
        let path = |node: &Node| {
            let (root, own) = root.as_ref()?;
            let path = below(own, &path_of(node.fd.as_ref()?.as_fd())?)?;
            // What has no name any more has one in /proc that may be another file's.
            let found = host::stat(host::find(*root, &path).ok()?.as_fd()).ok()?;
            ((found.st_dev, found.st_ino) == node.identity).then_some(path)
        };
        let nodes = self.nodes.iter().map(|(id, node)| SavedNode {
            id,
            lookups: node.lookups,
            kind: node.kind.as_raw_mode(),
            identity: node.identity,
            path: path(node),
        });
        let handles = self.handles.iter().map(|(id, node, open)| SavedHandle {
            id,
            node,
            flags: match open {
                Open::File(_, flags) => Some(*flags),
                Open::Directory(_) => None,
            },
        });
        State {
            session: self.session,
            generations: (self.nodes.generation(), self.handles.generation()),
            nodes: nodes.collect(),
            handles: handles.collect(),
        }
    }

    /// Takes a state back, with the directory that is in place now. What is not found stays stale; what was open of it is closed.
    pub fn load(&mut self, state: State) {
        self.end_session();
        let Some(directory) = &self.directory else { return };
        let nodes = state.nodes.iter().take(self.most_nodes()).map(|saved| {
            let fd = saved.path.as_ref().and_then(|path| host::find(directory.place.as_fd(), path).ok());
            let same = |fd: &OwnedFd| {
                let stat = host::stat(fd.as_fd()).ok()?;
                (host::kind(&stat).as_raw_mode() == saved.kind).then_some((stat.st_dev, stat.st_ino))
            };
            let found = fd.and_then(|fd| same(&fd).map(|identity| (fd, identity)));
            let kind = FileType::from_raw_mode(saved.kind);
            let lookups = saved.lookups;
            let node = match found {
                Some((fd, identity)) => Node { fd: Some(fd), identity, kind, lookups },
                None => Node { fd: None, identity: saved.identity, kind, lookups },
            };
            (saved.id, node)
        });
        let (of_nodes, of_handles) = state.generations;
        self.nodes = Nodes::restore(of_nodes, nodes);
        // Without a root there is no session.
        if self.nodes.get(ROOT_ID).is_err() {
            return self.end_session();
        }
        self.session = state.session;
        let left = self.most_nodes().saturating_sub(self.nodes.len());
        let open = |saved: &SavedHandle| Ok::<_, Errno>((saved.id, saved.node, self.open_again(saved)?));
        let handles: Vec<_> = state.handles.iter().take(left).filter_map(|saved| open(saved).ok()).collect();
        self.handles = Handles::restore(of_handles, handles.into_iter());
    }

    fn open_again(&self, saved: &SavedHandle) -> Result<Open, Errno> {
        const O_TRUNC: u32 = 0o1000;
        Ok(match saved.flags {
            Some(flags) => {
                // Not emptied again, and not written to where that is not allowed any more.
                let flags = flags & !O_TRUNC;
                if self.is_read_only() && flags & 3 != 0 {
                    return Err(Errno::ROFS);
                }
                Open::File(File::from(host::open(self.file_place(saved.node)?, flags)?), flags)
            }
            None => Open::Directory(host::open_directory(self.place(saved.node)?)?),
        })
    }
}

/// Where the host has it now.
fn path_of(place: BorrowedFd<'_>) -> Option<Vec<u8>> {
    readlinkat(CWD, FdPath::new(place).as_c_str(), Vec::new()).ok().map(std::ffi::CString::into_bytes)
}

/// The part of `path` below `root`.
fn below(root: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let rest = path.strip_prefix(root)?;
    match rest.first() {
        None => Some(Vec::new()),
        Some(b'/') => Some(rest[1..].to_vec()),
        // The root is `/` itself.
        Some(_) if root == b"/" => Some(rest.to_vec()),
        Some(_) => None,
    }
}

//! A guest's side of the protocol, on a directory of the host's that is really there.

mod escapes;
mod limits;
mod operations;
mod states;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

use crate::owner::Owners;
use crate::request::Header;
use crate::server::{Data, Reply, Server};
use crate::wire::{IN_HEADER_BYTES, OUT_HEADER_BYTES, ROOT_ID, WRITE_IN_BYTES, opcode};

const ROOM: u64 = 1 << 20;

/// A directory that is gone at the end, whose subdirectory `share` is shared.
pub struct Place(PathBuf);

impl Place {
    pub fn new() -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machinen-share-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("share")).expect("a writable temporary directory");
        Place(path)
    }

    /// A path in the shared directory.
    pub fn at(&self, path: &str) -> PathBuf {
        self.0.join("share").join(path)
    }

    /// A path beside it.
    pub fn outside(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("clean up");
    }
}

/// The guest's memory.
#[derive(Default)]
pub struct Memory {
    pub read: Vec<u8>,
    pub written: Vec<u8>,
}

impl Data for Memory {
    fn read(&mut self, file: &File, offset: u64, bytes: u64) -> io::Result<u64> {
        self.read.resize(usize::try_from(bytes).expect("room"), 0);
        let count = file.read_at(&mut self.read, offset)?;
        self.read.truncate(count);
        Ok(count as u64)
    }

    fn write(&mut self, file: &File, offset: u64, bytes: u64, append: bool) -> io::Result<u64> {
        let bytes = usize::try_from(bytes).expect("short").min(self.written.len());
        let offset = if append { file.metadata()?.len() } else { offset };
        file.write_all_at(&self.written[..bytes], offset)?;
        Ok(bytes as u64)
    }
}

/// A guest.
pub struct Guest {
    pub server: Server,
    pub memory: Memory,
    pub user: (u32, u32),
}

/// A node and its attributes, as an entry has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub node: u64,
    pub inode: u64,
    pub size: u64,
    pub mode: u32,
    pub links: u32,
    pub owner: (u32, u32),
    pub mtime: (u64, u32),
}

impl Guest {
    /// One that has mounted the directory of `place`.
    pub fn new(place: &Place) -> Guest {
        Guest::with(place, false, Owners::of_process())
    }

    pub fn with(place: &Place, read_only: bool, owners: Owners) -> Guest {
        let mut server = Server::new(owners, 1000);
        let root = File::open(place.at("")).expect("the directory");
        server.attach(root.as_fd(), read_only).expect("attached");
        let mut guest = Guest { server, memory: Memory::default(), user: (0, 0) };
        guest.mount().expect("mounted");
        guest
    }

    pub fn mount(&mut self) -> Result<Vec<u8>, Errno> {
        self.ask(opcode::INIT, ROOT_ID, &[words(&[7, 41, 1 << 17, u32::MAX]), vec![0; 48]].concat())
    }

    /// Sends a request; gives the payload of the answer.
    pub fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        match self.reply(opcode, node, body, ROOM) {
            Reply::Silence => Ok(Vec::new()),
            Reply::Error(errno) => Err(errno),
            Reply::Payload => Ok(self.server.payload().to_vec()),
            Reply::Data(bytes) => Ok(self.memory.read[..usize::try_from(bytes).expect("room")].to_vec()),
        }
    }

    pub fn reply(&mut self, opcode: u32, node: u64, body: &[u8], room: u64) -> Reply {
        let mut bytes = [0; IN_HEADER_BYTES];
        let length = u32::try_from(IN_HEADER_BYTES + body.len()).expect("short");
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
        bytes[16..24].copy_from_slice(&node.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.user.0.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.user.1.to_le_bytes());
        self.server.serve(&Header::parse(&bytes), body, room, &mut self.memory)
    }

    pub fn look_up(&mut self, parent: u64, name: &str) -> Result<Entry, Errno> {
        self.ask(opcode::LOOKUP, parent, &text(name)).map(|answer| entry(&answer))
    }

    /// Looks a path up, component by component.
    pub fn walk(&mut self, path: &str) -> Result<Entry, Errno> {
        let mut found = Err(Errno::INVAL);
        let mut node = ROOT_ID;
        for name in path.split('/') {
            found = self.look_up(node, name);
            node = found?.node;
        }
        found
    }

    pub fn attributes(&mut self, node: u64) -> Result<Entry, Errno> {
        let answer = self.ask(opcode::GETATTR, node, &[0; 16])?;
        Ok(attributes(node, &answer[16..]))
    }

    pub fn forget(&mut self, node: u64, count: u64) {
        self.ask(opcode::FORGET, node, &longs(&[count])).expect("no answer");
    }

    pub fn make_directory(&mut self, parent: u64, name: &str, mode: u32) -> Result<Entry, Errno> {
        self.ask(opcode::MKDIR, parent, &[words(&[mode, 0]), text(name)].concat()).map(|answer| entry(&answer))
    }

    pub fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Result<Entry, Errno> {
        self.ask(opcode::SYMLINK, parent, &[text(name), text(target)].concat()).map(|answer| entry(&answer))
    }

    pub fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<(), Errno> {
        let body = [longs(&[to.0]), words(&[flags, 0]), text(from.1), text(to.1)].concat();
        self.ask(opcode::RENAME2, from.0, &body).map(drop)
    }

    pub fn unlink(&mut self, parent: u64, name: &str) -> Result<(), Errno> {
        self.ask(opcode::UNLINK, parent, &text(name)).map(drop)
    }

    /// Makes a file and opens it; gives its entry and handle.
    pub fn create(&mut self, parent: u64, name: &str, flags: u32, mode: u32) -> Result<(Entry, u64), Errno> {
        let answer = self.ask(opcode::CREATE, parent, &[words(&[flags, mode, 0o22, 0]), text(name)].concat())?;
        Ok((entry(&answer), long(&answer, 128)))
    }

    pub fn open(&mut self, node: u64, flags: u32) -> Result<u64, Errno> {
        self.ask(opcode::OPEN, node, &words(&[flags, 0])).map(|answer| long(&answer, 0))
    }

    pub fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        self.ask(opcode::READ, node, &[longs(&[handle, offset]), words(&[size, 0, 0, 0, 0, 0])].concat())
    }

    pub fn write(&mut self, node: u64, handle: u64, offset: u64, bytes: &[u8]) -> Result<u64, Errno> {
        self.write_with(node, handle, offset, bytes, 0, 2)
    }

    pub fn write_with(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        bytes: &[u8],
        write_flags: u32,
        flags: u32,
    ) -> Result<u64, Errno> {
        self.memory.written = bytes.to_vec();
        let size = u32::try_from(bytes.len()).expect("short");
        let body = [longs(&[handle, offset]), words(&[size, write_flags, 0, 0, flags, 0])].concat();
        assert_eq!(body.len(), WRITE_IN_BYTES);
        self.ask(opcode::WRITE, node, &body).map(|answer| long(&answer, 0))
    }

    pub fn set_attributes(&mut self, node: u64, set: &Set) -> Result<Entry, Errno> {
        let body = [
            words(&[set.valid, 0]),
            longs(&[set.handle, set.size, 0, set.atime.0, set.mtime.0, 0]),
            words(&[set.atime.1, set.mtime.1, 0, set.mode, 0, set.owner.0, set.owner.1, 0]),
        ];
        let answer = self.ask(opcode::SETATTR, node, &body.concat())?;
        Ok(attributes(node, &answer[16..]))
    }

    /// Everything in a directory: name, inode, kind, and with `plus` the node.
    pub fn list(&mut self, node: u64, plus: bool, size: u32) -> Result<Vec<(String, u64, u32, u64)>, Errno> {
        let handle = long(&self.ask(opcode::OPENDIR, node, &[0; 8])?, 0);
        let (mut found, mut offset) = (Vec::new(), 0);
        let number = if plus { opcode::READDIRPLUS } else { opcode::READDIR };
        loop {
            let body = [longs(&[handle, offset]), words(&[size, 0, 0, 0, 0, 0])].concat();
            let answer = self.ask(number, node, &body)?;
            if answer.is_empty() {
                break;
            }
            let mut rest = &answer[..];
            while !rest.is_empty() {
                let own = if plus { long(rest, 0) } else { 0 };
                let entry = if plus { &rest[128..] } else { rest };
                let length = usize::try_from(word(entry, 16)).expect("short");
                let name = String::from_utf8(entry[24..24 + length].to_vec()).expect("text");
                found.push((name, long(entry, 0), word(entry, 20), own));
                offset = long(entry, 8);
                rest = &entry[(24 + length).next_multiple_of(8)..];
            }
        }
        self.ask(opcode::RELEASEDIR, node, &[longs(&[handle]), vec![0; 16]].concat())?;
        Ok(found)
    }
}

/// What to set; see `FATTR_*`.
#[derive(Default)]
pub struct Set {
    pub valid: u32,
    pub handle: u64,
    pub size: u64,
    pub atime: (u64, u32),
    pub mtime: (u64, u32),
    pub mode: u32,
    pub owner: (u32, u32),
}

pub fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

pub fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn entry(answer: &[u8]) -> Entry {
    assert!(answer.len() >= 128, "an entry");
    assert_eq!((long(answer, 16), long(answer, 24)), (1, 1), "valid for a second");
    attributes(long(answer, 0), &answer[40..])
}

fn attributes(node: u64, bytes: &[u8]) -> Entry {
    Entry {
        node,
        inode: long(bytes, 0),
        size: long(bytes, 8),
        mode: word(bytes, 60),
        links: word(bytes, 64),
        owner: (word(bytes, 68), word(bytes, 72)),
        mtime: (long(bytes, 32), word(bytes, 52)),
    }
}

/// This process is root, and may give files away.
pub fn is_root() -> bool {
    Owners::of_process() == Owners::Same
}

/// Content of a file of the host's.
pub fn content(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(path).expect("a file")
}

#[test]
fn a_mount_agrees_on_a_version_and_features() {
    let place = Place::new();
    let mut guest = Guest::new(&place);
    let answer = guest.mount().expect("mounted again");
    assert_eq!(answer.len(), 64);
    assert_eq!((word(&answer, 0), word(&answer, 4)), (7, 37));
    assert_eq!(word(&answer, 12), crate::wire::init::WANTED);
    assert_eq!(word(&answer, 20), 1 << 20);
    assert!(u64::try_from(OUT_HEADER_BYTES).is_ok_and(|bytes| bytes == 16));
    // Too old, and a version that is to be asked for again.
    assert_eq!(guest.ask(opcode::INIT, 1, &words(&[7, 30, 0, 0])), Err(Errno::PROTO));
    let later = guest.ask(opcode::INIT, 1, &words(&[8, 0, 0, 0])).expect("ours");
    assert_eq!((word(&later, 0), guest.server.is_mounted()), (7, false));
}

//! From a tree to an ext4 image.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use machinen_initramfs::error::{show, show_path};
use mkext4::{FsBuilder, InodeHandle, Meta, ROOT, SparseSeg, SpecialKind};

use super::directory;
use super::tree::{self, Body, Id, Inode, Node, Tree};
use super::window::Window;
use crate::ext4::{self, BLOCK_BYTES, Positioned, limit, written};
use crate::fault::{Fault, Result};
use crate::phases::Phases;

/// Neighbouring small bodies are read in one call.
const WINDOW_BYTES: usize = 256 << 10;
/// A directory of the tree needs a block or more.
const DIRECTORY_BYTES: u64 = BLOCK_BYTES;
/// The directory that every ext4 file system has.
const LOST_FOUND: &[u8] = b"lost+found";
/// Seconds that an ext4 inode holds.
const TIMES: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;

/// What bodies are read from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A tar file.
    Tar(&'a File),
    /// A directory, and its path for messages.
    Directory(&'a OwnedFd, &'a Path),
}

/// Everything that makes an image.
#[derive(Debug)]
pub struct Input<'a> {
    /// How messages name the source.
    pub name: &'a str,
    /// The tree.
    pub tree: &'a Tree,
    /// What it was read from.
    pub source: Source<'a>,
    /// Bodies with holes.
    pub spool: &'a File,
}

impl Input<'_> {
    /// Bytes that the content takes: bodies and directories, in whole blocks.
    pub fn content_bytes(&self) -> u64 {
        let bytes = self.tree.inodes().iter().map(|inode| match &inode.node {
            Node::File(Body::Spool(_, segments), _) => segments.iter().filter(|s| s.1).map(|s| s.0).sum(),
            Node::File(_, bytes) => *bytes,
            Node::Directory(_) => DIRECTORY_BYTES,
            _ => 0,
        });
        bytes.fold(0, |sum, bytes| sum.saturating_add(bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)))
    }

    /// Writes the image, of `bytes`, to `file`.
    pub fn write(&self, file: &File, bytes: u64, uuid: [u8; 16], phases: &mut Phases) -> Result<()> {
        let inodes = self.tree.inodes();
        let mut plan =
            Plan { input: self, builder: ext4::builder(bytes, uuid, inodes.len() as u64)?, files: Vec::new() };
        plan.declare()?;
        let Plan { builder, mut files, .. } = plan;
        let layout = builder.seal().map_err(|e| self.too_small(limit(e), bytes))?;
        phases.end("plan");
        file.set_len(bytes).map_err(written)?;
        // In the order of the source: it is read, and the image written, from front to back.
        files.sort_unstable_by_key(|(id, _)| *id);
        let mut writer = layout.writer(Positioned(file)).map_err(failed)?;
        let mut bodies = Bodies::new(self);
        let total: u64 = files.iter().map(|(id, _)| length(&inodes[*id])).sum();
        let mut done = 0;
        for (id, handle) in files {
            let Node::File(body, len_bytes) = &inodes[id].node else { continue };
            let filled = bodies.open(body, *len_bytes)?;
            let mut body = Watch { inner: filled, failure: None };
            let written = writer.fill(handle, &mut body);
            if let Err(e) = written {
                return Err(match body.failure {
                    Some(cause) => self.unreadable(&inodes[id], cause),
                    None => failed(e),
                });
            }
            done += len_bytes;
            phases.progress("packing", done, total);
        }
        writer.finish().map_err(failed)?;
        phases.end("write");
        Ok(())
    }

    /// The bytes of a file in the tree, if there are at most `max_bytes`.
    pub fn read(&self, path: &[u8], max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let Some((body, len_bytes)) = self.tree.file(path).filter(|(_, bytes)| *bytes <= max_bytes) else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let mut bodies = Bodies::new(self);
        bodies
            .open(body, len_bytes)?
            .read_to_end(&mut bytes)
            .map_err(|e| Fault::host("read", self.name.as_ref(), e))?;
        Ok(Some(bytes))
    }

    fn unreadable(&self, inode: &Inode, cause: io::Error) -> Fault {
        match (&inode.node, cause.kind()) {
            (Node::File(Body::Host(path), _), io::ErrorKind::UnexpectedEof) => {
                Fault::Changed(format!("{}: {}: became shorter while it was read", self.name, show(path)))
            }
            (_, io::ErrorKind::UnexpectedEof) => {
                Fault::Changed(format!("{}: became shorter while it was read", self.name))
            }
            _ => Fault::host("read", self.name.as_ref(), cause),
        }
    }

    fn too_small(&self, fault: Fault, bytes: u64) -> Fault {
        match fault {
            Fault::Limit(why) => Fault::Limit(format!(
                "{}: {} MiB of content in an image of {} MiB: {why}",
                self.name,
                self.content_bytes().div_ceil(1 << 20),
                bytes >> 20,
            )),
            other => other,
        }
    }
}

fn length(inode: &Inode) -> u64 {
    match inode.node {
        Node::File(_, bytes) => bytes,
        _ => 0,
    }
}

fn failed(error: mkext4::Error) -> Fault {
    match error {
        mkext4::Error::Io(cause) => written(cause),
        other => limit(other),
    }
}

struct Plan<'a> {
    input: &'a Input<'a>,
    builder: FsBuilder,
    /// Files that have bytes to be written.
    files: Vec<(Id, InodeHandle)>,
}

impl Plan<'_> {
    /// Declares directories, then the rest by number, so that bodies lie in the image as in the source.
    fn declare(&mut self) -> Result<()> {
        let tree = self.input.tree;
        let inodes = tree.inodes();
        let mut handles: Vec<Option<InodeHandle>> = vec![None; inodes.len()];
        handles[tree::ROOT] = Some(ROOT);
        self.builder.set_meta(ROOT, meta(&inodes[tree::ROOT])).map_err(limit)?;
        self.attributes(ROOT, &inodes[tree::ROOT], b"/")?;
        let mut pending = vec![(tree::ROOT, ROOT)];
        let mut names = Vec::new();
        while let Some((dir, handle)) = pending.pop() {
            for (name, id) in tree.names(dir) {
                let inode = &inodes[id];
                if dir == tree::ROOT && name == LOST_FOUND {
                    // The writer makes it itself.
                    match &inode.node {
                        Node::Directory(names) if names.is_empty() => continue,
                        _ => return Err(self.taken(name)),
                    }
                }
                if !matches!(inode.node, Node::Directory(_)) {
                    names.push((id, handle, name));
                    continue;
                }
                let made = self.builder.mkdir(handle, self.text(name)?, meta(inode));
                let made = made.map_err(|e| self.refused(name, e))?;
                self.attributes(made, inode, name)?;
                pending.push((id, made));
            }
        }
        names.sort_unstable_by_key(|(id, ..)| *id);
        for (id, parent, name) in names {
            let text = self.text(name)?;
            match handles[id] {
                Some(first) => self.builder.hardlink(parent, text, first).map_err(|e| self.refused(name, e))?,
                None => handles[id] = Some(self.node(id, parent, name, text)?),
            }
        }
        Ok(())
    }

    fn node(&mut self, id: Id, parent: InodeHandle, name: &[u8], text: &str) -> Result<InodeHandle> {
        let inode = &self.input.tree.inodes()[id];
        let meta = meta(inode);
        let builder = &mut self.builder;
        let made = match &inode.node {
            Node::File(Body::Spool(_, segments), _) => {
                let segments: Vec<_> = segments.iter().map(|&(bytes, is_data)| segment(bytes, is_data)).collect();
                builder.file_sparse(parent, text, meta, &segments)
            }
            Node::File(_, bytes) => builder.file(parent, text, meta, *bytes),
            Node::Symlink(target) => {
                let target = self.text(target)?;
                self.builder.symlink(parent, text, target, meta)
            }
            Node::Char(major, minor) => {
                builder.mknod(parent, text, meta, SpecialKind::Char { major: *major, minor: *minor })
            }
            Node::Block(major, minor) => {
                builder.mknod(parent, text, meta, SpecialKind::Block { major: *major, minor: *minor })
            }
            Node::Fifo | Node::Directory(_) => builder.mknod(parent, text, meta, SpecialKind::Fifo),
        };
        let made = made.map_err(|e| self.refused(name, e))?;
        self.attributes(made, inode, name)?;
        let has_data = match &inode.node {
            Node::File(Body::Spool(_, segments), _) => segments.iter().any(|(_, is_data)| *is_data),
            Node::File(_, bytes) => *bytes > 0,
            _ => false,
        };
        if has_data {
            self.files.push((id, made));
        }
        Ok(made)
    }

    fn attributes(&mut self, handle: InodeHandle, inode: &Inode, name: &[u8]) -> Result<()> {
        for (attribute, value) in &inode.meta.xattrs {
            self.builder.set_xattr(handle, attribute, value).map_err(|e| self.refused(name, e))?;
        }
        Ok(())
    }

    fn text<'n>(&self, name: &'n [u8]) -> Result<&'n str> {
        std::str::from_utf8(name).map_err(|_| {
            let why = "is not UTF-8, and the image writer takes nothing else".to_string();
            Fault::Path(self.input.name.to_string(), show(name), why)
        })
    }

    fn taken(&self, name: &[u8]) -> Fault {
        let why = "is where e2fsck puts files, and has some".to_string();
        Fault::Path(self.input.name.to_string(), show(name), why)
    }

    fn refused(&self, name: &[u8], error: mkext4::Error) -> Fault {
        match limit(error) {
            Fault::Limit(why) => Fault::Path(self.input.name.to_string(), show(name), why),
            other => other,
        }
    }
}

fn segment(bytes: u64, is_data: bool) -> SparseSeg {
    if is_data { SparseSeg::Data(bytes) } else { SparseSeg::Hole(bytes) }
}

fn meta(inode: &Inode) -> Meta {
    let meta = &inode.meta;
    let seconds = meta.mtime.0.clamp(*TIMES.start(), *TIMES.end());
    Meta::new(meta.mode, meta.uid, meta.gid, (seconds, meta.mtime.1))
}

/// Opens bodies.
struct Bodies<'a> {
    source: Source<'a>,
    tar: Option<Window<'a>>,
    spool: Window<'a>,
}

impl<'a> Bodies<'a> {
    fn new(input: &Input<'a>) -> Self {
        let tar = match input.source {
            Source::Tar(file) => Some(Window::new(file, WINDOW_BYTES)),
            Source::Directory(..) => None,
        };
        Bodies { source: input.source, tar, spool: Window::new(input.spool, WINDOW_BYTES) }
    }

    /// The bytes of a body, from its start; fewer than `len_bytes` if its file was cut short.
    fn open<'b>(&'b mut self, body: &Body, len_bytes: u64) -> Result<Box<dyn Read + 'b>>
    where
        'a: 'b,
    {
        let window = match (body, self.source) {
            (Body::Host(path), Source::Directory(root, dir)) => return host(root, dir, path, len_bytes),
            (Body::Tar(start), _) => self.tar.as_mut().map(|window| (window, *start)),
            (Body::Spool(start, _), _) => Some((&mut self.spool, *start)),
            (Body::Host(_), Source::Tar(_)) => None,
        };
        let Some((window, start)) = window else { return Ok(Box::new(io::empty())) };
        window.go_to(start);
        Ok(Box::new(window.take(len_bytes)))
    }
}

fn host(root: &OwnedFd, dir: &Path, path: &[u8], len_bytes: u64) -> Result<Box<dyn Read>> {
    use std::os::unix::ffi::OsStrExt;
    let whole = dir.join(std::ffi::OsStr::from_bytes(path));
    let file = directory::open(root.as_fd(), path).map_err(|e| Fault::host("open", &whole, e))?;
    let file = File::from(file);
    let found = file.metadata().map_err(|e| Fault::host("stat", &whole, e))?;
    if found.len() != len_bytes || !found.is_file() {
        return Err(Fault::Changed(format!("{}: changed while it was read", show_path(&whole))));
    }
    Ok(Box::new(file))
}

/// Remembers the failure of a read, which the writer turns into a text.
struct Watch<R> {
    inner: R,
    failure: Option<io::Error>,
}

impl<R: Read> Read for Watch<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(0) if !buffer.is_empty() => {
                self.failure = Some(io::ErrorKind::UnexpectedEof.into());
                Ok(0)
            }
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                self.failure = Some(io::Error::new(e.kind(), e.to_string()));
                Err(e)
            }
            other => other,
        }
    }
}

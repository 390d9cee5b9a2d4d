//! From a tree to a newc archive.

use std::fs::File;
use std::io::{self, Write};
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

use rustix::fs::{Mode, OFlags, openat};

use crate::error::{Error, Result, show};
use crate::newc::{self, Entry, Kind, MAX_PATH_BYTES, TRAILER, Writer};
use crate::output::Output;
use crate::tree::{Body, Found, Node, Tree};

/// What an archive of a tree will be, known before its first byte is written.
#[derive(Debug)]
pub struct Plan {
    /// Size of the whole archive.
    pub bytes: u64,
    /// Number of names of each inode.
    names: Vec<u32>,
}

impl Plan {
    /// Measures `tree`. Fails on a path that the format cannot hold, so that nothing of a bad archive is written.
    pub fn new(tree: &Tree) -> Result<Self> {
        let mut plan = Plan { bytes: newc::entry_bytes(TRAILER.len(), 0), names: vec![0; tree.inode_count()] };
        let mut entries = tree.entries();
        while let Some((path, id)) = entries.step() {
            if path.len() > MAX_PATH_BYTES || path == TRAILER {
                let why = if path == TRAILER { newc::NameFault::Trailer } else { newc::NameFault::TooLong };
                return Err(Error::Limit(show(path), format!("{why}")));
            }
            let names = &mut plan.names[id.index()];
            *names += 1;
            let body_bytes = match tree.found(id) {
                Found::Node(Node::File(_, len_bytes)) if *names == 1 => *len_bytes,
                Found::Node(Node::Symlink(target)) => target.len() as u64,
                _ => 0,
            };
            plan.bytes += newc::entry_bytes(path.len(), body_bytes);
        }
        Ok(plan)
    }
}

/// Sizes of the entries directly below `dir` in an archive, largest first.
pub fn largest_below(tree: &Tree, dir: &[u8]) -> Vec<(String, u64)> {
    let mut sizes: Vec<(String, u64)> = Vec::new();
    let mut entries = tree.entries();
    while let Some((path, id)) = entries.step() {
        let Some(rest) = path.strip_prefix(dir).and_then(|rest| rest.strip_prefix(b"/")) else {
            continue;
        };
        let body_bytes = match tree.found(id) {
            Found::Node(Node::File(_, len_bytes)) => *len_bytes,
            _ => 0,
        };
        let size = newc::entry_bytes(path.len(), body_bytes);
        // The entries of one top name follow each other.
        match sizes.last_mut() {
            Some((_, sum)) if rest.contains(&b'/') => *sum += size,
            _ => sizes.push((show(rest), size)),
        }
    }
    sizes.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    sizes
}

/// Writes `tree`, which `plan` was made of, to `out` and flushes it.
///
/// Inodes are numbered from 1 in the order of their first name. The body of a file with several names comes with the
/// last, where GNU cpio puts it; the kernel takes it with any.
pub fn pack<W: Write>(tree: &Tree, plan: &Plan, out: &mut Output<W>) -> Result<()> {
    let mut writer = Writer::new(&mut *out);
    let mut numbers = vec![0_u32; tree.inode_count()];
    let mut unwritten = plan.names.clone();
    let mut latest = 0;
    let mut entries = tree.entries();
    while let Some((path, id)) = entries.step() {
        let found = tree.found(id);
        unwritten[id.index()] -= 1;
        let is_last = unwritten[id.index()] == 0;
        let (kind, nlink) = describe(found, plan.names[id.index()], is_last);
        // The kernel never links symlinks, so each gets an inode of its own.
        if numbers[id.index()] == 0 || nlink == 1 {
            latest += 1;
            numbers[id.index()] = latest;
        }
        let meta = tree.meta(id);
        let entry = Entry {
            path,
            kind,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            ino: numbers[id.index()],
            nlink,
        };
        writer.entry(&entry)?;
        if let Found::Node(Node::File(body, _)) = found
            && is_last
        {
            copy(&mut writer, path, body)?;
        }
    }
    let out = writer.finish()?;
    out.flush().map_err(Error::Output)
}

fn describe(found: Found<'_>, names: u32, is_last: bool) -> (Kind<'_>, u32) {
    match found {
        Found::Directory => (Kind::Directory, 2),
        Found::Node(Node::File(_, len_bytes)) => {
            let len_bytes = if is_last { *len_bytes } else { 0 };
            (Kind::File { len_bytes }, names)
        }
        Found::Node(Node::Symlink(target)) => (Kind::Symlink(target), 1),
        Found::Node(Node::Char(device)) => (Kind::Char(*device), names),
        Found::Node(Node::Block(device)) => (Kind::Block(*device), names),
        Found::Node(Node::Fifo) => (Kind::Fifo, names),
    }
}

fn copy<W: Write>(writer: &mut Writer<&mut Output<W>>, path: &[u8], body: &Body) -> Result<()> {
    let changed = |why| Error::Changed(show(path), why);
    match body {
        Body::Bytes(bytes) => writer.data(bytes).map_err(written),
        Body::Range(file, offset_bytes) => writer.copy_with(|out, want| {
            let done = out.copy_range(file, *offset_bytes, want);
            let done = done.map_err(Error::Output)?;
            let n = done.map_err(|cause| Error::host("read", show(path).as_ref(), cause))?;
            if n < want {
                return Err(changed("became shorter while it was read"));
            }
            Ok(n)
        }),
        Body::Host(dir, name) => {
            let named = |operation, cause: io::Error| {
                use std::os::unix::ffi::OsStrExt;
                let name = std::ffi::OsStr::from_bytes(name);
                Error::host(operation, &dir.path.join(name), cause)
            };
            // Whatever took the file's place since it was listed must neither be followed nor waited for.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let file = openat(&dir.fd, &**name, flags, Mode::empty());
            let file = File::from(file.map_err(|e| named("open", e.into()))?);
            writer.copy_with(|out, want| {
                let done = out.copy_file(&file, want).map_err(Error::Output)?;
                match done.map_err(|cause| named("read", cause))? {
                    (n, _) if n < want => Err(changed("became shorter while it was read")),
                    (_, true) => Err(changed("became longer while it was read")),
                    (n, false) => Ok(n),
                }
            })
        }
    }
}

/// The writer's errors in the words of this crate.
fn written(e: newc::Error<io::Error>) -> Error {
    match e {
        newc::Error::Sink(cause) => Error::Output(cause),
        newc::Error::Path(path, why) | newc::Error::Target(path, why) => Error::Limit(show(&path), format!("{why}")),
        newc::Error::TooLarge { path, len_bytes } => too_large(&path, len_bytes),
        newc::Error::Short { path, .. } => Error::Changed(show(&path), "became shorter while it was read"),
        newc::Error::Long { path } => Error::Changed(show(&path), "became longer while it was read"),
    }
}

impl From<newc::Error<io::Error>> for Error {
    fn from(e: newc::Error<io::Error>) -> Self {
        written(e)
    }
}

/// A file beyond what the format's length field holds.
pub(crate) fn too_large(path: &[u8], len_bytes: u64) -> Error {
    let why = format!("{len_bytes} bytes, cpio files end at 4294967295");
    Error::Limit(show(path), why)
}

/// Refuses a file of this length if the format cannot hold it.
pub(crate) fn check_length(path: &[u8], len_bytes: u64) -> Result<()> {
    if len_bytes > newc::MAX_FILE_BYTES {
        return Err(too_large(path, len_bytes));
    }
    Ok(())
}

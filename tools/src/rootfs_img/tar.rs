//! A tar file as a tree: ustar, GNU and pax, with owners, times, extended attributes, device nodes and links.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::rc::Rc;

use machinen_initramfs::error::{reason, show};
use machinen_initramfs::watched::Watched;
use tar::{Archive, Entry, EntryType};

use super::acl;
use super::tree::{Body, Meta, Node, Tree};
use super::window::Window;
use crate::fault::{Fault, Result};

const BLOCK_BYTES: u64 = 512;
/// Of the file system: holes are whole blocks.
const HOLE_BYTES: usize = 4096;
/// Larger sparse files are not believed: all their bytes are looked at.
const MAX_SPARSE_BYTES: u64 = 64 << 30;
/// Mostly headers are read through it.
const WINDOW_BYTES: usize = 8 << 10;

/// What was found in a tar file.
#[derive(Debug)]
pub struct Found {
    /// The tree.
    pub tree: Tree,
    /// How many entries have an ACL in words, which is not kept.
    pub acls: u64,
}

/// Reads the tar file `file`, called `name` in messages. Bodies stay where they are, those with holes go to the end of
/// `spool`, which is made when it is first needed.
pub fn read(file: &File, name: &str, spool: &mut Spool) -> Result<Found> {
    let broken = |e: io::Error| Fault::Source(name.to_string(), reason(&e));
    let file_bytes = file.metadata().map_err(broken)?.len();
    let zeros = Rc::new(Cell::new(0));
    let watched = Watched::new(Window::new(file, WINDOW_BYTES), zeros.clone());
    let found = Found { tree: Tree::default(), acls: 0 };
    let mut import = Import { found, name, file_bytes, spool, any: false };
    let mut archive = Archive::new(watched);
    for entry in archive.entries_with_seek().map_err(broken)? {
        import.entry(entry.map_err(broken)?)?;
        zeros.set(0);
    }
    let source = |why: &str| Err(Fault::Source(name.to_string(), why.to_string()));
    if zeros.get() < BLOCK_BYTES {
        return source("the tar file ends without its end mark");
    }
    if !import.any {
        return source("the tar file is empty");
    }
    Ok(import.found)
}

/// Bodies that cannot stay where they are.
#[derive(Debug)]
pub struct Spool {
    file: File,
    bytes: u64,
}

impl Spool {
    /// Spools to a new file.
    pub fn new(file: File) -> Self {
        Spool { file, bytes: 0 }
    }

    /// Where the bodies are.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Takes `len_bytes` of a body with holes: where its data is, and its segments.
    fn take(&mut self, mut body: impl Read, len_bytes: u64, broken: impl Fn(String) -> Fault) -> Result<Body> {
        let start = self.bytes;
        let mut segments: Vec<(u64, bool)> = Vec::new();
        let mut block = [0; HOLE_BYTES];
        let mut left = len_bytes;
        while left > 0 {
            let n = usize::try_from(left).map_or(HOLE_BYTES, |left| left.min(HOLE_BYTES));
            body.read_exact(&mut block[..n]).map_err(|e| broken(reason(&e)))?;
            let is_data = block[..n].iter().any(|&b| b != 0);
            match segments.last_mut() {
                Some((bytes, kind)) if *kind == is_data => *bytes += n as u64,
                _ => segments.push((n as u64, is_data)),
            }
            if is_data {
                let written = self.file.write_all(&block[..n]);
                written.map_err(|e| Fault::host("write temporary file", "in the cache".as_ref(), e))?;
                self.bytes += n as u64;
            }
            left -= n as u64;
        }
        Ok(Body::Spool(start, segments))
    }
}

struct Import<'a> {
    found: Found,
    name: &'a str,
    file_bytes: u64,
    spool: &'a mut Spool,
    any: bool,
}

impl Import<'_> {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<()> {
        self.any = true;
        let kind = entry.header().entry_type();
        let path = entry.path_bytes().into_owned();
        let name = self.name.to_string();
        let broken = |why: String| Fault::Source(name.clone(), format!("{}: {why}", show(&path)));
        let unreadable = |e: io::Error| broken(reason(&e));
        let refused = |why: &str| Fault::Path(name.clone(), show(&path), why.to_string());
        // Applies to no single file, as does GNU tar's volume label.
        if kind == EntryType::XGlobalHeader || kind.as_byte() == b'V' {
            return Ok(());
        }
        let meta = self.meta(&mut entry).map_err(&broken)?;
        let target = entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
        let tree = &mut self.found.tree;
        let node = match kind {
            EntryType::Directory => return tree.directory(&path, meta).map_err(refused),
            // What ustar writers before 1988 wrote for a directory: a file whose name ends in a slash.
            EntryType::Regular if path.ends_with(b"/") => return tree.directory(&path, meta).map_err(refused),
            EntryType::Link => return tree.link(&path, &target).map_err(refused),
            EntryType::Regular | EntryType::Continuous => {
                let (start, bytes) = (entry.raw_file_position(), entry.size());
                if start.checked_add(bytes).is_none_or(|end| end > self.file_bytes) {
                    return Err(broken("the tar file ends inside it".to_string()));
                }
                Node::File(Body::Tar(start), bytes)
            }
            EntryType::GNUSparse => {
                let bytes = entry.size();
                if bytes > MAX_SPARSE_BYTES {
                    return Err(broken("is sparse, and larger than 64 GiB".to_string()));
                }
                Node::File(self.spool.take(&mut entry, bytes, broken)?, bytes)
            }
            EntryType::Symlink => Node::Symlink(target),
            EntryType::Char | EntryType::Block => {
                let number = |found: io::Result<Option<u32>>| Ok(found?.unwrap_or(0));
                let major = number(entry.header().device_major()).map_err(&unreadable)?;
                let minor = number(entry.header().device_minor()).map_err(&unreadable)?;
                if kind == EntryType::Char { Node::Char(major, minor) } else { Node::Block(major, minor) }
            }
            EntryType::Fifo => Node::Fifo,
            other => return Err(broken(format!("has the unknown type {}", show(&[other.as_byte()])))),
        };
        tree.add(&path, meta, node).map_err(refused)
    }

    /// Attributes from the header and the pax records that override it.
    fn meta<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> std::result::Result<Meta, String> {
        let why = |e: io::Error| reason(&e);
        let header = entry.header();
        let id = |value: io::Result<u64>| {
            value.map_err(why).and_then(|id| u32::try_from(id).map_err(|_| "owner is not of 32 bits".to_string()))
        };
        let mut meta = Meta {
            mode: u16::try_from(header.mode().map_err(why)? & 0o7777).unwrap_or(0),
            uid: id(header.uid())?,
            gid: id(header.gid())?,
            mtime: (i64::try_from(header.mtime().map_err(why)?).unwrap_or(0), 0),
            xattrs: Vec::new(),
        };
        let Some(records) = entry.pax_extensions().map_err(why)? else { return Ok(meta) };
        for record in records {
            let record = record.map_err(why)?;
            let (key, value) = (record.key_bytes(), record.value_bytes());
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                let name = std::str::from_utf8(name).map_err(|_| "an extended attribute's name is not UTF-8")?;
                let value = match name {
                    "system.posix_acl_access" | "system.posix_acl_default" => {
                        acl::to_ext4(value).ok_or("has a damaged ACL")?
                    }
                    _ => value.to_vec(),
                };
                meta.xattrs.push((name.to_string(), value));
            } else if key == b"mtime" {
                meta.mtime = time(value).ok_or("has a damaged time")?;
            } else if key.starts_with(b"SCHILY.acl.") {
                self.found.acls += 1;
            } else if key.starts_with(b"GNU.sparse.") {
                return Err("is sparse in pax form; tar --format=gnu writes the other one".to_string());
            }
        }
        Ok(meta)
    }
}

/// A pax time: seconds, negative ones too, and a decimal fraction.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time(b"1350244992.023960108"), Some((1_350_244_992, 23_960_108)));
        assert_eq!(time(b"7"), Some((7, 0)));
        assert_eq!(time(b"7.5"), Some((7, 500_000_000)));
        assert_eq!(time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(time(b"-3.1234567891"), Some((-4, 876_543_211)));
        for bad in [&b""[..], b"x", b"1.x", b"1.-5", b"99999999999999999999", b"\xff"] {
            assert_eq!(time(bad), None, "{bad:?}");
        }
    }
}

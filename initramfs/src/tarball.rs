//! A tar file as a source of a tree: ustar, GNU and pax; from a file, where bodies stay, or a stream, which is spooled.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufWriter, Cursor, Read, Seek, Write};
use std::path::Path;
use std::rc::Rc;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};
use tar::{Archive, Entry, EntryType};

use crate::error::{Error, Result, STDIN, reason, show, show_path};
use crate::newc::Device;
use crate::pack::check_length;
use crate::tree::{Body, Meta, Node, PathFault, Tree};
use crate::walk::permissions;
use crate::watched::Watched;

const BLOCK_BYTES: u64 = 512;

/// Magic numbers of compressed files, and the command that undoes each.
const COMPRESSIONS: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "gzip -dc"),
    (b"\xfd7zXZ\0", "xz -dc"),
    (b"\x28\xb5\x2f\xfd", "zstd -dc"),
    (b"BZh", "bzip2 -dc"),
    (b"\x04\x22\x4d\x18", "lz4 -dc"),
];

/// Adds the entries of the tar file `path` to `tree`, with the owners, modes and times that it gives them.
///
/// Times after `latest_mtime` are set to that. Paths are taken relative to the root whether absolute or not, one with
/// `..` is an error, and symlinks on the way are followed inside the tree only. Extended attributes are dropped.
pub fn add_file(tree: &mut Tree, path: &Path, latest_mtime: u32) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::host("open", path, e))?;
    add(tree, file, &show_path(path), latest_mtime)
}

/// [`add_file`] for standard input or another open file: read in place if it is a file, spooled to a nameless one if not.
pub fn add_stdin(tree: &mut Tree, file: File, latest_mtime: u32) -> Result<()> {
    add(tree, file, STDIN, latest_mtime)
}

fn add(tree: &mut Tree, mut file: File, name: &str, latest_mtime: u32) -> Result<()> {
    let broken = |e: io::Error| Error::Tar(name.to_string(), reason(&e));
    let at_start = matches!(file.stream_position(), Ok(0));
    let is_file = file.metadata().map_err(broken)?.is_file();
    let mut head = Vec::new();
    let head_bytes = (&file).take(BLOCK_BYTES).read_to_end(&mut head);
    head_bytes.map_err(broken)?;
    for (magic, command) in COMPRESSIONS {
        if head.starts_with(magic) {
            return Err(Error::Compressed(name.to_string(), command));
        }
    }
    let zeros = Rc::new(Cell::new(0));
    let mut import = Import { tree, name, latest_mtime, zeros: zeros.clone(), spool: None };
    if is_file && at_start {
        file.rewind().map_err(broken)?;
        let len_bytes = file.metadata().map_err(broken)?.len();
        let file = Rc::new(file);
        let mut archive = Archive::new(Watched::new(&*file, zeros));
        for entry in archive.entries_with_seek().map_err(broken)? {
            import.entry(entry.map_err(broken)?, Some((&file, len_bytes)))?;
        }
    } else {
        let stream = Cursor::new(head).chain(file);
        let mut archive = Archive::new(Watched::new(stream, zeros));
        for entry in archive.entries().map_err(broken)? {
            import.entry(entry.map_err(broken)?, None)?;
        }
    }
    import.finish()
}

/// Bodies that cannot stay where they are: of a stream, or with holes.
struct Spool {
    writer: BufWriter<File>,
    buffer: Vec<u8>,
    file: Rc<File>,
    len_bytes: u64,
}

struct Import<'a> {
    tree: &'a mut Tree,
    name: &'a str,
    latest_mtime: u32,
    zeros: Rc<Cell<u64>>,
    spool: Option<Spool>,
}

impl Import<'_> {
    /// Takes one entry; `origin` is the file it is in and its length, if bodies can stay there.
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>, origin: Option<(&Rc<File>, u64)>) -> Result<()> {
        let kind = entry.header().entry_type();
        let path = entry.path_bytes().into_owned();
        let shown = show(&path);
        let broken = |e: io::Error| self.broken(format!("{shown}: {}", reason(&e)));
        if let Some(extensions) = entry.pax_extensions().map_err(broken)? {
            for extension in extensions {
                if extension.map_err(broken)?.key_bytes().starts_with(b"GNU.sparse.") {
                    return Err(self.broken(format!("{shown}: is sparse in pax form")));
                }
            }
        }
        let meta = self.meta(entry.header()).map_err(broken)?;
        let target = entry.link_name_bytes().map(|name| name.into_owned());
        let refused = {
            let (name, shown) = (self.name.to_string(), shown.clone());
            move |fault: PathFault| Error::Path(name, shown, fault.why())
        };
        let node = match kind {
            EntryType::Directory => {
                self.tree.directory(&path, meta).map_err(refused)?;
                return Ok(());
            }
            EntryType::Link => {
                let target = target.unwrap_or_default();
                return self.tree.link(&path, &target).map_err(refused);
            }
            // What ustar writers before 1988 wrote for a directory: a file whose name ends in a slash.
            EntryType::Regular if path.ends_with(b"/") => {
                self.tree.directory(&path, meta).map_err(refused)?;
                return Ok(());
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let len_bytes = entry.size();
                check_length(&path, len_bytes)?;
                let body = match origin {
                    Some((file, file_bytes)) if kind != EntryType::GNUSparse => {
                        let start = entry.raw_file_position();
                        if start.saturating_add(len_bytes) > file_bytes {
                            return Err(self.broken(format!("{shown}: the file ends inside it")));
                        }
                        Body::Range(file.clone(), start)
                    }
                    _ => self.spool(&mut entry, len_bytes, &shown)?,
                };
                Node::File(body, len_bytes)
            }
            EntryType::Symlink => Node::Symlink(target.unwrap_or_default().into()),
            EntryType::Char => Node::Char(device(entry.header()).map_err(broken)?),
            EntryType::Block => Node::Block(device(entry.header()).map_err(broken)?),
            EntryType::Fifo => Node::Fifo,
            // Applies to no single file, as does GNU tar's volume label.
            EntryType::XGlobalHeader => return Ok(()),
            other if other.as_byte() == b'V' => return Ok(()),
            other => {
                let kind = show(&[other.as_byte()]);
                return Err(self.broken(format!("{shown}: has the unknown type {kind}")));
            }
        };
        self.zeros.set(0);
        self.tree.add(&path, meta, node).map_err(refused)?;
        Ok(())
    }

    fn meta(&self, header: &tar::Header) -> io::Result<Meta> {
        let id = |value: u64| u32::try_from(value).map_err(|_| io::ErrorKind::InvalidData.into());
        let mtime = u32::try_from(header.mtime()?).unwrap_or(u32::MAX);
        Ok(Meta {
            mode: permissions(header.mode()?),
            uid: header.uid().and_then(id)?,
            gid: header.gid().and_then(id)?,
            mtime: mtime.min(self.latest_mtime),
        })
    }

    fn spool<R: Read>(&mut self, entry: &mut Entry<'_, R>, len_bytes: u64, shown: &str) -> Result<Body> {
        if self.spool.is_none() {
            let file = nameless_file()?;
            let writer = file.try_clone().map_err(|e| Error::host("open", &std::env::temp_dir(), e))?;
            self.spool = Some(Spool {
                writer: BufWriter::with_capacity(256 << 10, writer),
                buffer: vec![0; 128 << 10],
                file: Rc::new(file),
                len_bytes: 0,
            });
        }
        let name = self.name;
        let Some(spool) = &mut self.spool else { unreachable!("made above") };
        let start = spool.len_bytes;
        let buffer = &mut spool.buffer;
        let mut left = len_bytes;
        while left > 0 {
            let end = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let n = match entry.read(&mut buffer[..end]) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::Tar(name.to_string(), reason(&e))),
            };
            if n == 0 {
                let why = format!("{shown}: the file ends inside it");
                return Err(Error::Tar(name.to_string(), why));
            }
            let written = spool.writer.write_all(&buffer[..n]);
            written.map_err(|e| Error::host("write temporary file", &std::env::temp_dir(), e))?;
            left -= n as u64;
        }
        spool.len_bytes += len_bytes;
        Ok(Body::Range(spool.file.clone(), start))
    }

    fn finish(self) -> Result<()> {
        if self.zeros.get() < BLOCK_BYTES {
            return Err(self.broken("the file ends without its end mark".to_string()));
        }
        if let Some(mut spool) = self.spool {
            let flushed = spool.writer.flush();
            flushed.map_err(|e| Error::host("write temporary file", &std::env::temp_dir(), e))?;
        }
        Ok(())
    }

    fn broken(&self, why: String) -> Error {
        Error::Tar(self.name.to_string(), why)
    }
}

fn device(header: &tar::Header) -> io::Result<Device> {
    Ok(Device { major: header.device_major()?.unwrap_or(0), minor: header.device_minor()?.unwrap_or(0) })
}

/// A file without a name in the directory for temporary files; in memory where that has no such files.
fn nameless_file() -> Result<File> {
    let dir = std::env::temp_dir();
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    rustix::fs::open(&dir, flags, Mode::RUSR | Mode::WUSR)
        .or_else(|_| memfd_create("machinen-mkinitramfs", MemfdFlags::CLOEXEC))
        .map(File::from)
        .map_err(|e| Error::host("open temporary file", &dir, e))
}

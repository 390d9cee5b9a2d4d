//! A file or tree of the host's as a tar stream, as `tar` would pack it: owners, modes, times, links.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use machinen_abi::glob::excludes;
use tar::{Builder, EntryType, Header};

use crate::error::{Error, Result};

/// Writes what is at `source` to `out`, its top being called `name`. Sockets are left out, as by tar.
///
/// # Errors
/// `COPY_READ` of the host's side. A failed write of `out` is given back as it is in `Ok`'s place: `Ok(false)`.
pub(super) fn pack(source: &Path, name: &Path, excludes: &[String], out: &mut impl Write) -> Result<bool> {
    let mut packer = Packer { builder: Builder::new(out), links: HashMap::new(), excludes };
    let done = packer.add(source, name, Path::new("")).and_then(|()| packer.builder.finish().map_err(|_| Fault::Out));
    match done {
        Ok(()) => Ok(true),
        Err(Fault::Out) => Ok(false),
        Err(Fault::Read(path, cause)) => Err(Error::host("COPY_READ", format!("read {}", path.display()), cause)),
    }
}

enum Fault {
    /// The reader of the archive is gone, and can say why.
    Out,
    Read(PathBuf, io::Error),
}

struct Packer<'a, W: Write> {
    builder: Builder<&'a mut W>,
    /// Files of several names that are packed, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    excludes: &'a [String],
}

impl<W: Write> Packer<'_, W> {
    /// Adds what is at `source` as `name`, which is `below` the top.
    fn add(&mut self, source: &Path, name: &Path, below: &Path) -> std::result::Result<(), Fault> {
        let read = |cause| Fault::Read(source.to_owned(), cause);
        // The top may be named through a symlink by a path that ends in a dot or slash; that is the system's to resolve.
        let found = fs::symlink_metadata(source).map_err(read)?;
        let kind = found.file_type();
        let mut header = header(&found);
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.builder.append_data(&mut header, name, io::empty()).map_err(|_| Fault::Out)?;
            let mut names: Vec<_> = fs::read_dir(source)
                .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
                .map_err(read)?;
            names.sort();
            for child in names {
                let below = below.join(&child);
                let path = below.as_os_str().as_bytes();
                if !self.excludes.iter().any(|pattern| excludes(pattern.as_bytes(), path)) {
                    self.add(&source.join(&child), &name.join(&child), &below)?;
                }
            }
            return Ok(());
        }
        if kind.is_socket() {
            return Ok(());
        }
        let several = found.nlink() > 1;
        if let Some(first) = self.links.get(&(found.dev(), found.ino())).filter(|_| several) {
            header.set_entry_type(EntryType::Link);
            return self.builder.append_link(&mut header, name, first).map_err(|_| Fault::Out);
        }
        if several {
            self.links.insert((found.dev(), found.ino()), name.to_owned());
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = fs::read_link(source).map_err(read)?;
            return self.builder.append_link(&mut header, name, target).map_err(|_| Fault::Out);
        }
        if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(found.len());
            let file = File::open(source).map_err(read)?;
            let mut body = Body { file: file.take(found.len()), left: found.len(), fault: None };
            let appended = self.builder.append_data(&mut header, name, &mut body);
            return match (appended, body.fault) {
                (_, Some(fault)) => Err(read(fault)),
                (appended, None) => appended.map_err(|_| Fault::Out),
            };
        }
        header.set_entry_type(if kind.is_fifo() {
            EntryType::Fifo
        } else if kind.is_char_device() {
            EntryType::Char
        } else {
            EntryType::Block
        });
        // Only devices have numbers, and those of Linux fit.
        let _ = header.set_device_major(rustix::fs::major(found.rdev()));
        let _ = header.set_device_minor(rustix::fs::minor(found.rdev()));
        self.builder.append_data(&mut header, name, io::empty()).map_err(|_| Fault::Out)
    }
}

fn header(found: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(found.mode() & 0o7777);
    header.set_uid(found.uid().into());
    header.set_gid(found.gid().into());
    header.set_mtime(u64::try_from(found.mtime()).unwrap_or(0));
    header.set_size(0);
    header
}

/// A file's content, of the length that its header says.
struct Body {
    file: io::Take<File>,
    left: u64,
    fault: Option<io::Error>,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.file.read(buffer) {
            Ok(0) if self.left > 0 && !buffer.is_empty() => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"))
            }
            read => read,
        };
        match read {
            Ok(count) => {
                self.left -= count as u64;
                Ok(count)
            }
            Err(cause) => {
                let copy = cause
                    .raw_os_error()
                    .map_or_else(|| io::Error::new(cause.kind(), cause.to_string()), io::Error::from_raw_os_error);
                self.fault = Some(cause);
                Err(copy)
            }
        }
    }
}

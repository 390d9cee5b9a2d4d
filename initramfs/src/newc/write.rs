//! Streaming writer of newc archives.

use alloc::vec::Vec;
use core::fmt;

use super::{Device, Entry, HEADER_BYTES, Kind, MAGIC, MAX_FILE_BYTES, MAX_PATH_BYTES, TRAILER};

/// Where the bytes of an archive go.
pub trait Sink {
    /// Why a write fails.
    type Error;

    /// Takes all of `bytes`.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

impl Sink for Vec<u8> {
    type Error = core::convert::Infallible;

    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

impl<S: Sink + ?Sized> Sink for &mut S {
    type Error = S::Error;

    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        (**self).write(bytes)
    }
}

/// Makes a [`Sink`] of anything that has [`std::io::Write`].
#[cfg(feature = "std")]
#[derive(Debug)]
pub struct IoSink<W>(pub W);

#[cfg(feature = "std")]
impl<W: std::io::Write> Sink for IoSink<W> {
    type Error = std::io::Error;

    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0.write_all(bytes)
    }
}

/// Why the format cannot hold a path or symlink target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameFault {
    /// It has no bytes.
    Empty,
    /// It has a NUL.
    Nul,
    /// It is longer than [`MAX_PATH_BYTES`].
    TooLong,
    /// It is the name that ends an archive.
    Trailer,
}

impl fmt::Display for NameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NameFault::Empty => "name is empty",
            NameFault::Nul => "name contains a NUL",
            NameFault::TooLong => "name is longer than the 4095 bytes the kernel accepts",
            NameFault::Trailer => "name is the end mark of a cpio archive",
        })
    }
}

/// Why a [`Writer`] stops. `path` is the entry concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The path cannot be written; nothing of the entry was.
    Path(Vec<u8>, NameFault),
    /// The target of the symlink at this path cannot be written; nothing of the entry was.
    Target(Vec<u8>, NameFault),
    /// The file is larger than [`MAX_FILE_BYTES`]; nothing of the entry was written.
    TooLarge {
        /// The file.
        path: Vec<u8>,
        /// Its announced length.
        len_bytes: u64,
    },
    /// The body ended before its announced length.
    Short {
        /// The file.
        path: Vec<u8>,
        /// Bytes that are missing.
        missing_bytes: u64,
    },
    /// More came than the announced length; the surplus was not written.
    Long {
        /// The file.
        path: Vec<u8>,
    },
    /// The sink failed.
    Sink(E),
}

/// Writes one archive, entry by entry.
///
/// ```
/// use machinen_initramfs::newc::{Entry, Kind, Writer};
/// let mut writer = Writer::new(Vec::new());
/// let kind = Kind::File { len_bytes: 3 };
/// writer.entry(&Entry { path: b"motd", kind, mode: 0o644, uid: 0, gid: 0, mtime: 0, ino: 1, nlink: 1 }).unwrap();
/// writer.data(b"hi\n").unwrap();
/// let archive = writer.finish().unwrap();
/// assert_eq!(archive.len() % 4, 0);
/// ```
#[derive(Debug)]
pub struct Writer<S> {
    sink: S,
    /// Path of the file whose body is being written.
    path: Vec<u8>,
    missing_bytes: u64,
    padding_bytes: usize,
}

impl<S: Sink> Writer<S> {
    /// Starts an archive in `sink`.
    pub fn new(sink: S) -> Self {
        Writer { sink, path: Vec::new(), missing_bytes: 0, padding_bytes: 0 }
    }

    /// Starts the next entry; `len_bytes` bytes of [`Writer::data`] must follow a file.
    ///
    /// Fails when the file before is not complete, when a name or length does not fit the format, or in the sink.
    pub fn entry(&mut self, entry: &Entry<'_>) -> Result<(), Error<S::Error>> {
        self.complete()?;
        check(entry.path).map_err(|why| Error::Path(entry.path.to_vec(), why))?;
        if entry.path == TRAILER {
            return Err(Error::Path(entry.path.to_vec(), NameFault::Trailer));
        }
        let mut body_bytes = 0;
        if let Kind::File { len_bytes } = entry.kind {
            if len_bytes > MAX_FILE_BYTES {
                let path = entry.path.to_vec();
                return Err(Error::TooLarge { path, len_bytes });
            }
            body_bytes = len_bytes;
        }
        if let Kind::Symlink(target) = entry.kind {
            check(target).map_err(|why| Error::Target(entry.path.to_vec(), why))?;
            body_bytes = target.len() as u64;
        }
        self.header(entry, body_bytes)?;
        self.missing_bytes = body_bytes;
        self.padding_bytes = padding(body_bytes);
        self.path.clear();
        self.path.extend_from_slice(entry.path);
        if let Kind::Symlink(target) = entry.kind {
            self.data(target)?;
        }
        Ok(())
    }

    /// Writes the next bytes of the current file's body.
    ///
    /// Fails, with none of `bytes` written, when they exceed the announced length.
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), Error<S::Error>> {
        self.passed(bytes.len() as u64)?;
        self.sink.write(bytes).map_err(Error::Sink)?;
        self.pad()
    }

    /// Lets `copy` put body bytes into the sink itself; it returns how many it put there.
    ///
    /// `copy` is told how many are missing and may put fewer; an error of its own passes through. More is [`Error::Long`].
    pub fn copy_with<E: From<Error<S::Error>>>(
        &mut self,
        copy: impl FnOnce(&mut S, u64) -> Result<u64, E>,
    ) -> Result<(), E> {
        let n = copy(&mut self.sink, self.missing_bytes)?;
        self.passed(n)?;
        Ok(self.pad()?)
    }

    /// Ends the archive with its trailer and gives the sink back.
    ///
    /// Fails when the last file is not complete, or in the sink.
    pub fn finish(mut self) -> Result<S, Error<S::Error>> {
        self.complete()?;
        let trailer = Entry {
            path: TRAILER,
            kind: Kind::File { len_bytes: 0 },
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            ino: 0,
            nlink: 1,
        };
        self.header(&trailer, 0)?;
        Ok(self.sink)
    }

    fn passed(&mut self, n: u64) -> Result<(), Error<S::Error>> {
        let Some(rest) = self.missing_bytes.checked_sub(n) else {
            let path = self.path.clone();
            return Err(Error::Long { path });
        };
        self.missing_bytes = rest;
        Ok(())
    }

    fn pad(&mut self) -> Result<(), Error<S::Error>> {
        if self.missing_bytes == 0 && self.padding_bytes > 0 {
            let zeros = &[0; 3][..self.padding_bytes];
            self.padding_bytes = 0;
            self.sink.write(zeros).map_err(Error::Sink)?;
        }
        Ok(())
    }

    fn complete(&self) -> Result<(), Error<S::Error>> {
        if self.missing_bytes > 0 {
            let path = self.path.clone();
            let missing_bytes = self.missing_bytes;
            return Err(Error::Short { path, missing_bytes });
        }
        Ok(())
    }

    fn header(&mut self, entry: &Entry<'_>, body_bytes: u64) -> Result<(), Error<S::Error>> {
        // The end mark has no type, as GNU cpio writes it; readers know it by its name.
        let type_bits = if entry.path == TRAILER { 0 } else { entry.kind.type_bits() };
        let rdev = match entry.kind {
            Kind::Char(device) | Kind::Block(device) => device,
            _ => Device { major: 0, minor: 0 },
        };
        let fields = [
            u64::from(entry.ino),
            u64::from(type_bits | u32::from(entry.mode & 0o7777)),
            u64::from(entry.uid),
            u64::from(entry.gid),
            u64::from(entry.nlink),
            u64::from(entry.mtime),
            body_bytes,
            0,
            0,
            u64::from(rdev.major),
            u64::from(rdev.minor),
            entry.path.len() as u64 + 1,
            0,
        ];
        let mut header = [0; HEADER_BYTES];
        let (magic, digits) = header.split_at_mut(MAGIC.len());
        magic.copy_from_slice(MAGIC);
        for (field, out) in fields.iter().zip(digits.chunks_exact_mut(8)) {
            for (i, digit) in out.iter_mut().enumerate() {
                *digit = b"0123456789ABCDEF"[(field >> (28 - 4 * i) & 0xf) as usize];
            }
        }
        self.sink.write(&header).map_err(Error::Sink)?;
        self.sink.write(entry.path).map_err(Error::Sink)?;
        let zeros = 1 + padding((HEADER_BYTES + entry.path.len() + 1) as u64);
        self.sink.write(&[0; 4][..zeros]).map_err(Error::Sink)
    }
}

fn check(name: &[u8]) -> Result<(), NameFault> {
    if name.is_empty() {
        Err(NameFault::Empty)
    } else if name.len() > MAX_PATH_BYTES {
        Err(NameFault::TooLong)
    } else if name.contains(&0) {
        Err(NameFault::Nul)
    } else {
        Ok(())
    }
}

fn padding(len_bytes: u64) -> usize {
    (len_bytes.wrapping_neg() & 3) as usize
}

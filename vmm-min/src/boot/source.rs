//! An input file: opened once, its size known, its errors named.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};

use crate::error::{Error, Result};
use crate::sys;

/// What a file is for; the prefix of its error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `KERNEL_…`
    Kernel,
    /// `INITRD_…`
    Initrd,
    /// `DTB_…`
    Dtb,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Role::Kernel => "kernel",
            Role::Initrd => "initrd",
            Role::Dtb => "device tree",
        }
    }

    fn code(self, [kernel, initrd, dtb]: [&'static str; 3]) -> &'static str {
        match self {
            Role::Kernel => kernel,
            Role::Initrd => initrd,
            Role::Dtb => dtb,
        }
    }
}

/// A readable file with random access.
#[derive(Debug)]
pub struct Source {
    /// The file; a copy in memory when the path named a pipe.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    /// The path as the user gave it.
    pub path: String,
    role: Role,
}

impl Source {
    /// Opens `path`, `-` being stdin. A pipe or terminal is read into memory first, to its end or one byte beyond
    /// `most_bytes`; signals act as usual meanwhile.
    ///
    /// Errors: `…_NOT_FOUND`, `…_UNREADABLE`, `…_EMPTY`, `…_TOO_LARGE`.
    pub fn open(role: Role, path: &str, most_bytes: u64) -> Result<Source> {
        let fail = |cause: io::Error| match cause.kind() {
            io::ErrorKind::NotFound => Error::Host {
                code: role.code(["KERNEL_NOT_FOUND", "INITRD_NOT_FOUND", "DTB_NOT_FOUND"]),
                operation: format!("{} {path}", role.word()),
                cause,
                hint: String::new(),
            },
            _ => unreadable(role, path, cause),
        };
        let file = match path {
            "-" => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            _ => File::open(path),
        }
        .map_err(fail)?;
        let kind = file.metadata().map_err(fail)?.file_type();
        if kind.is_dir() {
            return Err(fail(io::Error::from_raw_os_error(libc::EISDIR)));
        }
        let has_size = kind.is_file() || kind.is_block_device();
        let mut file = if has_size { file } else { spool(file, role, most_bytes).map_err(fail)? };
        let bytes = file.seek(SeekFrom::End(0)).map_err(fail)?;
        if bytes == 0 {
            let code = role.code(["KERNEL_EMPTY", "INITRD_EMPTY", "DTB_EMPTY"]);
            return Err(Error::usage(code, format!("{} {path}: the file is empty", role.word()), ""));
        }
        if !has_size && bytes > most_bytes {
            let code = role.code(["KERNEL_TOO_LARGE", "INITRD_TOO_LARGE", "DTB_TOO_LARGE"]);
            let most = most_bytes >> 20;
            return Err(Error::usage(code, format!("{} {path}: more than {most} MiB", role.word()), ""));
        }
        Ok(Source { file, bytes, path: path.into(), role })
    }

    /// The same file under the same name, with other content behind it.
    pub fn replaced(&self, file: File, bytes: u64) -> Source {
        Source { file, bytes, path: self.path.clone(), role: self.role }
    }

    /// Reads from the start as much as there is; returns the number of bytes.
    pub fn read_head(&self, head: &mut [u8]) -> Result<usize> {
        let count = usize::try_from(self.bytes).unwrap_or(usize::MAX).min(head.len());
        self.file.read_exact_at(&mut head[..count], 0).map_err(|cause| self.unreadable(cause))?;
        Ok(count)
    }

    /// `…_UNREADABLE` for this file.
    pub fn unreadable(&self, cause: io::Error) -> Error {
        unreadable(self.role, &self.path, cause)
    }
}

fn unreadable(role: Role, path: &str, cause: io::Error) -> Error {
    Error::host(
        role.code(["KERNEL_UNREADABLE", "INITRD_UNREADABLE", "DTB_UNREADABLE"]),
        format!("{} {path}", role.word()),
        cause,
    )
}

fn spool(from: File, role: Role, most_bytes: u64) -> io::Result<File> {
    let mut copy = sys::memfd(role.word())?;
    io::copy(&mut from.take(most_bytes + 1), &mut copy)?;
    Ok(copy)
}

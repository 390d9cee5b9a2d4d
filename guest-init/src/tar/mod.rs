//! tar as it is read (ustar, pax, GNU's long names) and written (ustar, pax where that is too small).
//!
//! POSIX, pax, "ustar Interchange Format" and "pax Extended Header"; GNU's types are in its manual, "Basic Tar Format".

pub mod field;
pub mod pax;
pub mod read;
pub mod write;

use alloc::vec::Vec;

/// Bytes of a header, and of what bodies are padded to.
pub const BLOCK_BYTES: usize = 512;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its content follows.
    File,
    /// Another name for the entry of this path.
    HardLink(Vec<u8>),
    /// A symbolic link to this.
    SymbolicLink(Vec<u8>),
    /// A character device: major, minor.
    Character(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A directory.
    Directory,
    /// A FIFO.
    Fifo,
}

/// A point in time: seconds since 1970, and nanoseconds after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds, perhaps negative.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path as it is in the archive; without NUL, not empty.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of content; 0 for all but files.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification.
    pub mtime: Time,
}

/// The parts of a path in an archive, below the destination. With `name` the first of them, or the `.` in its place, is
/// called that. Slashes at the start are dropped, as tar does; `None` when a `..` would lead out of it.
#[must_use]
pub fn parts<'a>(path: &'a [u8], name: Option<&'a [u8]>) -> Option<Vec<&'a [u8]>> {
    let rooted = path.strip_prefix(b".").filter(|rest| rest.is_empty() || rest.starts_with(b"/"));
    let mut parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) {
        return None;
    }
    match (name, parts.first_mut()) {
        (Some(name), Some(first)) if rooted.is_none() => *first = name,
        (Some(name), _) => parts.insert(0, name),
        (None, _) => {}
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn a_path_stays_below_its_destination() {
        let list = |path: &str, name: Option<&'static str>| {
            let parts = parts(path.as_bytes(), name.map(str::as_bytes))?;
            Some(parts.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect::<Vec<_>>().join("/"))
        };
        for (path, plain, named) in [
            ("a/b", "a/b", "n/b"),
            ("./a//b/", "a/b", "n/a/b"),
            ("/etc/x", "etc/x", "n/x"),
            (".", "", "n"),
            ("./", "", "n"),
            (".a", ".a", "n"),
            ("..a/b..", "..a/b..", "n/b.."),
        ] {
            assert_eq!(list(path, None).as_deref(), Some(plain), "{path}");
            assert_eq!(list(path, Some("n")).as_deref(), Some(named), "{path}");
        }
        for path in ["..", "a/..", "a/../../b", "../x", "/.."] {
            assert_eq!((list(path, None), list(path, Some("n"))), (None, None), "{path}");
        }
    }
}

//! Finding the command: the paths to try, and what the failed attempts mean together.

use crate::status::{NOT_EXECUTABLE, NOT_FOUND};
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::{CStr, c_int};

/// The paths to execute, in order: the name itself when it has a slash, else the name in each directory of
/// `path`, where an empty directory means the current one (POSIX, XBD 8.3, PATH).
#[must_use]
pub fn candidates(program: &CStr, path: &CStr) -> Vec<CString> {
    let name = program.to_bytes();
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains(&b'/') {
        return Vec::from([program.into()]);
    }
    path.to_bytes()
        .split(|&byte| byte == b':')
        .filter_map(|directory| {
            let directory = if directory.is_empty() { b"." } else { directory };
            CString::new([directory, b"/", name].concat()).ok()
        })
        .collect()
}

/// Why no candidate could be executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attempts {
    /// There was no such file.
    #[default]
    NotFound,
    /// A file was there, but what its first line or ELF header names as its interpreter was not.
    NoInterpreter,
    /// A file was there; execve(2) failed with this errno.
    Failed(c_int),
}

impl Attempts {
    /// Adds an attempt: the errno of execve(2) and whether the file exists. The first file found counts; the
    /// search goes on all the same, as in execvp(3).
    pub fn add(&mut self, errno: c_int, exists: bool) {
        if *self == Self::NotFound {
            *self = match errno {
                libc::ENOENT if exists => Self::NoInterpreter,
                libc::ENOENT | libc::ENOTDIR => Self::NotFound,
                // A directory of PATH that may not be searched is no file that was found.
                libc::EACCES if !exists => Self::NotFound,
                errno => Self::Failed(errno),
            };
        }
    }

    /// What the VM exits with.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        if self == Self::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
    }
}

#[cfg(test)]
mod tests {
    use super::{Attempts, candidates};
    use std::ffi::CStr;

    fn list(program: &CStr, path: &CStr) -> Vec<String> {
        candidates(program, path).into_iter().map(|path| path.into_string().unwrap()).collect()
    }

    fn outcome(attempts: &[(i32, bool)]) -> (Attempts, u8) {
        let mut all = Attempts::default();
        attempts.iter().for_each(|&(errno, exists)| all.add(errno, exists));
        (all, all.exit_code())
    }

    #[test]
    fn a_name_with_a_slash_is_not_searched_for() {
        assert_eq!(list(c"/bin/sh", c"/usr/bin"), ["/bin/sh"]);
        assert_eq!(list(c"./x", c"/usr/bin"), ["./x"]);
    }

    #[test]
    fn a_plain_name_is_tried_in_every_directory() {
        assert_eq!(list(c"sh", c"/usr/bin:/bin"), ["/usr/bin/sh", "/bin/sh"]);
        assert_eq!(list(c"sh", c":/bin:"), ["./sh", "/bin/sh", "./sh"]);
        assert_eq!(list(c"sh", c""), ["./sh"]);
        assert!(list(c"", c"/bin").is_empty());
    }

    #[test]
    fn nothing_found_is_127() {
        assert_eq!(outcome(&[]), (Attempts::NotFound, 127));
        let attempts = [(libc::ENOENT, false), (libc::ENOTDIR, false), (libc::EACCES, false)];
        assert_eq!(outcome(&attempts), (Attempts::NotFound, 127));
    }

    #[test]
    fn found_but_not_executable_is_126_and_the_first_file_found_is_named() {
        let denied = [(libc::ENOENT, false), (libc::EACCES, true), (libc::ENOEXEC, true)];
        assert_eq!(outcome(&denied), (Attempts::Failed(libc::EACCES), 126));
        assert_eq!(outcome(&[(libc::ENOENT, true)]), (Attempts::NoInterpreter, 126));
        assert_eq!(outcome(&[(libc::E2BIG, true)]), (Attempts::Failed(libc::E2BIG), 126));
    }
}

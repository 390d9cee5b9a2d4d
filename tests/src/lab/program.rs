//! Programs in the lab, with what they are linked to: the host's, or for a lab of another architecture Debian's, which
//! `fixtures/lab/prepare` has put beside what that lab boots.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Arch;

/// Named by no program: glibc loads it when a thread ends early.
const UNNAMED: &str = "libgcc_s.so.1";
/// Where programs are that are no commands of ordinary users.
const MORE: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The files of the program `name` for a lab of the architecture: path here, path in the lab. `None` when it is not there, or is
/// a script.
#[must_use]
pub fn files(arch: Arch, name: &str) -> Option<Vec<(PathBuf, PathBuf)>> {
    if arch == Arch::OWN { own(name) } else { prepared(&arch.assets_dir().join("programs"), name) }
}

/// The program and its libraries, by a list of their paths below `dir`; the program is the first.
fn prepared(dir: &Path, name: &str) -> Option<Vec<(PathBuf, PathBuf)>> {
    let list = fs::read_to_string(dir.join(format!("{name}.files"))).ok()?;
    let to = |index, path| if index == 0 { Path::new("/bin").join(name) } else { Path::new("/").join(path) };
    Some(list.lines().enumerate().map(|(index, path)| (dir.join(path), to(index, path))).collect())
}

/// A program in PATH or the sbin directories.
fn own(name: &str) -> Option<Vec<(PathBuf, PathBuf)>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain(MORE.map(PathBuf::from)).map(|dir| dir.join(name));
    let program = places.find(|file| file.is_file())?;
    let output = Command::new("ldd").arg(&program).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x…)`, and the linker itself without an arrow.
    let libraries = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let mut libraries: Vec<PathBuf> = libraries.map(PathBuf::from).collect();
    let libc = libraries.iter().find(|library| library.ends_with("libc.so.6"));
    libraries.extend(libc.map(|libc| libc.with_file_name(UNNAMED)).filter(|library| library.is_file()));
    let all = [(program, Path::new("/bin").join(name))].into_iter();
    let all = all.chain(libraries.into_iter().map(|library| (library.clone(), library)));
    // By what it leads to: a link would not be a file there.
    Some(all.map(|(from, to): (PathBuf, PathBuf)| (fs::canonicalize(&from).unwrap_or(from), to)).collect())
}

#[cfg(test)]
mod tests {
    use super::{Path, PathBuf, fs, own, prepared};
    use crate::guest::Scratch;

    #[test]
    fn a_list_names_the_program_first() {
        let scratch = Scratch::new();
        scratch.put("x.files", "usr/sbin/x\nlib/libc.so.6\n");
        let dir = scratch.path("");
        let pair = |from: &str, to: &str| (dir.join(from), PathBuf::from(to));
        let expected = vec![pair("usr/sbin/x", "/bin/x"), pair("lib/libc.so.6", "/lib/libc.so.6")];
        assert_eq!(prepared(&dir, "x"), Some(expected));
        assert_eq!(prepared(&dir, "y"), None);
    }

    #[test]
    fn a_program_of_this_host_comes_with_its_linker() {
        let files = own("sh").expect("a shell");
        assert_eq!(files[0].1, Path::new("/bin/sh"));
        for part in ["/ld-", "/libgcc_s.so.1"] {
            assert!(files.iter().any(|(_, to)| to.to_string_lossy().contains(part)), "{part}: {files:?}");
        }
        assert!(files.iter().all(|(from, _)| fs::symlink_metadata(from).is_ok_and(|found| found.is_file())));
    }
}

//! Programs of the host in the lab, with what they are linked to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where programs are that are no commands of ordinary users.
const MORE: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The files of the program `name` (in PATH and the sbin directories): path here, path in the lab. `None` when it is not
/// installed, or is a script.
#[must_use]
pub fn files(name: &str) -> Option<Vec<(PathBuf, PathBuf)>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain(MORE.map(PathBuf::from)).map(|dir| dir.join(name));
    let program = places.find(|file| file.is_file())?;
    let output = Command::new("ldd").arg(&program).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x…)`, and the linker itself without an arrow.
    let libraries = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let all = [(program, Path::new("/bin").join(name))].into_iter();
    let all = all.chain(libraries.map(|library| (library.into(), library.into())));
    // By what it leads to: a link would not be a file there.
    Some(all.map(|(from, to): (PathBuf, PathBuf)| (fs::canonicalize(&from).unwrap_or(from), to)).collect())
}

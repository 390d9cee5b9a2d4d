//! Where programs are found: /init for the guest, and those of Debian that the tools call.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::fault::Fault;
use crate::imagecache;

/// Finds /init: `given`, else `MACHINEN_INIT`, else `init` beside this executable, else in `MACHINEN_ASSETS_DIR`.
///
/// What is named outright is taken without looking; of the others the first that exists. Fails with the list of what
/// was tried, in words.
pub fn find_init(given: Option<&Path>) -> Result<PathBuf, Vec<String>> {
    let executable = std::env::current_exe().ok();
    find(given, executable.as_deref(), |name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

/// A program of the host that a tool calls.
#[derive(Debug)]
pub struct Program {
    /// Its file name.
    pub name: &'static str,
    /// The variable that names it.
    pub variable: &'static str,
    /// The flag that names it.
    pub flag: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
}

/// Checks ext2, ext3 and ext4.
pub const E2FSCK: Program =
    Program { name: "e2fsck", variable: "MACHINEN_E2FSCK", flag: "--e2fsck", package: "e2fsprogs" };
/// Makes squashfs images.
pub const MKSQUASHFS: Program =
    Program { name: "mksquashfs", variable: "MACHINEN_MKSQUASHFS", flag: "--mksquashfs", package: "squashfs-tools" };

/// Where system administrators' programs are, though an ordinary user's PATH may not say so.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Finds a program: `given`, else its variable, else in `MACHINEN_ASSETS_DIR`, `assets` in the cache, PATH, /usr/sbin, /sbin.
///
/// What is named outright is taken without looking; of the others the first that exists.
pub fn find_program(program: &Program, given: Option<&Path>) -> Result<PathBuf, Fault> {
    let cache = imagecache::directory();
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let found = find_among(program, given, cache.as_deref(), variable);
    found.map_err(|tried| Fault::Missing(program.name, program.package, program.flag, tried))
}

fn find_among(
    program: &Program,
    given: Option<&Path>,
    cache: Option<&Path>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, Vec<String>> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if let Some(path) = variable(program.variable) {
        return Ok(path.into());
    }
    let mut tried = vec![format!("{} (not set)", program.variable)];
    let assets = variable("MACHINEN_ASSETS_DIR");
    if assets.is_none() {
        tried.push("MACHINEN_ASSETS_DIR (not set)".to_string());
    }
    let path = variable("PATH").unwrap_or_default();
    let dirs = assets.map(PathBuf::from).into_iter().chain(cache.map(|cache| cache.join("assets")));
    for dir in dirs.chain(std::env::split_paths(&path)).chain(SYSTEM.map(PathBuf::from)) {
        let path = dir.join(program.name);
        if path.is_file() {
            return Ok(path);
        }
        let path = path.display().to_string();
        if !tried.contains(&path) {
            tried.push(path);
        }
    }
    Err(tried)
}

fn find(
    given: Option<&Path>,
    executable: Option<&Path>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, Vec<String>> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if let Some(path) = variable("MACHINEN_INIT") {
        return Ok(path.into());
    }
    let mut tried = vec!["MACHINEN_INIT (not set)".to_string()];
    let beside = executable.and_then(Path::parent).map(|dir| dir.join("init"));
    let assets = variable("MACHINEN_ASSETS_DIR").map(|dir| Path::new(&dir).join("init"));
    if assets.is_none() {
        tried.push("MACHINEN_ASSETS_DIR (not set)".to_string());
    }
    for path in [beside, assets].into_iter().flatten() {
        if path.is_file() {
            return Ok(path);
        }
        tried.push(path.display().to_string());
    }
    Err(tried)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order() {
        let none = |_: &str| None;
        let set = |name: &str| Some(OsString::from(format!("/nowhere/{name}")));
        let given = Path::new("/given");
        assert_eq!(find(Some(given), None, set), Ok(given.to_owned()));
        let named = PathBuf::from("/nowhere/MACHINEN_INIT");
        assert_eq!(find(None, None, set), Ok(named));
        let tried = find(None, Some(Path::new("/nowhere/tool")), none).unwrap_err();
        assert_eq!(tried[2], "/nowhere/init");
    }

    #[test]
    fn programs() {
        const NONE: Program = Program { name: "no-such-program", variable: "V", flag: "--f", package: "p" };
        let given = Path::new("/given");
        let set = |name: &str| Some(OsString::from(format!("/nowhere/{name}")));
        assert_eq!(find_among(&NONE, Some(given), None, set), Ok(given.to_owned()));
        assert_eq!(find_among(&NONE, None, None, set), Ok(PathBuf::from("/nowhere/V")));
        let path = |name: &str| (name == "PATH").then(|| OsString::from("/a:/b:/a"));
        let tried = find_among(&NONE, None, Some(Path::new("/cache")), path).unwrap_err();
        let expected = ["/cache/assets", "/a", "/b", "/usr/sbin", "/sbin"].map(|dir| format!("{dir}/no-such-program"));
        assert_eq!(tried[2..], expected);
    }
}

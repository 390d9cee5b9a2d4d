//! Where the programs that a guest needs are found.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Finds /init: `given`, else `MACHINEN_INIT`, else `init` beside this executable, else in `MACHINEN_ASSETS_DIR`.
///
/// What is named outright is taken without looking; of the others the first that exists. Fails with the list of what
/// was tried, in words.
pub fn find_init(given: Option<&Path>) -> Result<PathBuf, Vec<String>> {
    let executable = std::env::current_exe().ok();
    find(given, executable.as_deref(), |name| std::env::var_os(name).filter(|value| !value.is_empty()))
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
}

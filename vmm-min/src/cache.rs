//! The cache directory: files that can be made again, put in place whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::sys;

/// `MACHINEN_CACHE_DIR`, `XDG_CACHE_HOME/machinen` or `HOME/.cache/machinen`. `None`: none of them is set.
pub fn directory() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("MACHINEN_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("machinen")))
        .or_else(|| variable("HOME").map(|dir| dir.join(".cache/machinen")))
}

/// Puts `content` at `path`, making its directory: readers see the whole file, the one before it or none, and a crash
/// leaves no part of it.
pub fn store(path: &Path, content: &[u8]) -> io::Result<File> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    let mut file = sys::unnamed_file(directory)?;
    file.write_all(content)?;
    // A host that crashes leaves no file of the right length without its content.
    file.sync_data()?;
    // No second name that rename(2) would put in place: a kill before that would leave it behind.
    if !sys::link(&file, path)? {
        fs::remove_file(path)?;
        // When the name is taken again, another start was faster, with the same content.
        sys::link(&file, path)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_file_replaces_the_one_before_and_leaves_nothing_else() {
        let directory = std::env::temp_dir().join(format!("machinen-cache-test-{}", std::process::id()));
        let path = directory.join("sub/file");
        store(&path, b"first").expect("first");
        store(&path, b"second").expect("second");
        assert_eq!(fs::read(&path).expect("read"), b"second");
        assert_eq!(fs::read_dir(directory.join("sub")).expect("list").count(), 1);
        fs::remove_dir_all(directory).expect("clean up");
    }

    #[test]
    fn what_cannot_be_replaced_stays_and_nothing_beside_it() {
        let directory = std::env::temp_dir().join(format!("machinen-cache-stays-{}", std::process::id()));
        let path = directory.join("entry");
        fs::create_dir_all(&path).expect("a directory in its place");
        store(&path, b"content").expect_err("refused");
        assert_eq!(fs::read_dir(&directory).expect("list").count(), 1);
        fs::remove_dir_all(directory).expect("clean up");
    }
}

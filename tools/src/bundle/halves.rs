//! The two halves of each directory that a guest has a copy of (`--mount`): its read-only image, and the disk with what was written.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::ctl;
use super::meta::open_part;
use crate::error::{Error, Result};

/// Name of the directory, in a bundle, of the halves: `0.lower`, `0.upper`, `1.lower`, ….
pub(super) const HALVES: &str = "mounts";

/// Both, open.
#[derive(Debug)]
pub(crate) struct Halves {
    /// The read-only image.
    pub lower: File,
    /// Its path where that is in the cache, whose names say what is in the files. Any other may be another image's by now.
    pub cached: Option<PathBuf>,
    /// What was written.
    pub upper: File,
}

fn name(number: usize, half: &str) -> String {
    format!("{HALVES}/{number}.{half}")
}

/// Puts the halves of the machine in `dir` into `bundle`, while its processes stand still. `lowers` are the images' paths
/// in the cache, empty for others.
///
/// Errors: `SNAPSHOT_DIRECTORY`.
pub(super) fn save(dir: &Path, bundle: &Path, lowers: &[String], limit: Option<Instant>) -> Result<()> {
    let failed = |path: &Path, cause| Error::host("SNAPSHOT_DIRECTORY", format!("make {}", path.display()), cause);
    if !lowers.is_empty() {
        let halves = bundle.join(HALVES);
        DirBuilder::new().mode(0o700).create(&halves).map_err(|cause| failed(&halves, cause))?;
    }
    for (number, lower) in lowers.iter().enumerate() {
        for (half, disk) in [("lower", 1 + 2 * number), ("upper", 2 + 2 * number)] {
            let path = bundle.join(name(number, half));
            // An image is never written to: another name for it is as good as a copy. It may be none, gone, or on another file system.
            if half == "lower" && fs::hard_link(lower, &path).is_ok() {
                continue;
            }
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let file = file.map_err(|cause| failed(&path, cause))?;
            ctl::ask(dir, &format!("disk {disk}"), Some(file.as_fd()), limit).map_err(|error| {
                Error::new("SNAPSHOT_DIRECTORY", format!("write {}", path.display())).because(error)
            })?;
        }
    }
    Ok(())
}

/// Opens those of the mount of this number.
///
/// Errors: `BUNDLE_INVALID`.
pub(super) fn open_both(bundle: &Path, number: usize) -> Result<Halves> {
    let open = |half| {
        open_part(bundle, &name(number, half)).map_err(|cause| {
            let path = bundle.join(name(number, half));
            Error::host("BUNDLE_INVALID", format!("open {}", path.display()), cause)
        })
    };
    Ok(Halves { lower: open("lower")?, cached: None, upper: open("upper")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn halves_are_files_of_the_bundle() {
        let bundle = std::env::temp_dir().join(format!("machinen-halves-{}", std::process::id()));
        let at = |name: &str| bundle.join(HALVES).join(name);
        fs::create_dir_all(at("")).unwrap();
        for name in ["0.lower", "0.upper", "1.lower"] {
            fs::write(at(name), "").unwrap();
        }
        symlink("0.upper", at("1.upper")).unwrap();
        assert!(open_both(&bundle, 0).unwrap().cached.is_none());
        for number in [1, 2] {
            assert_eq!(open_both(&bundle, number).unwrap_err().code(), "BUNDLE_INVALID");
        }
        fs::rename(at(""), bundle.join("other")).unwrap();
        symlink("other", bundle.join(HALVES)).unwrap();
        assert_eq!(open_both(&bundle, 0).unwrap_err().code(), "BUNDLE_INVALID");
        fs::remove_dir_all(&bundle).unwrap();
    }
}

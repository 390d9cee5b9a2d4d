//! Directories of which the guest has a copy: both halves of each, found or made before the machine starts.

use std::fs::File;
use std::path::PathBuf;

use super::options::BootOptions;
use crate::bundle::Halves;
use crate::error::{Error, Result};
use crate::mountdisk;
use crate::phases::Phases;

/// As a bundle has them; else the squashfs image of the directory, and an empty file system for what is written.
///
/// Errors: `MOUNTDISK_…`, `BUNDLE_INVALID`.
pub(super) fn open_all(options: &BootOptions) -> Result<Vec<Halves>> {
    let mut phases = Phases::new("machinen-run", options.verbose);
    let open = |(host, guest): &(PathBuf, String)| {
        if let Some(restore) = &options.restore
            && let Some(halves) = restore.halves(guest)?
        {
            return Ok(halves);
        }
        let path = mountdisk::lower_of(host, &mut phases)?;
        let lower = File::open(&path)
            .map_err(|cause| Error::host("MOUNTDISK_HOST", format!("open {}", path.display()), cause))?;
        Ok(Halves { lower, cached: Some(path), upper: mountdisk::empty_upper()? })
    };
    options.mounts.iter().map(open).collect()
}

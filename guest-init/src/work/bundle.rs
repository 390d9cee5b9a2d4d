//! Where a bundle is: on the share of its tag, or, for experiments, in a directory of the guest.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::format;
use alloc::string::{String, ToString};
use core::ffi::CStr;

use guest_init::criu::{BUNDLE, WORK, path};
use guest_init::wire::report::Failed;
use machinen_abi::body::Reason;

use super::system;
use crate::sys::{self, Errno, files};

/// The tag of the share.
const TAG: &CStr = c"bundle";

fn not_mounted(errno: i32, why: &str) -> Failed {
    Failed { reason: Reason::System, errno, message: format!("share bundle: not mounted: {why}") }
}

/// A bundle that can be read, and perhaps written.
pub struct Bundle {
    directory: String,
    is_mounted: bool,
}

impl Bundle {
    /// Mounts the share, or takes the directory that is given instead of it.
    pub fn open(directory: Option<&CStr>, read_only: bool) -> Result<Bundle, Failed> {
        // CRIU's files are for root alone.
        sys::make_directory(&path(WORK, ""), 0o700).map_err(|errno| system(WORK.as_bytes(), errno))?;
        if let Some(directory) = directory {
            let text = directory.to_str().ok().filter(|_| sys::exists(directory));
            let text = text.ok_or_else(|| system(directory.to_bytes(), Errno(libc::ENOENT)))?;
            return Ok(Bundle { directory: text.to_string(), is_mounted: false });
        }
        let target = CString::new(BUNDLE).unwrap_or_default();
        let flags = libc::MS_NOSUID | libc::MS_NODEV | if read_only { libc::MS_RDONLY } else { 0 };
        let mounted =
            sys::make_directory(&target, 0o700).and_then(|()| files::mount(TAG, c"virtiofs", &target, flags, c""));
        mounted.map_err(|Errno(errno)| {
            let why = match errno {
                libc::ENODEV => "the kernel has no virtiofs".to_owned(),
                libc::EINVAL => "the machine has no such share".to_owned(),
                errno => Errno(errno).to_string(),
            };
            not_mounted(errno, &why)
        })?;
        let bundle = Bundle { directory: BUNDLE.to_string(), is_mounted: true };
        // The kernel asks the host only now.
        if !sys::exists(&target) {
            bundle.close();
            return Err(not_mounted(libc::ENODEV, "there is no directory behind it"));
        }
        Ok(bundle)
    }

    /// The directory of CRIU's images.
    pub fn images(&self) -> String {
        format!("{}/img", self.directory)
    }

    /// A file beside them.
    pub fn file(&self, name: &str) -> CString {
        path(&self.directory, name)
    }

    /// It is not used any more. One that somebody else uses goes with its last user.
    pub fn close(&self) {
        if self.is_mounted {
            let target = CString::new(&*self.directory).unwrap_or_default();
            match files::unmount(&target, 0).or_else(|_| files::unmount(&target, libc::MNT_DETACH)) {
                Ok(()) | Err(_) => {}
            }
        }
    }
}

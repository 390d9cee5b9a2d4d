//! Whose files are shown as whose, and who gets what the guest makes.
//!
//! Root's monitor shows numbers as they are. A user's shows their own files as root's and all others as nobody's, as in a user
//! namespace of theirs: that is what they can change, and the rest is what they cannot.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::host;
use crate::request::Header;

/// Who nobody is.
const NOBODY: u32 = 65534;
const SET_GID: u32 = 0o2000;
const SET_IDS: u32 = 0o6000;

/// How numbers of users and groups go from the host to the guest and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As they are.
    Same,
    /// This user and group are the guest's root, all others nobody.
    Mine {
        /// The monitor's user.
        uid: u32,
        /// And group.
        gid: u32,
    },
}

impl Owners {
    /// Those that fit this process.
    pub fn of_process() -> Owners {
        match (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()) {
            (0, _) => Owners::Same,
            (uid, gid) => Owners::Mine { uid, gid },
        }
    }

    /// User and group of a file, for the guest.
    pub fn shown(self, stat: &Stat) -> (u32, u32) {
        let own = |id, own| if id == own { 0 } else { NOBODY };
        match self {
            Owners::Same => (stat.st_uid, stat.st_gid),
            Owners::Mine { uid, gid } => (own(stat.st_uid, uid), own(stat.st_gid, gid)),
        }
    }

    /// The host's user that the guest means.
    ///
    /// Errors: EPERM for one that there is not.
    pub fn user(self, id: u32) -> Result<u32, Errno> {
        match self {
            Owners::Same => Ok(id),
            Owners::Mine { uid, .. } if id == 0 => Ok(uid),
            Owners::Mine { .. } => Err(Errno::PERM),
        }
    }

    /// The host's group that the guest means. Errors as of [`Owners::user`].
    pub fn group(self, id: u32) -> Result<u32, Errno> {
        match self {
            Owners::Same => Ok(id),
            Owners::Mine { gid, .. } if id == 0 => Ok(gid),
            Owners::Mine { .. } => Err(Errno::PERM),
        }
    }

    /// Gives `made`, which this process has just made in `directory` with `mode`, to who asked for it.
    ///
    /// Not by setfsuid(2) before: that takes the capabilities away with which root may write where the guest's user may, and
    /// the signal at the parent's death with them.
    pub fn give(
        self,
        header: &Header,
        directory: BorrowedFd<'_>,
        made: BorrowedFd<'_>,
        mode: u32,
    ) -> Result<(), Errno> {
        if self != Owners::Same {
            return Ok(());
        }
        let stat = host::stat(made)?;
        let inherits = host::stat(directory)?.st_mode & SET_GID != 0;
        let uid = Some(header.uid).filter(|uid| *uid != stat.st_uid);
        let gid = Some(header.gid).filter(|gid| *gid != stat.st_gid && !inherits);
        if uid.is_none() && gid.is_none() {
            return Ok(());
        }
        host::set_owner(made, uid, gid)?;
        // The change of owner has taken them away.
        if mode & SET_IDS != 0 && host::kind(&stat) == FileType::RegularFile {
            host::set_permissions(made, mode)?;
        }
        Ok(())
    }
}

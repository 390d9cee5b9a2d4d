//! Extended attributes: those of users, of overlay file systems, and capabilities of programs.
//!
//! Labels of the host's security modules and its access control lists are neither shown nor set: they are about the host's users.

use std::ffi::CStr;

use rustix::buffer::spare_capacity;
use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use crate::host::FdPath;
use crate::server::{Server, put32};
use crate::wire::MOST_XATTR_BYTES;

fn is_shared(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(b"trusted.") || name == b"security.capability"
}

fn check(name: &CStr) -> Result<(), Errno> {
    if is_shared(name.to_bytes()) { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

impl Server {
    /// Sets one.
    pub(crate) fn set_xattr(&mut self, node: u64, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
        check(name)?;
        let flags = XattrFlags::from_bits_retain(flags);
        if !(XattrFlags::CREATE | XattrFlags::REPLACE).contains(flags) {
            return Err(Errno::INVAL);
        }
        fs::setxattr(FdPath::new(self.place(node)?).as_c_str(), name, value, flags)
    }

    /// Answers with the value of one, or its length.
    pub(crate) fn get_xattr(&mut self, node: u64, name: &CStr, size: u32) -> Result<(), Errno> {
        check(name)?;
        let path = FdPath::new(self.place(node)?);
        self.out.reserve(MOST_XATTR_BYTES);
        fs::getxattr(path.as_c_str(), name, spare_capacity(&mut self.out))?;
        self.sized(size)
    }

    /// Answers with the names of those there are, or their length.
    pub(crate) fn list_xattr(&mut self, node: u64, size: u32) -> Result<(), Errno> {
        let path = FdPath::new(self.place(node)?);
        let mut list = Vec::with_capacity(MOST_XATTR_BYTES);
        fs::listxattr(path.as_c_str(), spare_capacity(&mut list))?;
        let names = list.split_inclusive(|byte| *byte == 0);
        let shared = names.filter(|name| is_shared(name.strip_suffix(b"\0").unwrap_or(name)));
        shared.for_each(|name| self.out.extend_from_slice(name));
        self.sized(size)
    }

    /// Removes one.
    pub(crate) fn remove_xattr(&mut self, node: u64, name: &CStr) -> Result<(), Errno> {
        check(name)?;
        fs::removexattr(FdPath::new(self.place(node)?).as_c_str(), name)
    }

    /// The answer as it is, or its length for who asks with a `size` of 0.
    fn sized(&mut self, size: u32) -> Result<(), Errno> {
        let count = self.out.len();
        match usize::try_from(size).unwrap_or(0) {
            0 => {
                self.out.clear();
                put32(&mut self.out, u32::try_from(count).unwrap_or(u32::MAX));
                put32(&mut self.out, 0);
                Ok(())
            }
            size if size < count => Err(Errno::RANGE),
            _ => Ok(()),
        }
    }
}

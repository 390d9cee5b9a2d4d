//! Guest RAM: one anonymous mapping.
//!
//! The mapping lives as long as the process. Pages appear when they are touched (MAP_NORESERVE), huge where the
//! host allows it, except in the first 2 MiB, where start-up touches a handful of small pages.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use crate::error::{Error, Result};
use crate::virtio::queue::{Buffer, MOST_BUFFERS};

/// Size of a page, of the host and of the guest.
pub const PAGE_BYTES: u64 = 4096;
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// A flag of pwritev2(2).
const RWF_APPEND: libc::c_long = 0x10;

/// A range of guest-physical addresses that is RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address; a multiple of 2 MiB.
    pub start: GuestAddress,
    /// Length in bytes; a multiple of the page size.
    pub bytes: u64,
}

/// Guest RAM.
pub struct Ram {
    memory: GuestMemoryMmap,
}

impl Ram {
    /// Maps RAM for `ranges`, which are in order and do not overlap.
    ///
    /// Errors: `MEMORY_UNAVAILABLE` when the host has no such address space.
    pub fn new(ranges: &[Range]) -> Result<Ram> {
        let total: u64 = ranges.iter().map(|range| range.bytes).sum();
        let base = reserve(total).map_err(|cause| Error::Host {
            code: "MEMORY_UNAVAILABLE",
            operation: format!("mmap of {} MiB of guest RAM", total >> 20),
            cause,
            hint: "give the guest less with --memory".into(),
        })?;
        let mut offset = 0;
        let mut regions = Vec::with_capacity(ranges.len());
        for range in ranges {
            let bytes = to_usize(range.bytes);
            // SAFETY: base + offset .. + bytes lies inside the mapping that reserve() made and nobody unmaps.
            let region = unsafe {
                MmapRegion::build_raw(
                    base.add(to_usize(offset)),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                )
            };
            let region = region.ok().and_then(|region| GuestRegionMmap::new(region, range.start));
            regions.push(region.expect("a page-aligned region inside one mapping"));
            offset += range.bytes;
        }
        let memory = GuestMemoryMmap::from_regions(regions).expect("ranges in order without overlap");
        Ok(Ram { memory })
    }

    /// Tells KVM where the RAM is, one slot a range. To be done before any interrupt controller exists: each
    /// slot that comes later waits for a grace period (docs/architecture.md).
    pub fn register(&self, vm: &VmFd) -> Result<()> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr().addr() as u64,
            };
            // SAFETY: the slot names memory that stays mapped for the life of the process, and no other slot
            // overlaps it.
            unsafe { vm.set_user_memory_region(slot) }.map_err(|cause| Error::Host {
                code: "MEMORY_UNAVAILABLE",
                operation: format!("KVM_SET_USER_MEMORY_REGION of {} MiB", region.len() >> 20),
                cause: io::Error::from_raw_os_error(cause.errno()),
                hint: "give the guest less with --memory".into(),
            })?;
        }
        Ok(())
    }

    /// The memory, for devices and loaders.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The first range, in the order of addresses.
    pub fn first_range(&self) -> Range {
        let region = self.memory.iter().next().expect("there is RAM");
        Range { start: region.start_addr(), bytes: region.len() }
    }

    /// Makes the pages of a range that is about to be written exist, in one call rather than one fault each.
    pub fn populate(&self, at: GuestAddress, bytes: u64) {
        if let Ok(slice) = self.memory.get_slice(at, to_usize(bytes)) {
            // SAFETY: get_slice has checked that the range is RAM; the call changes no content. It may fail (Linux
            // before 5.14): the faults then come one by one.
            unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), libc::MADV_POPULATE_WRITE) };
        }
    }

    /// Keeps huge pages out of a range of which little will be touched, where the host gives them to all who do not say no. To
    /// be called before anything is.
    pub fn keep_small(&self, at: GuestAddress, bytes: u64) {
        if let Ok(slice) = self.memory.get_slice(at, to_usize(bytes)) {
            // SAFETY: get_slice has checked that the range is RAM; the call changes no content. It may fail (a kernel
            // without huge pages).
            unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), libc::MADV_NOHUGEPAGE) };
        }
    }

    /// Copies `bytes` to `at`. `false`: the range is not all RAM.
    #[must_use]
    pub fn write(&self, at: GuestAddress, bytes: &[u8]) -> bool {
        self.memory.write_slice(bytes, at).is_ok()
    }

    /// Fills `bytes` from `at`. `false`: the range is not all RAM.
    #[must_use]
    pub fn read(&self, at: GuestAddress, bytes: &mut [u8]) -> bool {
        self.memory.read_slice(bytes, at).is_ok()
    }

    /// `bytes` bytes from `at` are RAM, in one piece. None are, anywhere.
    #[must_use]
    pub fn contains(&self, at: GuestAddress, bytes: u64) -> bool {
        bytes == 0 || usize::try_from(bytes).is_ok_and(|bytes| self.memory.get_slice(at, bytes).is_ok())
    }

    /// Reads from `offset` of `file` into `pieces`, by one call. Returns the number of bytes, 0 at the end of the file.
    ///
    /// Errors: of preadv, and `InvalidInput` for a piece that is not RAM.
    pub fn read_file(&self, file: &File, offset: u64, pieces: impl Iterator<Item = Buffer>) -> io::Result<u64> {
        let list = IoVecs::new(self, pieces)?;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the list describes guest RAM, which stays mapped and to which nothing in this process holds a reference.
        count(|| unsafe { libc::preadv(file.as_raw_fd(), list.as_ptr(), list.len(), offset) })
    }

    /// Writes `pieces` to `offset` of `file`, by one call. Returns the number of bytes.
    ///
    /// Errors: of pwritev, and `InvalidInput` for a piece that is not RAM.
    pub fn write_file(&self, file: &File, offset: u64, pieces: impl Iterator<Item = Buffer>) -> io::Result<u64> {
        let list = IoVecs::new(self, pieces)?;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: as for read_file; the call only reads the memory.
        count(|| unsafe { libc::pwritev(file.as_raw_fd(), list.as_ptr(), list.len(), offset) })
    }

    /// Writes `pieces` to the end of `file`, wherever that is by then, by one call. Returns the number of bytes.
    ///
    /// Errors: of pwritev2, and `InvalidInput` for a piece that is not RAM.
    pub fn append_file(&self, file: &File, pieces: impl Iterator<Item = Buffer>) -> io::Result<u64> {
        let list = IoVecs::new(self, pieces)?;
        let (fd, count_of) = (libc::c_long::from(file.as_raw_fd()), libc::c_long::from(list.len()));
        // Not every C library has it. The offset, in two halves, does not count.
        // SAFETY: as for write_file.
        count(|| unsafe {
            let written = libc::syscall(libc::SYS_pwritev2, fd, list.as_ptr(), count_of, 0_i64, 0_i64, RWF_APPEND);
            libc::ssize_t::try_from(written).unwrap_or(-1)
        })
    }

    /// Receives from the socket `fd` into `pieces`, without waiting. Returns the number of bytes, 0 at the stream's end.
    ///
    /// Errors: of recvmsg (`WouldBlock`), and `InvalidInput` for a piece that is not RAM.
    pub fn receive(&self, fd: BorrowedFd<'_>, pieces: impl Iterator<Item = Buffer>) -> io::Result<u64> {
        self.receive_and(fd, pieces, &mut [])
    }

    /// The same with what comes after `pieces` in `after`, memory of the monitor's.
    pub fn receive_and(
        &self,
        fd: BorrowedFd<'_>,
        mut pieces: impl Iterator<Item = Buffer>,
        after: &mut [u8],
    ) -> io::Result<u64> {
        let mut list = IoVecs::new(self, pieces.by_ref().take(MOST_BUFFERS))?;
        // Only behind all of them, which are not always as many as fit.
        if pieces.next().is_none() {
            list.push(after.as_mut_ptr(), after.len());
        }
        let mut message = list.message();
        // SAFETY: the message names only the list, which describes guest RAM as for read_file, and the live `after`.
        count(|| unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })
    }

    /// Sends `pieces` to the socket `fd`, without waiting and without SIGPIPE. Returns the number of bytes.
    ///
    /// Errors: of sendmsg (`WouldBlock`), and `InvalidInput` for a piece that is not RAM.
    pub fn send(&self, fd: BorrowedFd<'_>, pieces: impl Iterator<Item = Buffer>) -> io::Result<u64> {
        self.send_and(fd, &[], pieces)
    }

    /// The same with `before`, memory of the monitor's, in front of `pieces`.
    pub fn send_and(&self, fd: BorrowedFd<'_>, before: &[u8], pieces: impl Iterator<Item = Buffer>) -> io::Result<u64> {
        let mut list = IoVecs::EMPTY;
        list.push(before.as_ptr().cast_mut(), before.len());
        list.push_pieces(self, pieces.take(MOST_BUFFERS))?;
        let message = list.message();
        // SAFETY: as for receive_and; the call only reads the memory.
        count(|| unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
    }

    /// Fills `pieces` with zeros; returns how many bytes that are.
    pub fn zero(&self, pieces: impl Iterator<Item = Buffer>) -> u64 {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut done = 0;
        for piece in pieces {
            let mut rest = u64::from(piece.bytes);
            while rest > 0 {
                let now = rest.min(ZEROS.len() as u64);
                let at = piece.at.unchecked_add(u64::from(piece.bytes) - rest);
                if !self.write(at, &ZEROS[..to_usize(now)]) {
                    return done;
                }
                done += now;
                rest -= now;
            }
        }
        done
    }

    /// Gives whole pages of a range back to the host; the guest finds anything in them. Returns how many bytes that are.
    ///
    /// Errors: of madvise.
    pub fn give_back(&self, at: GuestAddress, bytes: u64) -> io::Result<u64> {
        let end = at.raw_value().saturating_add(bytes) & !(PAGE_BYTES - 1);
        let start = at.raw_value().checked_next_multiple_of(PAGE_BYTES).unwrap_or(end);
        if start >= end {
            return Ok(0);
        }
        let slice = self.memory.get_slice(GuestAddress(start), to_usize(end - start)).map_err(io::Error::other)?;
        // SAFETY: get_slice has checked that the range is RAM, and nothing in this process holds a reference into it.
        let result = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), libc::MADV_DONTNEED) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(end - start) }
    }

    /// Reads `bytes` bytes of `file` from `offset` to `at`, a huge page at a time where the host allows it.
    ///
    /// Mapping the file instead would copy nothing, but each mapped page costs the guest an exit, and two when it writes
    /// to it; a copied one costs a 512th of that.
    /// The caller has checked that the file is that long and that the range is RAM. Errors: of lseek and read.
    pub fn copy(&self, at: GuestAddress, mut file: &File, offset: u64, bytes: u64) -> io::Result<()> {
        file.seek(SeekFrom::Start(offset))?;
        self.memory.read_exact_volatile_from(at, &mut file, to_usize(bytes)).map_err(|error| match error {
            GuestMemoryError::IOError(error) => error,
            other => io::Error::other(other),
        })
    }
}

/// Pieces of guest RAM, and one of the monitor's memory, as the host's vectored calls want them.
struct IoVecs {
    list: [libc::iovec; MOST_BUFFERS + 1],
    count: usize,
}

impl IoVecs {
    const EMPTY: IoVecs =
        IoVecs { list: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MOST_BUFFERS + 1], count: 0 };

    /// As many of `pieces` as fit, which is all of a chain.
    fn new(ram: &Ram, pieces: impl Iterator<Item = Buffer>) -> io::Result<IoVecs> {
        let mut vecs = IoVecs::EMPTY;
        vecs.push_pieces(ram, pieces)?;
        Ok(vecs)
    }

    fn push_pieces(&mut self, ram: &Ram, pieces: impl Iterator<Item = Buffer>) -> io::Result<()> {
        for piece in pieces.take(self.list.len() - self.count) {
            let slice = ram.memory.get_slice(piece.at, piece.bytes as usize);
            let slice = slice.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            self.push(slice.ptr_guard_mut().as_ptr(), slice.len());
        }
        Ok(())
    }

    /// Adds a piece, where there is room and something in it.
    fn push(&mut self, start: *mut u8, bytes: usize) {
        if let Some(slot) = self.list.get_mut(self.count).filter(|_| bytes > 0) {
            *slot = libc::iovec { iov_base: start.cast(), iov_len: bytes };
            self.count += 1;
        }
    }

    fn as_ptr(&self) -> *const libc::iovec {
        self.list.as_ptr()
    }

    fn len(&self) -> libc::c_int {
        libc::c_int::try_from(self.count).unwrap_or(0)
    }

    fn message(&self) -> libc::msghdr {
        // SAFETY: zeros are a message without name, control data and flags.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.as_ptr().cast_mut();
        #[allow(clippy::useless_conversion, reason = "an int in musl, a size_t in glibc")]
        let count = self.count.try_into().unwrap_or_default();
        message.msg_iovlen = count;
        message
    }
}

/// The result of a call that returns a number of bytes; once more when a signal came first.
fn count(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<u64> {
    loop {
        match u64::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// Maps `bytes` of anonymous memory at a multiple of the huge page size.
fn reserve(bytes: u64) -> io::Result<*mut u8> {
    let length = bytes.checked_add(HUGE_PAGE_BYTES).and_then(|length| usize::try_from(length).ok());
    let length = length.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    // SAFETY: an anonymous mapping at an address of the kernel's choice replaces nothing.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let base = base.cast::<u8>();
    let huge = to_usize(HUGE_PAGE_BYTES);
    // The slack before and after stays mapped and untouched: it costs nothing.
    let aligned = base.wrapping_add(base.addr().next_multiple_of(huge) - base.addr());
    if bytes > HUGE_PAGE_BYTES {
        // SAFETY: the range lies inside the mapping made above. Advice may be refused (a kernel without huge
        // pages); RAM works without it.
        unsafe { libc::madvise(aligned.add(huge).cast(), to_usize(bytes) - huge, libc::MADV_HUGEPAGE) };
    }
    Ok(aligned)
}

/// Sizes that were checked against the address space before.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a size within the address space")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    fn file(pages: u8) -> File {
        let mut file = crate::sys::memfd("test").expect("memfd");
        for page in 0..pages {
            file.write_all(&[page + 1; 4096]).expect("write");
        }
        file
    }

    fn ram() -> Ram {
        Ram::new(&[Range { start: GuestAddress(0), bytes: 4 << 20 }]).expect("ram")
    }

    fn bytes(ram: &Ram, at: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        ram.memory().read_slice(&mut bytes, GuestAddress(at)).expect("in RAM");
        bytes
    }

    #[test]
    fn a_copied_range_has_its_bytes_and_nothing_beyond() {
        for (at, offset, count) in [(0x1000, 0, 8192), (0x1800, 0x800, 9000), (0x1234, 0x10, 8192), (0x5000, 1, 3)] {
            let (ram, source) = (ram(), file(4));
            let mut expected = vec![0; count];
            ram.copy(GuestAddress(at), &source, offset, count as u64).expect("copy");
            source.read_exact_at(&mut expected, offset).expect("read");
            assert_eq!(bytes(&ram, at, count), expected, "{at:#x} {offset:#x} {count}");
            assert_eq!(bytes(&ram, at - 1, 1), [0], "before {at:#x}");
            assert_eq!(bytes(&ram, at + count as u64, 16), [0; 16], "after {at:#x}+{count}");
        }
    }

    #[test]
    fn writes_outside_ram_are_refused() {
        assert!(!ram().write(GuestAddress((4 << 20) - 2), b"four"));
    }
}

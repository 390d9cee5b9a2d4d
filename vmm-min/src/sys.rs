//! The system calls that neither std nor kvm-ioctls wraps, each a safe function of a few lines.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Turns the C convention (-1 and errno) into a result.
fn check(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Opens a new description of what `fd` refers to, non-blocking, for reading or for writing.
///
/// Flags of an open file description are shared with whoever else holds it (the shell, the rest of the
/// pipeline), so the monitor sets its own on a description of its own.
pub fn reopen_nonblocking(fd: BorrowedFd<'_>, write: bool) -> io::Result<OwnedFd> {
    let path = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let direction = if write { libc::O_WRONLY } else { libc::O_RDONLY };
    let flags = direction | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the path is a live, terminated string; open has no other requirement.
    let fd = check(unsafe { libc::open(path.as_ptr(), flags) })?;
    // SAFETY: open just returned this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `fd` is the user's end of a pseudo-terminal: opening it again would make another pseudo-terminal.
pub fn is_pty_master(fd: BorrowedFd<'_>) -> bool {
    let mut number: libc::c_uint = 0;
    // SAFETY: the call writes one integer, to a live one; only a master knows it.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGPTN, &raw mut number) == 0 }
}

/// Makes this process the leader of a session of its own, without a terminal. Source: setsid(2).
pub fn new_session() -> io::Result<()> {
    // SAFETY: setsid takes nothing and returns an integer.
    check(unsafe { libc::setsid() }).map(|_| ())
}

/// Has the kernel end this process (SIGTERM) when `parent` ends. `false`: it has ended already.
pub fn die_with(parent: u32) -> io::Result<bool> {
    // SAFETY: both calls take and return integers.
    let now = unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM))?;
        libc::getppid()
    };
    Ok(u32::try_from(now) == Ok(parent))
}

/// An anonymous file in memory.
pub fn memfd(name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: the name is a live, terminated string.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: memfd_create just returned this descriptor and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// File type bits (`S_IFMT`) of `fd`.
pub fn file_type(fd: BorrowedFd<'_>) -> io::Result<libc::mode_t> {
    stat(fd.as_raw_fd()).map(|stat| stat.st_mode & libc::S_IFMT)
}

/// When the inode behind `file` last changed: seconds and nanoseconds since 1970.
pub fn change_time(file: &impl AsRawFd) -> io::Result<(i64, i64)> {
    stat(file.as_raw_fd()).map(|stat| (stat.st_ctime, stat.st_ctime_nsec))
}

/// Raises the number of descriptors that this process may have to `most`, or what the system allows. Returns it.
pub fn raise_descriptor_limit(most: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls read and write one live structure; when they fail it stays as it is.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        // Root may have more than was meant for it.
        let all = libc::rlimit { rlim_cur: most.max(limit.rlim_cur), rlim_max: most.max(limit.rlim_max) };
        let allowed = libc::rlimit { rlim_cur: limit.rlim_max.min(all.rlim_cur), ..limit };
        let set = |wanted: &libc::rlimit| libc::setrlimit(libc::RLIMIT_NOFILE, wanted) == 0;
        [all, allowed].iter().find(|wanted| set(wanted)).unwrap_or(&limit).rlim_cur
    }
}

/// The file belongs to this process' user and nobody else may write to it.
pub fn is_own_file(file: &File) -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    stat(file.as_raw_fd()).is_ok_and(|stat| stat.st_uid == user && stat.st_mode & 0o022 == 0)
}

fn stat(fd: RawFd) -> io::Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the whole structure when it succeeds, and only then is it read.
    unsafe {
        check(libc::fstat(fd, stat.as_mut_ptr()))?;
        Ok(stat.assume_init())
    }
}

/// Switches SIGIO for `fd` becoming readable or writable on or off. Returns whether it is on: some kinds of file have
/// no such notice and the kernel ignores the flag silently, so it is read back.
pub fn notify_by_signal(fd: BorrowedFd<'_>, on: bool) -> io::Result<bool> {
    let fd = fd.as_raw_fd();
    // SAFETY: fcntl with these commands takes and returns integers.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))? & !libc::O_ASYNC;
        if !on {
            return check(libc::fcntl(fd, libc::F_SETFL, flags)).map(|_| false);
        }
        check(libc::fcntl(fd, libc::F_SETOWN, libc::getpid()))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_ASYNC))?;
        Ok(check(libc::fcntl(fd, libc::F_GETFL))? & libc::O_ASYNC != 0)
    }
}

/// What to wait for on one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Data or end of file to read.
    Read,
    /// Room to write.
    Write,
}

/// Waits until one of `fds` is ready or `timeout_ms` has passed (negative: no limit). Says which are ready;
/// an error or hang-up counts as ready, because the next read or write tells it.
pub fn poll<const N: usize>(fds: [(RawFd, Ready); N], timeout_ms: i32) -> io::Result<[bool; N]> {
    let mut set = fds.map(|(fd, ready)| libc::pollfd {
        fd,
        events: match ready {
            Ready::Read => libc::POLLIN,
            Ready::Write => libc::POLLOUT,
        },
        revents: 0,
    });
    let count = libc::nfds_t::try_from(N).unwrap_or(0);
    // SAFETY: the pointer and the count describe the live array `set`.
    check(unsafe { libc::poll(set.as_mut_ptr(), count, timeout_ms) })?;
    Ok(set.map(|entry| entry.revents != 0))
}

/// Receives from a socket without waiting, whatever the flags of its description.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length describe the live, writable buffer.
    let count = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Sends to a socket without waiting, whatever the flags of its description.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and the length describe the live buffer.
    let count = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Of one descriptor in a message.
const DESCRIPTOR_BYTES: libc::c_uint = 4;

/// Room for the header and descriptors of SCM_RIGHTS, aligned as a header is.
#[repr(C, align(8))]
struct Rights([u8; 64]);

/// With room for so many bytes of descriptors, and not for their alignment: that would have room for another one.
fn message(bytes: &mut libc::iovec, rights: &mut Rights, room: libc::c_uint) -> libc::msghdr {
    // SAFETY: all fields are integers and pointers, for which zeroes are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = bytes;
    message.msg_iovlen = 1;
    message.msg_control = rights.0.as_mut_ptr().cast();
    // SAFETY: CMSG_LEN only computes.
    message.msg_controllen = unsafe { libc::CMSG_LEN(room) } as _;
    message
}

/// Receives from a Unix socket without waiting, and the descriptor that came with the bytes, if any. Source: unix(7), cmsg(3).
pub fn receive_descriptor(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut bytes = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut rights = Rights([0; 64]);
    let mut message = message(&mut bytes, &mut rights, DESCRIPTOR_BYTES);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message describes live buffers. The kernel makes no more descriptors than there is room for, which is one, and
    // whoever finds its header owns it.
    unsafe {
        let count = libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags);
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let is_one = !header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_RIGHTS
            && (*header).cmsg_len as usize == libc::CMSG_LEN(DESCRIPTOR_BYTES) as usize;
        let descriptor = is_one.then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()));
        Ok((count, descriptor))
    }
}

/// Sends to a Unix socket, with at most four descriptors.
#[cfg(test)]
pub fn send_descriptors(fd: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut bytes = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut rights = Rights([0; 64]);
    let room = descriptors.iter().map(|_| DESCRIPTOR_BYTES).sum();
    let message = message(&mut bytes, &mut rights, room);
    // SAFETY: the message describes live buffers, with room for one header and the descriptors.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(room) as _;
        for (index, descriptor) in descriptors.iter().enumerate() {
            libc::CMSG_DATA(header).cast::<RawFd>().add(index).write_unaligned(descriptor.as_raw_fd());
        }
        let count = libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL);
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

/// Physical memory of the host in bytes.
pub fn host_memory_bytes() -> io::Result<u64> {
    let mut info = MaybeUninit::<libc::sysinfo>::uninit();
    // SAFETY: sysinfo fills the whole structure when it succeeds, and only then is it read.
    let info = unsafe {
        check(libc::sysinfo(info.as_mut_ptr()))?;
        info.assume_init()
    };
    #[allow(clippy::useless_conversion, reason = "the field is narrower on 32-bit hosts")]
    Ok(u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit)))
}

/// Reading the terminal and changing it will not stop us: its foreground process group is ours, or it controls another
/// session or none (the answer is then an error or 0), so that it has no such rules for us.
pub fn in_foreground(terminal: BorrowedFd<'_>) -> bool {
    // SAFETY: both calls take integers and return integers.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(terminal.as_raw_fd()), libc::getpgrp()) };
    foreground <= 0 || foreground == own
}

/// A file without a name in `directory`; [`link`] can give it one.
pub fn unnamed_file(directory: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(directory)
}

/// Names the file that [`unnamed_file`] made. `false`: the name is taken, and stays with what it names.
pub fn link(file: &File, path: &Path) -> io::Result<bool> {
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both paths are live, terminated strings.
    let result = check(unsafe {
        libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW)
    });
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Locks `file` until it is closed by everybody who has it: alone, or together with others who do not want it alone.
/// `false`: somebody else has it. Source: flock(2).
pub fn lock(file: &File, alone: bool) -> io::Result<bool> {
    let operation = if alone { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: flock takes and returns integers.
    match check(unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Length of a file or block device in bytes.
pub fn size(mut file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::End(0))
}

/// The first range at or after `at` that is no hole, as far as the file system tells; `None` when only a hole is left.
/// Source: lseek(2), SEEK_DATA.
pub fn next_data(file: &File, at: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |from: u64, what| {
        let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: lseek takes and returns integers.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from, what) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    match seek(at, libc::SEEK_DATA) {
        Ok(start) => Ok(Some(start..seek(start, libc::SEEK_HOLE)?)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a range of `file` a hole, which reads as zeros; its length stays. `Unsupported`: the file system has no holes.
pub fn punch_hole(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let [offset, bytes] = [offset, bytes].map(libc::off_t::try_from);
    let (offset, bytes) = (offset.map_err(io::Error::other)?, bytes.map_err(io::Error::other)?);
    if bytes == 0 {
        return Ok(());
    }
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes and returns integers.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, bytes) }).map(|_| ())
}

/// Fills `bytes` with random bytes. Returns how many; fewer when a signal came. Source: getrandom(2).
pub fn random(bytes: &mut [u8]) -> io::Result<usize> {
    // Not by libc::getrandom: the standard library names that symbol weakly, and a static link then leaves it null.
    // SAFETY: the pointer and the length describe the live, writable buffer.
    let count = unsafe { libc::syscall(libc::SYS_getrandom, bytes.as_mut_ptr(), bytes.len(), 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Opens the place `path` itself, whatever is there, to be reached as /proc/self/fd/N. Not by std: there O_PATH is lost with
/// musl, for which it is part of O_ACCMODE.
pub fn open_place(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a live, terminated string; open has no other requirement.
    let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) })?;
    // SAFETY: open just returned this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A connected Unix stream socket that the parent left open under `number`. It is not handed on to other programs.
///
/// Errors: EBADF, ENOTSOCK, EPROTOTYPE for another type of socket, ENOTCONN.
pub fn inherited_stream(number: RawFd) -> io::Result<UnixStream> {
    let mut kind: libc::c_int = 0;
    let mut bytes = libc::socklen_t::try_from(size_of_val(&kind)).unwrap_or(0);
    // SAFETY: the pointers and the length describe one live integer, which is all that is written.
    check(unsafe {
        libc::getsockopt(number, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut bytes)
    })?;
    if kind != libc::SOCK_STREAM {
        return Err(io::Error::from_raw_os_error(libc::EPROTOTYPE));
    }
    // SAFETY: fcntl with this command takes and returns integers.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is an open socket, and none that this program has made: it is opened before any other.
    let stream = unsafe { UnixStream::from_raw_fd(number) };
    stream.peer_addr()?;
    Ok(stream)
}

/// Has this process look at the host's descriptors once more: SIGIO, to itself.
pub fn wake_self() {
    // SAFETY: both calls take integers.
    unsafe { libc::kill(libc::getpid(), libc::SIGIO) };
}

/// SIGIO does not end this process, as it would where nothing has blocked it.
#[cfg(any(test, feature = "testing"))]
pub fn ignore_sigio() {
    // SAFETY: to ignore a signal runs no handler.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}

/// Which of `set` are ready now, in their `revents`. Source: poll(2).
pub fn poll_now(set: &mut [libc::pollfd]) -> io::Result<()> {
    let count = libc::nfds_t::try_from(set.len()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the count describe the live, writable slice.
    check(unsafe { libc::poll(set.as_mut_ptr(), count, 0) }).map(|_| ())
}

/// Looks at what [`receive`] would get, which stays.
pub fn peek(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: the pointer and the length describe the live, writable buffer.
    let count = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Listens on a new Unix socket at `path`, without ever waiting; `backlog` connections may wait to be accepted.
///
/// Errors: of the calls, and `InvalidInput` for a path of more than 107 bytes.
pub fn listen_unix(path: &Path, backlog: i32) -> io::Result<UnixListener> {
    let (socket, address, length) = unix_socket(path)?;
    // SAFETY: the pointer and the length describe the live address.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: listen takes integers.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
    Ok(socket.into())
}

/// Connects to the Unix socket at `path`, without waiting, then or later.
///
/// Errors: of the calls, among them `WouldBlock` when too many wait there already, and `InvalidInput` for a path of more
/// than 107 bytes.
pub fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let (socket, address, length) = unix_socket(path)?;
    // SAFETY: the pointer and the length describe the live address.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket.into())
}

fn unix_socket(path: &Path) -> io::Result<(OwnedFd, libc::sockaddr_un, libc::socklen_t)> {
    let family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    let mut address = libc::sockaddr_un { sun_family: family, sun_path: [0; 108] };
    let bytes = path.as_os_str().as_bytes();
    // A terminating zero stays.
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (target, byte) in address.sun_path.iter_mut().zip(bytes) {
        *target = libc::c_char::from_ne_bytes([*byte]);
    }
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_un>()).map_err(io::Error::other)?;
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes integers.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: socket just returned this descriptor and nothing else owns it.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address, length))
}

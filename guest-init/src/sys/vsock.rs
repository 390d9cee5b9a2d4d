//! Streams of vsock(7).

use core::ffi::c_int;
use core::mem::{MaybeUninit, size_of, zeroed};

use super::{Errno, Fd, Result, check};

/// With the type that the address has.
const AF_VSOCK: libc::sa_family_t = 40;

/// Connections that wait to be accepted.
const BACKLOG: c_int = 128;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: a structure of plain integers, for which zeroes are valid.
    let mut address: libc::sockaddr_vm = unsafe { zeroed() };
    address.svm_family = AF_VSOCK;
    (address.svm_cid, address.svm_port) = (cid, port);
    address
}

/// The size of `sockaddr_vm`.
fn address_bytes() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or(0)
}

fn socket() -> Result<Fd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: integers in.
    check(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) }).map(Fd)
}

/// A listener on `port`, which never waits.
pub fn listen(port: u32) -> Result<Fd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is live and as long as it is said to be.
    unsafe {
        check(libc::bind(socket.0, (&raw const address).cast(), address_bytes()))?;
        check(libc::listen(socket.0, BACKLOG))?;
    }
    Ok(socket)
}

/// The next connection, which never waits either.
pub fn accept(listener: &Fd) -> Result<Fd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: null pointers stand for an address that nobody wants.
    check(unsafe { libc::accept4(listener.0, core::ptr::null_mut(), core::ptr::null_mut(), flags) }).map(Fd)
}

/// A connection to `port` of the host that is being made: it can be written to when that is done, well or not.
pub fn connect(port: u32) -> Result<Fd> {
    let socket = socket()?;
    let address = address(libc::VMADDR_CID_HOST, port);
    // SAFETY: the address is live and as long as it is said to be.
    match check(unsafe { libc::connect(socket.0, (&raw const address).cast(), address_bytes()) }) {
        Ok(_) | Err(Errno(libc::EINPROGRESS)) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// How the making of a connection ended.
pub fn connected(socket: &Fd) -> Result<()> {
    let mut error = MaybeUninit::<c_int>::uninit();
    let mut bytes = libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or(0);
    // SAFETY: the call writes an int when it succeeds, and only then is it used.
    let error = unsafe {
        check(libc::getsockopt(socket.0, libc::SOL_SOCKET, libc::SO_ERROR, error.as_mut_ptr().cast(), &raw mut bytes))?;
        error.assume_init()
    };
    if error == 0 { Ok(()) } else { Err(Errno(error)) }
}

/// Nothing more is written; the other side sees the end after all that was.
pub fn end_writing(socket: &Fd) {
    // SAFETY: integers in. A connection that is gone has ended too.
    unsafe { libc::shutdown(socket.0, libc::SHUT_WR) };
}

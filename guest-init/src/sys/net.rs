//! The system calls about the network: netdevice(7), rtentry of route(4).

use alloc::string::String;
use core::ffi::CStr;
use core::mem::{MaybeUninit, zeroed};
use core::net::Ipv4Addr;

use super::{Errno, Fd, Result, check};

// With the types that ioctl and the structures have here.
const SIOCADDRT: libc::Ioctl = 0x890b;
const SIOCGIFNAME: libc::Ioctl = 0x8910;
const SIOCGIFFLAGS: libc::Ioctl = 0x8913;
const SIOCSIFFLAGS: libc::Ioctl = 0x8914;
const SIOCSIFADDR: libc::Ioctl = 0x8916;
const SIOCSIFNETMASK: libc::Ioctl = 0x891c;
const SIOCGIFHWADDR: libc::Ioctl = 0x8927;
const IFF_UP: libc::c_short = 1;
const IFF_RUNNING: libc::c_short = 0x40;
const AF_INET: libc::sa_family_t = 2;
const ARPHRD_ETHER: libc::sa_family_t = 1;

/// Numbers of interfaces that are looked at: the kernel counts from 1.
const MAX_INDEX: i32 = 64;

/// A network interface.
pub struct Interface {
    socket: Fd,
    /// Always has the interface's name, terminated.
    request: libc::ifreq,
}

impl Interface {
    /// No interface yet.
    fn none() -> Result<Self> {
        // SAFETY: socket takes integers; the request is a structure of plain integers for which zeroes are valid.
        unsafe {
            let socket = Fd(check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?);
            Ok(Self { socket, request: zeroed() })
        }
    }

    /// `lo`.
    pub fn loopback() -> Result<Self> {
        let mut interface = Self::none()?;
        for (to, from) in interface.request.ifr_name.iter_mut().zip(*b"lo") {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        Ok(interface)
    }

    /// The Ethernet interface with the lowest number; `None` when there is none now.
    pub fn first_ethernet() -> Result<Option<Self>> {
        let mut interface = Self::none()?;
        for index in 1..=MAX_INDEX {
            interface.request.ifr_ifru.ifru_ifindex = index;
            if interface.ioctl(SIOCGIFNAME).is_ok() && interface.ioctl(SIOCGIFHWADDR).is_ok() {
                // SAFETY: the call has filled this member.
                let hardware = unsafe { interface.request.ifr_ifru.ifru_hwaddr };
                if hardware.sa_family == ARPHRD_ETHER {
                    return Ok(Some(interface));
                }
            }
        }
        Ok(None)
    }

    /// Its name.
    pub fn name(&self) -> String {
        // SAFETY: the name is terminated.
        unsafe { CStr::from_ptr(self.request.ifr_name.as_ptr()) }.to_string_lossy().into_owned()
    }

    /// Switches it on.
    pub fn up(&mut self) -> Result<()> {
        self.ioctl(SIOCGIFFLAGS)?;
        // SAFETY: the call has filled this member.
        unsafe { self.request.ifr_ifru.ifru_flags |= IFF_UP };
        self.ioctl(SIOCSIFFLAGS)
    }

    /// It sends what it is given: it is on, and its link is up.
    pub fn is_running(&mut self) -> bool {
        // SAFETY: the call has filled this member.
        self.ioctl(SIOCGIFFLAGS).is_ok() && unsafe { self.request.ifr_ifru.ifru_flags } & IFF_RUNNING != 0
    }

    /// Gives it an address on a network.
    pub fn set_address(&mut self, address: Ipv4Addr, mask: Ipv4Addr) -> Result<()> {
        self.request.ifr_ifru.ifru_addr = socket_address(address);
        self.ioctl(SIOCSIFADDR)?;
        self.request.ifr_ifru.ifru_netmask = socket_address(mask);
        self.ioctl(SIOCSIFNETMASK)
    }

    /// Sends what is for no other network to `gateway`, through this interface.
    pub fn set_default_route(&mut self, gateway: Ipv4Addr) -> Result<()> {
        const RTF_UP: u16 = 1;
        const RTF_GATEWAY: u16 = 2;
        // SAFETY: a structure of plain integers and a pointer that may be null.
        let mut route: libc::rtentry = unsafe { MaybeUninit::zeroed().assume_init() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = RTF_UP | RTF_GATEWAY;
        route.rt_dev = self.request.ifr_name.as_mut_ptr();
        // SAFETY: the structure is live, and the terminated name that it points to too.
        check(unsafe { libc::ioctl(self.socket.0, SIOCADDRT, &raw const route) }).map(drop)
    }

    fn ioctl(&mut self, call: libc::Ioctl) -> Result<()> {
        // SAFETY: all these calls read and write one ifreq, which is live, and only during the call.
        check(unsafe { libc::ioctl(self.socket.0, call, &raw mut self.request) }).map(drop)
    }
}

/// Switches the loopback interface on.
pub fn loopback_up() -> Result<()> {
    match Interface::loopback().and_then(|mut lo| lo.up()) {
        // A kernel without network.
        Err(Errno(libc::EAFNOSUPPORT | libc::ENOSYS | libc::ENODEV)) => Ok(()),
        result => result,
    }
}

/// A `sockaddr_in` (ip(7)): the address comes after two bytes of port, in network order.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    libc::sockaddr { sa_family: AF_INET, sa_data: data }
}

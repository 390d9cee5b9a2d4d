//! The network: address, route and resolvers of the first interface.

use alloc::format;
use core::ffi::CStr;

use guest_init::net::Net;

use crate::sys::net::Interface;
use crate::sys::{self, Errno, files};
use crate::{Refused, say};

/// A driver that is loaded has found its device by then.
const LIMIT_MS: i64 = 10_000;

/// A link that is up is seen so by then. What is sent earlier is lost, and would be sent again only after a second.
const LINK_MS: i64 = 500;

const RESOLV_CONF: &CStr = c"/etc/resolv.conf";
const BASE: &CStr = c"/run/machinen";
const OURS: &CStr = c"/run/machinen/resolv.conf";

/// Sets up the first Ethernet interface and the resolvers.
pub fn configure(net: &Net) -> Result<(), Refused> {
    let interface = sys::within(LIMIT_MS, || Interface::first_ethernet().transpose());
    let mut interface = match interface {
        Some(result) => result.map_err(|errno| format!("machinen.net: {errno}"))?,
        None => {
            let seconds = LIMIT_MS / 1000;
            let why = "the VM has none, or its driver is not loaded";
            return Err(format!("machinen.net: no network interface after {seconds} s: {why}"));
        }
    };
    let name = interface.name();
    let failed = |what: &'static str| move |errno: Errno| format!("network {name}: {what}: {errno}");
    interface.set_address(net.address, net.mask()).map_err(failed.clone()("address"))?;
    interface.up().map_err(failed.clone()("up"))?;
    if let Some(gateway) = net.gateway {
        interface.set_default_route(gateway).map_err(failed("default route"))?;
    }
    // A link that is down is the other end's business.
    sys::within(LINK_MS, || interface.is_running().then_some(()));
    let resolv_conf = net.resolv_conf();
    if !resolv_conf.is_empty()
        && let Err(errno) = set_resolv_conf(resolv_conf.as_bytes())
    {
        say(format_args!("/etc/resolv.conf: names will not resolve: {errno}"));
    }
    Ok(())
}

/// Puts a file over /etc/resolv.conf that is in memory: the image keeps its own, and a read-only root is no obstacle.
/// A link is followed inside the root; one that leads nowhere is replaced by an empty file, and so is a missing one.
fn set_resolv_conf(content: &[u8]) -> sys::Result<()> {
    sys::make_directory(BASE, 0o755)?;
    let file = files::create(OURS)?;
    let written = file.write(content)?;
    if written != content.len() {
        return Err(Errno(libc::ENOSPC));
    }
    if !files::is_regular(RESOLV_CONF) {
        if sys::exists(RESOLV_CONF) {
            return Err(Errno(libc::EISDIR));
        }
        sys::make_directory(c"/etc", 0o755)?;
        files::remove(RESOLV_CONF);
        drop(files::create(RESOLV_CONF)?);
    }
    files::bind(OURS, RESOLV_CONF)
}

//! Ports of the host that lead to ports of the guest.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use super::{failure, holder, usage};
use crate::diagnostic::Diagnostic;

/// What a port is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// `[IP:]HOST:GUEST[/tcp|udp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Address of the host.
    pub ip: Ipv4Addr,
    /// Port of that address.
    pub host: u16,
    /// Port of the guest.
    pub guest: u16,
    /// What both are of.
    pub protocol: Protocol,
}

impl Forward {
    /// Reads the text.
    pub fn parse(text: &str) -> Result<Forward, Diagnostic> {
        let wrong = |why: &str| usage(format!("port {text}: {why}, and it is [IP:]HOST:GUEST[/tcp|udp]"));
        let (rest, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, "tcp")) => (rest, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some(_) => return Err(wrong("neither /tcp nor /udp")),
        };
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(|| wrong("one port only"))?;
        let (ip, host) = match rest.rsplit_once(':') {
            None => (Ipv4Addr::LOCALHOST, rest),
            Some((ip, host)) => (ip.parse().map_err(|_| wrong("not an IPv4 address"))?, host),
        };
        // Not with a sign, which parse() takes.
        let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        let [host, guest] =
            [host, guest].map(|port| port.parse::<u16>().ok().filter(|number| *number != 0 && digits(port)));
        let number = || wrong("a port is a number from 1 to 65535");
        Ok(Forward { ip, host: host.ok_or_else(number)?, guest: guest.ok_or_else(number)?, protocol })
    }

    /// Whether both want the same port of the host.
    pub fn clashes(self, other: Forward) -> bool {
        let any = self.ip.is_unspecified() || other.ip.is_unspecified();
        (self.host, self.protocol) == (other.host, other.protocol) && (any || self.ip == other.ip)
    }

    /// The form of passt's options -t and -u.
    pub fn to_passt(self) -> String {
        format!("{}/{}:{}", self.ip, self.host, self.guest)
    }

    /// Whether the host's port is free, by taking it for a moment.
    fn probe(self) -> io::Result<()> {
        match self.protocol {
            Protocol::Tcp => TcpListener::bind((self.ip, self.host)).map(drop),
            Protocol::Udp => UdpSocket::bind((self.ip, self.host)).map(drop),
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.protocol == Protocol::Tcp { "tcp" } else { "udp" };
        write!(f, "{}:{}/{protocol}", self.ip, self.host)
    }
}

/// Refuses a port of the host that is named twice, not free, or not ours to take.
pub fn check(forwards: &[Forward]) -> Result<(), Diagnostic> {
    for (index, forward) in forwards.iter().enumerate() {
        let same =
            |other: &&Forward| (other.ip, other.host, other.protocol) == (forward.ip, forward.host, forward.protocol);
        if forwards[..index].iter().any(|other| same(&other)) {
            return Err(usage(format!("port {forward}: named twice")));
        }
        let Err(error) = forward.probe() else { continue };
        let found = |code, hint: &str| failure(code, format!("port {forward}: {error}")).hint(hint);
        return Err(match error.kind() {
            io::ErrorKind::AddrInUse => {
                let holder = holder::of(*forward);
                let who = holder.as_ref().map(|holder| format!("{holder} has it")).unwrap_or("it is taken".into());
                let taken = failure("NET_PORT_TAKEN", format!("port {forward}: {who}"));
                let taken = taken.hint("take another port of the host, or end what has this one");
                Diagnostic { retryable: true, ..taken }
            }
            io::ErrorKind::PermissionDenied => {
                found("NET_PORT_DENIED", "ports below 1024 are root's; see ip_unprivileged_port_start of ip-sysctl")
            }
            io::ErrorKind::AddrNotAvailable => found("NET_PORT_ADDRESS", "the address is none of this host's"),
            _ => failure("NET_PORT_FAILED", format!("port {forward}: {error}")),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms() {
        let of = |ip: [u8; 4], host, guest, protocol| Forward { ip: ip.into(), host, guest, protocol };
        let local = [127, 0, 0, 1];
        assert_eq!(Forward::parse("8080:80").unwrap(), of(local, 8080, 80, Protocol::Tcp));
        assert_eq!(Forward::parse("53:5353/udp").unwrap(), of(local, 53, 5353, Protocol::Udp));
        assert_eq!(Forward::parse("0.0.0.0:1:65535/tcp").unwrap(), of([0; 4], 1, 65535, Protocol::Tcp));
        let clash = |one, other| Forward::parse(one).unwrap().clashes(Forward::parse(other).unwrap());
        assert!(clash("80:1", "80:2") && clash("0.0.0.0:80:1", "80:1"));
        assert!(!clash("80:1", "80:1/udp") && !clash("127.0.0.2:80:1", "80:1") && !clash("80:1", "81:1"));
        for bad in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:65536",
            "x:80:80",
            "[::1]:80:80",
            "80:80/sctp",
            "80:80/",
            "1:2:3:4",
            "+1:2",
        ] {
            let refused = Forward::parse(bad);
            assert!(refused.is_err(), "{bad}: {refused:?}");
        }
    }
}

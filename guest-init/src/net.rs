//! The guest's network, as the word `machinen.net` describes it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr};

/// What to set up on the first interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Bits of `address` that name the network, 0 to 32.
    pub prefix: u8,
    /// Where the default route goes, on the network of `address`; `None`: no such route.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers, of either family.
    pub resolvers: Vec<IpAddr>,
}

impl Net {
    /// The network's mask.
    #[must_use]
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    /// What `/etc/resolv.conf` says (resolv.conf(5)); empty without resolvers.
    #[must_use]
    pub fn resolv_conf(&self) -> String {
        self.resolvers.iter().map(|resolver| alloc::format!("nameserver {resolver}\n")).collect()
    }
}

/// Why a value of `machinen.net` is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadNet {
    /// Not `ADDRESS/PREFIX`; holds what stands there.
    Address(String),
    /// An address of IPv6, which is not supported for the interface.
    V6(String),
    /// An address that no interface can have.
    Unusable(Ipv4Addr),
    /// No address; holds what stands there.
    Gateway(String),
    /// An address that the interface does not reach, or its own.
    Unreachable(Ipv4Addr),
    /// No address; holds what stands there.
    Resolver(String),
}

impl fmt::Display for BadNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(text) => write!(f, "not ADDRESS/PREFIX: {text:?}"),
            Self::V6(text) => write!(f, "only IPv4 is supported: {text:?}"),
            Self::Unusable(address) => write!(f, "not an address of a host: {address}"),
            Self::Gateway(text) => write!(f, "gateway: not an IPv4 address: {text:?}"),
            Self::Unreachable(gateway) => write!(f, "gateway: not a neighbour on the network: {gateway}"),
            Self::Resolver(text) => write!(f, "resolver: not an address: {text:?}"),
        }
    }
}

/// Reads `ADDRESS/PREFIX[,[GATEWAY][,RESOLVER…]]`.
///
/// # Errors
/// [`BadNet`], the first thing that is wrong.
pub fn parse(value: &[u8]) -> Result<Net, BadNet> {
    let value = String::from_utf8_lossy(value);
    let mut parts = value.split(',');
    let (address, prefix) = interface(parts.next().unwrap_or_default())?;
    let gateway = match parts.next().unwrap_or_default() {
        "" => None,
        text => Some(gateway(text, address, prefix)?),
    };
    let resolvers =
        parts.map(|text| text.parse().map_err(|_| BadNet::Resolver(text.into()))).collect::<Result<_, _>>()?;
    Ok(Net { address, prefix, gateway, resolvers })
}

fn interface(text: &str) -> Result<(Ipv4Addr, u8), BadNet> {
    let bad = || BadNet::Address(text.into());
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let address = match address.parse() {
        Ok(IpAddr::V4(address)) => address,
        Ok(IpAddr::V6(_)) => return Err(BadNet::V6(text.into())),
        Err(_) => return Err(bad()),
    };
    // A number as a person writes it: `parse` would take +8 and 008.
    let is_number = prefix.bytes().all(|byte| byte.is_ascii_digit()) && (prefix == "0" || !prefix.starts_with('0'));
    let prefix = prefix.parse().ok().filter(|bits| is_number && *bits <= 32).ok_or_else(bad)?;
    let is_unusable =
        address.octets()[0] == 0 || address.is_loopback() || address.is_multicast() || address.is_broadcast();
    if is_unusable { Err(BadNet::Unusable(address)) } else { Ok((address, prefix)) }
}

fn gateway(text: &str, address: Ipv4Addr, prefix: u8) -> Result<Ipv4Addr, BadNet> {
    let gateway: Ipv4Addr = text.parse().map_err(|_| BadNet::Gateway(text.into()))?;
    let is_near = (gateway.to_bits() ^ address.to_bits()) & mask(prefix) == 0;
    if is_near && gateway != address { Ok(gateway) } else { Err(BadNet::Unreachable(gateway)) }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{Net, parse};
    use proptest::prelude::{any, prop, proptest};
    use std::net::{IpAddr, Ipv4Addr};

    fn refusal(value: &str) -> String {
        parse(value.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn all_parts_are_read() {
        let net = parse(b"10.0.2.15/24,10.0.2.2,10.0.2.3,fd00::3").unwrap();
        let expected = Net {
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
            resolvers: vec!["10.0.2.3".parse().unwrap(), "fd00::3".parse().unwrap()],
        };
        assert_eq!(net, expected);
        assert_eq!(net.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(net.resolv_conf(), "nameserver 10.0.2.3\nnameserver fd00::3\n");
    }

    #[test]
    fn gateway_and_resolvers_may_be_absent() {
        for value in ["192.168.1.1/31", "192.168.1.1/31,"] {
            let net = parse(value.as_bytes()).unwrap();
            assert_eq!((net.prefix, net.gateway, net.resolvers.len()), (31, None, 0));
            assert_eq!(net.resolv_conf(), "");
        }
        let net = parse(b"192.168.1.1/24,,9.9.9.9").unwrap();
        assert_eq!((net.gateway, net.resolv_conf().as_str()), (None, "nameserver 9.9.9.9\n"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for text in
            ["", "10.0.0.1", "10.0.0/8", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/+8", "10.0.0.1/08", "10.0.0.1/8/8"]
        {
            assert_eq!(refusal(text), format!("not ADDRESS/PREFIX: {text:?}"));
        }
        assert_eq!(refusal("fd00::2/64,fd00::1"), "only IPv4 is supported: \"fd00::2/64\"");
        for text in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            assert_eq!(refusal(&format!("{text}/8")), format!("not an address of a host: {text}"));
        }
        assert_eq!(refusal("10.0.0.2/24,fd00::1"), "gateway: not an IPv4 address: \"fd00::1\"");
        assert_eq!(refusal("10.0.0.2/24,10.0.1.1"), "gateway: not a neighbour on the network: 10.0.1.1");
        assert_eq!(refusal("10.0.0.2/24,10.0.0.2"), "gateway: not a neighbour on the network: 10.0.0.2");
        assert_eq!(refusal("10.0.0.2/24,10.0.0.1,"), "resolver: not an address: \"\"");
        assert_eq!(refusal("10.0.0.2/24,10.0.0.1,9.9.9.9,host"), "resolver: not an address: \"host\"");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            bits: u32,
            prefix in 1..=30_u8,
            host in 1..=2_u32,
            resolvers in prop::collection::vec(any::<IpAddr>(), 0..4),
        ) {
            let mask = u32::MAX << (32 - prefix);
            // The first octet of an address that a host can have.
            let bits = bits & 0x00ff_ffff | 0x0a00_0000;
            let gateway = Ipv4Addr::from_bits(bits ^ host & !mask);
            let mut text = format!("{}/{prefix},{gateway}", Ipv4Addr::from_bits(bits));
            resolvers.iter().for_each(|resolver| text += &format!(",{resolver}"));
            let net = parse(text.as_bytes()).unwrap();
            assert_eq!((net.address.to_bits(), net.prefix, net.gateway), (bits, prefix, Some(gateway)));
            assert_eq!((net.mask().to_bits(), net.resolvers), (mask, resolvers));
        }

        #[test]
        fn any_value_is_read_or_refused(value in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = parse(&value);
        }

        #[test]
        fn any_likely_value_is_read_or_refused(value in "[0-9./,:a]{0,40}") {
            let _ = parse(value.as_bytes());
        }
    }
}

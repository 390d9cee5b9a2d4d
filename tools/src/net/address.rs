//! The guest's address, as the word `machinen.net` has it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::usage;
use crate::diagnostic::Diagnostic;

/// `ADDRESS/PREFIX,GATEWAY[,RESOLVER...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The guest's own.
    pub own: Ipv4Addr,
    /// Bits of the network's part of it.
    pub prefix: u8,
    /// On the same network.
    pub gateway: Ipv4Addr,
    /// Asked for names, in this order.
    pub resolvers: Vec<IpAddr>,
}

impl Address {
    /// Reads the text.
    pub fn parse(text: &str) -> Result<Address, Diagnostic> {
        let wrong = |why: &str| usage(format!("address {text}: {why}"));
        let mut words = text.split(',');
        let (own, prefix) = words.next().and_then(|word| word.split_once('/')).ok_or_else(|| wrong("no /PREFIX"))?;
        let own: Ipv4Addr = own.parse().map_err(|_| wrong("not an IPv4 address before the /"))?;
        let prefix = prefix.parse().ok().filter(|prefix| (1..=30).contains(prefix));
        let prefix: u8 = prefix.ok_or_else(|| wrong("not a prefix of 1 to 30 bits"))?;
        let gateway = words.next().and_then(|word| word.parse().ok()).ok_or_else(|| wrong("no IPv4 gateway"))?;
        let resolvers = words.map(|word| word.parse().map_err(|_| wrong("a resolver is not an address")));
        let address = Address { own, prefix, gateway, resolvers: resolvers.collect::<Result<_, _>>()? };
        if !address.is_near(gateway) || gateway == own {
            return Err(wrong("the gateway is not another address of the same network"));
        }
        Ok(address)
    }

    /// Whether `other` is on the guest's network.
    pub fn is_near(&self, other: Ipv4Addr) -> bool {
        (self.own.to_bits() ^ other.to_bits()) >> (32 - self.prefix) == 0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{},{}", self.own, self.prefix, self.gateway)?;
        self.resolvers.iter().try_for_each(|resolver| write!(f, ",{resolver}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_guest_can_use() {
        for good in
            ["10.0.2.15/24,10.0.2.2,10.0.2.3", "192.168.127.2/24,192.168.127.1", "10.1.2.3/8,10.0.0.1,::1,1.1.1.1"]
        {
            assert_eq!(Address::parse(good).unwrap().to_string(), good);
        }
        let bad = [
            "",
            "x",
            "10.0.2.15",
            "10.0.2.15/24",
            "10.0.2.15/24,",
            "10.0.2.15/33,10.0.2.2",
            "10.0.2.15/0,10.0.2.2",
            "10.0.2.15/24,10.0.3.2",
            "10.0.2.15/24,10.0.2.15",
            "fe80::1/64,fe80::2",
            "10.0.2.15/24,10.0.2.2,",
            "10.0.2.15/24,10.0.2.2,name",
        ];
        for bad in bad {
            assert_eq!(Address::parse(bad).unwrap_err().code, "NET_USAGE", "{bad}");
        }
    }
}

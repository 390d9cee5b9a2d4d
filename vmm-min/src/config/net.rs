//! The network interface that the user asked for.

use crate::error::{Error, Result};
use crate::virtio::net::Mac;

/// The specification's least (virtio 1.2, 5.1.4.1) and IP's most.
const MTU: std::ops::RangeInclusive<u16> = 1280..=65535;

/// A network interface and what is at its other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The stream socket.
    pub socket: NetSocket,
    /// Hardware address; random when not given.
    pub mac: Option<Mac>,
    /// Largest packet; 1500 when not given.
    pub mtu: Option<u16>,
}

/// Where a stream socket comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetSocket {
    /// Somebody listens at this path.
    Path(String),
    /// The parent has left a connected one open.
    Inherited(i32),
}

impl NetConfig {
    /// Reads the three values, of which the last two say nothing without the first.
    pub(super) fn parse(socket: Option<&str>, mac: Option<&str>, mtu: Option<&str>) -> Result<Option<NetConfig>> {
        let Some(text) = socket else {
            let alone = [(mac, "--net-mac"), (mtu, "--net-mtu")].into_iter().find(|(value, _)| value.is_some());
            return alone.map_or(Ok(None), |(_, flag)| {
                let message = format!("{flag} without --net-socket: there is no network interface");
                Err(Error::usage("NET_INVALID", message, "machinen-net -- COMMAND gives COMMAND's machine a network"))
            });
        };
        let invalid = |message: String, hint: &str| Error::usage("NET_INVALID", message, hint);
        let socket = match text.strip_prefix("fd:") {
            None if text.is_empty() => return Err(invalid("no network socket named".into(), "--net-socket PATH|fd:N")),
            None => NetSocket::Path(text.into()),
            // The first three are the console and messages.
            Some(number) => match number.parse() {
                Ok(number @ 3..) => NetSocket::Inherited(number),
                _ => return Err(invalid(format!("network socket {text:?}: not a descriptor from 3 on"), "fd:3")),
            },
        };
        let mac = mac.map(|text| {
            parse_mac(text).ok_or_else(|| {
                invalid(format!("hardware address {text:?}: not six bytes of one interface"), "as 02:00:5e:10:00:01")
            })
        });
        let mtu = mtu.map(|text| match text.parse() {
            Ok(mtu) if MTU.contains(&mtu) => Ok(mtu),
            _ => Err(invalid(format!("MTU {text:?}: not a number from {} to {}", MTU.start(), MTU.end()), "")),
        });
        Ok(Some(NetConfig { socket, mac: mac.transpose()?, mtu: mtu.transpose()? }))
    }

    pub(super) fn socket_to_text(&self) -> String {
        match &self.socket {
            NetSocket::Path(path) => path.clone(),
            NetSocket::Inherited(number) => format!("fd:{number}"),
        }
    }

    pub(super) fn mac_to_text(&self) -> Option<String> {
        self.mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"))
    }

    pub(super) fn mtu_to_text(&self) -> Option<String> {
        self.mtu.map(|mtu| mtu.to_string())
    }
}

/// Six bytes of two hexadecimal digits, with colons; neither a group's nor nobody's.
fn parse_mac(text: &str) -> Option<Mac> {
    let bytes = text.split(':').map(|digits| match digits.len() {
        2 if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => u8::from_str_radix(digits, 16).ok(),
        _ => None,
    });
    let mac: Mac = bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::super::Request;
    use super::super::tests::{code, config, parse_with};
    use super::*;

    #[test]
    fn a_network_interface_has_a_socket() {
        let net = |arguments: &[&str], variables| config(&[&["--kernel", "k"], arguments].concat(), variables).net;
        assert_eq!(net(&[], &[]), None);
        let path = |path: &str| NetConfig { socket: NetSocket::Path(path.into()), mac: None, mtu: None };
        assert_eq!(net(&["--net-socket", "a:b"], &[("MACHINEN_NET_SOCKET", "fd:3")]), Some(path("a:b")));
        let variables =
            [("MACHINEN_NET_SOCKET", "fd:7"), ("MACHINEN_NET_MAC", "02:00:5E:10:00:01"), ("MACHINEN_NET_MTU", "65520")];
        let all = NetConfig { socket: NetSocket::Inherited(7), mac: Some([2, 0, 0x5e, 0x10, 0, 1]), mtu: Some(65520) };
        assert_eq!(net(&[], &variables), Some(all));
        let printed = parse_with(&["-m", "64", "--print-env"], &variables).expect("valid");
        let expected = "MACHINEN_MEMORY=64\nMACHINEN_NET_SOCKET=fd:7\nMACHINEN_NET_MAC=02:00:5e:10:00:01\nMACHINEN_NET_MTU=65520\n";
        assert_eq!(printed, Request::Print(expected.into()));
        for socket in ["", "fd:", "fd:x", "fd:2", "fd:-1", "fd:99999999999"] {
            assert_eq!(code(&["--kernel", "k", "--net-socket", socket], &[]), "NET_INVALID", "{socket}");
        }
        for mac in [
            "",
            "x",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "03:00:5e:10:00:01",
            "00:00:00:00:00:00",
            "+2:00:5e:10:00:01",
        ] {
            let refused = code(&["--kernel", "k", "--net-socket", "s", "--net-mac", mac], &[]);
            assert_eq!(refused, "NET_INVALID", "{mac}");
        }
        for mtu in ["", "x", "0", "1279", "65536", "-1"] {
            let refused = code(&["--kernel", "k", "--net-socket", "s", "--net-mtu", mtu], &[]);
            assert_eq!(refused, "NET_INVALID", "{mtu}");
        }
        assert_eq!(code(&["--kernel", "k", "--net-mtu", "1500"], &[]), "NET_INVALID");
    }
}

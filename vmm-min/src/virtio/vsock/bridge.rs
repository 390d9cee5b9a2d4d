//! What joins ports of the guest with Unix sockets of the host: the user's words, checked.

use crate::error::{Error, Result};

/// Every bridge may need a listening socket.
const MOST_BRIDGES: usize = 64;
const HINT: &str = "--vsock in:PORT:SOCKET, out:PORT:SOCKET or hybrid:SOCKET";

/// One bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bridge {
    /// Who connects to the socket gets a connection to the guest's port.
    In {
        /// The guest's port.
        port: u32,
        /// Path of the socket, which is made.
        socket: String,
    },
    /// A connection of the guest's to the host's port becomes one to the socket.
    Out {
        /// The host's port.
        port: u32,
        /// Path of the socket.
        socket: String,
    },
    /// Who connects to the socket names the guest's port in a first line, `CONNECT <port>`; a connection of the guest's
    /// to the host's port P becomes one to the socket whose name is followed by `_P`.
    Hybrid {
        /// Path of the socket, which is made.
        socket: String,
    },
}

impl Bridge {
    /// Reads one bridge as `--vsock` has it.
    ///
    /// Errors: `VSOCK_INVALID`.
    pub fn parse(text: &str) -> Result<Bridge> {
        let invalid = |why: &str| Error::usage("VSOCK_INVALID", format!("vsock {text:?}: {why}"), HINT);
        let (kind, rest) = text.split_once(':').ok_or_else(|| invalid("no colon"))?;
        let (port, socket) = match kind {
            "in" | "out" => {
                let (port, socket) = rest.split_once(':').ok_or_else(|| invalid("no port, or no socket"))?;
                (self::port(port).ok_or_else(|| invalid("the port is not a number from 0 to 4294967294"))?, socket)
            }
            "hybrid" => (0, rest),
            _ => return Err(invalid("begins with none of in:, out:, hybrid:")),
        };
        if socket.is_empty() || socket.ends_with('/') {
            return Err(invalid("no socket named"));
        }
        if socket.contains([',', '\0']) {
            return Err(invalid("a comma separates bridges in MACHINEN_VSOCK"));
        }
        let socket = socket.to_owned();
        Ok(match kind {
            "in" => Bridge::In { port, socket },
            "out" => Bridge::Out { port, socket },
            _ => Bridge::Hybrid { socket },
        })
    }

    /// Checks that no two bridges want the same.
    ///
    /// Errors: `VSOCK_INVALID`.
    pub fn check(bridges: &[Bridge]) -> Result<()> {
        let invalid = |why: String| Err(Error::usage("VSOCK_INVALID", why, HINT));
        if bridges.len() > MOST_BRIDGES {
            return invalid(format!("{} vsock bridges: at most {MOST_BRIDGES} are possible", bridges.len()));
        }
        for (index, bridge) in bridges.iter().enumerate() {
            for other in &bridges[..index] {
                match (bridge, other) {
                    (Bridge::Hybrid { .. }, Bridge::Hybrid { .. }) => {
                        return invalid("two hybrid vsock sockets".into());
                    }
                    (Bridge::Out { port, .. }, Bridge::Out { port: same, .. }) if port == same => {
                        return invalid(format!("two vsock bridges out of port {port}"));
                    }
                    _ => {}
                }
                if let (Some(socket), Some(same)) = (bridge.made(), other.made())
                    && socket == same
                {
                    return invalid(format!("two vsock bridges listen on {socket}"));
                }
            }
        }
        Ok(())
    }

    /// The socket that is made for it.
    pub fn made(&self) -> Option<&str> {
        match self {
            Bridge::In { socket, .. } | Bridge::Hybrid { socket } => Some(socket),
            Bridge::Out { .. } => None,
        }
    }

    /// The words that [`Bridge::parse`] reads.
    pub fn to_text(&self) -> String {
        match self {
            Bridge::In { port, socket } => format!("in:{port}:{socket}"),
            Bridge::Out { port, socket } => format!("out:{port}:{socket}"),
            Bridge::Hybrid { socket } => format!("hybrid:{socket}"),
        }
    }
}

/// A port: decimal digits only, and not the number that means any port.
pub fn port(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_written() {
        for text in ["in:1024:/run/a b", "out:4294967294:x", "out:5:a:b", "hybrid:/tmp/v.sock"] {
            assert_eq!(Bridge::parse(text).expect("valid").to_text(), text);
        }
    }

    #[test]
    fn bad_words_are_refused() {
        let bad = [
            "",
            "in",
            "in:1",
            "in:1:",
            "in::x",
            "in:-1:x",
            "in:+1:x",
            "in:4294967295:x",
            "in:1:d/",
            "hybrid:",
            "up:1:x",
            "in:1:a,b",
        ];
        for text in bad {
            assert_eq!(Bridge::parse(text).expect_err(text).code(), "VSOCK_INVALID");
        }
    }

    #[test]
    fn two_that_want_the_same_are_refused() {
        let check = |texts: &[&str]| {
            let bridges: Vec<Bridge> = texts.iter().map(|text| Bridge::parse(text).expect("valid")).collect();
            Bridge::check(&bridges).map_err(|error| error.code())
        };
        assert_eq!(check(&["in:1:a", "in:1:b", "out:1:c", "out:2:c", "hybrid:d"]), Ok(()));
        for bad in [["in:1:a", "in:2:a"], ["out:1:a", "out:1:b"], ["hybrid:a", "hybrid:b"], ["in:1:a", "hybrid:a"]] {
            assert_eq!(check(&bad), Err("VSOCK_INVALID"), "{bad:?}");
        }
        let many: Vec<String> = (0..65).map(|number| format!("out:{number}:a")).collect();
        assert_eq!(check(&many.iter().map(String::as_str).collect::<Vec<_>>()), Err("VSOCK_INVALID"));
    }
}

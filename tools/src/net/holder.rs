//! Who has a port of this host, as far as /proc shows it.

use std::fmt;
use std::fs;
use std::path::Path;

use super::forward::{Forward, Protocol};

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

/// Finds the process that has the host's port. Those of other users show their sockets only to root, and passt hides
/// its own; that one is known by its arguments.
pub fn of(forward: Forward) -> Option<Holder> {
    let links: Vec<String> = inodes(forward).iter().map(|inode| format!("socket:[{inode}]")).collect();
    let argument = forward.to_passt();
    let port = argument.split_once(':').map_or("", |(port, _)| port);
    processes()
        .find(|(pid, arguments)| {
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let is_passt =
                arguments.first().is_some_and(|name| Path::new(name).file_name().is_some_and(|name| name == "passt"));
            is_passt && arguments.iter().any(|own| own.split_once(':').is_some_and(|(own, _)| own == port))
                || fds
                    .filter_map(|fd| fs::read_link(fd.path()).ok())
                    .any(|to| links.iter().any(|link| to == Path::new(link)))
        })
        .map(|(pid, arguments)| Holder { pid, command: shorten(&arguments.join(" ")) })
}

/// Every process that has arguments: no kernel thread.
fn processes() -> impl Iterator<Item = (u32, Vec<String>)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
        (!words.is_empty()).then_some((pid, words))
    })
}

fn shorten(command: &str) -> String {
    const MOST: usize = 60;
    match command.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &command[..end]),
        None => command.into(),
    }
}

/// Inodes of the sockets that have the port, of any address. Source: proc_pid_net(5).
fn inodes(forward: Forward) -> Vec<String> {
    let (names, state) = match forward.protocol {
        Protocol::Tcp => (["tcp", "tcp6"], Some("0A")),
        Protocol::Udp => (["udp", "udp6"], None),
    };
    let port = format!(":{:04X}", forward.host);
    let tables = names.map(|name| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let found = lines.filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, is, _, _, _, _, _, inode, ..] = words[..] else { return None };
        (local.ends_with(&port) && state.is_none_or(|state| state == is)).then(|| inode.to_owned())
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    #[test]
    fn this_process_is_found() {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let ports = [(tcp.local_addr(), Protocol::Tcp), (udp.local_addr(), Protocol::Udp)];
        for (address, protocol) in ports {
            let forward = Forward { ip: Ipv4Addr::LOCALHOST, host: address.unwrap().port(), guest: 1, protocol };
            assert_eq!(of(forward).unwrap().pid, std::process::id());
        }
    }
}

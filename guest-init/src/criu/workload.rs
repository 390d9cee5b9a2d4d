//! What a bundle says of the main command in it: `img/workload.json`, beside CRIU's images.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::Value;

use crate::wire::request::Tcp;

/// Its name among the images.
pub const NAME: &str = "workload.json";
/// Another layout has another number.
const FORMAT: u64 = 1;

/// A terminal that is not part of the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Number of the device.
    pub device: u64,
    /// Number of the file system in which its name is.
    pub file_system: u64,
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// A main command that is dumped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// The number of its first process.
    pub pid: i32,
    /// The inodes of the pipes that are its stdin, stdout and stderr, where it has such.
    pub pipes: [Option<u64>; 3],
    /// Its terminal.
    pub terminal: Option<Terminal>,
    /// What was done about TCP connections.
    pub tcp: Tcp,
    /// CRIU's version; empty when something else has dumped.
    pub criu: String,
    /// The kernel's release and version.
    pub kernel: String,
    /// The machine's architecture, as the kernel calls it.
    pub machine: String,
    /// What /proc/cpuinfo says of the first processor's features.
    pub cpu_features: String,
}

impl Workload {
    /// As JSON, with a line end. By hand: the library's way brings 25 KiB for numbers that are not whole.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let number = |number: Option<u64>| number.map_or(String::from("null"), |number| format!("{number}"));
        let pipes = self.pipes.map(number).join(",");
        let terminal = self.terminal.map_or(String::new(), |Terminal { device, file_system, rows, columns }| {
            let size = format!("\"rows\":{rows},\"columns\":{columns}");
            format!("\"terminal\":{{\"device\":{device},\"fileSystem\":{file_system},{size}}},")
        });
        let tcp = match self.tcp {
            Tcp::Refuse => "refuse",
            Tcp::Close => "close",
            Tcp::Keep => "keep",
        };
        let [criu, kernel] = [&self.criu, &self.kernel].map(|text| string(text));
        let [machine, features] = [&self.machine, &self.cpu_features].map(|text| string(text));
        let what = format!("\"format\":{FORMAT},\"pid\":{},\"pipes\":[{pipes}],{terminal}\"tcp\":\"{tcp}\"", self.pid);
        let made = format!("\"criu\":{criu},\"kernel\":{kernel},\"machine\":{machine},\"cpuFeatures\":{features}");
        format!("{{{what},{made}}}\n").into_bytes()
    }

    /// From JSON; `None` when it is not what [`to_json`](Self::to_json) gives.
    #[must_use]
    pub fn parse(json: &[u8]) -> Option<Workload> {
        let Ok(Value::Object(all)) = serde_json::from_slice(json) else { return None };
        if all.get("format")?.as_u64()? != FORMAT {
            return None;
        }
        let text = |key: &str| Some(String::from(all.get(key)?.as_str()?));
        let pid = i32::try_from(all.get("pid")?.as_i64()?).ok().filter(|pid| *pid > 1)?;
        let [stdin, stdout, stderr] = &all.get("pipes")?.as_array()?[..] else { return None };
        let pipe = |value: &Value| if value.is_null() { Some(None) } else { value.as_u64().map(Some) };
        let size = |value: &Value| u16::try_from(value.as_u64()?).ok();
        let terminal = match all.get("terminal") {
            None => None,
            Some(of) => Some(Terminal {
                device: of.get("device")?.as_u64()?,
                file_system: of.get("fileSystem")?.as_u64()?,
                rows: size(of.get("rows")?)?,
                columns: size(of.get("columns")?)?,
            }),
        };
        let tcp = match all.get("tcp")?.as_str()? {
            "refuse" => Tcp::Refuse,
            "close" => Tcp::Close,
            "keep" => Tcp::Keep,
            _ => return None,
        };
        let pipes = [pipe(stdin)?, pipe(stdout)?, pipe(stderr)?];
        let (criu, kernel, machine) = (text("criu")?, text("kernel")?, text("machine")?);
        Some(Workload { pid, pipes, terminal, tcp, criu, kernel, machine, cpu_features: text("cpuFeatures")? })
    }
}

/// A string of JSON (RFC 8259, section 7).
fn string(text: &str) -> String {
    let mut all = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => all.extend(['\\', c]),
            '\0'..'\u{20}' => all.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => all.push(c),
        }
    }
    all.push('"');
    all
}

/// The features of the first processor in the text of /proc/cpuinfo, as that has them.
#[must_use]
pub fn cpu_features(cpuinfo: &[u8]) -> String {
    let text = String::from_utf8_lossy(cpuinfo);
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(key, _)| ["flags", "Features"].contains(&key.trim()));
    found.map_or(String::new(), |(_, features)| features.trim().into())
}

#[cfg(test)]
mod tests {
    use super::{Tcp, Terminal, Workload, cpu_features};
    use proptest::prelude::{any, prop, proptest};

    fn workload() -> Workload {
        Workload {
            pid: 1000,
            pipes: [None, Some(161), Some(u64::MAX)],
            terminal: Some(Terminal { device: 0x8800, file_system: 16, rows: 30, columns: 100 }),
            tcp: Tcp::Close,
            criu: "3.17.1".into(),
            kernel: "6.12 \"#1\" \\\t\u{e9}".into(),
            machine: "x86_64".into(),
            cpu_features: "fpu vme".into(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let plain = Workload { terminal: None, tcp: Tcp::Refuse, ..workload() };
        for workload in [workload(), plain, Workload { tcp: Tcp::Keep, ..workload() }] {
            assert_eq!(Workload::parse(&workload.to_json()), Some(workload));
        }
    }

    #[test]
    fn what_is_something_else_is_refused() {
        let json = String::from_utf8(workload().to_json()).unwrap();
        for (old, new) in [
            ("\"format\":1", "\"format\":2"),
            ("1000", "1"),
            ("1000", "99999999999"),
            ("null,", ""),
            ("161", "-1"),
            ("\"close\"", "\"other\""),
            ("\"rows\":30", "\"rows\":70000"),
            ("\"criu\"", "\"other\""),
        ] {
            assert!(json.contains(old), "{old}");
            assert_eq!(Workload::parse(json.replace(old, new).as_bytes()), None, "{old} -> {new}");
        }
    }

    #[test]
    fn features_are_those_of_the_first_processor() {
        let x86 = b"processor\t: 0\nmodel name\t: A: B\nflags\t\t: fpu vme\n\nprocessor\t: 1\nflags\t: fpu\n";
        assert_eq!(cpu_features(x86), "fpu vme");
        assert_eq!((cpu_features(b"Features\t: fp asimd\n"), cpu_features(b"")), ("fp asimd".into(), String::new()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut json = workload().to_json();
            let at = at.index(json.len());
            json[at] = byte;
            let _ = Workload::parse(&json);
        }
    }
}

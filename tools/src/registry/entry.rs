//! What the registry says about a machine: `vm.json`.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::process::Process;

/// The version that is written.
pub const VERSION: u64 = 1;

/// Most bytes of the file.
pub const MOST_BYTES: usize = 1 << 20;

/// What is known of a machine. What a tool does not know yet, or does not say, is empty, 0 or `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Of the format; see [`VERSION`].
    pub version: u64,
    /// The machine's, and its directory's name.
    pub id: String,
    /// Unique among the machines that are alive.
    pub name: Option<String>,
    /// What it was booted from, as it was given.
    pub image: String,
    /// The kernel's path.
    pub kernel: String,
    /// The monitor's process.
    pub pid: Option<u32>,
    /// That process's start; see [`Process`].
    pub start_time: u64,
    /// That process's program.
    pub executable: String,
    /// The most memory that the guest can have.
    pub memory_mib: u64,
    /// Forwarded ports, as `127.0.0.1:8080:80`.
    pub ports: Vec<String>,
    /// Directories of the host, as `HOST:GUEST`.
    pub mounts: Vec<String>,
    /// Directories that are shared with the host, as `HOST:GUEST` or `HOST:GUEST:ro`.
    pub shares: Vec<String>,
    /// When it was started, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// It outlives the tool that started it.
    pub detached: bool,
    /// Name or id of the machine from which it was started.
    pub parent: Option<String>,
    /// Name or id of the machine that it is a copy of.
    pub forked_from: Option<String>,
    /// Processes that shall end with it.
    pub helpers: Vec<Process>,
    /// The start of the host (/proc/sys/kernel/random/boot_id) that process numbers and times are of.
    pub boot_id: String,
    /// Keys that this version does not know: written back as they came.
    pub other: Map<String, Value>,
}

impl Default for Entry {
    fn default() -> Entry {
        Entry {
            version: VERSION,
            id: String::new(),
            name: None,
            image: String::new(),
            kernel: String::new(),
            pid: None,
            start_time: 0,
            executable: String::new(),
            memory_mib: 0,
            ports: Vec::new(),
            mounts: Vec::new(),
            shares: Vec::new(),
            started_unix_ms: 0,
            detached: false,
            parent: None,
            forked_from: None,
            helpers: Vec::new(),
            boot_id: String::new(),
            other: Map::new(),
        }
    }
}

impl Entry {
    /// An entry that starts now.
    pub fn new() -> Entry {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Entry {
            started_unix_ms: now.as_millis().try_into().unwrap_or(u64::MAX),
            boot_id: boot_id(),
            ..Entry::default()
        }
    }

    /// Sets pid, start time and executable to those of a monitor that runs.
    pub fn set_process(&mut self, process: Process) {
        self.pid = Some(process.pid);
        self.start_time = process.start_time;
        self.executable = process.executable().map(|path| path.display().to_string()).unwrap_or_default();
    }

    /// The monitor's process, as it is written here.
    pub fn process(&self) -> Option<Process> {
        self.pid.map(|pid| Process { pid, start_time: self.start_time })
    }

    /// Written by a later version of this program.
    pub fn is_newer(&self) -> bool {
        self.version > VERSION
    }

    /// Whether the host was started anew since: then no process is left, whatever has its number.
    pub fn is_of_earlier_boot(&self) -> bool {
        !self.boot_id.is_empty() && self.boot_id != boot_id()
    }

    /// Reads an entry. Of a newer version what is understood.
    ///
    /// # Errors
    /// It is no entry: why.
    pub fn parse(text: &[u8]) -> Result<Entry, String> {
        let mut json = serde_json::Deserializer::from_slice(text);
        let read = json.deserialize_map(Reader).and_then(|read| json.end().map(|()| read));
        match read {
            Ok((entry, _)) if entry.version == 0 => Err("version is no number from 1 on".into()),
            Ok((entry, Some(key))) if !entry.is_newer() => Err(format!("{key} is not of its type")),
            Ok((entry, _)) => Ok(entry),
            Err(error) if error.is_data() => Err(format!("it is no JSON object: {error}")),
            Err(error) => Err(format!("it is no JSON: {error}")),
        }
    }

    /// Takes one value. Gives the key back when the value is not of its type.
    fn take(&mut self, key: String, value: Value) -> Option<String> {
        let taken = match (key.as_str(), value) {
            (_, Value::Null) => true,
            ("version", value) => set(&mut self.version, value.as_u64()),
            ("id", Value::String(text)) => set(&mut self.id, Some(text)),
            ("name", Value::String(text)) => set(&mut self.name, Some(Some(text))),
            ("image", Value::String(text)) => set(&mut self.image, Some(text)),
            ("kernel", Value::String(text)) => set(&mut self.kernel, Some(text)),
            ("pid", value) => set(&mut self.pid, value.as_u64().and_then(|pid| u32::try_from(pid).ok()).map(Some)),
            ("start_time", value) => set(&mut self.start_time, value.as_u64()),
            ("executable", Value::String(text)) => set(&mut self.executable, Some(text)),
            ("memory_mib", value) => set(&mut self.memory_mib, value.as_u64()),
            ("ports", value) => set(&mut self.ports, texts(value)),
            ("mounts", value) => set(&mut self.mounts, texts(value)),
            ("shares", value) => set(&mut self.shares, texts(value)),
            ("started_unix_ms", value) => set(&mut self.started_unix_ms, value.as_u64()),
            ("detached", value) => set(&mut self.detached, value.as_bool()),
            ("parent", Value::String(text)) => set(&mut self.parent, Some(Some(text))),
            ("forked_from", Value::String(text)) => set(&mut self.forked_from, Some(Some(text))),
            ("helpers", value) => set(&mut self.helpers, helpers(&value)),
            ("boot_id", Value::String(text)) => set(&mut self.boot_id, Some(text)),
            ("id" | "name" | "image" | "kernel" | "executable" | "parent" | "forked_from" | "boot_id", _) => false,
            (_, value) => {
                self.other.insert(key, value);
                return None;
            }
        };
        (!taken).then_some(key)
    }

    /// As JSON; [`Entry::other`] never replaces a key that is known.
    pub fn to_value(&self) -> Value {
        let mut map = self.other.clone();
        let helper = |process: &Process| serde_json::json!({"pid": process.pid, "start_time": process.start_time});
        let helpers: Vec<Value> = self.helpers.iter().map(helper).collect();
        let known: [(&str, Value); 18] = [
            ("version", self.version.into()),
            ("id", self.id.clone().into()),
            ("name", self.name.clone().into()),
            ("image", self.image.clone().into()),
            ("kernel", self.kernel.clone().into()),
            ("pid", self.pid.into()),
            ("start_time", self.start_time.into()),
            ("executable", self.executable.clone().into()),
            ("memory_mib", self.memory_mib.into()),
            ("ports", self.ports.clone().into()),
            ("mounts", self.mounts.clone().into()),
            ("shares", self.shares.clone().into()),
            ("started_unix_ms", self.started_unix_ms.into()),
            ("detached", self.detached.into()),
            ("parent", self.parent.clone().into()),
            ("forked_from", self.forked_from.clone().into()),
            ("helpers", helpers.into()),
            ("boot_id", self.boot_id.clone().into()),
        ];
        map.extend(known.map(|(key, value)| (key.to_owned(), value)));
        Value::Object(map)
    }
}

/// Reads an object key by key: listing reads hundreds, and a map of all keys would be allocated for each.
struct Reader;

impl<'de> Visitor<'de> for Reader {
    /// The entry, its version 0 where there is none, and the first key whose value is not of its type. Of a newer version
    /// that may mean something else.
    type Value = (Entry, Option<String>);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut entry, mut wrong) = (Entry { version: 0, ..Entry::default() }, None);
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            if let Some(key) = entry.take(key, value) {
                wrong.get_or_insert(key);
            }
        }
        Ok((entry, wrong))
    }
}

fn set<T>(place: &mut T, value: Option<T>) -> bool {
    value.map(|value| *place = value).is_some()
}

fn texts(value: Value) -> Option<Vec<String>> {
    let Value::Array(values) = value else { return None };
    values.into_iter().map(|value| if let Value::String(text) = value { Some(text) } else { None }).collect()
}

fn helpers(value: &Value) -> Option<Vec<Process>> {
    value.as_array()?.iter().map(process).collect()
}

fn process(value: &Value) -> Option<Process> {
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    Some(Process { pid: u32::try_from(number("pid")?).ok()?, start_time: number("start_time")? })
}

/// Which start of the host this is; empty where the system does not say.
pub fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    fn full() -> Entry {
        let mut entry = Entry::new();
        entry.id = "m123456789".into();
        entry.name = Some("worker/9012".into());
        entry.image = "a b.tar".into();
        entry.kernel = "/k".into();
        entry.set_process(Process::of(std::process::id()).unwrap());
        entry.memory_mib = 512;
        entry.ports = vec!["127.0.0.1:80:80".into()];
        entry.mounts = vec!["/a:/b".into()];
        entry.shares = vec!["/c:/d:ro".into()];
        entry.detached = true;
        entry.parent = Some("p".into());
        entry.forked_from = Some("f".into());
        entry.helpers = vec![Process { pid: 7, start_time: 8 }];
        entry
    }

    #[test]
    fn comes_back_as_it_was() {
        let mut entry = full();
        entry.other.insert("later".into(), Value::from(vec![1, 2]));
        let text = entry.to_value().to_string();
        assert_eq!(Entry::parse(text.as_bytes()), Ok(entry.clone()));
        // What is known wins.
        entry.other.insert("name".into(), "other".into());
        assert_eq!(entry.to_value()["name"], "worker/9012");
        assert_eq!(Entry::parse(b"{\"version\": 1}"), Ok(Entry::default()));
        assert!(!full().is_of_earlier_boot() && !Entry::default().is_of_earlier_boot());
        assert!(Entry { boot_id: "another".into(), ..full() }.is_of_earlier_boot());
    }

    #[test]
    fn what_is_no_entry_says_why() {
        for (text, why) in [
            ("", "no JSON: EOF"),
            ("{\"version\":", "no JSON"),
            ("{\"version\":1} x", "no JSON"),
            ("[1]", "no JSON object"),
            ("{}", "version"),
            ("{\"version\":\"1\"}", "version"),
            ("{\"version\":0}", "version"),
            ("{\"version\":1,\"pid\":-1}", "pid"),
            ("{\"version\":1,\"pid\":4294967296}", "pid"),
            ("{\"version\":1,\"ports\":[1]}", "ports"),
            ("{\"version\":1,\"helpers\":[{\"pid\":1}]}", "helpers"),
            ("{\"version\":1,\"name\":{}}", "name"),
        ] {
            let error = Entry::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(Entry::parse(&b"[".repeat(1 << 16)).is_err());
    }

    #[test]
    fn a_newer_version_is_shown_as_far_as_it_is_understood() {
        let entry = Entry::parse(b"{\"version\":2,\"name\":\"n\",\"ports\":{\"x\":1},\"pid\":5,\"new\":1}").unwrap();
        assert!(entry.is_newer() && entry.ports.is_empty());
        assert_eq!((entry.name.as_deref(), entry.pid), (Some("n"), Some(5)));
    }

    proptest! {
        #[test]
        fn cut_or_changed_entries_end_in_an_answer(at in any::<proptest::sample::Index>(), byte: u8, cut: bool) {
            let mut text = full().to_value().to_string().into_bytes();
            let at = at.index(text.len());
            if cut { text.truncate(at) } else { text[at] = byte }
            let read = Entry::parse(&text);
            assert!(!cut || read.is_err());
        }
    }
}

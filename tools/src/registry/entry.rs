//! What the registry says about a machine: `vm.json`.

use std::time::{SystemTime, UNIX_EPOCH};

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
        if text.is_empty() {
            return Err("it is empty".into());
        }
        let value = serde_json::from_slice(text).map_err(|error| format!("it is no JSON: {error}"))?;
        let Value::Object(map) = value else { return Err("it is no JSON object".into()) };
        let mut keys = Keys(map);
        let version = match keys.take("version") {
            Some(Value::Number(number)) => number.as_u64().filter(|version| *version > 0),
            _ => None,
        };
        let version = version.ok_or("version is no number from 1 on")?;
        let newer = version > VERSION;
        let text = |keys: &mut Keys, key| keys.get(key, newer, |value| value.as_str().map(str::to_owned));
        let number = |keys: &mut Keys, key| keys.get(key, newer, Value::as_u64);
        let texts = |keys: &mut Keys, key| {
            let words = |value: &Value| value.as_array()?.iter().map(|one| Some(one.as_str()?.to_owned())).collect();
            keys.get(key, newer, words).map(Option::unwrap_or_default)
        };
        let helpers = |value: &Value| value.as_array()?.iter().map(process).collect();
        Ok(Entry {
            version,
            id: text(&mut keys, "id")?.unwrap_or_default(),
            name: text(&mut keys, "name")?,
            image: text(&mut keys, "image")?.unwrap_or_default(),
            kernel: text(&mut keys, "kernel")?.unwrap_or_default(),
            pid: keys.get("pid", newer, |value| u32::try_from(value.as_u64()?).ok())?,
            start_time: number(&mut keys, "start_time")?.unwrap_or_default(),
            executable: text(&mut keys, "executable")?.unwrap_or_default(),
            memory_mib: number(&mut keys, "memory_mib")?.unwrap_or_default(),
            ports: texts(&mut keys, "ports")?,
            mounts: texts(&mut keys, "mounts")?,
            started_unix_ms: number(&mut keys, "started_unix_ms")?.unwrap_or_default(),
            detached: keys.get("detached", newer, Value::as_bool)?.unwrap_or_default(),
            parent: text(&mut keys, "parent")?,
            forked_from: text(&mut keys, "forked_from")?,
            helpers: keys.get("helpers", newer, helpers)?.unwrap_or_default(),
            boot_id: text(&mut keys, "boot_id")?.unwrap_or_default(),
            other: keys.0,
        })
    }

    /// As JSON; [`Entry::other`] never replaces a key that is known.
    pub fn to_value(&self) -> Value {
        let mut map = self.other.clone();
        let helper = |process: &Process| serde_json::json!({"pid": process.pid, "start_time": process.start_time});
        let helpers: Vec<Value> = self.helpers.iter().map(helper).collect();
        let known: [(&str, Value); 17] = [
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

/// A JSON object, with what has not been read yet.
struct Keys(Map<String, Value>);

impl Keys {
    fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    /// A value, as `read` understands it. One that it does not is an error, unless it is of a newer version: those may
    /// mean something else by it.
    fn get<T>(&mut self, key: &str, newer: bool, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, String> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match read(&value) {
            None if !newer => Err(format!("{key} is not of its type")),
            read => Ok(read),
        }
    }
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
            ("", "empty"),
            ("{\"version\":", "no JSON"),
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

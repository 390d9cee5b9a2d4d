//! `/machinen-config.json`: how the one of this boot goes over the image's, and the command that both make.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::ffi::CString;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use serde_json::{Map, Value};

use crate::disks::{self, Disks};
use crate::shares::{self, Share};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_HOME: &str = "/root";
/// The least that any terminal at the other end understands; one that knows better is named in `env`.
const DEFAULT_TERM: &str = "vt100";

/// A command, ready for execve(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments; never empty.
    pub argv: Vec<CString>,
    /// `NAME=value`, sorted by name, each name once.
    pub env: Vec<CString>,
    /// Value of `PATH` in `env`.
    pub path: CString,
    /// Working directory, absolute.
    pub cwd: CString,
}

/// What is wrong with the configuration.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not JSON; holds the parser's words.
    Json(String),
    /// No `cmd` anywhere.
    NoCommand,
    /// The named part is not of this type.
    Type(&'static str, &'static str),
    /// The named part contains a NUL, which no string of execve(2) can.
    Nul(&'static str),
    /// A name in `env` that is empty or contains `=`.
    EnvName(String),
    /// `cwd` does not start with a slash.
    RelativeCwd(String),
    /// The named part of `root` or `mounts` is not a path under `/dev`.
    Device(&'static str, String),
    /// The named part is not an absolute path below the root, or has `.`, `..` or nothing between two slashes.
    MountPoint(&'static str, String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(why) => write!(f, "not valid JSON: {why}"),
            Self::NoCommand => f.write_str("cmd: there is none"),
            Self::Type(part, wanted) => write!(f, "{part}: not {wanted}"),
            Self::Nul(part) => write!(f, "{part}: contains a NUL character"),
            Self::EnvName(name) => write!(f, "env: not a name: {name:?}"),
            Self::RelativeCwd(cwd) => write!(f, "cwd: not an absolute path: {cwd:?}"),
            Self::Device(part, path) => write!(f, "{part}: not a device under /dev: {path:?}"),
            Self::MountPoint(part, path) => write!(f, "{part}: not a plain absolute path below /: {path:?}"),
        }
    }
}

/// A configuration, perhaps not complete: the one of the image gives defaults to the one of this boot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config(Map<String, Value>);

impl Config {
    /// Reads `{"cmd": [string, …], "env": {name: string, …}, "cwd": string, "root": …, "mounts": …}`. All keys may be
    /// absent, others are ignored, of two equal keys the last counts. The values are looked at when they are used.
    ///
    /// # Errors
    /// [`Refusal`] for what is not an object in JSON.
    pub fn parse(json: &[u8]) -> Result<Self, Refusal> {
        match serde_json::from_slice(json) {
            Ok(Value::Object(config)) => Ok(Self(config)),
            Ok(_) => Err(Refusal::Type("top level", "an object")),
            Err(error) => Err(Refusal::Json(error.to_string())),
        }
    }

    /// Puts this over `defaults`: key by key, and `env` name by name. Which disks there are is for this one alone to
    /// say, which directories of the host, and whether it has an agent: `root`, `mounts`, `shares` and `agent` of `defaults`
    /// do not count.
    #[must_use]
    pub fn over(mut self, defaults: Self) -> Self {
        for (key, value) in defaults.0 {
            match (self.0.get_mut(&key), value) {
                _ if ["root", "mounts", "shares", "agent"].contains(&&*key) => {}
                (None, value) => drop(self.0.insert(key, value)),
                (Some(Value::Object(env)), Value::Object(more)) if key == "env" => {
                    for (name, value) in more {
                        env.entry(name).or_insert(value);
                    }
                }
                (Some(_), _) => {}
            }
        }
        self
    }

    /// The disks to mount.
    ///
    /// # Errors
    /// [`Refusal`] when `root` or `mounts` is not as documented.
    pub fn disks(&self) -> Result<Disks, Refusal> {
        disks::parse(&self.0)
    }

    /// The directories of the host to mount.
    ///
    /// # Errors
    /// [`Refusal`] when `shares` is not as documented.
    pub fn shares(&self) -> Result<Vec<Share>, Refusal> {
        shares::parse(&self.0)
    }

    /// Whether commands come from the host, to an agent, instead of from here.
    ///
    /// # Errors
    /// [`Refusal`] when `agent` is not true or false.
    pub fn agent(&self) -> Result<bool, Refusal> {
        self.0.get("agent").map_or(Ok(false), |agent| agent.as_bool().ok_or(Refusal::Type("agent", "true or false")))
    }

    /// The command to run. With `tty` its environment gets a default `TERM`.
    ///
    /// # Errors
    /// [`Refusal`] when `cmd`, `env` or `cwd` is not as documented, or there is no `cmd`.
    pub fn command(&self, tty: bool) -> Result<Command, Refusal> {
        self.command_with(&Changes::default(), tty)
    }

    /// The command to run, with changes: words and directory replace those from here, variables go over them one by one.
    ///
    /// # Errors
    /// As [`Config::command`], and for changes that are as wrong.
    pub fn command_with(&self, changes: &Changes<'_>, tty: bool) -> Result<Command, Refusal> {
        let Self(config) = self;
        let argv = match &changes.words[..] {
            [] => arguments(config.get("cmd").ok_or(Refusal::NoCommand)?)?,
            words => words.iter().map(|word| c_string(*word, "cmd")).collect::<Result<_, _>>()?,
        };
        let mut env = environment(config.get("env"), tty)?;
        for variable in &changes.variables {
            let mut parts = variable.splitn(2, |byte| *byte == b'=');
            let (name, value) = (parts.next().unwrap_or_default(), parts.next());
            if name.is_empty() {
                return Err(Refusal::EnvName(String::from_utf8_lossy(variable).into_owned()));
            }
            match value {
                Some(value) => drop(env.insert(name, value)),
                None => drop(env.remove(name)),
            }
        }
        Ok(Command {
            argv,
            path: c_string(env.get(&b"PATH"[..]).copied().unwrap_or(DEFAULT_PATH.as_bytes()), "env")?,
            env: env
                .into_iter()
                .map(|(name, value)| c_string([name, b"=", value].concat(), "env"))
                .collect::<Result<_, _>>()?,
            cwd: match changes.directory {
                Some(directory) => absolute(directory)?,
                None => working_directory(config.get("cwd"))?,
            },
        })
    }
}

/// What a request changes of the configured command; all of it may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes<'a> {
    /// The words of another command.
    pub words: Vec<&'a [u8]>,
    /// `NAME=value` sets a variable, `NAME` takes one away.
    pub variables: Vec<&'a [u8]>,
    /// Another working directory.
    pub directory: Option<&'a [u8]>,
}

fn arguments(cmd: &Value) -> Result<Vec<CString>, Refusal> {
    const WANTED: Refusal = Refusal::Type("cmd", "a non-empty array of strings");
    let words = cmd.as_array().filter(|words| !words.is_empty()).ok_or(WANTED)?;
    words.iter().map(|word| c_string(word.as_str().ok_or(WANTED)?, "cmd")).collect()
}

fn environment(env: Option<&Value>, tty: bool) -> Result<BTreeMap<&[u8], &[u8]>, Refusal> {
    const WANTED: Refusal = Refusal::Type("env", "an object of strings");
    let mut all = BTreeMap::<&[u8], &[u8]>::new();
    all.insert(b"PATH", DEFAULT_PATH.as_bytes());
    all.insert(b"HOME", DEFAULT_HOME.as_bytes());
    if tty {
        all.insert(b"TERM", DEFAULT_TERM.as_bytes());
    }
    let Some(env) = env else { return Ok(all) };
    for (name, value) in env.as_object().ok_or(WANTED)? {
        if name.is_empty() || name.contains('=') {
            return Err(Refusal::EnvName(name.clone()));
        }
        all.insert(name.as_bytes(), value.as_str().ok_or(WANTED)?.as_bytes());
    }
    Ok(all)
}

fn working_directory(cwd: Option<&Value>) -> Result<CString, Refusal> {
    let Some(cwd) = cwd else { return Ok(c"/".to_owned()) };
    absolute(cwd.as_str().ok_or(Refusal::Type("cwd", "a string"))?.as_bytes())
}

fn absolute(cwd: &[u8]) -> Result<CString, Refusal> {
    if !cwd.starts_with(b"/") {
        return Err(Refusal::RelativeCwd(String::from_utf8_lossy(cwd).into_owned()));
    }
    c_string(cwd, "cwd")
}

pub(crate) fn c_string(text: impl Into<Vec<u8>>, part: &'static str) -> Result<CString, Refusal> {
    CString::new(text).map_err(|_| Refusal::Nul(part))
}

#[cfg(test)]
mod tests {
    use super::{Changes, Command, Config, Refusal};
    use proptest::prelude::{any, prop, proptest};
    use std::collections::BTreeMap;
    use std::ffi::CString;

    fn strings(list: &[CString]) -> Vec<&str> {
        list.iter().map(|text| text.to_str().unwrap()).collect()
    }

    fn parse(json: &[u8], tty: bool) -> Result<Command, Refusal> {
        Config::parse(json)?.command(tty)
    }

    fn refusal(json: &str) -> String {
        parse(json.as_bytes(), false).unwrap_err().to_string()
    }

    #[test]
    fn cmd_alone_gets_the_defaults() {
        let command = parse(br#"{"cmd": ["sh", "-c", ""]}"#, false).unwrap();
        assert_eq!(strings(&command.argv), ["sh", "-c", ""]);
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(strings(&command.env), ["HOME=/root", &format!("PATH={path}")]);
        assert_eq!(command.path.to_str(), Ok(path));
        assert_eq!(command.cwd.to_str(), Ok("/"));
    }

    #[test]
    fn env_overrides_the_defaults() {
        let json = br#"{"cmd":["x"],"env":{"PATH":"/p","TERM":"xterm","EMPTY":"","A":"b=c"},"cwd":"/w"}"#;
        let command = parse(json, true).unwrap();
        assert_eq!(strings(&command.env), ["A=b=c", "EMPTY=", "HOME=/root", "PATH=/p", "TERM=xterm"]);
        assert_eq!((command.path.to_str(), command.cwd.to_str()), (Ok("/p"), Ok("/w")));
    }

    #[test]
    fn only_a_terminal_gives_a_default_term() {
        let has_term = |tty| {
            let Command { env, .. } = parse(br#"{"cmd":["x"]}"#, tty).unwrap();
            strings(&env).contains(&"TERM=vt100")
        };
        assert!(has_term(true) && !has_term(false));
    }

    #[test]
    fn other_keys_are_ignored_and_the_last_of_two_counts() {
        let command = parse(br#"{"v":[1.5e3,null,{}],"cmd":["a"],"cmd":["b"]}"#, false).unwrap();
        assert_eq!(strings(&command.argv), ["b"]);
    }

    #[test]
    fn this_boot_goes_over_the_image_key_by_key_and_name_by_name() {
        let merged = |over: &str, image: &str| {
            let [over, image] = [over, image].map(|json| Config::parse(json.as_bytes()).unwrap());
            over.over(image)
        };
        let image =
            r#"{"cmd":["image","x"],"env":{"A":"1","B":"2"},"cwd":"/i","root":{"device":"/dev/vdz"},"mounts":1}"#;
        let command = merged(r#"{"env":{"B":"3","C":"4"}}"#, image).command(false).unwrap();
        assert_eq!(strings(&command.argv), ["image", "x"]);
        assert_eq!(command.cwd.to_str(), Ok("/i"));
        assert_eq!(strings(&command.env)[..3], ["A=1", "B=3", "C=4"]);
        let command = merged(r#"{"cmd":["boot"],"cwd":"/b"}"#, image).command(false).unwrap();
        assert_eq!((strings(&command.argv), command.cwd.to_str()), (vec!["boot"], Ok("/b")));
        let disks = merged(r#"{"cmd":["boot"]}"#, image).disks().unwrap();
        assert!(disks.root.is_none() && disks.mounts.is_empty(), "an image names no disks");
        assert_eq!(merged("{}", "{}").command(false), Err(Refusal::NoCommand));
        assert_eq!(merged(r#"{"env":1}"#, image).command(false), Err(Refusal::Type("env", "an object of strings")));
    }

    #[test]
    fn a_request_goes_over_the_configuration() {
        let json = br#"{"cmd":["image"],"env":{"A":"1","B":"2"},"cwd":"/i","agent":true}"#;
        let config = Config::parse(json).unwrap();
        assert_eq!(config.command_with(&Changes::default(), false), config.command(false));
        let changes = Changes {
            words: vec![b"sh", b"", b"\xff"],
            variables: vec![b"A", b"C=3=4", b"C=5=6", b"PATH", b"Z"],
            directory: Some(b"/\xfe"),
        };
        let command = config.command_with(&changes, true).unwrap();
        assert_eq!(command.argv.iter().map(|word| word.to_bytes()).collect::<Vec<_>>(), [b"sh", &b""[..], b"\xff"]);
        assert_eq!(strings(&command.env), ["B=2", "C=5=6", "HOME=/root", "TERM=vt100"]);
        assert_eq!((command.cwd.to_bytes(), command.path.to_bytes()), (&b"/\xfe"[..], super::DEFAULT_PATH.as_bytes()));
        let refused = |changes: Changes<'_>| config.command_with(&changes, false).unwrap_err().to_string();
        assert_eq!(refused(Changes { words: vec![b"a\0"], ..Changes::default() }), "cmd: contains a NUL character");
        assert_eq!(refused(Changes { variables: vec![b"=x"], ..Changes::default() }), r#"env: not a name: "=x""#);
        let relative = Changes { directory: Some(b"w"), ..Changes::default() };
        assert_eq!(refused(relative), r#"cwd: not an absolute path: "w""#);
    }

    #[test]
    fn only_this_boot_says_that_there_is_an_agent() {
        let config = |json: &str| Config::parse(json.as_bytes()).unwrap();
        assert_eq!(config(r#"{"agent":true}"#).agent(), Ok(true));
        assert_eq!(config("{}").over(config(r#"{"agent":true}"#)).agent(), Ok(false));
        assert_eq!(config(r#"{"agent":1}"#).agent(), Err(Refusal::Type("agent", "true or false")));
    }

    #[test]
    fn wrong_types_are_named() {
        assert_eq!(refusal("{}"), "cmd: there is none");
        for json in [r#"{"cmd":[]}"#, r#"{"cmd":"sh"}"#, r#"{"cmd":["a",1]}"#, r#"{"cmd":null}"#] {
            assert_eq!(refusal(json), "cmd: not a non-empty array of strings");
        }
        for env in ["[]", "null", r#"{"A":1}"#, r#"{"A":null}"#] {
            let json = format!(r#"{{"cmd":["a"],"env":{env}}}"#);
            assert_eq!(refusal(&json), "env: not an object of strings");
        }
        assert_eq!(refusal(r#"{"cmd":["a"],"cwd":1}"#), "cwd: not a string");
        assert_eq!(refusal("[]"), "top level: not an object");
    }

    #[test]
    fn bad_values_are_named() {
        assert_eq!(refusal(r#"{"cmd":["a\u0000"]}"#), "cmd: contains a NUL character");
        assert_eq!(refusal(r#"{"cmd":["a"],"env":{"A":"\u0000"}}"#), "env: contains a NUL character");
        assert_eq!(refusal(r#"{"cmd":["a"],"env":{"\u0000":""}}"#), "env: contains a NUL character");
        assert_eq!(refusal(r#"{"cmd":["a"],"env":{"":"x"}}"#), r#"env: not a name: """#);
        assert_eq!(refusal(r#"{"cmd":["a"],"env":{"A=B":"x"}}"#), r#"env: not a name: "A=B""#);
        assert_eq!(refusal(r#"{"cmd":["a"],"cwd":"w"}"#), r#"cwd: not an absolute path: "w""#);
        assert_eq!(refusal(r#"{"cmd":["a"],"cwd":""}"#), r#"cwd: not an absolute path: """#);
        assert_eq!(refusal(r#"{"cmd":["a"],"cwd":"/\u0000"}"#), "cwd: contains a NUL character");
    }

    #[test]
    fn malformed_json_is_named_with_its_place() {
        assert_eq!(refusal(""), "not valid JSON: EOF while parsing a value at line 1 column 0");
        assert_eq!(refusal("{\"cmd\":[\"a\"]\n \"env\":{}}"), "not valid JSON: expected `,` or `}` at line 2 column 2");
        assert!(refusal(r#"{"cmd":["a"]} x"#).starts_with("not valid JSON: trailing characters"));
        assert!(parse(b"{\"cmd\":[\"\xff\"]}", false).is_err());
        assert!(refusal(&"[".repeat(100_000)).starts_with("not valid JSON: recursion limit"));
    }

    proptest! {
        #[test]
        fn any_input_is_refused_or_read(json in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&json, true);
        }

        #[test]
        fn what_is_written_is_read_back(
            cmd in prop::collection::vec("[^\0]*", 1..5),
            env in prop::collection::btree_map("[^=\0]+", "[^\0]*", 0..5),
            cwd in "/[^\0]*",
        ) {
            let json = serde_json::json!({ "cmd": cmd, "env": env, "cwd": cwd }).to_string();
            let command = parse(json.as_bytes(), false).unwrap();
            assert_eq!(strings(&command.argv), cmd);
            assert_eq!(command.cwd.to_str(), Ok(&*cwd));
            let read: BTreeMap<String, String> = strings(&command.env)
                .iter()
                .map(|entry| entry.split_once('=').unwrap())
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            for (name, value) in &env {
                assert_eq!(read.get(name), Some(value));
            }
        }
    }
}

//! The guest's configuration, `/machinen-config.json`: its shape, and how one overrides another.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// What flags say.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// The command's words.
    pub cmd: Option<Vec<String>>,
    /// Names and values.
    pub env: Vec<(String, String)>,
    /// The command's working directory.
    pub cwd: Option<String>,
    /// The disk of the root file system.
    pub root: Option<Root>,
    /// Overlays, in the order to mount them.
    pub mounts: Vec<Overlay>,
    /// Directories of the host, in the order to mount them.
    pub shares: Vec<Share>,
    /// /init serves the agent, and what to run comes from there.
    pub agent: bool,
}

/// The disk of the root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Path of the device in the guest.
    pub device: String,
    /// Nothing is written to it.
    pub read_only: bool,
}

/// A squashfs disk and the ext4 disk of what is written over it, as one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Path of the squashfs disk's device in the guest.
    pub lower: String,
    /// Path of the ext4 disk's device in the guest.
    pub upper: String,
    /// Path of the directory in the guest.
    pub at: String,
}

/// A directory of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The device's name for it.
    pub tag: String,
    /// Path of the directory in the guest.
    pub path: String,
    /// Nothing is written to it.
    pub read_only: bool,
}

/// What a guest runs, and from which disks. Every key may be absent until all sources are merged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    keys: Map<String, Value>,
}

impl Config {
    /// Reads a configuration; `source` names it in errors.
    ///
    /// Refused: what is not an object, a `cmd` that is not a non-empty array of strings, an `env` that is not an object
    /// of strings under valid names, a `cwd` that is not an absolute path, a `root`, `mounts`, `shares` or `agent` that
    /// /init would refuse, and NUL in any of them. Other keys pass.
    pub fn parse(bytes: &[u8], source: &str) -> Result<Self> {
        let bad = |why: String| Error::Config(source.to_string(), why);
        let value = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        let Value::Object(keys) = value else {
            return Err(bad("is not an object".to_string()));
        };
        for (key, value) in &keys {
            match key.as_str() {
                "cmd" => check_cmd(value),
                "env" => check_env(value),
                "cwd" => check_cwd(value),
                "root" => check_root(value),
                "mounts" => check_mounts(value),
                "shares" => check_shares(value),
                "agent" if !value.is_boolean() => Err("agent is not true or false".to_string()),
                _ => Ok(()),
            }
            .map_err(bad)?;
        }
        Ok(Config { keys })
    }

    /// A configuration from flags. Refused as in [`Config::parse`].
    pub fn of_parts(parts: Parts, source: &str) -> Result<Self> {
        let Parts { cmd, env, cwd, root, mounts, shares, agent } = parts;
        let mut keys = Map::new();
        if agent {
            keys.insert("agent".to_string(), Value::Bool(true));
        }
        if let Some(Root { device, read_only }) = root {
            keys.insert("root".to_string(), json!({ "device": device, "ro": read_only }));
        }
        if !mounts.is_empty() {
            let mounts = mounts.into_iter().map(|m| json!({ "lower": m.lower, "upper": m.upper, "at": m.at }));
            keys.insert("mounts".to_string(), mounts.collect());
        }
        if !shares.is_empty() {
            let shares = shares.into_iter();
            let shares = shares.map(|s| json!({ "tag": s.tag, "path": s.path, "readOnly": s.read_only }));
            keys.insert("shares".to_string(), shares.collect());
        }
        if let Some(cmd) = cmd {
            let words = cmd.into_iter().map(Value::String).collect();
            keys.insert("cmd".to_string(), Value::Array(words));
        }
        if !env.is_empty() {
            let env = env.into_iter().map(|(k, v)| (k, Value::String(v)));
            keys.insert("env".to_string(), Value::Object(env.collect()));
        }
        if let Some(cwd) = cwd {
            keys.insert("cwd".to_string(), Value::String(cwd));
        }
        Self::parse(Value::Object(keys).to_string().as_bytes(), source)
    }

    /// Puts `over` over this: key by key, and `env` name by name.
    pub fn merge(&mut self, over: Config) {
        for (key, value) in over.keys {
            match (self.keys.get_mut(&key), value) {
                (Some(Value::Object(env)), Value::Object(more)) if key == "env" => {
                    env.extend(more);
                }
                (_, value) => {
                    self.keys.insert(key, value);
                }
            }
        }
    }

    /// Forgets which disks and shares there are, and the agent: a root file system that goes from machine to machine cannot know that.
    pub fn without_disks(mut self) -> Self {
        for key in ["root", "mounts", "shares", "agent"] {
            self.keys.remove(key);
        }
        self
    }

    /// Whether the root is on a disk, with a configuration of its own.
    pub fn has_root(&self) -> bool {
        self.keys.contains_key("root")
    }

    /// Whether /init serves the agent.
    pub fn has_agent(&self) -> bool {
        self.keys.get("agent").and_then(Value::as_bool) == Some(true)
    }

    /// Whether no source said anything.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether there is a command to run, without which /init refuses.
    pub fn has_command(&self) -> bool {
        self.keys.contains_key("cmd")
    }

    /// The file: one line of JSON, keys sorted.
    pub fn to_file(&self) -> String {
        let mut text = Value::Object(self.keys.clone()).to_string();
        text.push('\n');
        text
    }
}

fn check_cmd(value: &Value) -> core::result::Result<(), String> {
    match value.as_array() {
        Some(words) if !words.is_empty() => words.iter().try_for_each(|word| text(word, "cmd")),
        _ => Err("cmd is not an array with at least one word".to_string()),
    }
}

fn check_env(value: &Value) -> core::result::Result<(), String> {
    let env = value.as_object().ok_or("env is not an object")?;
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            let name = name.escape_debug();
            return Err(format!("env has the impossible name \"{name}\""));
        }
        text(value, &format!("env {name}"))?;
    }
    Ok(())
}

fn check_cwd(value: &Value) -> core::result::Result<(), String> {
    text(value, "cwd")?;
    if value.as_str().is_some_and(|cwd| cwd.starts_with('/')) {
        return Ok(());
    }
    Err("cwd is not an absolute path".to_string())
}

fn check_root(value: &Value) -> core::result::Result<(), String> {
    let root = value.as_object().ok_or("root is not an object")?;
    check_device(root.get("device"), "root device")?;
    match root.get("ro") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(_) => Err("root ro is not true or false".to_string()),
    }
}

fn check_mounts(value: &Value) -> core::result::Result<(), String> {
    for mount in value.as_array().ok_or("mounts is not an array")? {
        check_device(mount.get("lower"), "mounts lower")?;
        check_device(mount.get("upper"), "mounts upper")?;
        check_place(mount.get("at"), "mounts at")?;
    }
    Ok(())
}

fn check_shares(value: &Value) -> core::result::Result<(), String> {
    for share in value.as_array().ok_or("shares is not an array")? {
        text(share.get("tag").unwrap_or(&Value::Null), "shares tag")?;
        if share.get("tag").and_then(Value::as_str) == Some("") {
            return Err("shares tag is empty".to_string());
        }
        check_place(share.get("path"), "shares path")?;
        if !share.get("readOnly").is_none_or(Value::is_boolean) {
            return Err("shares readOnly is not true or false".to_string());
        }
    }
    Ok(())
}

fn check_place(value: Option<&Value>, key: &str) -> core::result::Result<(), String> {
    let value = value.unwrap_or(&Value::Null);
    text(value, key)?;
    let path = value.as_str().unwrap_or_default();
    if path.strip_prefix('/').is_some_and(|names| is_plain(names.strip_suffix('/').unwrap_or(names))) {
        return Ok(());
    }
    Err(format!("{key} {path:?} is not a plain absolute path below /"))
}

fn check_device(value: Option<&Value>, key: &str) -> core::result::Result<(), String> {
    let value = value.unwrap_or(&Value::Null);
    text(value, key)?;
    let path = value.as_str().unwrap_or_default();
    if path.strip_prefix("/dev/").is_some_and(is_plain) {
        return Ok(());
    }
    Err(format!("{key} {path:?} is not a device under /dev"))
}

/// Names between single slashes, none of which means another place.
fn is_plain(names: &str) -> bool {
    names.split('/').all(|name| !["", ".", ".."].contains(&name))
}

fn text(value: &Value, key: &str) -> core::result::Result<(), String> {
    match value.as_str() {
        Some(text) if !text.contains('\0') => Ok(()),
        Some(_) => Err(format!("{key} contains a NUL")),
        None => Err(format!("{key} has something that is not a string")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text.as_bytes(), "test")
    }

    #[test]
    fn later_sources_win_key_by_key_and_name_by_name() {
        let mut config = parse(r#"{"cmd":["a"],"env":{"A":"1","B":"2"},"cwd":"/x","extra":[1]}"#).unwrap();
        config.merge(parse(r#"{"env":{"B":"3","C":"4"}}"#).unwrap());
        let parts = Parts { cmd: Some(vec!["b".into()]), cwd: Some("/y".into()), ..Parts::default() };
        config.merge(Config::of_parts(parts, "").unwrap());
        let file = r#"{"cmd":["b"],"cwd":"/y","env":{"A":"1","B":"3","C":"4"},"extra":[1]}"#;
        assert_eq!(config.to_file(), format!("{file}\n"));
    }

    #[test]
    fn bad_shapes_are_refused_with_their_reason() {
        let table = [
            ("", "EOF"),
            ("[]", "is not an object"),
            (r#"{"cmd":[]}"#, "cmd is not an array"),
            (r#"{"cmd":"sh"}"#, "cmd is not an array"),
            (r#"{"cmd":["a",1]}"#, "cmd has something"),
            (r#"{"cmd":["a\u0000"]}"#, "cmd contains a NUL"),
            (r#"{"env":[]}"#, "env is not an object"),
            (r#"{"env":{"":"x"}}"#, "impossible name"),
            (r#"{"env":{"A=B":"x"}}"#, "impossible name"),
            (r#"{"env":{"A":1}}"#, "env A has something"),
            (r#"{"cwd":"x"}"#, "cwd is not an absolute path"),
            (r#"{"root":"/dev/vda"}"#, "root is not an object"),
            (r#"{"root":{}}"#, "root device has something"),
            (r#"{"root":{"device":"vda"}}"#, r#"root device "vda" is not a device"#),
            (r#"{"root":{"device":"/dev/vda","ro":1}}"#, "root ro is not"),
            (r#"{"agent":"yes"}"#, "agent is not true or false"),
            (r#"{"mounts":{}}"#, "mounts is not an array"),
            (r#"{"mounts":[1]}"#, "mounts lower has something"),
            (r#"{"mounts":[{"lower":"/dev/a","upper":"/dev/../b"}]}"#, r#"mounts upper "/dev/../b" is not"#),
            (r#"{"mounts":[{"lower":"/dev/a","upper":"/dev/b"}]}"#, "mounts at has something"),
            (r#"{"mounts":[{"lower":"/dev/a","upper":"/dev/b","at":"/"}]}"#, r#"mounts at "/" is not a plain"#),
            (r#"{"mounts":[{"lower":"/dev/a","upper":"/dev/b","at":"/a/../b"}]}"#, "is not a plain absolute path"),
            (r#"{"shares":{}}"#, "shares is not an array"),
            (r#"{"shares":[{"path":"/a"}]}"#, "shares tag has something"),
            (r#"{"shares":[{"tag":"","path":"/a"}]}"#, "shares tag is empty"),
            (r#"{"shares":[{"tag":"a","path":"a"}]}"#, r#"shares path "a" is not a plain"#),
            (r#"{"shares":[{"tag":"a","path":"/a","readOnly":0}]}"#, "shares readOnly is not"),
        ];
        for (text, why) in table {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(why), "{text}: {message}");
        }
    }
    #[test]
    fn disks_from_flags_are_written_as_init_reads_them() {
        let overlay = Overlay { lower: "/dev/vdb".into(), upper: "/dev/vdc".into(), at: "/work/".into() };
        let root = Root { device: "/dev/vda".into(), read_only: true };
        let share = Share { tag: "s".into(), path: "/s".into(), read_only: true };
        let parts =
            Parts { root: Some(root), mounts: vec![overlay], shares: vec![share], agent: true, ..Parts::default() };
        let config = Config::of_parts(parts, "").unwrap();
        assert!(config.has_root() && !config.has_command() && config.has_agent());
        let file = r#"{"agent":true,"mounts":[{"at":"/work/","lower":"/dev/vdb","upper":"/dev/vdc"}],"root":{"device":"/dev/vda","ro":true},"shares":[{"path":"/s","readOnly":true,"tag":"s"}]}"#;
        assert_eq!(config.to_file(), format!("{file}\n"));
        assert!(config.without_disks().is_empty());
    }
}

//! The guest's configuration, `/machinen-config.json`: its shape, and how one overrides another.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What a guest runs. Every key may be absent until all sources are merged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    keys: Map<String, Value>,
}

impl Config {
    /// Reads a configuration; `source` names it in errors.
    ///
    /// Refused: what is not an object, a `cmd` that is not a non-empty array of strings, an `env` that is not an object
    /// of strings under valid names, a `cwd` that is not an absolute path, and NUL in any of them. Other keys pass.
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
                _ => Ok(()),
            }
            .map_err(bad)?;
        }
        Ok(Config { keys })
    }

    /// A configuration from flags: `cmd` as words, `env` as name and value, `cwd`. Refused as in [`Config::parse`].
    pub fn of_parts(
        cmd: Option<Vec<String>>,
        env: Vec<(String, String)>,
        cwd: Option<String>,
        source: &str,
    ) -> Result<Self> {
        let mut keys = Map::new();
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
        config.merge(Config::of_parts(Some(vec!["b".into()]), vec![], Some("/y".into()), "").unwrap());
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
        ];
        for (text, why) in table {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(why), "{text}: {message}");
        }
    }
}

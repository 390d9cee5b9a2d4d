//! A kernel's configuration: which options are built in, modules, or off.

use std::collections::HashMap;

/// How an option is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Off, or not there.
    No,
    /// A module.
    Module,
    /// Built in.
    Yes,
}

impl State {
    /// `yes`, `module` or `no`.
    pub fn word(self) -> &'static str {
        match self {
            State::Yes => "yes",
            State::Module => "module",
            State::No => "no",
        }
    }
}

/// A configuration.
#[derive(Debug, Default)]
pub struct Config(HashMap<String, State>);

impl Config {
    /// Reads the text of a `.config`: `CONFIG_NAME=y` or `=m`; other values count as built in, `n` as off, the last line of a name
    /// wins, and what is no such line is passed over.
    pub fn parse(text: &str) -> Config {
        let mut options = HashMap::new();
        for line in text.lines() {
            let Some((name, value)) = line.trim().strip_prefix("CONFIG_").and_then(|line| line.split_once('=')) else {
                continue;
            };
            let state = match value {
                "n" | "" => State::No,
                "m" => State::Module,
                _ => State::Yes,
            };
            options.insert(name.to_string(), state);
        }
        Config(options)
    }

    /// How the option `name`, without `CONFIG_`, is set.
    pub fn get(&self, name: &str) -> State {
        self.0.get(name).copied().unwrap_or(State::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_what_is_none() {
        let config = Config::parse(
            "CONFIG_A=y\r\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=n\nCONFIG_E=\"x=y\"\nCONFIG_F\nA=y\nCONFIG_B=y\n\u{fffd}",
        );
        let states = ["A", "B", "C", "D", "E", "F"].map(|name| config.get(name).word());
        assert_eq!(states, ["yes", "yes", "no", "no", "yes", "no"]);
        assert_eq!(Config::parse("CONFIG_M=m").get("M"), State::Module);
        assert!(State::No < State::Module && State::Module < State::Yes);
    }
}

//! Where tests that need KVM run.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::discover::Class;
use crate::Run;

/// The decision, from asking the host's KVM once, or from the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The host runs guests of a few instructions.
    pub kvm: bool,
    /// The host boots Linux.
    pub linux: bool,
    /// Why.
    pub reason: String,
}

impl Place {
    /// What the user wants: `host` or `lab`.
    #[must_use]
    pub fn forced(word: &str) -> Option<Self> {
        let host = match word {
            "host" => true,
            "lab" => false,
            _ => return None,
        };
        Some(Self { kvm: host, linux: host, reason: "as asked for".to_owned() })
    }

    /// Runs `machinen-probe`.
    ///
    /// # Errors
    /// When it is missing, fails or says something else than it should.
    pub fn probe(bin_dir: &Path) -> Result<Self, String> {
        let probe = bin_dir.join("machinen-probe");
        let hint = "or say where to run: MACHINEN_TEST_WHERE=host|lab";
        let finished = Run::new(&probe).limit(Duration::from_mins(1)).outcome();
        let finished =
            finished.map_err(|error| format!("cannot run {}: {error}; run: make build, {hint}", probe.display()))?;
        if finished.killed || finished.code() != 0 {
            return Err(format!("{} failed, {hint}\n{}", probe.display(), finished.printed()));
        }
        let line = String::from_utf8_lossy(&finished.stdout);
        Self::parse(&line).ok_or(format!("{} said {}, {hint}", probe.display(), line.trim_end()))
    }

    /// Reads `{"kvm": true, "linux": false, "reason": "…"}`.
    fn parse(line: &str) -> Option<Self> {
        let answer: Value = serde_json::from_str(line).ok()?;
        let reason = answer["reason"].as_str().unwrap_or("its KVM boots Linux").to_owned();
        Some(Self { kvm: answer["kvm"].as_bool()?, linux: answer["linux"].as_bool()?, reason })
    }

    /// Whether executables of the class run in the lab.
    #[must_use]
    pub fn is_lab(&self, class: Class) -> bool {
        match class {
            Class::Host => false,
            Class::Kvm => !self.kvm,
            Class::Linux => !self.linux,
        }
    }

    /// A sentence for the end of the output.
    #[must_use]
    pub fn sentence(&self) -> String {
        let name = |lab| if lab { "in the lab" } else { "on the host" };
        let (linux, kvm) = (name(self.is_lab(Class::Linux)), name(self.is_lab(Class::Kvm)));
        format!("Linux guests ran {linux}, fixture guests {kvm}: {}", self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::{Class, Place};

    #[test]
    fn the_probe_decides_by_class() {
        let place = Place::parse(r#"{"kvm":true,"linux":false,"reason":"too slow"}"#).unwrap();
        assert_eq!([Class::Host, Class::Kvm, Class::Linux].map(|class| place.is_lab(class)), [false, false, true]);
        assert_eq!(place.sentence(), "Linux guests ran in the lab, fixture guests on the host: too slow");
        assert_eq!(Place::parse("{}"), None);
        assert_eq!(Place::parse(""), None);
    }

    #[test]
    fn the_user_decides_for_all() {
        let place = Place::forced("lab").unwrap();
        assert_eq!([Class::Host, Class::Kvm, Class::Linux].map(|class| place.is_lab(class)), [false, true, true]);
        assert!(!Place::forced("host").unwrap().is_lab(Class::Linux));
        assert_eq!(Place::forced("moon"), None);
    }
}

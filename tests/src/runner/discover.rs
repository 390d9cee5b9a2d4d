//! Which test executables the workspace has, and which tests are in them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::record::Test;
use crate::Run;
use crate::lab::Arch;

/// What a test executable needs, told by the name of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Just the host.
    Host,
    /// `kvm_*`: a KVM that runs guests of a few instructions.
    Kvm,
    /// `linux_*`: a KVM that boots Linux.
    Linux,
}

/// A test executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Where it is.
    pub path: PathBuf,
    /// `package::target`, what its tests are shown under.
    pub label: String,
    /// The directory of its package, where it expects to be run.
    pub dir: PathBuf,
    /// What it needs.
    pub class: Class,
}

/// Builds the test executables of the workspace for an architecture: all, or those that can run in a lab.
///
/// # Errors
/// When the build fails; cargo has said why on stderr.
pub fn build(arch: Arch, lab_only: bool) -> Result<Vec<Executable>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(cargo)
        .args(["test", "--quiet", "--no-run", "--message-format=json-render-diagnostics"])
        .args(if lab_only { ["--package", env!("CARGO_PKG_NAME")].as_slice() } else { &["--workspace"] })
        .args(["--target", &arch.musl_target()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err("the tests do not build".to_owned());
    }
    let mut found = executables(&String::from_utf8_lossy(&output.stdout));
    found.retain(|executable| !lab_only || executable.class != Class::Host);
    Ok(found)
}

/// Reads cargo's messages (JSON lines), sorted by label.
#[must_use]
pub fn executables(messages: &str) -> Vec<Executable> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found: Vec<Executable> = messages.filter_map(|message| executable(&message)).collect();
    found.sort_by(|a, b| a.label.cmp(&b.label));
    found
}

/// The executable of one message, if it is about one with tests.
fn executable(message: &Value) -> Option<Executable> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let path = PathBuf::from(message["executable"].as_str()?);
    let dir = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let target = message["target"]["name"].as_str()?;
    let is_file_of_tests = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test");
    let class = match () {
        () if is_file_of_tests && target.starts_with("kvm_") => Class::Kvm,
        () if is_file_of_tests && target.starts_with("linux_") => Class::Linux,
        () => Class::Host,
    };
    let label = format!("{}::{target}", package(message["package_id"].as_str()?));
    Some(Executable { path, label, dir, class })
}

/// The name in a package id: `path+file:///x/name#1.0.0` or `path+file:///x/y#name@1.0.0`.
fn package(id: &str) -> &str {
    let (place, version) = id.rsplit_once('#').unwrap_or((id, ""));
    match version.rsplit_once('@') {
        Some((name, _)) => name,
        None => place.rsplit('/').next().unwrap_or(place),
    }
}

/// Asks an executable for its tests.
///
/// # Errors
/// When it does not answer.
pub fn tests(executable: &Executable) -> Result<Vec<Test>, String> {
    let run = Run::new(&executable.path).args(["--list", "--format", "terse"]).dir(&executable.dir);
    let finished = run.outcome().map_err(|error| format!("cannot run {}: {error}", executable.path.display()))?;
    if finished.code() != 0 || finished.killed {
        return Err(format!("{} does not list its tests:\n{}", executable.label, finished.printed()));
    }
    let names = names(&String::from_utf8_lossy(&finished.stdout));
    Ok(names.into_iter().map(|name| Test { label: executable.label.clone(), name }).collect())
}

/// Reads the terse list: `NAME: test` or `NAME: benchmark`, one a line.
fn names(list: &str) -> Vec<String> {
    list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{Class, executables, names, package};

    #[test]
    fn a_list_has_tests_benchmarks_and_other_lines() {
        let list = "a::b: test\nspeed: benchmark\nwith: colon: test\n\n2 tests, 1 benchmark\n";
        assert_eq!(names(list), ["a::b", "with: colon"]);
        assert!(names("").is_empty());
    }

    #[test]
    fn packages_have_their_name_in_one_of_two_places() {
        assert_eq!(package("path+file:///src/machinen/vmm-min#0.1.0"), "vmm-min");
        assert_eq!(package("path+file:///src/machinen/tests#machinen-tests@0.1.0"), "machinen-tests");
    }

    #[test]
    fn messages_give_executables_and_their_classes() {
        let message = |kind: &str, name: &str, test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///w/p#0.1.0","manifest_path":"/w/p/Cargo.toml",
                "target":{{"kind":["{kind}"],"name":"{name}"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
            .replace('\n', "")
        };
        let messages = [
            message("test", "linux_boot", true, r#""/t/linux""#),
            message("test", "kvm_exits", true, r#""/t/kvm""#),
            message("bin", "kvm_tool", true, r#""/t/bin""#),
            message("lib", "p", false, "null"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
            "not JSON".to_owned(),
        ];
        let found = executables(&messages.join("\n"));
        let found: Vec<_> = found.iter().map(|found| (found.label.as_str(), found.class)).collect();
        let expected = [("p::kvm_exits", Class::Kvm), ("p::kvm_tool", Class::Host), ("p::linux_boot", Class::Linux)];
        assert_eq!(found, expected);
    }
}

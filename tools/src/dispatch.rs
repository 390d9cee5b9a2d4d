//! The work of `machinen`: finding the program of a verb, and becoming it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::diagnostic::Diagnostic;
use crate::registry::name::near;

/// Name of the program.
pub const TOOL: &str = "machinen";

/// Exit code of what runs a guest's command, for everything that fails before that.
const EXIT_TOOL: u8 = 125;

/// The verbs, in the order of the list, and whether they run a command.
const VERBS: [(&str, &str, bool); 17] = [
    ("run", "boot an image and run a command in it", true),
    ("exec", "run a command in a machine that runs", true),
    ("attach", "take part in a machine's main command", true),
    ("cp", "copy files between the host and a machine", false),
    ("snapshot", "freeze a machine's processes into a bundle", false),
    ("restore", "let the processes of a bundle go on", true),
    ("fork", "copy a machine while it runs", true),
    ("ls", "list the machines that run", false),
    ("logs", "print a machine's console", false),
    ("mem", "print what machines take of the host's memory", false),
    ("stop", "stop machines", false),
    ("gc", "remove what machines left that have ended", false),
    ("kernel", "look into kernels and make them ready", false),
    ("rootfs-img", "make an ext4 image of a root file system", false),
    ("mountdisk", "make disks that mount a host directory", false),
    ("mkinitramfs", "make an initramfs", false),
    ("net", "run a monitor with a network", true),
];

/// What the arguments ask for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// To print this text.
    Print(String),
    /// To become the program of a verb, with these arguments.
    Become(OsString, Vec<OsString>),
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// `MACHINEN_USAGE`.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Asked, Diagnostic> {
    let mut arguments = arguments.into_iter();
    let Some(first) = arguments.next() else { return Ok(Asked::Print(help())) };
    let mut rest: Vec<OsString> = arguments.collect();
    match first.as_bytes() {
        b"--version" => return Ok(Asked::Print(format!("{TOOL} {}\n", env!("CARGO_PKG_VERSION")))),
        b"--help" | b"-h" => return Ok(Asked::Print(help())),
        b"help" if rest.is_empty() => return Ok(Asked::Print(help())),
        b"help" => {
            let verb = rest.swap_remove(0);
            return Ok(Asked::Become(verb, vec!["--help".into()]));
        }
        bytes if bytes.starts_with(b"-") => {
            let message = format!("unknown option {}: options come after the verb", first.display());
            return Err(Diagnostic::new("MACHINEN_USAGE", message).hint("see machinen --help").usage());
        }
        _ => {}
    }
    Ok(Asked::Become(first, rest))
}

/// Becomes the verb's program. Comes back only when that fails.
pub fn become_verb(verb: &OsStr, arguments: &[OsString]) -> Diagnostic {
    let runs_a_command = VERBS.iter().any(|(name, _, runs)| *runs && verb == *name);
    let failed = |diagnostic: Diagnostic| {
        let exit = if runs_a_command { EXIT_TOOL } else { diagnostic.exit };
        Diagnostic { exit, ..diagnostic }
    };
    let Some(program) = find(verb) else { return failed(unknown(verb)) };
    let error = Command::new(&program).args(arguments).exec();
    failed(Diagnostic::new("MACHINEN_EXECUTE", format!("execute {}: {error}", program.display())))
}

fn unknown(verb: &OsStr) -> Diagnostic {
    let name = verb.to_string_lossy();
    let message = format!("{name:?} is no verb: there is no program of that name beside {TOOL} or in PATH");
    let near = near(&name, existing().map(|(name, _)| name));
    let hint = match near.as_slice() {
        [] => format!("{TOOL} help lists the verbs"),
        near => format!("is it {}?", near.join(" or ")),
    };
    Diagnostic::new("MACHINEN_VERB_UNKNOWN", message).hint(hint).usage()
}

/// The program of a verb: beside this one, else in PATH.
fn find(verb: &OsStr) -> Option<PathBuf> {
    if verb.is_empty() || verb.as_bytes().contains(&b'/') {
        return None;
    }
    let mut file = OsString::from("machinen-");
    file.push(verb);
    let executable = std::env::current_exe().ok();
    let beside = executable.and_then(|path| path.parent().map(PathBuf::from));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Not the working directory, for which an empty word stands in PATH.
    let dirs = beside.into_iter().chain(std::env::split_paths(&path).filter(|dir| dir.is_absolute()));
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    dirs.map(|dir| dir.join(&file)).find(is_program)
}

/// The verbs whose programs are there.
fn existing() -> impl Iterator<Item = (&'static str, &'static str)> {
    VERBS.into_iter().filter(|(name, ..)| find(OsStr::new(name)).is_some()).map(|(name, what, _)| (name, what))
}

fn help() -> String {
    let mut text = format!("Usage: {TOOL} VERB [ARGUMENTS]\n\nVirtual machines as processes.\n\n");
    for (name, what) in existing() {
        text.push_str(&format!("  {name:<13}{what}\n"));
    }
    text.push_str(&format!(
        "\n{TOOL} help VERB tells more. VERB is the program {TOOL}-VERB beside this one or in PATH.\n\
        Exit codes: the program's; 2 there is none; 125 there is none for a verb that runs a command.\n"
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Asked, Diagnostic> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn arguments() {
        for words in [&[][..], &["help"], &["--help"], &["-h", "x"]] {
            assert!(matches!(parsed(words), Ok(Asked::Print(text)) if text.starts_with("Usage: machinen VERB")));
        }
        let version = format!("machinen {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(parsed(&["--version"]), Ok(Asked::Print(version)));
        assert_eq!(parsed(&["help", "ls"]), Ok(Asked::Become("ls".into(), vec!["--help".into()])));
        assert_eq!(parsed(&["ls", "--help"]), Ok(Asked::Become("ls".into(), vec!["--help".into()])));
        assert_eq!(
            parsed(&["run", "-", "--version"]),
            Ok(Asked::Become("run".into(), vec!["-".into(), "--version".into()]))
        );
        assert_eq!(parsed(&["--json", "ls"]).unwrap_err().exit, 2);
    }

    #[test]
    fn no_verb_is_a_path() {
        for verb in ["", "/", "../ls", "x/y", "no-such-verb"] {
            assert_eq!(find(OsStr::new(verb)), None);
        }
        assert_eq!(become_verb(OsStr::new("no-such\nverb"), &[]).exit, 2);
        assert!(!unknown(OsStr::new("a\nb")).message.contains('\n'));
    }
}

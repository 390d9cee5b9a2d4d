//! vmm-min's command line as transcripts, and the size of the programs.

#![forbid(unsafe_code)]

use std::fs;

use machinen_tests::bin;
use machinen_tests::monitor::vmm_min;

/// What it prints to stdout on success, with nothing on stderr.
fn printed(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let run = variables.iter().fold(vmm_min().args(arguments), |run, (name, value)| run.env(name, value)).finish();
    assert_eq!((run.code(), run.stderr.len()), (0, 0), "{}", run.printed());
    String::from_utf8(run.stdout).unwrap()
}

#[test]
fn version() {
    let expected = format!("vmm-min {} {}\n", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    assert_eq!(printed(&["--version"], &[]), expected);
    // Asking does not need the rest to make sense.
    assert_eq!(printed(&["--version"], &[("MACHINEN_MEMORY", "much")]), expected);
}

#[test]
fn print_env_of_flags() {
    let arguments = ["--kernel", "a b", "--initrd", "i", "--cmdline", "it's", "-m", "64", "--tty", "--boot-test"];
    let expected = "\
MACHINEN_KERNEL='a b'
MACHINEN_INITRD=i
MACHINEN_CMDLINE='it'\\''s'
MACHINEN_MEMORY=64
MACHINEN_TTY=1
MACHINEN_BOOT_TEST=1
";
    assert_eq!(printed(&[&arguments[..], &["--print-env"]].concat(), &[]), expected);
}

#[test]
fn print_env_gives_itself_back() {
    let variables = [("MACHINEN_KERNEL", "k"), ("MACHINEN_MEMORY", "128"), ("MACHINEN_TTY", "yes")];
    let expected = "MACHINEN_KERNEL=k\nMACHINEN_MEMORY=128\nMACHINEN_TTY=1\n";
    assert_eq!(printed(&["--print-env"], &variables), expected);
    assert_eq!(printed(&["--print-env", "-m", "64"], &variables), expected.replace("128", "64"));
}

#[test]
fn help_names_every_flag_with_its_variable() {
    let help = printed(&["--help"], &[]);
    assert!(help.starts_with("Usage: vmm-min "), "{help}");
    let text = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (flag, variable) in [
        ("--kernel", "[MACHINEN_KERNEL]"),
        ("--initrd", "[MACHINEN_INITRD]"),
        ("--dtb", "[MACHINEN_DTB]"),
        ("--cmdline", "[MACHINEN_CMDLINE]"),
        ("-m, --memory", "[MACHINEN_MEMORY]"),
        ("--share", "[MACHINEN_SHARE: separated by commas]"),
        ("--tty", "[MACHINEN_TTY]"),
        ("--log-limit", "[MACHINEN_LOG_LIMIT]"),
        ("--ctl", "[MACHINEN_CTL]"),
        ("--root-layer", "[MACHINEN_ROOTLAYER]"),
        ("--detach", "[MACHINEN_DETACH]"),
        ("--die-with-parent", "[MACHINEN_DIE_WITH_PARENT]"),
        ("--trace", "[MACHINEN_TRACE]"),
        ("--boot-test", "[MACHINEN_BOOT_TEST]"),
    ] {
        let (_, options) = text.split_once("Options: ").expect("a list of options");
        let (_, from) = options.split_once(&format!("{flag} ")).unwrap_or_else(|| panic!("{flag} is missing: {help}"));
        // The variable stands before the next flag.
        let own = from.split(" --").next().unwrap_or_default();
        assert!(own.contains(variable), "{flag}: {own}");
    }
    for flag in ["--json", "--print-env", "--version", "Exit status: "] {
        assert!(text.contains(flag), "{flag}: {help}");
    }
}

#[test]
fn programs_are_small_and_static() {
    for (name, most_bytes) in [("vmm-min", 1 << 20), ("init", 256 << 10)] {
        let file = fs::read(bin(name)).unwrap();
        assert!(file.len() <= most_bytes, "{name} has {} bytes, {most_bytes} allowed", file.len());
        assert!(!has_interpreter(&file), "{name} needs a dynamic linker");
    }
}

/// A program header is PT_INTERP. Source: System V ABI, chapter 5.
fn has_interpreter(elf: &[u8]) -> bool {
    let half = |at: usize| usize::from(u16::from_le_bytes([elf[at], elf[at + 1]]));
    let headers = usize::try_from(u64::from_le_bytes(elf[32..40].try_into().unwrap())).unwrap();
    let (bytes, count) = (half(54), half(56));
    assert!(elf.starts_with(b"\x7fELF\x02") && count > 0);
    (0..count).any(|index| elf[headers + index * bytes..].starts_with(&3u32.to_le_bytes()))
}

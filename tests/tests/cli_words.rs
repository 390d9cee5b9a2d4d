//! What the tools for machines say to a person: help, usage errors, and configurations as variables.

#![forbid(unsafe_code)]

use machinen_tests::machines::Machines;
use machinen_tests::{Finished, Run, bin};

/// The tools, and their exit codes for usage errors and for an output that cannot be written.
const TOOLS: [(&str, i32, i32); 9] = [
    ("run", 125, 125),
    ("exec", 125, 125),
    ("attach", 125, 125),
    ("cp", 2, 1),
    ("ls", 2, 1),
    ("gc", 2, 1),
    ("stop", 2, 1),
    ("logs", 2, 1),
    ("mem", 2, 1),
];

fn tool(machines: &Machines, name: &str, args: &[&str]) -> Finished {
    machines.tool(&format!("machinen-{name}")).args(args).finish()
}

/// A shell script about the program `$0`.
fn script(name: &str, script: &str) -> Finished {
    Run::new("sh").args(["-c", script]).arg(bin(&format!("machinen-{name}"))).finish()
}

#[test]
fn help_is_for_people_and_pipes() {
    for (name, _, full) in TOOLS {
        let help = script(name, "\"$0\" --help");
        let text = String::from_utf8(help.stdout.clone()).unwrap();
        assert_eq!((help.code(), help.stderr.len()), (0, 0), "{name}");
        assert!(text.starts_with(&format!("Usage: machinen-{name}")) && text.contains("Exit codes: "), "{text}");
        let too_long = text.lines().skip(1).find(|line| line.chars().count() > 100);
        assert_eq!(too_long, None, "{name}");
        let short = script(name, "{ \"$0\" --help; echo $? >&2; } | head -n 1");
        assert_eq!(
            (short.stdout.as_slice(), short.stderr.as_slice()),
            (text.split_inclusive('\n').next().unwrap().as_bytes(), &b"0\n"[..])
        );
        let full_disk = script(name, "\"$0\" --help >/dev/full");
        assert_eq!(full_disk.code(), full, "{name}: {}", full_disk.printed());
        assert!(full_disk.printed().contains("_OUTPUT: "), "{}", full_disk.printed());
    }
    let usage = |name: &str| script(name, "\"$0\" --help").printed().lines().next().unwrap().to_owned();
    assert!(usage("run").ends_with(" IMAGE [-- COMMAND...]"), "{}", usage("run"));
    assert!(usage("exec").ends_with(" NAME -- COMMAND..."), "{}", usage("exec"));
    assert!(usage("attach").ends_with(" NAME"), "{}", usage("attach"));
}

#[test]
fn nonsense_is_answered_by_what_to_do() {
    let machines = Machines::default();
    for (name, code, _) in TOOLS {
        for words in [&["--nonsense"][..], &["--nonsense", "--json"]] {
            let run = tool(&machines, name, words);
            assert_eq!((run.code(), run.stdout.len()), (code, 0), "{name}: {}", run.printed());
            let said = run.printed();
            assert!(said.contains("unrecognized argument: --nonsense") && said.contains("--help"), "{said}");
            if words.contains(&"--json") {
                let value: serde_json::Value = serde_json::from_str(&said).unwrap();
                assert!(value["code"].as_str().is_some_and(|code| code.ends_with("_USAGE")), "{said}");
            }
        }
    }
    let said = tool(&machines, "stop", &["-t", "no", "x"]).printed();
    assert!(said.starts_with("machinen-stop: STOP_USAGE: -t no: not a number of seconds\n"), "{said}");
    let said = tool(&machines, "run", &["/nowhere/x"]);
    assert!(!said.printed().contains("os error"), "{}", said.printed());
}

#[test]
fn a_machine_or_file_may_be_called_help() {
    let machines = Machines::default();
    for (name, words, code) in [
        ("cp", &["help", "help:/x"][..], 1),
        ("cp", &["help:/x", "help"], 1),
        ("exec", &["help", "--", "true"], 125),
        ("stop", &["-t", "0", "help"], 1),
        ("mem", &["--json", "help"], 1),
        ("logs", &["-f", "help"], 1),
    ] {
        let run = tool(&machines, name, words);
        assert_eq!((run.code(), run.stdout.len()), (code, 0), "{name} {words:?}: {}", run.printed());
        let said = run.printed();
        assert!(said.replace('\\', "").contains("machine \"help\": there is none"), "{said}");
    }
    assert_eq!(tool(&machines, "cp", &["help"]).code(), 0);
}

#[test]
fn a_configuration_is_the_same_as_flags_and_as_variables() {
    let machines = Machines::default();
    let flags = [
        "-d",
        "--name",
        "it's a/name",
        "-m",
        "300",
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:53:53/udp",
        "--mount",
        "/a b:/c",
        "-v",
        "/d:/e:ro",
        "--kernel",
        "/k",
        "--modules",
        "/m",
        "--timeout",
        "7",
        "--trace",
        "/t",
    ];
    let printed = |args: &[&str], script: &str| {
        let run = Run::new("sh").args(["-c", script]).arg(bin("machinen-run")).args(args).env_clear();
        let finished = run.env("PATH", "/usr/bin:/bin").env("MACHINEN_REGISTRY_DIR", machines.registry.path()).finish();
        assert_eq!(finished.code(), 0, "{}", finished.printed());
        finished.printed()
    };
    let variables = printed(&[&flags[..], &["--print-env"]].concat(), "exec \"$0\" \"$@\"");
    assert_eq!(variables.lines().count(), 10, "{variables}");
    // A shell takes them as they are.
    let again = printed(&[], &format!("set -a\n{variables}\nexec \"$0\" --print-env"));
    assert_eq!(again, variables);
    // A flag is more than its variable.
    let over = printed(&[], &format!("set -a\n{variables}\nexec \"$0\" --print-env -m 400 -p 1:2"));
    assert_eq!(over, variables.replace("=300\n", "=400\n").replace("'8080:80,127.0.0.1:53:53/udp'", "1:2"));
}

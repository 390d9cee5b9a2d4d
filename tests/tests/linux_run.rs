//! `machinen-run` and `machinen-exec` beside `env`: standard output, standard error and exit code are the same.

#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use machinen_tests::cli::Cli;
use machinen_tests::{Finished, Run, asset};

fn said(finished: &Finished) -> (String, String, i32) {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    (text(&finished.stdout), text(&finished.stderr), finished.code())
}

/// What `env` makes of the command here, with busybox's programs as in the guest.
fn env(command: &[&str], stdin: &[u8]) -> Finished {
    Run::new(asset("busybox")).arg("env").args(command).stdin(stdin).finish()
}

/// Commands that end by themselves, and what they read.
fn commands() -> Vec<(Vec<&'static str>, Vec<u8>)> {
    let shell = |script: &'static str| vec!["sh", "-c", script];
    let every_byte: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    vec![
        (vec!["true"], vec![]),
        (vec!["false"], vec![]),
        (vec!["echo", "a b", "", "c\nd"], vec![]),
        (shell("echo out; echo err >&2; exit 7"), vec![]),
        (shell("kill -9 $$"), vec![]),
        (shell("kill -TERM $$"), vec![]),
        (vec!["cat"], every_byte.clone()),
        (shell("cat >&2"), every_byte),
        (vec!["cat"], vec![]),
        (vec!["wc", "-c"], vec![b'x'; 3_000_000]),
        (shell("head -c 5; exit 3"), vec![b'y'; 1_000_000]),
        (shell("exec <&-; echo closed; exit 1"), b"unread".to_vec()),
        (shell("(sleep 1000 & ) ; echo started"), vec![]),
        (shell("cd /tmp && pwd"), vec![]),
        (shell("test -t 0 || test -t 1 || test -t 2 || echo no terminal"), vec![]),
        (shell("yes | head -c 2000000 | wc -c; yes | head -c 300000"), vec![]),
    ]
}

#[test]
fn run_is_what_env_is() {
    let machines = Cli::new();
    for (command, stdin) in commands() {
        let here = env(&command, &stdin);
        let there = machines.run(&[], &command).stdin(stdin).finish();
        assert_eq!(said(&there), said(&here), "{command:?}");
    }
    assert_eq!(machines.directories(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn exec_is_what_env_is() {
    let machines = Cli::new();
    machines.detach("m", &["sleep", "1000"]);
    for (command, stdin) in commands() {
        let here = env(&command, &stdin);
        let there = machines.exec("m", &command).stdin(stdin).finish();
        assert_eq!(said(&there), said(&here), "{command:?}");
    }
}

#[test]
fn exit_codes_say_who_failed() {
    let machines = Cli::new();
    let codes = |run: Run, code: i32, word: &str| {
        let finished = run.finish();
        assert_eq!((finished.code(), finished.stdout.len()), (code, 0), "{}", finished.printed());
        let stderr = String::from_utf8_lossy(&finished.stderr).into_owned();
        assert!(stderr.contains(word), "{word}: {stderr}");
    };
    codes(machines.run(&[], &["no-such-program"]), 127, "EXEC_NOT_FOUND");
    codes(machines.run(&[], &["/etc/passwd"]), 126, "EXEC_CANNOT_EXECUTE");
    codes(machines.run(&["--timeout", "3"], &["sleep", "1000"]), 124, "RUN_TIMEOUT");
    codes(machines.run(&["--no-such-flag"], &["true"]), 125, "RUN_USAGE");
    codes(machines.run(&["--kernel", "/nowhere"], &["true"]), 125, "KERNEL_NOT_FOUND");
    codes(machines.tool("run", &["/nowhere/image"]), 125, "BOOT_IMAGE_MISSING");
    codes(machines.tool("run", &[]), 125, "machinen run IMAGE");
    codes(
        machines.tool("run", &["/x"]).env("MACHINEN_KERNEL", "").env("HOME", "/nowhere"),
        125,
        "machinen-kernel host",
    );
    codes(machines.exec("nobody", &["true"]), 125, "REGISTRY_VM_NOT_FOUND");
    machines.detach("m", &["sleep", "1000"]);
    codes(machines.exec("m", &["no-such-program"]), 127, "EXEC_NOT_FOUND");
    codes(machines.exec("m", &["/etc/passwd"]), 126, "EXEC_CANNOT_EXECUTE");
    codes(machines.tool("exec", &["--timeout", "1", "m", "--", "sleep", "1000"]), 124, "RUN_TIMEOUT");
    codes(machines.tool("exec", &["m"]), 125, "EXEC_USAGE");
}

#[test]
fn command_environment_and_directory_are_given() {
    let machines = Cli::new();
    let image = machines.image().display().to_string();
    let own = machines.tool("run", &[&image]).finish();
    assert_eq!(own.printed(), "of the image\n");
    let script = "echo $A, $B, ${C-none}; pwd";
    let flags = ["-e", "A=1 2", "-e", "B", "-e", "C", "-w", "/etc"];
    let run = machines.run(&flags, &["sh", "-c", script]).env("B", "here").finish();
    assert_eq!(run.printed(), "1 2, here, none\n/etc\n");
    // 1 MiB of arguments, none longer than Linux takes.
    let long = "x".repeat(100_000);
    let words: Vec<&str> =
        ["sh", "-c", "echo $#; echo ${10} | wc -c", "sh"].into_iter().chain([long.as_str(); 10]).collect();
    assert_eq!(machines.run(&[], &words).finish().printed(), "10\n100001\n");
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let machines = Cli::new();
    machines.detach("m", &["sleep", "1000"]);
    for mut command in [machines.run_command(&[], &["yes"]), machines.command("exec", &["m", "--", "yes"])] {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "y\n");
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
    }
    let left = machines.exec("m", &["sh", "-c", "ps | grep -c [y]es"]).finish();
    assert_eq!(left.printed(), "0\n");
}

#[test]
fn two_of_one_name_at_once_are_one() {
    let machines = Cli::new();
    let start = || {
        let mut command = machines.run_command(&["--name", "x"], &["sh", "-c", "echo won; cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut both = [start(), start()];
    // The loser ends by itself; the winner when its input does.
    let mut codes = Vec::new();
    while codes.is_empty() {
        codes.extend(both.iter_mut().filter_map(|child| child.try_wait().unwrap()).map(|status| status.code()));
        std::thread::yield_now();
    }
    assert_eq!(codes, [Some(125)]);
    let outputs = both.map(|child| child.wait_with_output().unwrap());
    let won: Vec<bool> = outputs.iter().map(|output| output.stdout == b"won\n").collect();
    assert!(won == [true, false] || won == [false, true], "{outputs:?}");
    let loser = outputs.iter().find(|output| output.stdout.is_empty()).unwrap();
    assert!(String::from_utf8_lossy(&loser.stderr).contains("REGISTRY_NAME_TAKEN"), "{outputs:?}");
    assert_eq!(machines.directories(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn a_trace_and_a_table_name_the_points_of_the_start() {
    let machines = Cli::new();
    let path = machines.path("trace.json");
    let run = machines.run(&["-v", "--keep", "--trace", path.to_str().unwrap()], &["echo", "x"]).finish();
    assert_eq!((run.code(), &run.stdout[..]), (0, &b"x\n"[..]), "{}", run.printed());
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    println!("{stderr}");
    for name in [
        "tool",
        "vmm-min",
        "KVM ready",
        "kernel loaded",
        "first instruction",
        "guest ready",
        "command started",
        "first output byte",
        "command over",
        "exit",
    ] {
        assert!(events.iter().any(|event| event["name"] == name) && stderr.contains(name), "{name}: {stderr}");
    }
    let [directory] = &machines.directories()[..] else { panic!("kept: {:?}", machines.directories()) };
    assert!(directory.join("boot.log").exists());
}

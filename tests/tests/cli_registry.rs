//! The tools that look after machines as transcripts, without guests: ls, gc, logs, mem, and machinen.

#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use machinen::registry::{Entry, Process};
use machinen_tests::machines::Machines;
use machinen_tests::monitor::{LIMIT, Live, Scratch, read_bytes};
use machinen_tests::{Finished, Run, bin};
use serde_json::Value;

/// What it prints to stdout on success, with nothing on stderr.
#[track_caller]
fn printed(run: Run) -> String {
    let run = run.finish();
    assert_eq!((run.code(), run.stderr.len()), (0, 0), "{}", run.printed());
    String::from_utf8(run.stdout).unwrap()
}

#[track_caller]
fn assert_fails(run: &Finished, exit: i32, tool: &str, code: &str) {
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.code(), exit, "{}", run.printed());
    assert!(stderr.starts_with(&format!("{tool}: {code}: ")) && stderr.ends_with('\n'), "{stderr}");
    assert!(stderr.lines().skip(1).all(|line| line.starts_with("  hint: ")), "{stderr}");
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const HEADS: &str = "NAME  PID  IMAGE  MEMORY  RSS  PORTS  AGE  PARENT\n";

#[test]
fn ls_of_nothing() {
    let machines = Machines::default();
    assert_eq!(printed(machines.tool("machinen-ls")), HEADS);
    for flag in ["-q", "--json", "-aq"] {
        let flags: Vec<&str> = if flag == "-aq" { vec!["-a", "-q"] } else { vec![flag] };
        assert_eq!(printed(machines.tool("machinen-ls").args(flags)), "");
    }
    assert!(!machines.registry.path().exists());
}

#[test]
fn ls_of_machines() {
    let machines = Machines::default();
    let web = machines.start(Some("web/1"), |_, entry| {
        entry.image = "/images/debian.tar.zst".into();
        entry.memory_mib = 512;
        entry.ports = vec!["127.0.0.1:8080:80".into(), "127.0.0.1:53:53/udp".into()];
        entry.parent = Some("boss".into());
        entry.started_unix_ms = 1;
    });
    let nameless = machines.start(None, |_, entry| entry.image = "a\nb/".into());
    let text = printed(machines.tool("machinen-ls"));
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let pids = [&web, &nameless].map(|machine| machine.child.id().to_string());
    assert_eq!(rows[1][..4], ["web/1", pids[0].as_str(), "debian.tar.zst", "512M"]);
    assert_eq!((rows[1][5], rows[1][7]), ("127.0.0.1:8080:80,127.0.0.1:53:53/udp", "boss"));
    assert!(rows[1][6].ends_with('d'), "{text}");
    assert_eq!(rows[2][..4], [nameless.id.as_str(), pids[1].as_str(), "a\\nb", "-"]);
    let image = text.lines().map(|line| line.find("debian").or(line.find("a\\nb")).or(line.find("IMAGE")));
    assert!(image.collect::<Vec<_>>().windows(2).all(|two| two[0] == two[1]), "aligned:\n{text}");

    assert_eq!(printed(machines.tool("machinen-ls").arg("-q")), format!("web/1\n{}\n", nameless.id));
    let values = lines(&printed(machines.tool("machinen-ls").arg("--json")));
    assert_eq!(values[0]["name"], "web/1");
    assert_eq!(values[0]["pid"], web.child.id());
    assert_eq!((&values[0]["state"], &values[0]["memory_mib"]), (&Value::from("alive"), &Value::from(512)));
    assert!(values[0]["rss_bytes"].is_u64() && values[1]["name"].is_null());
    assert_eq!(values[1]["dir"], nameless.dir.to_str().unwrap());

    web.kill(&machines);
    assert_eq!(printed(machines.tool("machinen-ls").arg("-q")), format!("{}\n", nameless.id));
    let text = printed(machines.tool("machinen-ls").arg("-a"));
    assert!(text.lines().nth(1).unwrap().starts_with("web/1 ") && text.lines().nth(1).unwrap().ends_with(" dead"));
    fs::write(nameless.dir.join("vm.json"), "{\"version\": 1, \"na").unwrap();
    let value = &lines(&printed(machines.tool("machinen-ls").arg("--json")))[0];
    assert_eq!((&value["id"], &value["state"]), (&Value::from(nameless.id.as_str()), &Value::from("alive")));
    assert_eq!(value["pid"], nameless.child.id(), "who holds the lock is found");
    assert!(value["problem"].as_str().unwrap().contains("vm.json"));
}

#[test]
fn gc_says_what_it_removes() {
    let machines = Machines::default();
    assert_eq!(printed(machines.tool("machinen-gc")), "");
    let mut helper = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let process = Process::of(helper.id()).unwrap();
    let alive = machines.start(Some("alive"), |_, _| {});
    let dead = machines.start(Some("dead"), |claim, entry| {
        // The second is another process by now.
        entry.helpers = vec![process, Process { start_time: process.start_time + 1, ..process }];
        fs::write(claim.dir.join("boot.log"), "x").unwrap();
    });
    let dir = dead.dir.clone();
    dead.kill(&machines);
    let path = dir.display();
    let expected = format!("would end process {} (cat), of dead\nwould remove {path}, of dead\n", helper.id());
    for flag in ["-n", "--dry-run"] {
        assert_eq!(printed(machines.tool("machinen-gc").arg(flag)), expected);
    }
    let values = lines(&printed(machines.tool("machinen-gc").args(["-n", "--json"])));
    assert_eq!((&values[0]["what"], &values[0]["pid"]), (&Value::from("helper"), &Value::from(helper.id())));
    assert_eq!(values[1]["content"], serde_json::json!(["boot.log", "lock", "vm.json"]));
    assert!(helper.try_wait().unwrap().is_none() && dir.exists());
    let expected = expected.replace("would end", "ended").replace("would remove", "removed");
    assert_eq!(printed(machines.tool("machinen-gc")), expected);
    helper.wait().unwrap();
    assert!(!dir.exists() && alive.dir.exists());
    assert_eq!(printed(machines.tool("machinen-gc")), "");
}

#[test]
fn logs_of_the_living_and_the_dead() {
    let machines = Machines::default();
    let machine = machines.start(Some("web"), |_, _| {});
    let missing = machines.tool("machinen-logs").arg("web").finish();
    assert_fails(&missing, 1, "machinen-logs", "LOGS_MISSING");
    let bytes: Vec<u8> = (0..=255).collect();
    fs::write(machine.dir.join("boot.log"), &bytes).unwrap();
    for key in ["web", &machine.id.clone(), &machine.child.id().to_string()] {
        assert_eq!(machines.tool("machinen-logs").arg(key).finish().stdout, bytes);
    }
    machine.kill(&machines);
    for flags in [&["web"][..], &["-f", "web"]] {
        assert_eq!(machines.tool("machinen-logs").args(flags).finish().stdout, bytes);
    }
    printed(machines.tool("machinen-gc").arg("-n"));
    assert_fails(&machines.tool("machinen-logs").arg("wed").finish(), 1, "machinen-logs", "REGISTRY_VM_NOT_FOUND");
}

#[test]
fn logs_follows_to_the_end() {
    let machines = Machines::default();
    let machine = machines.start(Some("web"), |_, _| {});
    let mut log = OpenOptions::new().create(true).append(true).open(machine.dir.join("boot.log")).unwrap();
    log.write_all(b"first\n").unwrap();
    let mut command = machines.command("machinen-logs");
    command.args(["-f", "web"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut tool = Live::start(command);
    let mut output = tool.child.stdout.take().unwrap();
    for line in ["first\n", "second\n", "no line end"] {
        if line != "first\n" {
            tool.until_asleep();
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(read_bytes(&mut output, line.len()), line.as_bytes());
    }
    tool.until_asleep();
    log.write_all(b"last").unwrap();
    machine.kill(&machines);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), tool.wait().code()), ("last", Some(0)));
}

#[test]
fn logs_ends_when_nobody_reads() {
    let machines = Machines::default();
    let machine = machines.start(Some("web"), |_, _| {});
    // More than a pipe holds.
    fs::write(machine.dir.join("boot.log"), "line\n".repeat(100_000)).unwrap();
    for flags in ["", "-f"] {
        let script = format!("{{ \"$0\" {flags} web; echo $? >&2; }} | head -n 1");
        let run = Run::new("sh").args(["-c", &script]).arg(bin("machinen-logs"));
        let run = run.env("MACHINEN_REGISTRY_DIR", machines.registry.path()).limit(LIMIT).finish();
        assert_eq!((run.stdout.as_slice(), run.stderr.as_slice()), (&b"line\n"[..], &b"0\n"[..]), "{}", run.printed());
    }
    // While nothing comes.
    fs::write(machine.dir.join("boot.log"), "only\n").unwrap();
    let mut command = machines.command("machinen-logs");
    command.args(["-f", "web"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut tool = Live::start(command);
    let mut output = tool.child.stdout.take().unwrap();
    assert_eq!(read_bytes(&mut output, 5), b"only\n");
    tool.until_asleep();
    drop(output);
    assert_eq!(tool.wait().code(), Some(0));
}

#[test]
fn mem_of_machines() {
    let machines = Machines::default();
    let web = machines.start(Some("web"), |claim, entry| {
        entry.memory_mib = 64;
        let numbers = [5_u64 << 20, 0, 0].map(u64::to_le_bytes);
        fs::write(claim.dir.join("stats"), numbers.as_flattened()).unwrap();
    });
    let _other = machines.start(Some("other"), |_, _| {});
    let value = &lines(&printed(machines.tool("machinen-mem").args(["--json", "web"])))[0];
    assert_eq!((&value["name"], &value["pid"]), (&Value::from("web"), &Value::from(web.child.id())));
    assert_eq!((&value["ceiling_bytes"], &value["reclaimed_bytes"]), (&Value::from(64 << 20), &Value::from(5 << 20)));
    assert!(value["rss_bytes"].as_u64() > Some(0) && value["pss_bytes"].as_u64() <= value["rss_bytes"].as_u64());
    assert!(value["monitor_bytes"].is_null() && value["lazy_pages_pending"].is_null());
    let text = printed(machines.tool("machinen-mem"));
    assert!(text.starts_with("NAME   CEILING  RSS  PSS  MONITOR  RECLAIMED\nweb        64M"), "{text}");
    assert!(
        text.lines().nth(1).unwrap().ends_with(" 5M") && text.lines().nth(2).unwrap().starts_with("other "),
        "{text}"
    );
    let run = machines.tool("machinen-mem").args(["no", "web"]).finish();
    assert_fails(&run, 1, "machinen-mem", "REGISTRY_VM_NOT_FOUND");
    assert!(String::from_utf8(run.stdout).unwrap().contains("\nweb "), "the other is still printed");
}

#[test]
fn a_directory_of_another_user_is_refused() {
    if Run::new("id").arg("-u").finish().stdout != b"0\n" {
        println!("SKIP: only root can give a directory away");
        return;
    }
    let scratch = Scratch::new("registry");
    let theirs = scratch.file("theirs");
    fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(65534), Some(65534)).unwrap();
    for tool in ["machinen-ls", "machinen-gc"] {
        let run = Run::new(bin(tool)).env("MACHINEN_REGISTRY_DIR", &theirs).finish();
        assert_fails(&run, 1, tool, "REGISTRY_DIRECTORY");
    }
    // As after sudo: XDG_RUNTIME_DIR is another's, so it is not looked at.
    let run = Run::new(bin("machinen-ls")).env_clear().env("XDG_RUNTIME_DIR", &theirs).arg("-q").finish();
    assert_eq!((run.code(), run.stderr.len()), (0, 0), "{}", run.printed());
    assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0);
}

/// Runs a shell script as root, in a mount namespace of its own with an empty /tmp. `None`: not root, and said so.
fn as_root(script: &str, argument: &std::path::Path) -> Option<Finished> {
    if Run::new("id").arg("-u").finish().stdout != b"0\n" {
        println!("SKIP: only root can mount file systems and become another user");
        return None;
    }
    let script = format!(
        "mount -t tmpfs -o mode=1777 none /mnt; cp \"$0\" /mnt/tool; mount -t tmpfs -o mode=1777 none /tmp; {script}"
    );
    let run = Run::new("unshare").args(["-m", "sh", "-euc", &script]).args([argument]).env_clear();
    Some(run.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").limit(LIMIT).finish())
}

#[test]
fn what_others_put_where_the_registry_would_be_is_not_followed() {
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/nowhere /mnt/tool";
    for (trap, code) in [
        ("ln -s /mnt /tmp/machinen-65534", 1),
        ("mkdir -m 777 /tmp/machinen-65534", 1),
        ("mkdir -m 755 /tmp/machinen-65534; chown 65534 /tmp/machinen-65534", 1),
        ("mkdir -m 700 /tmp/machinen-65534; chown 65534 /tmp/machinen-65534", 0),
        (":", 0),
    ] {
        let Some(run) = as_root(&format!("{trap}; exec {user}"), &bin("machinen-ls")) else { return };
        assert_eq!(run.code(), code, "{trap}: {}", run.printed());
        if code != 0 {
            assert_fails(&run, 1, "machinen-ls", "REGISTRY_DIRECTORY");
        }
    }
}

/// Not a test of its own: makes a machine once, and says what came of it.
#[test]
fn maker() {
    let Some(dir) = std::env::var_os("MACHINEN_TEST_MAKER") else { return };
    let registry = machinen::registry::Registry::at(dir).unwrap();
    let made = registry.create(Some("name")).and_then(|claim| claim.write(&Entry::new()).map(|()| claim));
    match made {
        Ok(claim) => println!("made {}", claim.keep().is_ok()),
        Err(error) => println!("refused {}", error.code()),
    }
}

#[test]
fn a_full_file_system_leaves_nothing_half_made() {
    let (mut made, mut refused) = (0, 0);
    // The registry, its lock, a directory, its lock, its entry, and the next entry: each may be one file too many.
    for files in 2..9 {
        let script = format!(
            "mkdir -m 700 /tmp/r; mount -t tmpfs -o mode=700,nr_inodes={files} none /tmp/r
            MACHINEN_TEST_MAKER=/tmp/r /mnt/tool --exact maker --nocapture; echo left; ls -A /tmp/r"
        );
        let Some(run) = as_root(&script, &std::env::current_exe().unwrap()) else { return };
        let printed = run.printed();
        let (said, left) = printed.split_once("\nleft\n").unwrap_or_else(|| panic!("{printed}"));
        let left: Vec<&str> = left.lines().filter(|name| *name != ".lock").collect();
        if said.contains("made true") {
            made += 1;
            assert_eq!(left.len(), 1, "{files}: {printed}");
        } else {
            refused += 1;
            assert!(said.contains("refused REGISTRY_DIRECTORY") && left.is_empty(), "{files}: {printed}");
        }
    }
    assert!(made > 0 && refused > 2, "{made} made, {refused} refused");
}

#[test]
fn a_registry_open_to_others_is_refused() {
    let scratch = Scratch::new("registry");
    let open = scratch.file("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let run = Run::new(bin("machinen-ls")).env("MACHINEN_REGISTRY_DIR", &open).finish();
    assert_fails(&run, 1, "machinen-ls", "REGISTRY_DIRECTORY");
    assert!(run.printed().contains("hint: chmod 700 "), "{}", run.printed());
}

#[test]
fn errors_as_json_and_usage() {
    let machines = Machines::default();
    let run = machines.tool("machinen-logs").args(["--json", "x"]).finish();
    let value: Value = serde_json::from_slice(&run.stderr).unwrap();
    assert_eq!((run.code(), &value["code"]), (1, &Value::from("REGISTRY_VM_NOT_FOUND")));
    assert_eq!(value["hint"], "none is running: machinen run starts one");
    let run = machines.tool("machinen-ls").args(["-q", "--json"]).finish();
    let value: Value = serde_json::from_slice(&run.stderr).unwrap();
    assert_eq!((run.code(), &value["code"]), (2, &Value::from("LS_USAGE")));
    for (tool, arguments, code) in [
        ("machinen-ls", &["word"][..], "LS_USAGE"),
        ("machinen-gc", &["--frobnicate"], "GC_USAGE"),
        ("machinen-logs", &[], "LOGS_USAGE"),
        ("machinen-logs", &["a", "b"], "LOGS_USAGE"),
        ("machinen-stop", &[], "STOP_USAGE"),
        ("machinen-stop", &["-t", "-1", "x"], "STOP_USAGE"),
        ("machinen-stop", &["-t", "NaN", "x"], "STOP_USAGE"),
        ("machinen-stop", &["-t", "soon", "x"], "STOP_USAGE"),
    ] {
        assert_fails(&machines.tool(tool).args(arguments).finish(), 2, tool, code);
    }
    for tool in ["machinen-ls", "machinen-gc", "machinen-logs", "machinen-mem", "machinen-stop"] {
        assert_eq!(printed(machines.tool(tool).arg("--version")), format!("{tool} {}\n", env!("CARGO_PKG_VERSION")));
        let help = printed(machines.tool(tool).arg("--help"));
        assert!(help.starts_with(&format!("Usage: {tool} ")) && help.contains("Exit codes: 0 "), "{help}");
    }
}

#[test]
fn machinen_becomes_its_verbs() {
    let machines = Machines::default();
    let _web = machines.start(Some("web"), |_, _| {});
    assert_eq!(printed(machines.tool("machinen").args(["ls", "-q"])), "web\n");
    assert_eq!(machines.tool("machinen").args(["logs", "x"]).finish().code(), 1);
    let help = printed(machines.tool("machinen"));
    for arguments in [&["help"][..], &["--help"], &["-h"]] {
        assert_eq!(printed(machines.tool("machinen").args(arguments)), help);
    }
    assert!(help.contains("\n  ls           list the machines that run\n"), "{help}");
    assert_eq!(
        printed(machines.tool("machinen").args(["help", "ls"])),
        printed(machines.tool("machinen-ls").arg("--help"))
    );
    let version = format!("machinen {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(printed(machines.tool("machinen").arg("--version")), version);
}

#[test]
fn machinen_without_a_program_for_the_verb() {
    let machines = Machines::default();
    let run = machines.tool("machinen").arg("lgos").finish();
    assert_fails(&run, 2, "machinen", "MACHINEN_VERB_UNKNOWN");
    assert!(run.printed().ends_with("\n  hint: is it logs?\n"), "{}", run.printed());
    for verb in ["../machinen-ls", "", "/bin/sh"] {
        assert_fails(&machines.tool("machinen").arg(verb).finish(), 2, "machinen", "MACHINEN_VERB_UNKNOWN");
    }
    assert_fails(&machines.tool("machinen").arg("--frobnicate").finish(), 2, "machinen", "MACHINEN_USAGE");
    // Alone in a directory, so that there is no machinen-run: nothing that a guest's command could have returned.
    let alone = machines.beside("alone");
    fs::create_dir(&alone).unwrap();
    fs::copy(bin("machinen"), alone.join("machinen")).unwrap();
    let run = Run::new(alone.join("machinen")).args(["run", "x"]).env("PATH", "/nowhere").finish();
    assert_fails(&run, 125, "machinen", "MACHINEN_VERB_UNKNOWN");
    // Beside it comes before PATH; arguments arrive as they are; there is no shell.
    let script = |path: &std::path::Path, text: &str| {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let path = machines.beside("path");
    fs::create_dir(&path).unwrap();
    script(&path.join("machinen-show"), "#!/bin/sh\nprintf '%s|' \"$@\"\nexit 7\n");
    let show = || Run::new(alone.join("machinen")).args(["show", "a b", "$x", "", "--json"]).env("PATH", &path);
    let run = show().finish();
    assert_eq!((run.code(), run.stdout.as_slice()), (7, &b"a b|$x||--json|"[..]), "{}", run.printed());
    script(&alone.join("machinen-show"), "no program");
    let run = show().finish();
    assert_fails(&run, 1, "machinen", "MACHINEN_EXECUTE");
    assert!(run.printed().contains("machinen-show: Exec format error"), "{}", run.printed());
}

/// Not a test of its own: makes, writes, drops and collects machines for ever, in a process that is killed.
#[test]
fn victim() {
    let Some(dir) = std::env::var_os("MACHINEN_TEST_VICTIM") else { return };
    let registry = machinen::registry::Registry::at(dir).unwrap();
    let step = || {
        let mut output = std::io::stdout();
        output.write_all(b".").and_then(|()| output.flush()).unwrap();
    };
    for round in 0_u32.. {
        let claim = registry.create(Some("name")).unwrap();
        step();
        claim.write(&Entry::new()).unwrap();
        step();
        if round % 2 == 0 {
            drop(claim.keep().unwrap());
            step();
            registry.gc(false).unwrap();
        } else {
            drop(claim);
        }
        step();
    }
}

#[test]
fn a_tool_may_be_killed_anywhere() {
    let machines = Machines::default();
    let alive = machines.start(Some("alive"), |_, _| {});
    let mut leftovers = 0;
    for round in 0..60 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "victim", "--nocapture"]).env("MACHINEN_TEST_VICTIM", machines.registry.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut victim = Live::start(command);
        let mut output = victim.child.stdout.take().unwrap();
        // The harness' own words, and then another number of steps each time: of 7 in two rounds.
        read_bytes(&mut output, 30 + round % 7);
        victim.send(9);
        victim.wait();
        let list = machines.registry.list().unwrap();
        assert!(list.iter().all(|vm| vm.is_alive() == (vm.id == alive.id)), "{list:?}");
        leftovers += list.len() - 1;
        drop(machines.registry.create(Some("name")).expect("the name is free"));
        printed(machines.tool("machinen-gc"));
        let left: Vec<_> =
            fs::read_dir(machines.registry.path()).unwrap().map(|one| one.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "the lock and the one that lives: {left:?}");
    }
    // A kill at one step in seven is between a machine's death and its collection, at three within its life.
    assert!(leftovers > 5, "only {leftovers} machines were left behind by 60 kills");
}

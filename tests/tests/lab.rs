//! `machinen-lab run`: what goes in and comes out, and how it ends. Each test boots a lab.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use machinen_tests::Run;

/// The lab under test; `make lab` must have been run.
fn lab() -> Run {
    Run::new(env!("CARGO_BIN_EXE_machinen-lab")).arg("run").limit(Duration::from_secs(100))
}

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("machinen-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).into_os_string().into_string().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn outputs_are_binary_and_apart_and_the_code_is_the_commands() {
    let scratch = Scratch::new("outputs");
    let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    fs::write(scratch.path("bytes"), &bytes).unwrap();
    let run = lab()
        .args(["--file", &format!("{}:/tmp/bytes", scratch.path("bytes")), "--env", "A B=it's"])
        .args(["--", "sh", "-c", "cat /tmp/bytes; tr '\\0' '\\n' </proc/$$/environ >&2; sleep 100 & exit 7"])
        .finish();
    assert_eq!(run.code(), 7, "{}", String::from_utf8_lossy(&run.stderr));
    assert!(run.stdout == bytes, "stdout has {} bytes of {}", run.stdout.len(), bytes.len());
    assert_eq!(String::from_utf8_lossy(&run.stderr), "PATH=/bin\nHOME=/root\nA B=it's\n");
}

#[test]
fn a_terminal_is_ours() {
    let script = "tty; read -r line; echo got $line; exit 3";
    let run = lab().args(["--terminal", "--", "sh", "-c", script]).stdin(b"a line\n").finish();
    let screen = String::from_utf8_lossy(&run.stdout);
    assert_eq!(run.code(), 3, "{screen}");
    assert!(screen.contains("/dev/ttyS1\r\n") && screen.ends_with("got a line\r\n"), "{screen}");
}

#[test]
fn files_come_back_from_a_command_that_fails() {
    let scratch = Scratch::new("files");
    let long = "n".repeat(120);
    fs::create_dir_all(scratch.path("in/sub")).unwrap();
    fs::write(scratch.path(&format!("in/sub/{long}")), b"\x00\xff one").unwrap();
    let run = lab()
        .args(["--file", &format!("{}:/tmp/in", scratch.path("in"))])
        .args(["--out", &format!("/tmp/in/sub:{}", scratch.path("out"))])
        .args(["--out", &format!("/proc/self/comm:{}", scratch.path("comm"))])
        .args(["--out", &format!("/no/such:{}", scratch.path("missing"))])
        .args(["sh", "-c", "echo two >/tmp/in/sub/two; kill -9 $$"])
        .finish();
    assert_eq!(run.code(), 128 + 9);
    assert_eq!(String::from_utf8_lossy(&run.stderr), "machinen-lab: the command left no /no/such\n");
    assert_eq!(fs::read(scratch.path(&format!("out/{long}"))).unwrap(), b"\x00\xff one");
    assert_eq!(fs::read(scratch.path("out/two")).unwrap(), b"two\n");
    assert!(Path::new(&scratch.path("comm")).exists());
    assert!(!Path::new(&scratch.path("missing")).exists());
}

#[test]
fn kvm_works_in_the_lab() {
    const INSIDE: &str = "MACHINEN_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        let kvm = kvm_ioctls::Kvm::new().unwrap();
        assert_eq!(kvm.get_api_version(), 12);
        kvm.create_vm().unwrap().create_vcpu(0).unwrap();
        println!("KVM works");
        return;
    }
    if !cfg!(target_env = "musl") {
        println!("SKIP: runs itself in the lab, which takes a static executable");
        return;
    }
    let own = std::env::current_exe().unwrap();
    let run = lab()
        .args(["--file", &format!("{}:/tmp/test", own.display()), "--env", &format!("{INSIDE}=1")])
        .args(["/tmp/test", "--exact", "kvm_works_in_the_lab", "--nocapture"])
        .finish();
    assert_eq!(run.code(), 0, "{}", run.printed());
    assert!(run.printed().contains("KVM works"), "{}", run.printed());
}

#[test]
fn at_the_limit_the_lab_is_killed_and_says_so() {
    let run = lab().args(["--limit", "1", "--memory", "1021", "sleep", "100"]).finish();
    assert_eq!(run.code(), 125);
    let message = String::from_utf8_lossy(&run.stderr);
    assert!(message.starts_with("machinen-lab: the lab was killed at its limit of 1 s"), "{message}");
    assert!(!is_running("1021"));
}

#[test]
fn nothing_outlives_a_harness_that_is_killed() {
    let mut harness: Child = Command::new(env!("CARGO_BIN_EXE_machinen-lab"))
        .args(["run", "--memory", "1019", "sleep", "100"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let limit = Instant::now() + Duration::from_secs(30);
    let wait_until = |running| {
        while is_running("1019") != running {
            assert!(Instant::now() < limit, "a lab should{} run", if running { "" } else { " not" });
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_until(true);
    harness.kill().unwrap();
    harness.wait().unwrap();
    wait_until(false);
}

#[test]
fn a_command_that_is_not_there_ends_with_127() {
    // Usage errors do not boot anything.
    let run = lab().args(["--limit", "soon", "true"]).finish();
    assert_eq!((run.code(), &*run.stderr), (125, &b"machinen-lab: --limit needs a number\n"[..]));
    let run = lab().args(["/no/such"]).finish();
    assert_eq!(run.code(), 127);
}

/// Whether a QEMU with that much memory runs, as a process that is not a zombie.
fn is_running(memory_mib: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let wanted = format!("\0-m\0{memory_mib}\0");
    lines.any(|line| line.starts_with(b"qemu") && line.windows(wanted.len()).any(|part| part == wanted.as_bytes()))
}

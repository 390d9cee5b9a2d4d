//! `machinen-mkinitramfs` as its users meet it: arguments, streams, messages, exit codes, files left behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use machinen_initramfs::newc::Reader;

const TOOL: &str = env!("CARGO_BIN_EXE_machinen-mkinitramfs");

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machinen-cli-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let scratch = Scratch(path);
        scratch.put("init", "INIT");
        scratch.put("r/etc/motd", "hello");
        scratch
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.0)
            .env("MACHINEN_INIT", "init")
            .env_remove("MACHINEN_ASSETS_DIR")
            .env_remove("SOURCE_DATE_EPOCH")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(TOOL).args(args).output().unwrap()
    }

    /// A tar of `r/`.
    fn tar(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_dir_all(".", self.0.join("r")).unwrap();
        tar.into_inner().unwrap()
    }

    fn names(&self) -> Vec<String> {
        let listing = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = listing.map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn body(archive: &[u8], path: &str) -> Option<Vec<u8>> {
    Reader::new(archive)
        .map(|item| item.unwrap())
        .find(|item| item.entry.path == path.as_bytes())
        .map(|item| item.data.to_vec())
}

#[test]
fn tar_on_stdin_archive_on_stdout() {
    let scratch = Scratch::new();
    scratch.put("ROOTFS.tar", scratch.tar());
    let script = format!(
        "cat ROOTFS.tar | {TOOL} rootfs - --cmd 'sh -c \"echo out; exit 7\"' - | cat > piped &&
         {TOOL} rootfs ROOTFS.tar --cmd 'sh -c \"echo out; exit 7\"' named &&
         {TOOL} rootfs - - --cmd='sh -c \"echo out; exit 7\"' < ROOTFS.tar > redirected"
    );
    let done = scratch.command("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(stderr(&done), "");
    assert_eq!(code(&done), 0);
    let archive = fs::read(scratch.0.join("piped")).unwrap();
    assert_eq!(archive, fs::read(scratch.0.join("named")).unwrap());
    assert_eq!(archive, fs::read(scratch.0.join("redirected")).unwrap());
    let config = body(&archive, "machinen-config.json").unwrap();
    let expected = "{\"cmd\":[\"sh\",\"-c\",\"echo out; exit 7\"]}\n";
    assert_eq!(String::from_utf8(config).unwrap(), expected);
    assert_eq!(body(&archive, "etc/motd").unwrap(), b"hello");
}

#[test]
fn configuration_merges_flags_over_file_over_baked() {
    let scratch = Scratch::new();
    let baked = r#"{"cmd":["baked"],"env":{"A":"baked","B":"baked","C":"baked"},"cwd":"/baked"}"#;
    scratch.put("r/machinen-config.json", baked);
    scratch.put("c.json", r#"{"cmd":["file"],"env":{"B":"file","C":"file"}}"#);
    let mut command = scratch.command(TOOL);
    command.args(["rootfs", "r", "-", "--config", "c.json"]);
    command.args(["--env", "C=flag=1", "--env", "HERE"]).env("HERE", "x y");
    let done = command.output().unwrap();
    assert_eq!(stderr(&done), "");
    let config = body(&done.stdout, "machinen-config.json").unwrap();
    let expected = r#"{"cmd":["file"],"cwd":"/baked","env":{"A":"baked","B":"file","C":"flag=1","HERE":"x y"}}"#;
    assert_eq!(String::from_utf8(config).unwrap(), format!("{expected}\n"));
}

#[test]
fn disks_come_from_flags_and_need_no_command() {
    let scratch = Scratch::new();
    let args = ["minimal", "-", "--root", "/dev/vda:ro", "--mount", "/dev/vdb:/dev/vdc:/a:b"];
    let done = scratch.run(&args);
    assert_eq!((code(&done), stderr(&done).as_str()), (0, ""));
    let config = body(&done.stdout, "machinen-config.json").unwrap();
    let expected =
        r#"{"mounts":[{"at":"/a:b","lower":"/dev/vdb","upper":"/dev/vdc"}],"root":{"device":"/dev/vda","ro":true}}"#;
    assert_eq!(String::from_utf8(config).unwrap(), format!("{expected}\n"));
    assert_eq!(scratch.run(&args).stdout, done.stdout, "the same bytes again");
}

#[test]
fn usage_errors_exit_2_and_say_what_to_do() {
    let scratch = Scratch::new();
    let table: [(&[&str], &str); 18] = [
        (&[], "no layout is given"),
        (&["nonsense", "x"], "there is no layout nonsense"),
        (&["rootfs", "r"], "rootfs takes two arguments: TAR|DIR|- OUT"),
        (&["minimal"], "minimal takes one argument: OUT"),
        (&["minimal", "out", "--frobnicate"], "unrecognized argument: --frobnicate"),
        (&["minimal", "out", "--base", "x"], "--base is for bundle"),
        (&["minimal", "out", "--max-mb", "3"], "--max-mb is for workspace"),
        (&["workspace", "r", "out", "--max-mb", "x"], "max-mb"),
        (&["minimal", "out", "--cmd", "sh 'x"], "a quote is not closed"),
        (&["minimal", "out", "--cmd", " "], "there is no word in it"),
        (&["minimal", "out", "--cmd", "a", "--env", "=x"], "impossible name"),
        (&["minimal", "out", "--cmd", "a", "--env", "NOT_SET_HERE"], "NOT_SET_HERE is not set"),
        (&["minimal", "out", "--cmd", "a", "--cwd", "x"], "cwd is not an absolute path"),
        (&["minimal", "out", "--root", "vda"], "root device \"vda\" is not a device under /dev"),
        (&["rootfs", "r", "out", "--root", "/dev/vda"], "use the layout minimal or tiny with it"),
        (&["minimal", "out", "--cmd", "a", "--mount", "/dev/vdb:/dev/vdc"], "not LOWER:UPPER:PATH"),
        (&["minimal", "out", "--cmd", "a", "--mount", "/dev/vdb::/w"], "mounts upper \"\" is not a device under /dev"),
        (&["minimal", "out", "--cmd", "a", "--mount", "/dev/vdb:/dev/vdc:w"], "mounts at \"w\" is not a plain"),
    ];
    for (args, why) in table {
        let done = scratch.run(args);
        let message = stderr(&done);
        assert_eq!(code(&done), 2, "{args:?}: {message}");
        assert!(message.starts_with("machinen-mkinitramfs: MKINITRAMFS_"), "{message}");
        assert!(message.contains(why), "{args:?}: {message}");
        assert!(message.contains("\n  hint: "), "{message}");
    }
    let mut command = scratch.command(TOOL);
    let done = command.args(["rootfs", "r"]).arg(OsStr::from_bytes(b"o\xff")).output().unwrap();
    assert_eq!(code(&done), 2);
    assert!(stderr(&done).contains("argument 3: o\u{fffd}: is not UTF-8"));
    assert_eq!(scratch.names(), ["init", "r"]);
}

#[test]
fn help_and_version_go_to_stdout() {
    let scratch = Scratch::new();
    for (flag, text) in [("--help", "workspace DIR OUT"), ("--version", "machinen-mkinitramfs 0.")] {
        let done = scratch.run(&[flag]);
        assert_eq!((code(&done), stderr(&done).as_str()), (0, ""));
        assert!(String::from_utf8(done.stdout).unwrap().contains(text), "{flag}");
    }
}

#[test]
fn json_errors_are_one_line() {
    let scratch = Scratch::new();
    for (args, expected) in [
        (&["--json", "rootfs", "gone.tar", "out"][..], "MKINITRAMFS_HOST"),
        (&["--json", "--bad"], "MKINITRAMFS_USAGE"),
    ] {
        let message = stderr(&scratch.run(args));
        assert_eq!(message.matches('\n').count(), 1, "{message}");
        let value: serde_json::Value = serde_json::from_str(&message).unwrap();
        assert_eq!(value["code"], expected);
        assert_eq!(value["retryable"], false);
        assert!(value["message"].is_string() && value["hint"].is_string(), "{message}");
    }
}

#[test]
fn failures_leave_the_old_output_and_nothing_else() {
    let scratch = Scratch::new();
    scratch.put("out", "old");
    let tar = scratch.tar();
    scratch.put("short.tar", &tar[..tar.len() - 1024]);
    scratch.put("t.tar.gz", b"\x1f\x8b\x08\0");
    fs::create_dir(scratch.0.join("empty")).unwrap();
    let before = scratch.names();
    let table: [(&[&str], &str); 6] = [
        (&["rootfs", "short.tar", "out"], "MKINITRAMFS_TAR: read tar: short.tar: "),
        (&["rootfs", "t.tar.gz", "out"], "hint: gzip -dc t.tar.gz | machinen-mkinitramfs rootfs - OUT"),
        (&["rootfs", "-", "out"], "standard input: the file ends without its end mark"),
        (&["rootfs", "gone", "out"], "open: gone: no such file or directory"),
        (&["bundle", "empty", "out", "--cmd", "x"], "open directory: empty/rootfs: no such file"),
        (&["tiny", "empty", "out"], "read: empty/machinen-config.json: no such file"),
    ];
    for (args, why) in table {
        let done = scratch.run(args);
        assert_eq!(code(&done), 1, "{args:?}");
        assert!(stderr(&done).contains(why), "{args:?}: {}", stderr(&done));
    }
    assert_eq!(fs::read(scratch.0.join("out")).unwrap(), b"old");
    assert_eq!(scratch.names(), before);
    let done = scratch.run(&["minimal", "no/such/dir/out"]);
    assert_eq!(code(&done), 1);
    assert!(stderr(&done).contains("open: no/such/dir/out: no such file or directory"));
}

#[test]
fn output_replaces_a_file_and_keeps_a_symlink_to_it() {
    let scratch = Scratch::new();
    scratch.put("real", "old");
    symlink("real", scratch.0.join("out")).unwrap();
    let before = scratch.names();
    assert_eq!(code(&scratch.run(&["minimal", "out"])), 0);
    assert_eq!(scratch.names(), before);
    assert!(scratch.0.join("out").is_symlink());
    let archive = fs::read(scratch.0.join("real")).unwrap();
    assert_eq!(body(&archive, "init").unwrap(), b"INIT");
    assert_eq!(code(&scratch.run(&["minimal", "/dev/null"])), 0);
}

#[test]
fn the_output_does_not_become_part_of_itself() {
    let scratch = Scratch::new();
    let mut archives = vec![];
    for _ in 0..2 {
        assert_eq!(code(&scratch.run(&["rootfs", "r", "r/out"])), 0);
        archives.push(fs::read(scratch.0.join("r/out")).unwrap());
    }
    assert_eq!(archives[0], archives[1]);
    let script = format!("{TOOL} rootfs r - > r/out");
    let done = scratch.command("sh").args(["-c", &script]).output().unwrap();
    assert_eq!((code(&done), stderr(&done).as_str()), (0, ""));
    assert_eq!(archives[0], fs::read(scratch.0.join("r/out")).unwrap());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let scratch = Scratch::new();
    scratch.put("r/big", vec![1; 3 << 20]);
    let script = format!("{{ {TOOL} rootfs r -; echo $? >&2; }} | head -c 1");
    let done = scratch.command("sh").args(["-c", &script]).output().unwrap();
    assert_eq!((stderr(&done).as_str(), &done.stdout[..]), ("0\n", &b"0"[..]));
}

#[test]
fn a_full_device_is_reported() {
    let scratch = Scratch::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let done = scratch.command(TOOL).args(["minimal", "-"]).stdout(full).output().unwrap();
    assert_eq!(code(&done), 1);
    let message = stderr(&done);
    assert!(message.contains("MKINITRAMFS_OUTPUT: write: output: no space left"), "{message}");
}

#[test]
fn a_terminal_gets_no_archive() {
    let scratch = Scratch::new();
    let mut command = scratch.command("script");
    command.args(["-qec", &format!("{TOOL} minimal -"), "/dev/null"]);
    let done = command.output().expect("script(1) is needed for this test: install bsdutils");
    assert_eq!(code(&done), 2);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(text.contains("MKINITRAMFS_TERMINAL: -: is a terminal"), "{text}");
    assert!(!text.contains("070701"), "{text}");
}

#[test]
fn init_is_looked_for_and_missed() {
    let scratch = Scratch::new();
    let beside = Path::new(TOOL).with_file_name("init");
    assert!(!beside.exists(), "{} would be found", beside.display());
    let mut command = scratch.command(TOOL);
    let done = command.args(["minimal", "-"]).env_remove("MACHINEN_INIT").output().unwrap();
    assert_eq!(code(&done), 1);
    let message = stderr(&done);
    assert!(message.contains("MKINITRAMFS_NO_INIT"), "{message}");
    assert!(message.contains(beside.to_str().unwrap()), "{message}");
    let mut command = scratch.command(TOOL);
    command.args(["minimal", "-"]).env_remove("MACHINEN_INIT").env("MACHINEN_ASSETS_DIR", ".");
    let done = command.output().unwrap();
    assert_eq!(body(&done.stdout, "init").unwrap(), b"INIT");
    scratch.put("other", "OTHER");
    let done = scratch.run(&["minimal", "-", "--init", "other"]);
    assert_eq!(body(&done.stdout, "init").unwrap(), b"OTHER");
}

#[test]
fn names_that_are_not_text_pass() {
    let scratch = Scratch::new();
    let name = OsStr::from_bytes(b"caf\xe9\n");
    File::create(scratch.0.join("r").join(name)).unwrap().write_all(b"x").unwrap();
    let done = scratch.run(&["rootfs", "r", "-"]);
    let found = Reader::new(&done.stdout).any(|item| item.unwrap().entry.path == name.as_bytes());
    assert!(found, "{}", stderr(&done));
}

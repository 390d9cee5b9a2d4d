//! `machinen-kernel` as its users meet it: arguments, streams, messages, exit codes, files left behind.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

const TOOL: &str = env!("CARGO_BIN_EXE_machinen-kernel");
const ELF: &[u8] = b"\x7fELF a kernel";

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("machinen-kernel-cli-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.0).env("MACHINEN_CACHE_DIR", self.0.join("cache")).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(TOOL).args(args).output().unwrap()
    }

    /// An installed kernel with a virtio disk as modules.
    fn install(&self) {
        self.put("boot/vmlinuz-6.1", bzimage(ELF));
        let modules = [("virtio", ""), ("virtio_ring", "virtio"), ("virtio_blk", "virtio,virtio_ring")];
        for (name, depends) in modules {
            self.put(&format!("lib/modules/6.1/kernel/{name}.ko.gz"), gzip(&module(depends)));
        }
        self.put("lib/modules/6.1/modules.builtin", "kernel/fs/ext4/ext4.ko\n");
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let listing = fs::read_dir(self.0.join(dir)).unwrap();
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

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn module(depends: &str) -> Vec<u8> {
    format!("\x7fELF\0license=GPL\0depends={depends}\0").into_bytes()
}

/// A bzImage whose payload is `elf` under gzip.
fn bzimage(elf: &[u8]) -> Vec<u8> {
    let payload = gzip(elf);
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend(payload);
    image
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn extract_by_file_and_by_pipe() {
    let scratch = Scratch::new();
    scratch.put("bzImage", bzimage(ELF));
    let script = format!("{TOOL} extract bzImage named && {TOOL} extract - - <bzImage | cat >piped");
    let done = scratch.command("sh").args(["-c", &script]).output().unwrap();
    assert_eq!((code(&done), stderr(&done).as_str()), (0, ""));
    assert_eq!(fs::read(scratch.0.join("named")).unwrap(), ELF);
    assert_eq!(fs::read(scratch.0.join("piped")).unwrap(), ELF);
    // What is extracted already stays as it is.
    assert_eq!(scratch.run(&["extract", "named"]).stdout, ELF);
}

#[test]
fn what_cannot_be_extracted_is_refused_and_leaves_the_old_output() {
    let scratch = Scratch::new();
    scratch.put("out", "old");
    let image = bzimage(ELF);
    scratch.put("short", &image[..image.len() - 5]);
    let mut flipped = image.clone();
    let in_sum = image.len() - 6;
    flipped[in_sum] ^= 0xff;
    scratch.put("flipped", &flipped);
    scratch.put("text", "hello");
    let mut bzip2 = image.clone();
    bzip2[1024..1027].copy_from_slice(b"BZh");
    scratch.put("bzip2", &bzip2);
    for (name, error, why) in [
        ("short", "KERNEL_BROKEN", "the bzImage is cut off"),
        ("flipped", "KERNEL_BROKEN", "flipped: "),
        ("text", "KERNEL_UNKNOWN_FORMAT", "neither an ELF file nor a bzImage"),
        ("bzip2", "KERNEL_", "bzip2: "),
        ("gone", "KERNEL_HOST", "read: gone: no such file or directory"),
        ("/", "KERNEL_HOST", "is a directory"),
    ] {
        let done = scratch.run(&["extract", name, "out"]);
        let message = stderr(&done);
        assert_eq!(code(&done), 1, "{name}: {message}");
        assert!(message.starts_with(&format!("machinen-kernel: {error}")) && message.contains(why), "{message}");
    }
    assert_eq!(fs::read(scratch.0.join("out")).unwrap(), b"old");
    assert_eq!(scratch.names("."), ["bzip2", "flipped", "out", "short", "text"]);
}

#[test]
fn a_terminal_gets_no_kernel() {
    let scratch = Scratch::new();
    scratch.put("bzImage", bzimage(ELF));
    let mut command = scratch.command("script");
    command.args(["-qec", &format!("{TOOL} extract bzImage"), "/dev/null"]);
    let done = command.output().expect("script(1) is needed for this test: install bsdutils");
    assert_eq!(code(&done), 2);
    assert!(stdout(&done).contains("KERNEL_TERMINAL: -: is a terminal"), "{}", stdout(&done));
}

#[test]
fn check_prints_a_fragment_that_mends_what_is_missing() {
    let scratch = Scratch::new();
    scratch.put("config", "CONFIG_X86_64=y\nCONFIG_VIRTIO_BLK=m\n");
    let script = format!("{TOOL} check config >fragment; cat config fragment | {TOOL} check -");
    let done = scratch.command("sh").args(["-c", &script]).output().unwrap();
    assert_eq!((code(&done), stderr(&done).as_str()), (0, ""), "{}", stdout(&done));
    let fragment = fs::read_to_string(scratch.0.join("fragment")).unwrap();
    assert!(fragment.contains("\nCONFIG_EXT4_FS=y\n"), "{fragment}");
    assert!(stdout(&done).contains("# disk     module "), "{}", stdout(&done));
    assert!(!stdout(&done).contains("\nCONFIG_"), "{}", stdout(&done));
}

#[test]
fn check_takes_every_form_of_a_configuration() {
    let scratch = Scratch::new();
    let config = b"CONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=y\n";
    let kernel = [ELF, b"IKCFG_ST", &gzip(config), b"IKCFG_ED"].concat();
    scratch.put("config", config);
    scratch.put("config.gz", gzip(config));
    scratch.put("vmlinux", &kernel);
    scratch.put("bzImage", bzimage(&kernel));
    scratch.put("boot/config-6.1", config);
    scratch.put("boot/vmlinuz-6.1", bzimage(ELF));
    for name in ["config", "config.gz", "vmlinux", "bzImage", "boot/vmlinuz-6.1"] {
        let done = scratch.run(&["check", name, "--for", "disk", "--json"]);
        assert_eq!((code(&done), stderr(&done).as_str()), (0, ""), "{name}");
        let value: serde_json::Value = serde_json::from_str(&stdout(&done)).unwrap();
        assert_eq!((&value["feature"], &value["state"]), (&"disk".into(), &"yes".into()), "{name}");
        assert_eq!(code(&scratch.run(&["check", name, "--for", "net"])), 1, "{name}");
    }
    scratch.put("bare", ELF);
    for (name, error) in [("bare", "KERNEL_NO_CONFIG"), ("gone", "KERNEL_HOST")] {
        let done = scratch.run(&["check", name]);
        assert_eq!(code(&done), 2, "apart from what is missing");
        assert!(stderr(&done).contains(error), "{}", stderr(&done));
    }
}

#[test]
fn modules_come_in_order_as_paths_or_packed() {
    let scratch = Scratch::new();
    scratch.install();
    let done = scratch.run(&["modules", "lib/modules/6.1", "--for", "disk"]);
    assert_eq!((code(&done), stderr(&done).as_str()), (0, ""));
    let names = ["virtio", "virtio_ring", "virtio_blk"];
    let paths = names.map(|name| format!("lib/modules/6.1/kernel/{name}.ko.gz\n"));
    assert_eq!(stdout(&done), paths.concat());
    for _ in 0..2 {
        let done = scratch.run(&["modules", ".", "--for", "disk", "--out", "packed"]);
        assert_eq!((code(&done), stderr(&done).as_str(), stdout(&done).as_str()), (0, "", ""));
        assert_eq!(scratch.names("packed"), ["order", "virtio.ko", "virtio_blk.ko", "virtio_ring.ko"]);
    }
    assert_eq!(fs::read(scratch.0.join("packed/virtio_ring.ko")).unwrap(), module("virtio"));
    scratch.put("init", "INIT");
    let tool = Path::new(TOOL).with_file_name("machinen-mkinitramfs");
    let mut command = scratch.command(tool.to_str().unwrap());
    let done = command.args(["minimal", "-", "--init", "init", "--modules", "packed"]).output().unwrap();
    let archive = String::from_utf8_lossy(&done.stdout).into_owned();
    let list = names.map(|name| format!("/lib/modules-machinen/{name}.ko\n")).concat();
    assert!(archive.contains(&list), "{}", stderr(&done));
}

#[test]
fn modules_that_are_missing_are_left_out_unless_asked_for() {
    let scratch = Scratch::new();
    scratch.install();
    let done = scratch.run(&["modules", "lib/modules/6.1"]);
    assert_eq!(code(&done), 0);
    assert!(stderr(&done).contains("no module virtio_net, and it is not built in: left out"), "{}", stderr(&done));
    let done = scratch.run(&["modules", "lib/modules/6.1", "--for", "net", "--out", "packed"]);
    assert_eq!(code(&done), 1);
    assert!(stderr(&done).contains("KERNEL_MODULE_MISSING: lib/modules/6.1: no module virtio_net"));
    assert!(!scratch.0.join("packed").exists());
    scratch.put("precious/file", "");
    let done = scratch.run(&["modules", "lib/modules/6.1", "--for", "disk", "--out", "precious"]);
    assert_eq!(code(&done), 1);
    assert_eq!(scratch.names("precious"), ["file"]);
}

#[test]
fn a_debian_package_is_unpacked() {
    let scratch = Scratch::new();
    scratch.install();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all("./lib", scratch.0.join("lib")).unwrap();
    tar.append_dir_all("./boot", scratch.0.join("boot")).unwrap();
    let data = gzip(&tar.into_inner().unwrap());
    let mut deb = b"!<arch>\n".to_vec();
    for (name, content) in [("debian-binary", &b"2.0\n"[..]), ("data.tar.gz", &data)] {
        deb.extend(format!("{name:16}{:12}{:6}{:6}{:8}{:<10}`\n", 0, 0, 0, 100_644, content.len()).bytes());
        deb.extend_from_slice(content);
        deb.extend(std::iter::repeat_n(b'\n', content.len() % 2));
    }
    scratch.put("k.deb", &deb);
    let done = scratch.run(&["modules", "k.deb", "--for", "disk", "--out", "packed"]);
    assert_eq!((code(&done), stderr(&done).as_str()), (0, ""));
    assert_eq!(fs::read_to_string(scratch.0.join("packed/order")).unwrap(), "virtio\nvirtio_ring\nvirtio_blk\n");
    assert_eq!(code(&scratch.run(&["modules", "k.deb", "--for", "disk"])), 2, "no paths");
    scratch.put("cut.deb", &deb[..deb.len() / 2]);
    assert_eq!(code(&scratch.run(&["modules", "cut.deb", "--out", "packed"])), 1);
    let done = scratch.run(&["host", "k.deb", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&stdout(&done)).unwrap();
    assert_eq!(fs::read(value["kernel"].as_str().unwrap()).unwrap(), ELF);
}

#[test]
fn host_makes_its_entry_once_and_again_when_it_is_broken() {
    let scratch = Scratch::new();
    scratch.install();
    let run = || {
        let done = scratch.run(&["host", "boot/vmlinuz-6.1"]);
        assert_eq!(code(&done), 0, "{}", stderr(&done));
        stdout(&done)
    };
    let first = run();
    let kernel = first.lines().next().unwrap().strip_prefix("kernel ").unwrap().to_string();
    assert_eq!(fs::read(&kernel).unwrap(), ELF);
    let modules = first.lines().nth(1).unwrap().strip_prefix("modules ").unwrap();
    assert_eq!(fs::read_to_string(format!("{modules}/order")).unwrap(), "virtio\nvirtio_ring\nvirtio_blk\n");
    fs::write(&kernel, "marked").unwrap();
    assert_eq!((run(), fs::read(&kernel).unwrap()), (first.clone(), b"marked".to_vec()), "made again");
    File::create(&kernel).unwrap();
    assert_eq!((run(), fs::read(&kernel).unwrap()), (first, ELF.to_vec()), "not made again");
}

#[test]
fn usage_help_version_and_json() {
    let scratch = Scratch::new();
    let table: [(&[&str], &str); 5] = [
        (&[], "no verb is given"),
        (&["frobnicate"], "frobnicate"),
        (&["extract"], "kernel"),
        (&["check", "x", "--for", "moon"], "there is no feature moon, only boot, disk"),
        (&["host", "boot/kernel"], "not named vmlinuz-version"),
    ];
    for (args, why) in table {
        let done = scratch.run(args);
        assert_eq!(code(&done), 2, "{args:?}: {}", stderr(&done));
        assert!(stderr(&done).starts_with("machinen-kernel: KERNEL_USAGE: "), "{}", stderr(&done));
        assert!(stderr(&done).to_lowercase().contains(why), "{args:?}: {}", stderr(&done));
    }
    for (args, text) in
        [(&["--help"][..], "extract"), (&["--version"], "machinen-kernel 0."), (&["check", "--help"], "--for")]
    {
        let done = scratch.run(args);
        assert_eq!((code(&done), stderr(&done).as_str()), (0, ""), "{args:?}");
        assert!(stdout(&done).contains(text), "{}", stdout(&done));
    }
    let done = scratch.run(&["extract", "gone", "out", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&stderr(&done)).unwrap();
    assert_eq!((&value["tool"], &value["code"]), (&"machinen-kernel".into(), &"KERNEL_HOST".into()));
}

//! What the monitor says about bad input before it makes a machine, and about a host without KVM.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixListener};

use machinen_fixtures::guests::hello;
use machinen_tests::monitor::{Kernel, LIMIT, Scratch, assert_refused, vmm_min};
use machinen_tests::{Finished, Run, bin};

fn refused(arguments: &[&str], code: &str) -> Finished {
    let run = vmm_min().args(arguments).finish();
    assert_refused(&run, code);
    run
}

#[track_caller]
fn assert_says(run: &Finished, text: &str) {
    assert!(run.printed().contains(text), "{text:?} expected: {}", run.printed());
}

/// Runs a shell script as root that ends by running the monitor, "$0". `None`: not root, and said so.
fn as_root(script: &str, arguments: &[&OsStr]) -> Option<Finished> {
    let id = Run::new("id").arg("-u").finish();
    if id.stdout != b"0\n" {
        println!("SKIP: only root can take a device or a permission away");
        return None;
    }
    let run = Run::new("unshare").args(["-m", "sh", "-euc", script]).arg(bin("vmm-min")).args(arguments).env_clear();
    Some(run.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").limit(LIMIT).finish())
}

#[test]
fn a_kernel_must_be_given_and_be_a_file_with_content() {
    let scratch = Scratch::new("bad-input");
    let path = |name: &str| scratch.file(name).into_os_string().into_string().unwrap();
    fs::write(path("empty"), "").unwrap();
    refused(&[], "KERNEL_MISSING");
    let run = refused(&["--kernel", &path("missing")], "KERNEL_NOT_FOUND");
    assert_says(&run, &path("missing"));
    refused(&["--kernel", &path("empty/below-a-file")], "KERNEL_UNREADABLE");
    refused(&["--kernel", &path("")], "KERNEL_UNREADABLE");
    let run = refused(&["--kernel", &path("empty")], "KERNEL_EMPTY");
    assert_says(&run, &path("empty"));
    refused(&["--kernel", "-"], "KERNEL_EMPTY");
    refused(&["--kernel", "/dev/null"], "KERNEL_EMPTY");
    refused(&["--kernel", ""], "KERNEL_NOT_FOUND");
}

#[test]
fn an_initrd_must_be_a_file_with_content() {
    let kernel = Kernel::new(hello());
    let scratch = Scratch::new("bad-input");
    fs::write(scratch.file("empty"), "").unwrap();
    for (name, code) in [("missing", "INITRD_NOT_FOUND"), ("", "INITRD_UNREADABLE"), ("empty", "INITRD_EMPTY")] {
        assert_refused(&kernel.run().arg("--initrd").arg(scratch.file(name)).finish(), code);
    }
    refused(&["--kernel", "-", "--initrd", "-"], "USAGE");
}

#[test]
fn unreadable_files_are_named() {
    let scratch = Scratch::new("bad-input");
    let secret = scratch.file("secret");
    fs::write(&secret, hello().elf()).unwrap();
    let kernel = Kernel::new(hello());
    let script = "chmod 0 \"$1\"; mount -t tmpfs -o mode=755 none /mnt; cp \"$0\" /mnt/vmm-min
        exec setpriv --reuid 65534 --clear-groups /mnt/vmm-min --kernel \"$2\" ${3:+--initrd \"$3\"}";
    let Some(run) = as_root(script, &[secret.as_os_str(), secret.as_os_str()]) else { return };
    assert_refused(&run, "KERNEL_UNREADABLE");
    assert_says(&run, &secret.to_string_lossy());
    let run = as_root(script, &[secret.as_os_str(), kernel.path().as_os_str(), secret.as_os_str()]).expect("root");
    assert_refused(&run, "INITRD_UNREADABLE");
}

#[test]
fn memory_is_a_number_of_mib_that_the_host_can_address() {
    for memory in ["0", "3", "-1", "1.5", "64M", "0x40", " 64", "", "٣", "99999999999999999999", "9999999999999"] {
        let run = refused(&["--kernel", "k", "--memory", memory], "MEMORY_INVALID");
        assert_says(&run, &format!("{memory:?}"));
    }
    // As many bytes as wrap around to few.
    refused(&["--kernel", "k", "-m", "17592186044420"], "MEMORY_INVALID");
    let run = vmm_min().args(["--kernel", "k"]).env("MACHINEN_MEMORY", "much").finish();
    assert_refused(&run, "MEMORY_INVALID");
}

#[test]
fn vsock_bridges_have_a_form() {
    for bridge in ["", "x", "in:1", "in:x:s", "in:4294967295:s", "out:1:", "hybrid:", "in:1:a,b"] {
        refused(&["--kernel", "k", "--vsock", bridge], "VSOCK_INVALID");
    }
    for two in [["in:1:s", "hybrid:s"], ["out:1:a", "out:1:b"], ["hybrid:a", "hybrid:b"]] {
        refused(&["--kernel", "k", "--vsock", two[0], "--vsock", two[1]], "VSOCK_INVALID");
        let run = vmm_min().args(["--kernel", "k"]).env("MACHINEN_VSOCK", two.join(",")).finish();
        assert_refused(&run, "VSOCK_INVALID");
    }
}

#[test]
fn unknown_flags_and_missing_values_are_refused() {
    let run = refused(&["--frobnicate"], "USAGE");
    assert_says(&run, "--frobnicate");
    assert_says(&run, "hint: vmm-min --help");
    refused(&["--kernel"], "USAGE");
    refused(&["--kernel", "a", "--kernel", "b"], "USAGE");
    refused(&["word"], "USAGE");
    refused(&["--tty=yes"], "USAGE");
}

#[test]
fn arguments_and_variables_are_text() {
    let bad = OsStr::from_bytes(b"\xff/k");
    assert_refused(&vmm_min().arg("--kernel").arg(bad).finish(), "USAGE");
    for name in [
        "KERNEL",
        "INITRD",
        "CMDLINE",
        "MEMORY",
        "TTY",
        "BOOT_TEST",
        "ROOTDISK",
        "DISK",
        "VSOCK",
        "STATS_FILE",
        "NET_SOCKET",
        "NET_MAC",
        "NET_MTU",
        "DTB",
        "CTL",
    ] {
        let name = format!("MACHINEN_{name}");
        let run = vmm_min().env("MACHINEN_KERNEL", "k").env(&name, bad).finish();
        assert_refused(&run, "ENV_INVALID");
        assert_says(&run, &name);
    }
}

#[test]
fn variables_that_would_be_ignored_are_refused() {
    let name = "MACHINEN_DTB";
    let run = vmm_min().args(["--kernel", "k"]).env(name, "x").finish();
    assert_refused(&run, "NOT_SUPPORTED");
    assert_says(&run, &format!("unset {name}"));
    // Empty is as good as not set.
    let run = vmm_min().args(["--kernel", "/no/such"]).env(name, "").finish();
    assert_refused(&run, "KERNEL_NOT_FOUND");
    for name in ["MACHINEN_TTY", "MACHINEN_BOOT_TEST"] {
        assert_refused(&vmm_min().args(["--kernel", "k"]).env(name, "maybe").finish(), "ENV_INVALID");
    }
}

#[test]
fn a_network_socket_has_somebody_at_its_other_end() {
    let kernel = Kernel::new(hello());
    let scratch = Scratch::new("bad-input");
    fs::write(scratch.file("file"), "").unwrap();
    drop(UnixListener::bind(scratch.file("dead")).unwrap());
    let _datagram = UnixDatagram::bind(scratch.file("datagram")).unwrap();
    let long = "l".repeat(200);
    for (name, code) in [
        ("missing", "NET_SOCKET_MISSING"),
        (&long, "NET_SOCKET_MISSING"),
        ("file", "NET_SOCKET_INVALID"),
        ("datagram", "NET_SOCKET_INVALID"),
        ("dead", "NET_SOCKET_REFUSED"),
        ("file/below", "NET_SOCKET_FAILED"),
    ] {
        let run = kernel.run().arg("--net-socket").arg(scratch.file(name)).finish();
        assert_refused(&run, code);
        assert_says(&run, name);
    }
    assert_refused(&kernel.run().args(["--net-socket", "fd:99"]).finish(), "NET_SOCKET_INVALID");
    let shell = |script: &str| Run::new("sh").args(["-c", script]).arg(bin("vmm-min")).arg(kernel.path()).finish();
    assert_refused(&shell("\"$0\" --kernel \"$1\" --net-socket fd:3 3</dev/null"), "NET_SOCKET_INVALID");
    refused(&["--kernel", "k", "--net-socket", "s", "--net-mac", "03:00:00:00:00:01"], "NET_INVALID");
    refused(&["--kernel", "k", "--net-mtu", "1500"], "NET_INVALID");
}

#[test]
fn json_gives_one_object_a_line() {
    let cases: [(&[&str], &str, &str); 4] = [
        (&["--frobnicate"], "USAGE", "usage"),
        (&[], "KERNEL_MISSING", "usage"),
        (&["--kernel", "/no/such \"quoted\"\n"], "KERNEL_NOT_FOUND", "host"),
        (&["--kernel", "k", "-m", "0"], "MEMORY_INVALID", "usage"),
    ];
    for (arguments, code, blame) in cases {
        let run = vmm_min().arg("--json").args(arguments).finish();
        assert_eq!((run.code(), run.stdout.len()), (125, 0));
        let lines: Vec<&[u8]> = run.stderr.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), 1, "{}", run.printed());
        let error: serde_json::Value = serde_json::from_slice(lines[0]).unwrap();
        assert_eq!((error["code"].as_str(), error["blame"].as_str()), (Some(code), Some(blame)));
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
        assert!(error["hint"].is_string() || error["hint"].is_null());
        assert_eq!((error["tool"].as_str(), error["retryable"].as_bool()), (Some("vmm-min"), Some(false)));
        assert_eq!(error.as_object().unwrap().len(), 6, "{error}");
    }
}

#[test]
fn without_kvm_it_is_named_and_how_to_get_it() {
    let kernel = Kernel::new(hello());
    let kernel = [OsStr::new("--kernel"), kernel.path().as_os_str()];
    // The monitor may lie anywhere but in /dev.
    let run_it = "exec \"$0\" \"$@\"";
    let no_device = format!("mount -t tmpfs none /dev; mknod /dev/null c 1 3; {run_it}");
    let Some(run) = as_root(&no_device, &kernel) else { return };
    assert_refused(&run, "KVM_MISSING");
    assert_says(&run, "modprobe");

    let no_driver = format!("mount -t tmpfs none /dev; mknod /dev/null c 1 3; mknod /dev/kvm c 10 255; {run_it}");
    let run = as_root(&no_driver, &kernel).expect("root");
    assert_refused(&run, "KVM_UNAVAILABLE");
    assert_says(&run, "hint: is a KVM module loaded");

    let other_device = format!("mount -t tmpfs none /dev; mknod /dev/null c 1 3; mknod /dev/kvm c 1 3; {run_it}");
    let run = as_root(&other_device, &kernel).expect("root");
    assert_refused(&run, "KVM_TOO_OLD");
    assert_says(&run, "does not answer as KVM");
}

#[test]
fn without_permission_for_kvm_the_group_is_named() {
    let kernel = Kernel::new(hello());
    // A device of its own mode, so that the host's does not matter; the monitor where everybody may read it.
    let script = "mount -t tmpfs -o mode=755 none /dev; mknod /dev/null c 1 3; mknod -m 600 /dev/kvm c 10 232
        cp \"$0\" /dev/vmm-min; exec setpriv --reuid 65534 --regid 65534 --clear-groups /dev/vmm-min \"$@\"";
    let Some(run) = as_root(script, &[OsStr::new("--kernel"), kernel.path().as_os_str()]) else { return };
    assert_refused(&run, "KVM_PERMISSION");
    assert_says(&run, "usermod -aG kvm");
}

#[test]
fn streams_that_cannot_be_written_to_change_no_status() {
    let shell = |script: &str| Run::new("sh").args(["-c", script]).arg(bin("vmm-min")).finish();
    assert_eq!(shell("\"$0\" --kernel /no/such 2>/dev/full").code(), 125);
    assert_refused(&shell("\"$0\" --version >/dev/full"), "HOST_STDOUT");
}

#[test]
fn an_endless_initrd_is_refused_at_the_size_of_the_guest() {
    let kernel = Kernel::new(hello());
    let script = "yes | \"$0\" -m 16 --kernel \"$1\" --initrd -";
    let run = Run::new("sh").args(["-c", script]).arg(bin("vmm-min")).arg(kernel.path()).finish();
    assert_refused(&run, "INITRD_TOO_LARGE");
}

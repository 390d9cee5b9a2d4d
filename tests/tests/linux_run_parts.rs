//! What machines of `machinen-run` are made of: images of every kind, a stock kernel, directories of the host, ports.

#![forbid(unsafe_code)]

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use machinen_tests::cli::Cli;
use machinen_tests::e2fs::{E2fs, put_root};
use machinen_tests::guest::{Guest, Scratch};
use machinen_tests::monitor::wait_until;
use machinen_tests::{Run, asset};

/// What Debian's kernel has as modules of what a machine needs, in order.
const MODULES: [&str; 9] = [
    "virtio_mmio",
    "virtio_blk",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "overlay",
    "libcrc32c",
    "squashfs",
    "virtio_balloon",
];

#[test]
fn images_of_every_kind() {
    let (cli, e2fs, scratch) = (Cli::new(), E2fs::new(), Scratch::new());
    let tar = Guest::command(&["echo", "from a tar file"]).root_tar();
    let stream = cli.tool("run", &["-"]).env("MACHINEN_E2FSCK", e2fs.e2fsck()).stdin(tar.clone()).finish();
    assert_eq!((stream.code(), stream.printed().as_str()), (0, "from a tar file\n"));
    fs::write(scratch.path("root.tar"), tar).unwrap();
    let file = cli.tool("run", &[scratch.path("root.tar").to_str().unwrap(), "--", "echo", "again"]);
    let file = file.env("MACHINEN_E2FSCK", e2fs.e2fsck()).finish();
    assert_eq!((file.code(), file.printed().as_str()), (0, "again\n"));
    put_root(&scratch.path("root"));
    let root = scratch.path("root").display().to_string();
    let directory = cli.tool("run", &[&root, "--", "sh", "-c", "echo x >/new; cat /new"]);
    let directory = directory.env("MACHINEN_E2FSCK", e2fs.e2fsck()).finish();
    assert_eq!((directory.code(), directory.printed().as_str()), (0, "x\n"));
    assert!(!scratch.path("root/new").exists());
    scratch.put("broken.tar", vec![7; 4096]);
    let broken = cli.tool("run", &[scratch.path("broken.tar").to_str().unwrap()]).finish();
    assert_eq!(broken.code(), 125);
    assert!(broken.printed().contains("ROOTFS_IMG_SOURCE"), "{}", broken.printed());
}

#[test]
fn a_stock_kernel_with_its_modules() {
    let (cli, scratch) = (Cli::new(), Scratch::new());
    for name in MODULES {
        scratch.put(&format!("modules/{name}.ko"), fs::read(asset(&format!("modules/{name}.ko"))).unwrap());
    }
    scratch.put("modules/order", MODULES.map(|name| format!("{name}\n")).concat());
    let kernel = asset("vmlinux").display().to_string();
    let modules = scratch.path("modules").display().to_string();
    let run = cli.run(&["--kernel", &kernel, "--modules", &modules], &["cat"]).stdin(*b"stock\0").finish();
    assert_eq!((run.code(), &run.stdout[..]), (0, &b"stock\0"[..]), "{}", run.printed());
    let without = cli.run(&["--kernel", &kernel], &["true"]).finish();
    assert_eq!(without.code(), 125, "{}", without.printed());
    assert!(without.printed().contains("BOOT_ENDED"), "{}", without.printed());
}

#[test]
fn a_directory_of_the_host_is_seen_and_stays_as_it_is() {
    let (cli, scratch) = (Cli::new(), Scratch::new());
    scratch.put("dir/kept", "kept\n");
    scratch.put("dir/sub/file", "");
    let mount = format!("{}:/work", scratch.path("dir").display());
    for _ in 0..2 {
        let script = "cat /work/kept; ls /work; echo x >/work/new; cat /work/new";
        let run = cli.run(&["--mount", &mount], &["sh", "-c", script]).finish();
        assert_eq!((run.code(), run.printed().as_str()), (0, "kept\nkept\nsub\nx\n"));
    }
    assert!(!scratch.path("dir/new").exists());
}

#[test]
fn a_port_leads_to_the_guest_and_is_one_machines() {
    let cli = Cli::new();
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let publish = format!("{port}:80");
    let script = "mkdir /www; echo from the guest >/www/x; httpd -p 80 -h /www; exec sleep 1000";
    let web = cli.run(&["-d", "--name", "web", "-p", &publish], &["sh", "-c", script]).finish();
    assert_eq!((web.code(), web.printed().as_str()), (0, "web\n"));
    let url = format!("http://127.0.0.1:{port}/x");
    let fetch = || Run::new(asset("busybox")).args(["wget", "-q", "-O", "-", &url]).finish();
    wait_until("the guest serves", || fetch().stdout == b"from the guest\n");

    let second = cli.run(&["-p", &format!("0.0.0.0:{port}:81")], &["true"]).finish();
    assert_eq!(second.code(), 125);
    let printed = second.printed();
    assert!(printed.contains("NET_PORT_TAKEN") && printed.contains("machine web has it"), "{printed}");

    let entry = fs::read_to_string(cli.directories()[0].join("vm.json")).unwrap();
    let entry: serde_json::Value = serde_json::from_str(&entry).unwrap();
    let helper = entry["helpers"][0]["pid"].as_u64().expect("passt is a helper");
    assert_eq!(cli.tool("stop", &["-t", "0", "web"]).finish().code(), 0);
    wait_until("passt has ended", || !Path::new(&format!("/proc/{helper}/cmdline")).exists());
    assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok(), "its port is free again");
}

//! Processes go on under another kernel and from another image; what does not fit is refused before or by name.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use machinen_tests::bundles::{CRIU_MODULES, content, copy, no_machine_is_left, snapshot};
use machinen_tests::cli::Cli;
use machinen_tests::e2fs::E2fs;
use machinen_tests::lab::Arch;
use machinen_tests::session::Session;
use machinen_tests::{Finished, asset, rootfs};
use serde_json::{Value, json};

/// What Debian's kernel has as modules of what a machine needs, in order.
const MODULES: [&str; 6] = [
    "virtio_mmio",
    "virtio_blk",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
];

/// A shell that numbers what it reads, and has a file of the image open.
const ECHO: &str = "exec 9</etc/debian_version; n=0; echo ready; \
    while read -r line; do n=$((n + 1)); echo $n $line; done; read -r last <&9; echo $last; exit 5";

fn dump(cli: &Cli, flags: &[&str], bundle: &Path) {
    let flags = [&["--name", "e"], flags].concat();
    let mut echo = Session::on_pipes(cli.run_command(&flags, &["sh", "-c", ECHO]));
    echo.expect("ready\n");
    echo.type_in("a\n");
    echo.expect("1 a\n");
    snapshot(cli, &[], "e", bundle);
    assert_eq!(echo.end().code(), Some(125));
}

/// Restores; gives what was said before the first line.
fn goes_on(cli: &Cli, flags: &[&str], bundle: &Path) -> String {
    let e2fs = E2fs::new();
    let mut command = cli.command("restore", &[flags, &[bundle.to_str().unwrap()]].concat());
    command.env("MACHINEN_E2FSCK", e2fs.e2fsck());
    let mut echo = Session::on_pipes(command);
    echo.type_in("b\n");
    echo.expect("2 b\n");
    echo.close_input();
    assert_eq!(echo.end().code(), Some(5), "{}", echo.printed());
    let printed = echo.printed();
    let (before, after) = printed.split_once("2 b\n").unwrap();
    assert!(after.starts_with("1"), "{printed}");
    before.to_owned()
}

fn refused(cli: &Cli, flags: &[&str], bundle: &Path) -> Finished {
    let e2fs = E2fs::new();
    let run = cli.tool("restore", &[flags, &[bundle.to_str().unwrap()]].concat());
    let finished = run.env("MACHINEN_E2FSCK", e2fs.e2fsck()).finish();
    let printed = finished.printed();
    assert_eq!((finished.code(), finished.stdout.len()), (125, 0), "{printed}");
    assert!(printed.starts_with("machinen-restore: ") && !printed.contains("panicked"), "{printed}");
    assert_eq!(cli.directories(), [] as [std::path::PathBuf; 0], "{printed}");
    finished
}

#[test]
fn another_kernel() {
    let cli = Cli::of_debian();
    let modules = cli.path("modules");
    fs::create_dir(&modules).unwrap();
    let names: Vec<&str> = MODULES.into_iter().chain(CRIU_MODULES).collect();
    for name in &names {
        fs::copy(asset(&format!("modules/{name}.ko")), modules.join(format!("{name}.ko"))).unwrap();
    }
    fs::write(modules.join("order"), names.iter().map(|name| format!("{name}\n")).collect::<String>()).unwrap();
    let (kernel, modules) = (asset("vmlinux").display().to_string(), modules.display().to_string());
    let stock = ["--kernel", &kernel, "--modules", &modules];
    let bundle = cli.path("of-tuned");
    dump(&cli, &[], &bundle);
    let said = goes_on(&cli, &stock, &bundle);
    let stock_version = format!("+deb12-cloud-{} #1 SMP", Arch::OWN.debian());
    assert!(said.starts_with("machinen-restore: the kernel is another (6.") && said.lines().count() == 1, "{said}");
    assert!(said.contains(&stock_version) && said.contains("-machinen #1 "), "{said}");
    // One that says what it lacks.
    let lacking = cli.path("vmlinux-lacking");
    symlink(&kernel, &lacking).unwrap();
    fs::write(cli.path("config-lacking"), "CONFIG_X86_64=y\n").unwrap();
    let stock_lacking = ["--kernel", lacking.to_str().unwrap(), "--modules", &modules];
    let printed = refused(&cli, &stock_lacking, &bundle).printed();
    for word in ["RESTORE_KERNEL", "+deb12", "-machinen", " CONFIG_CHECKPOINT_RESTORE ", "--force"] {
        assert!(printed.contains(word), "{word} is not in: {printed}");
    }
    let said = goes_on(&cli, &[&stock_lacking[..], &["--force"]].concat(), &bundle);
    assert!(said.contains(" CONFIG_CHECKPOINT_RESTORE ") && said.lines().count() == 1, "{said}");
    let bundle = cli.path("of-stock");
    dump(&cli, &stock, &bundle);
    // Its own, which is not read for that.
    assert_eq!(goes_on(&cli, &stock_lacking, &bundle), "");
    let said = goes_on(&cli, &["--lazy"], &bundle);
    assert!(said.starts_with("machinen-restore: the kernel is another (6.") && said.lines().count() == 1, "{said}");
    no_machine_is_left(&cli);
}

/// Packs the image's tar file again, without Perl and documentation; `version` is what is in the file that is open.
fn pack(to: &Path, version: &[u8]) {
    let mut from = tar::Archive::new(File::open(asset(&rootfs(Arch::OWN))).unwrap());
    let mut tar = tar::Builder::new(BufWriter::new(File::create(to).unwrap()));
    for entry in from.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let text = path.to_str().unwrap().trim_start_matches("./").to_owned();
        let mut header = entry.header().clone();
        let library = text.strip_prefix("usr/lib/").and_then(|rest| rest.split_once("-linux-gnu/"));
        let dropped = library.is_some_and(|(_, rest)| rest.starts_with("perl/") || rest.starts_with("gconv/"));
        if dropped || text.starts_with("usr/share/") {
            continue;
        }
        if let Some(link) = entry.link_name().unwrap() {
            tar.append_link(&mut header, path, link).unwrap();
        } else if text == "etc/debian_version" {
            header.set_size(version.len() as u64);
            tar.append_data(&mut header, path, version).unwrap();
        } else {
            tar.append_data(&mut header, path, &mut entry).unwrap();
        }
    }
    tar.into_inner().unwrap().into_inner().unwrap();
}

#[test]
fn another_image() {
    let cli = Cli::of_debian();
    let bundle = cli.path("bundle");
    dump(&cli, &[], &bundle);
    let version = cli.run(&[], &["cat", "/etc/debian_version"]).finish().printed();
    let image = cli.path("again.tar");
    pack(&image, version.as_bytes());
    let said = goes_on(&cli, &["--image", image.to_str().unwrap()], &bundle);
    assert!(said.starts_with("machinen-restore: the image is another (") && said.lines().count() == 1, "{said}");
    // By its list of packages it has CRIU 3.17.1.
    let flags = ["--image", image.to_str().unwrap()];
    edit(&bundle, |meta| meta["workload"]["criu"] = json!("3.99"));
    let printed = refused(&cli, &flags, &bundle).printed();
    for word in ["RESTORE_CRIU", "older (3.17.1-", "(3.99)", "--force"] {
        assert!(printed.contains(word), "{word} is not in: {printed}");
    }
    let said = goes_on(&cli, &[&flags[..], &["--force"]].concat(), &bundle);
    assert!(said.contains("CRIU of the image is older (3.17.1-") && said.lines().count() == 2, "{said}");
    edit(&bundle, |meta| meta["workload"]["criu"] = json!("3.16"));
    let said = goes_on(&cli, &flags, &bundle);
    assert!(said.contains("CRIU of the image is newer (3.17.1-") && said.lines().count() == 2, "{said}");
    pack(&image, format!("{version}longer\n").as_bytes());
    let finished = refused(&cli, &["--image", image.to_str().unwrap()], &bundle);
    assert!(finished.printed().contains("etc/debian_version"), "{}", finished.printed());
    no_machine_is_left(&cli);
}

/// Changes what the bundle says of itself.
fn edit(bundle: &Path, change: impl FnOnce(&mut Value)) {
    let path = bundle.join("meta.json");
    let mut meta: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut meta);
    fs::write(&path, meta.to_string()).unwrap();
}

#[test]
fn bundles_that_are_broken_or_do_not_fit() {
    let cli = Cli::of_debian();
    let bundle = cli.path("bundle");
    dump(&cli, &[], &bundle);
    let broken = |name: &str, words: &[&str], change: &dyn Fn(&Path)| {
        let dir = cli.path(name);
        copy(&bundle, &dir);
        change(&dir);
        // A copy may be anybody's.
        let printed = refused(&cli, &["--trust"], &dir).printed();
        for word in words {
            assert!(printed.contains(word), "{name}: {word} is not in: {printed}");
        }
    };
    broken("newer", &["BUNDLE_VERSION", "2"], &|dir| edit(dir, |meta| meta["version"] = json!(2)));
    broken("cut", &["BUNDLE_INVALID", "meta.json"], &|dir| {
        let meta = fs::read(dir.join("meta.json")).unwrap();
        fs::write(dir.join("meta.json"), &meta[..meta.len() / 2]).unwrap();
    });
    broken("images", &["BUNDLE_PARTIAL", "img"], &|dir| fs::remove_dir_all(dir.join("img")).unwrap());
    broken("pages", &["BUNDLE_PARTIAL", "img/pages-1.img"], &|dir| {
        fs::remove_file(dir.join("img/pages-1.img")).unwrap()
    });
    broken("workload", &["BUNDLE_PARTIAL", "img/workload.json"], &|dir| {
        fs::write(dir.join("img/workload.json"), "{").unwrap()
    });
    broken("core", &["BUNDLE_PARTIAL", "img/core-"], &|dir| {
        let files = fs::read_dir(dir.join("img")).unwrap().map(|entry| entry.unwrap().path());
        let core = files.into_iter().find(|path| path.to_str().unwrap().contains("/core-")).unwrap();
        fs::write(core, "").unwrap();
    });
    broken("partial", &["BUNDLE_PARTIAL"], &|dir| fs::remove_file(dir.join("meta.json")).unwrap());
    broken("elsewhere", &["BUNDLE_MISSING"], &|dir| fs::remove_dir_all(dir).unwrap());

    let feature = |meta: &mut Value| meta["cpuFeatures"].as_array_mut().unwrap().push(json!("flux_capacitor"));
    broken("processor", &["RESTORE_CPU", "flux_capacitor", "--force"], &|dir| edit(dir, feature));
    let said = goes_on(&cli, &["--trust", "--force"], &cli.path("processor"));
    assert!(said.contains("flux_capacitor") && said.lines().count() == 1, "{said}");
    no_machine_is_left(&cli);
}

#[test]
fn where_it_came_from_is_known() {
    let cli = Cli::of_debian();
    let [first, second] = ["first", "second"].map(|name| cli.path(name));
    dump(&cli, &[], &first);
    let meta = |bundle: &Path| serde_json::from_slice::<Value>(&fs::read(bundle.join("meta.json")).unwrap()).unwrap();
    assert_eq!((&meta(&first)["lineage"], &meta(&first)["restoredFrom"]), (&json!([]), &json!("")));
    let mut echo = Session::on_pipes(cli.command("restore", &["--name", "f", first.to_str().unwrap()]));
    echo.type_in("b\n");
    echo.expect("2 b\n");
    snapshot(&cli, &[], "f", &second);
    assert_eq!(echo.end().code(), Some(125));
    assert_eq!((&meta(&second)["lineage"], &meta(&second)["restoredFrom"]), (&json!(["e"]), &json!(first)));

    let mut echo = Session::on_pipes(cli.command("restore", &["--name", "g", second.to_str().unwrap()]));
    echo.type_in("c\n");
    echo.expect("3 c\n");
    let entries = cli.directories().into_iter().map(|dir| fs::read(dir.join("vm.json")).unwrap());
    let mut entries = entries.map(|text| serde_json::from_slice::<Value>(&text).unwrap());
    let entry = entries.find(|entry| entry["name"] == "g").unwrap();
    assert_eq!((&entry["lineage"], &entry["restored_from"]), (&json!(["f", "e"]), &json!(second)));
    echo.close_input();
    assert_eq!(echo.end().code(), Some(5), "{}", echo.printed());
    no_machine_is_left(&cli);
}

/// Writes each line that it reads to an open file of a share. (CRIU does not compare the lengths of files that are only appended to.)
const WRITER: &str = "exec 9<>/s/log; echo ready; while read -r line; do echo $line >&9; echo done; done; exit 6";

#[test]
fn shared_directories_are_those_of_the_new_place() {
    let cli = Cli::of_debian();
    let [home, other, bundle] = ["home", "other", "bundle"].map(|name| cli.path(name));
    fs::create_dir(&home).unwrap();
    let share = |host: &Path| format!("{}:/s", host.display());
    let flags = ["--name", "w", "-v", &share(&home)];
    let mut writer = Session::on_pipes(cli.run_command(&flags, &["sh", "-c", WRITER]));
    writer.expect("ready\n");
    writer.type_in("one\n");
    writer.expect("done\n");
    snapshot(&cli, &[], "w", &bundle);
    assert_eq!(writer.end().code(), Some(125));

    let restore = |flags: &[&str]| {
        let mut command = cli.command("restore", flags);
        command.arg(&bundle);
        let mut writer = Session::on_pipes(command);
        writer.type_in("two\n");
        writer.expect("done\n");
        writer.close_input();
        assert_eq!(writer.end().code(), Some(6), "{}", writer.printed());
        assert_eq!(writer.printed(), "done\n");
    };
    // Where the bundle says, and elsewhere, with the same file.
    fs::create_dir(&other).unwrap();
    fs::copy(home.join("log"), other.join("log")).unwrap();
    restore(&["-v", &share(&other)]);
    assert_eq!(fs::read_to_string(home.join("log")).unwrap(), "one\n");
    assert_eq!(fs::read_to_string(other.join("log")).unwrap(), "one\ntwo\n");
    // A file that has another length is another.
    let printed = refused(&cli, &["--share", &share(&other)], &bundle).printed();
    assert!(printed.contains("s/log"), "{printed}");
    restore(&[]);
    assert_eq!(fs::read_to_string(home.join("log")).unwrap(), "one\ntwo\n");

    fs::write(other.join("log"), "one\n").unwrap();
    fs::remove_dir_all(&home).unwrap();
    let printed = refused(&cli, &[], &bundle).printed();
    assert!(printed.contains("RESTORE_SHARES") && printed.contains(&share(&home)), "{printed}");
    restore(&["--share", &share(&other)]);
    no_machine_is_left(&cli);
}

/// Adds each line that it reads to a file of a copied directory, and says what is in that and in one that it came with.
const KEEPER: &str = "exec 8</m/given 9>>/m/log; echo ready; \
    while read -r line; do echo $line >&9; echo $(cat /m/given /m/log); done; exit 7";

#[test]
fn a_copied_directory_goes_with_the_processes() {
    let cli = Cli::of_debian();
    let [home, bundle] = ["home", "bundle"].map(|name| cli.path(name));
    fs::create_dir(&home).unwrap();
    fs::write(home.join("given"), "old\n").unwrap();
    let mount = format!("{}:/m", home.display());
    let mut keeper = Session::on_pipes(cli.run_command(&["--name", "k", "--mount", &mount], &["sh", "-c", KEEPER]));
    keeper.expect("ready\n");
    keeper.type_in("one\n");
    keeper.expect("old one\n");
    let goes_on = |command: Command, line: &str, said: &str| {
        let mut keeper = Session::on_pipes(command);
        keeper.type_in(&format!("{line}\n"));
        keeper.expect(&format!("{said}\n"));
        keeper.close_input();
        assert_eq!(keeper.end().code(), Some(7), "{}", keeper.printed());
        keeper.printed()
    };
    // The bundle between source and copy is gone: a copy of its image is in the copy's own.
    let of_copy = cli.path("of-copy");
    let mut copied = Session::on_pipes(cli.command("fork", &["--name", "c", "k"]));
    copied.type_in("two\n");
    copied.expect("old one two\n");
    snapshot(&cli, &[], "c", &of_copy);
    assert_eq!(copied.end().code(), Some(125));
    keeper.type_in("three\n");
    keeper.expect("old one three\n");
    snapshot(&cli, &[], "k", &bundle);
    assert_eq!(keeper.end().code(), Some(125));
    let before = content(&bundle);

    // What the host's directory has become is nothing to them, nor that it is gone.
    let restore = |flags: &[&str], dir: &Path, line: &str, said: &str| {
        let mut command = cli.command("restore", flags);
        command.arg(dir);
        goes_on(command, line, said)
    };
    fs::write(home.join("given"), "new\n").unwrap();
    restore(&[], &of_copy, "three", "old one two three");
    restore(&[], &bundle, "four", "old one three four");
    fs::remove_dir_all(&home).unwrap();
    restore(&[], &bundle, "five", "old one three five");
    assert!(content(&bundle) == before, "the bundle has changed");
    // They come from the bundle, so nobody needs to be trusted with the host's.
    let [elsewhere, image] = [cli.path("elsewhere"), asset(&rootfs(Arch::OWN))];
    copy(&bundle, &elsewhere);
    restore(&["--image", image.to_str().unwrap()], &elsewhere, "six", "old one three six");
    File::options().write(true).open(elsewhere.join("mounts/0.upper")).unwrap().set_len(4096).unwrap();
    let printed = refused(&cli, &["--trust"], &elsewhere).printed();
    assert!(printed.contains("BUNDLE_PARTIAL") && printed.contains("mounts/0.upper"), "{printed}");

    // Another directory in their place, with the files that are open.
    fs::create_dir(&home).unwrap();
    fs::write(home.join("given"), "new\n").unwrap();
    fs::write(home.join("log"), "another\n").unwrap();
    let printed = restore(&["--mount", &mount], &bundle, "seven", "new another seven");
    assert!(printed.starts_with("machinen-restore: /m: it is another directory"), "{printed}");
    no_machine_is_left(&cli);
}

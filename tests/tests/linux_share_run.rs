//! `machinen-run -v`: directories of the host in a machine of one command, and what the registry says of them.

#![forbid(unsafe_code)]

use std::fs;

use machinen_tests::cli::Cli;

fn printed(cli: &Cli, flags: &[&str], command: &[&str]) -> String {
    let finished = cli.run(flags, command).finish();
    assert_eq!(finished.code(), 0, "{flags:?}: {}", finished.printed());
    String::from_utf8(finished.stdout).unwrap()
}

#[test]
fn directories_are_shared_for_a_command() {
    let cli = Cli::new();
    for name in ["rw", "ro", "a b,c:ro"] {
        fs::create_dir(cli.path(name)).unwrap();
        fs::write(cli.path(name).join("f"), name).unwrap();
    }
    let at = |name: &str, rest: &str| format!("{}{rest}", cli.path(name).display());
    let flags = [at("rw", ":/work/deep"), at("ro", ":/ro:ro"), at("a b,c:ro", ":/odd:rw")];
    let flags = ["-v", &flags[0], "-v", &flags[1], "--share", &flags[2]];
    let script =
        "cat /work/deep/f /ro/f /odd/f; echo new >/work/deep/new; echo new >/odd/new; echo x >/ro/x || echo refused";
    assert_eq!(printed(&cli, &flags, &["sh", "-c", script]), "rwroa b,c:rorefused\n");
    assert_eq!(fs::read(cli.path("rw").join("new")).unwrap(), b"new\n");
    assert_eq!(fs::read(cli.path("a b,c:ro").join("new")).unwrap(), b"new\n");
    // A path may be relative to where the tool is called, and -v alone is still the switch.
    let run = cli.run(&["-v", "rw:/w", "-tv"], &["cat", "/w/new"]).dir(cli.path("rw").parent().unwrap());
    let finished = run.finish();
    let said = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert_eq!((finished.code(), finished.stdout), (0, b"new\r\n".to_vec()), "{said}");
    assert!(said.contains("console:"), "{said}");
}

#[test]
fn a_machine_says_what_it_shares() {
    let cli = Cli::new();
    fs::create_dir(cli.path("d")).unwrap();
    let share = format!("{}:/d", cli.path("d").display());
    let flags = ["-d", "--name", "m", "-v", &share, "-v", &format!("{share}2:ro")];
    let command = ["sh", "-c", "echo up >/d/up; sleep 1000"];
    let finished = cli.run(&flags, &command).finish();
    assert_eq!((finished.code(), finished.printed()), (0, "m\n".into()));
    let list = cli.tool("ls", &["--json"]).finish().printed();
    let entry: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(entry["shares"], serde_json::json!([share, format!("{share}2:ro")]));
    // Live, both ways.
    fs::write(cli.path("d/host"), "of the host").unwrap();
    let said = cli.exec("m", &["sh", "-c", "cat /d/host /d2/host; echo x >/d2/x; rm /d/host"]).finish();
    assert!(said.printed().starts_with("of the hostof the host"), "{}", said.printed());
    assert!(!cli.path("d/host").exists() && !cli.path("d/x").exists());
    // The share that every machine has, without a directory.
    let said = cli.exec("m", &["sh", "-c", "mkdir /b; mount -t virtiofs bundle /b; ls /b"]).finish().printed();
    assert!(said.contains("Connection refused"), "{said}");
}

#[test]
fn what_is_no_directory_is_refused_before_anything_starts() {
    let cli = Cli::new();
    fs::write(cli.path("file"), "").unwrap();
    fs::create_dir(cli.path("d")).unwrap();
    let refused = |flags: &[&str], code: &str| {
        let finished = cli.run(flags, &["true"]).finish();
        assert_eq!((finished.code(), finished.stdout.len()), (125, 0), "{}", finished.printed());
        assert!(finished.printed().contains(code), "{}", finished.printed());
        assert_eq!(cli.directories(), [] as [std::path::PathBuf; 0]);
    };
    let at = |name: &str, guest: &str| format!("{}:{guest}", cli.path(name).display());
    refused(&["-v", &at("missing", "/x")], "BOOT_SHARE: open shared directory");
    refused(&["-v", &at("file", "/x")], "BOOT_SHARE");
    let six: Vec<String> = (0..6).map(|number| at("d", &format!("/x{number}"))).collect();
    let six: Vec<&str> = six.iter().flat_map(|share| ["-v", share]).collect();
    refused(&six, "at most 5");
    for bad in ["/d", "d:x", ":/x", "d:/", "d:/x/../y", "d://x"] {
        refused(&["--share", bad], "RUN_USAGE");
    }
}

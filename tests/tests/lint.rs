//! `fixtures/lint`: what it lets pass in a repository, and what not.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use machinen_tests::Run;
use machinen_tests::monitor::Scratch;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Packages that the script knows by name, and others.
const PACKAGES: [&str; 8] = ["vmm-min", "guest-init", "fixtures", "benches", "tests", "tools", "share", "later"];
const UNSAFE: &str = "fn f() { unsafe { g() } }\n";
const ARCHITECTURE: &str = "#[cfg(target_arch = \"x86_64\")]\n";

/// What the script ends with and says of a repository with these files.
fn lint(files: &[(&str, &str)]) -> (i32, String) {
    let scratch = Scratch::new("lint");
    for package in PACKAGES {
        fs::create_dir(scratch.file(package)).unwrap();
        fs::write(scratch.file(package).join("Cargo.toml"), "").unwrap();
    }
    for (path, content) in files {
        let path = scratch.file(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    lint_of(scratch.path())
}

fn lint_of(root: &Path) -> (i32, String) {
    let run = Run::new(format!("{ROOT}/fixtures/lint")).arg(root).finish();
    (run.code(), run.printed())
}

#[test]
fn this_repository_passes() {
    assert_eq!(lint_of(Path::new(ROOT)), (0, String::new()));
}

#[test]
fn words_in_comments_and_named_files_pass() {
    let allowed = [
        ("vmm-min/src/arch/mod.rs", ARCHITECTURE),
        ("vmm-min/src/arch/aarch64/gic.rs", UNSAFE),
        ("vmm-min/src/ram.rs", UNSAFE),
        ("guest-init/src/sys/net.rs", UNSAFE),
        ("tests/src/sys.rs", UNSAFE),
        ("tools/src/lib.rs", "#![forbid(unsafe_code)]\n/// Nothing unsafe is here.\nfn f() {} // unsafe\n"),
    ];
    assert_eq!(lint(&allowed), (0, String::new()));
}

#[test]
fn unsafe_code_elsewhere_fails() {
    let elsewhere = ["vmm-min/src/bus.rs", "vmm-min/src/virtio/arch/mod.rs", "guest-init/src/agent/mod.rs"];
    for path in
        elsewhere.into_iter().chain(["tools/src/lib.rs", "share/build.rs", "later/src/lib.rs", "tests/tests/lab.rs"])
    {
        let (directory, _) = path.split_once('/').unwrap();
        let (code, said) = lint(&[(path, UNSAFE)]);
        assert_eq!(code, 1, "{path}: {said}");
        assert!(said.contains(&format!("{path}:1:fn f()")), "{path}: {said}");
        assert!(said.contains(&format!("lint: unsafe stands only in {directory}/")), "{path}: {said}");
    }
    let forms = [
        "unsafe fn f() {}",
        "let x = 1 / unsafe { f() };",
        "#[unsafe(no_mangle)]",
        "unsafe  impl T for U {}",
        "unsafe\n{",
        "f(\"http://x\"); unsafe { g() }",
    ];
    for form in forms {
        assert_eq!(lint(&[("vmm-min/src/bus.rs", form)]).0, 1, "{form}");
    }
}

#[test]
fn architectures_elsewhere_fail() {
    let elsewhere = ["vmm-min/src/machine.rs", "vmm-min/src/arch/aarch64/fdt.rs", "guest-init/src/root.rs"];
    for path in elsewhere.into_iter().chain(["tools/src/lib.rs", "share/src/lib.rs", "later/src/lib.rs"]) {
        for form in [ARCHITECTURE, "if cfg!(target_arch = \"aarch64\") {}"] {
            let (code, said) = lint(&[(path, form)]);
            assert_eq!(code, 1, "{path}: {said}");
            assert!(said.contains("lint: cfg(target_arch) stands only in "), "{path}: {said}");
        }
    }
}

#[test]
fn a_directory_that_is_missing_fails() {
    let scratch = Scratch::new("lint");
    let (code, said) = lint_of(scratch.path());
    assert_eq!((code, said.lines().next()), (1, Some("lint: vmm-min: there is no such directory")), "{said}");
}

//! README.md's tour, word for word.

#![forbid(unsafe_code)]

use std::os::unix::fs::symlink;
use std::time::Duration;

use machinen_tests::guest::Scratch;
use machinen_tests::lab::Arch;
use machinen_tests::{Run, asset, bin, rootfs};

/// The lines of the tour, without what a document puts before them.
fn tour() -> Vec<&'static str> {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("<!-- tour -->\n").expect("a tour");
    let (tour, _) = rest.split_once("<!-- end -->").expect("its end");
    tour.lines().map(|line| line.strip_prefix("    ").expect("a line of code")).collect()
}

#[test]
fn the_tour_shows_what_it_says() {
    let scratch = Scratch::new();
    symlink(asset(&rootfs(Arch::OWN)), scratch.path("debian.tar")).unwrap();
    let path = format!("{}:{}", bin("vmm-min").parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
    // A person reads before the next line: the server listens by then.
    let listens = "until machinen exec web -- sh -c 'grep -q 0050 /proc/net/tcp'; do sleep 0.1; done";
    let mut script = String::new();
    for line in tour() {
        script += &format!("echo '# {}'\n{line}\n", line.replace('\'', ""));
        if line.starts_with("machinen run -d") {
            script += &format!("{listens}\n");
        }
    }
    let run =
        Run::new("sh").arg("-c").arg(&script).dir(scratch.path("")).limit(Duration::from_secs(100)).env("PATH", path);
    let run = run.env("HOME", scratch.path("home")).env("MACHINEN_REGISTRY_DIR", scratch.path("registry"));
    let finished = run.env("MACHINEN_KERNEL", asset("vmlinux-tuned")).merged().finish();
    let text = String::from_utf8_lossy(&finished.stdout).into_owned();
    assert_eq!(finished.code(), 0, "{text}");
    let mut rest = text.as_str();
    let said =
        ["Linux 6.12.", "HELLO\n", "oops\nexit code 3\n", "web\n", "8080:80", "index.html\n", "hello from the host\n"];
    let frozen = ["# machinen restore", "\nweb\n", "# machinen fork", "\nweb/2\n", "hello from the host\n"];
    let said = said.into_iter().chain(["etc/debian_version\n", "# machinen mem", "web "]).chain(frozen);
    for words in said.chain(["# machinen gc"]) {
        let at = rest.find(words).unwrap_or_else(|| panic!("no {words:?} in its place:\n{text}"));
        rest = &rest[at + words.len()..];
    }
    assert_eq!(rest.trim(), "", "something was left to collect:\n{text}");
}

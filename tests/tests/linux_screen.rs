//! Full-screen programs on a terminal, as a user of tmux sees them.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::Command;

use machinen_tests::cli::Cli;
use machinen_tests::monitor::wait_until;

/// A tmux server of its own, with one window.
struct Tmux {
    socket: PathBuf,
}

impl Tmux {
    /// Runs `command`, a line of shell, in a window of 80 columns and 24 lines.
    fn start(machines: &Cli, command: &str) -> Tmux {
        let tmux = Tmux { socket: machines.path("tmux") };
        let (registry, cache) = (machines.registry(), machines.path("cache"));
        let (registry, cache) = (registry.display(), cache.display());
        let environment = format!("MACHINEN_REGISTRY_DIR={registry} MACHINEN_CACHE_DIR={cache} MACHINEN_MEMORY=256");
        let kernel = machinen_tests::asset("vmlinux-tuned");
        let line =
            format!("{environment} MACHINEN_KERNEL={} {command}; echo over: $?; exec sleep 1000", kernel.display());
        tmux.call(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", &line]);
        tmux
    }

    fn call(&self, words: &[&str]) -> String {
        let mut command = Command::new("tmux");
        // It insists on UTF-8, and on a shell.
        command.env("LC_ALL", "C.UTF-8").env("TERM", "screen").env("SHELL", "/bin/sh").env_remove("TMUX");
        let output = command.arg("-S").arg(&self.socket).args(words).output().expect("tmux");
        assert!(output.status.success(), "tmux {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn screen(&self) -> String {
        self.call(&["capture-pane", "-p"])
    }

    fn until(&self, what: &str, seen: impl Fn(&str) -> bool) {
        let mut last = String::new();
        let reached = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(what, || {
                last = self.screen();
                seen(&last)
            });
        }));
        assert!(reached.is_ok(), "{what}: the screen is\n{last}");
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}

fn tool(name: &str) -> String {
    machinen_tests::bin(&format!("machinen-{name}")).display().to_string()
}

#[test]
fn vi_edits_and_follows_the_window() {
    let machines = Cli::new();
    let run = format!(
        "{} {} -- sh -c 'seq 100 >/tmp/f; vi /tmp/f; tail -n 1 /tmp/f'",
        tool("run"),
        machines.image().display()
    );
    let tmux = Tmux::start(&machines, &run);
    tmux.until("vi shows its file", |screen| screen.starts_with("1\n2\n3\n") && screen.contains("/tmp/f 1/100"));
    // 23 lines of text and the status.
    assert_eq!(tmux.screen().lines().nth(22), Some("23"), "{}", tmux.screen());
    tmux.call(&["resize-window", "-x", "100", "-y", "40"]);
    // It asks for the size when it draws anew.
    tmux.until("vi fills the larger window", |screen| screen.lines().nth(38) == Some("39"));
    tmux.call(&["send-keys", "G", "o", "the end", "Escape"]);
    tmux.until("the line is there", |screen| screen.contains("100\nthe end\n"));
    tmux.call(&["send-keys", ":wq", "Enter"]);
    tmux.until("vi has written it and ended", |screen| screen.contains("the end\nover: 0"));
}

#[test]
fn top_fills_the_window_of_an_exec() {
    let machines = Cli::new();
    machines.detach("m", &["sleep", "1000"]);
    let tmux = Tmux::start(&machines, &format!("{} m -- top", tool("exec")));
    tmux.until("top lists the guest's processes", |screen| screen.contains("Mem:") && screen.contains("sleep 1000"));
    let rows = |screen: &str| screen.lines().filter(|line| !line.trim().is_empty()).count();
    let small = rows(&tmux.screen());
    tmux.call(&["resize-window", "-x", "100", "-y", "12"]);
    tmux.until("top draws fewer lines", |screen| rows(screen) < small && screen.contains("Mem:"));
    tmux.call(&["send-keys", "q"]);
    tmux.until("top has ended", |screen| screen.contains("over: 0"));
}

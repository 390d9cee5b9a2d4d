//! Which tests run in the lab of another architecture than this host's: why some are not in its build, and which of the others
//! a short run takes.

use super::record::{Test, Verdict};
use crate::lab::Arch;

/// Tests that one architecture does not have: it, the test's file (and name), and why. What is in no build and not here has failed.
const NOT_FOR: &[(Arch, &str, &str)] = &[
    (Arch::Aarch64, "linux_bzimage", "only x86_64 has bzImages"),
    (
        Arch::Aarch64,
        "linux_end the_tuned_kernel_halts_when_it_is_to_switch_off",
        "it switches off by PSCI, as a_guest_with_acpi_or_psci_that_switches_off_is_a_success says",
    ),
];

/// What a short run takes of another architecture's tests: every feature once, and what is cheap. An emulated arm64 machine boots
/// Debian's kernel in six seconds and more, so the rest is for `make soak`.
const CHOSEN: &[&str] = &[
    "kvm_",
    "linux_agent the_main_command_and_others",
    "linux_agent terminals",
    "linux_agent_files what_goes_in_comes_out",
    "linux_boot one_line_of_shell_boots_debian_and_gets_the_exit_code",
    "linux_boot a_guest_finds_the_id_of_its_generation",
    "linux_bzimage",
    "linux_cp a_tree_goes_in_and_comes_back",
    "linux_criu a_counter_goes_on_where_it_was",
    "linux_detach a_detached_machine_is_used_from_elsewhere_and_stopped",
    "linux_disk all_devices_at_once_have_their_lines",
    "linux_end",
    "linux_environment",
    "linux_fork a_copy_has_a_name_and_ports_of_its_own",
    "linux_image the_tuned_kernel_runs_debian_and_the_image_stays",
    "linux_images an_image_grows_in_the_guest",
    "linux_init every_byte_comes_back_through_cat",
    "linux_init the_system_is_as_documented",
    "linux_kill nothing_is_left_whoever_is_killed",
    "linux_memory",
    "linux_net the_tuned_kernel_has_the_same_network",
    "linux_one_thread a_running_guest_is_one_thread",
    "linux_restore a_server_is_reached_where_it_is_restored",
    "linux_root an_overlay_shows_the_lower_disk_and_keeps_what_is_written",
    "linux_run run_is_what_env_is",
    "linux_run_parts a_stock_kernel_with_its_modules",
    "linux_run_tty a_shell_on_the_terminal_of_run",
    "linux_screen vi_edits_and_follows_the_window",
    "linux_share files_go_both_ways_on_both_kernels",
    "linux_share a_hostile_guest_stays_in_its_directory",
    "linux_share_run directories_are_shared_for_a_command",
    "linux_snapshot a_counter_goes_on_in_other_machines",
    "linux_stream a_tree_goes_in_and_comes_back_and_memory_stays",
    "linux_tty a_shell_is_used_interrupted_stopped_and_left",
    "linux_tuned",
    "linux_vm a_machine_is_used_and_stopped",
    "linux_vsock every_end_of_a_stream_is_seen_at_its_other_end",
];

/// Whether the test belongs to a short run.
#[must_use]
pub fn is_chosen(test: &Test) -> bool {
    CHOSEN.iter().any(|name| is(test, name))
}

/// What it means that a test is not in the architecture's build.
#[must_use]
pub fn absent(arch: Arch, test: &Test) -> Verdict {
    let arch_name = arch.name();
    match NOT_FOR.iter().find(|(other, name, _)| *other == arch && is(test, name)) {
        Some((_, _, why)) => Verdict::Skipped(format!("not for {arch_name}: {why}")),
        None => Verdict::Failed(format!("it is not in the build for {arch_name}, and nothing says why (elsewhere.rs)")),
    }
}

/// `linux_end NAME` is a test, `linux_end` all of a file, `linux_e` all of the files that begin like that.
fn is(test: &Test, name: &str) -> bool {
    let file = test.label.rsplit("::").next().unwrap_or_default();
    match name.split_once(' ') {
        Some((own, name)) => file == own && test.name == name,
        None => file.starts_with(name),
    }
}

#[cfg(test)]
mod tests {
    use super::{CHOSEN, absent, is};
    use crate::lab::Arch;
    use crate::runner::record::{Test, Verdict};

    #[test]
    fn names_are_of_tests_or_files() {
        let test = Test { label: "p::linux_end".into(), name: "a".into() };
        assert!(is(&test, "linux_end a") && is(&test, "linux_end") && is(&test, "linux_"));
        assert!(!is(&test, "linux_end b") && !is(&test, "linux_endless") && !is(&test, "a"));
    }

    /// A renamed test would fall out of the short run and nobody would see.
    #[test]
    fn what_is_chosen_is_there() {
        for name in CHOSEN {
            let (file, test) = name.split_once(' ').unwrap_or((name, ""));
            let path = format!("{}/tests/{file}.rs", env!("CARGO_MANIFEST_DIR"));
            match std::fs::read_to_string(&path) {
                Ok(text) => assert!(text.contains(&format!("fn {test}")), "{name}"),
                Err(_) => assert!(file.ends_with('_'), "{name}"),
            }
        }
    }

    #[test]
    fn what_is_missing_needs_a_reason() {
        let test = |file: &str| Test { label: format!("p::{file}"), name: "a".into() };
        let skipped = absent(Arch::Aarch64, &test("linux_bzimage"));
        assert_eq!(skipped, Verdict::Skipped("not for aarch64: only x86_64 has bzImages".into()));
        assert!(matches!(absent(Arch::Aarch64, &test("linux_init")), Verdict::Failed(_)));
        assert!(matches!(absent(Arch::X86_64, &test("linux_bzimage")), Verdict::Failed(_)));
    }
}

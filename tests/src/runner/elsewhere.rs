//! Which tests run in the lab of another architecture than this host's: why some are not in its build, and which of the others
//! a short run takes.

use super::record::{Test, Verdict};
use crate::lab::Arch;

/// Tests that one architecture does not have: it, the test's file (and name), and why. What is in no build and not here has failed.
const NOT_FOR: &[(Arch, &str, &str)] = &[
    (Arch::Aarch64, "kvm_bad_input", "its guests are x86_64 instructions"),
    (Arch::Aarch64, "kvm_guests", "its guests are x86_64 instructions"),
    (Arch::Aarch64, "kvm_kick", "its guests are x86_64 instructions"),
    (Arch::Aarch64, "kvm_signals", "its guests are x86_64 instructions"),
    (Arch::Aarch64, "kvm_stdio", "its guests are x86_64 instructions"),
    (Arch::Aarch64, "kvm_virtio", "its guests are x86_64 instructions"),
    (Arch::Aarch64, "linux_bzimage", "only x86_64 has bzImages"),
    (
        Arch::Aarch64,
        "linux_end the_tuned_kernel_halts_when_it_is_to_switch_off",
        "it switches off by PSCI, as a_guest_with_acpi_or_psci_that_switches_off_is_a_success says",
    ),
];

/// What a short run takes of another architecture's tests: every feature once. An emulated arm64 machine boots Debian's kernel in six
/// seconds and more, so the rest is for `make soak`.
const CHOSEN: &[&str] = &["linux_"];

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
    use super::{absent, is};
    use crate::lab::Arch;
    use crate::runner::record::{Test, Verdict};

    #[test]
    fn names_are_of_tests_or_files() {
        let test = Test { label: "p::linux_end".into(), name: "a".into() };
        assert!(is(&test, "linux_end a") && is(&test, "linux_end") && is(&test, "linux_"));
        assert!(!is(&test, "linux_end b") && !is(&test, "linux_endless") && !is(&test, "a"));
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

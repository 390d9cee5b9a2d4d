//! What a machine is to be made of, compared with what a bundle comes from.

use std::cmp::Ordering;
use std::path::Path;

use super::restore::RestoreOptions;
use crate::agent::printable;
use crate::error::{Error, Result};
use crate::kernel::identity::{self, Facts};

/// What a machine is to be made of.
#[derive(Debug)]
pub(crate) struct There<'a> {
    /// What identifies the content of the image.
    pub image_key: &'a str,
    /// The version of the image's package of CRIU, where that is known.
    pub criu: Option<&'a str>,
    /// The kernel's path.
    pub kernel: &'a Path,
    /// Which kernel that is ([`identity::identity`]).
    pub kernel_id: Option<&'a str>,
}

impl RestoreOptions {
    /// Differences that are worth a word, a line each.
    ///
    /// # Errors
    /// `RESTORE_CRIU`: CRIU is older than the images. `RESTORE_KERNEL`: the kernel lacks what CRIU needs. Neither where that is to be
    /// tried.
    pub(crate) fn compare(&self, there: &There<'_>) -> Result<Vec<String>> {
        let mut all = self.warnings(there.image_key);
        let kernel = &self.meta().kernel_id;
        let criu = self.meta().workload["criu"].as_str().unwrap_or_default();
        let criu = there.criu.and_then(|here| compare_criu(criu, here));
        // The same kernel could when the bundle was made.
        let is_other = |here: &&str| !kernel.is_empty() && here != kernel;
        let facts = there.kernel_id.filter(is_other).map(|_| identity::facts(there.kernel));
        let before = self.meta().workload["kernel"].as_str().unwrap_or_default();
        for found in [criu, facts.and_then(|facts| compare_kernel(before, &facts))].into_iter().flatten() {
            match found.refused {
                Some((code, hint)) if !self.is_forced() => {
                    return Err(Error::new(code, format!("bundle {}: {}", self.name(), found.line)).hint(hint));
                }
                _ => all.push(found.line),
            }
        }
        Ok(all)
    }
}

/// A difference.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    line: String,
    /// With these code and hint, unless it is to be tried.
    refused: Option<(&'static str, &'static str)>,
}

/// The version that made images, and that of a package which is to read them.
fn compare_criu(before: &str, here: &str) -> Option<Found> {
    let (old, new) = (numbers(before)?, numbers(here)?);
    let line = |word: &str| {
        format!("CRIU of the image is {word} ({}) than the bundle's ({})", printable(here), printable(before))
    };
    match new.cmp(&old) {
        Ordering::Equal => None,
        Ordering::Greater => Some(Found { line: line("newer"), refused: None }),
        Ordering::Less => {
            let hint = "restore it with an image that has such a CRIU (--image), or try it with --force";
            Some(Found { line: line("older"), refused: Some(("RESTORE_CRIU", hint)) })
        }
    }
}

/// The numbers of a version, without a distribution's epoch before it and what follows it; ends in no zero.
fn numbers(version: &str) -> Option<Vec<u64>> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let end = upstream.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(upstream.len());
    let mut all: Vec<u64> = upstream.get(..end)?.split('.').map_while(|number| number.parse().ok()).collect();
    while all.last() == Some(&0) {
        all.pop();
    }
    (!all.is_empty()).then_some(all)
}

/// What the kernel of a bundle was called, and another one.
fn compare_kernel(before: &str, here: &Facts) -> Option<Found> {
    let unknown = String::from("of a version that it does not say");
    let version = here.version.as_ref().unwrap_or(&unknown);
    if version == before {
        return None;
    }
    let line = format!("the kernel is another ({}) than the bundle's ({})", printable(version), printable(before));
    match here.criu_lacks.as_deref() {
        None | Some([]) => Some(Found { line, refused: None }),
        Some(lacks) => {
            let lacks: Vec<String> = lacks.iter().map(|option| format!("CONFIG_{option}")).collect();
            let line = format!("{line}, and lacks what CRIU needs: {}", lacks.join(" "));
            let hint =
                "give another kernel (--kernel), or try it with --force; machinen-kernel check tells what one has";
            Some(Found { line, refused: Some(("RESTORE_KERNEL", hint)) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_criu_is_refused_and_a_newer_one_told() {
        let code = |before: &str, here: &str| {
            compare_criu(before, here).map(|found| found.refused.map_or("told", |(code, _)| code))
        };
        for (before, here, expected) in [
            ("3.17.1", "3.17.1-2+deb12u2", None),
            ("3.17.1", "1:3.17.1-2", None),
            ("4.0", "4", None),
            ("3.17.1", "3.18-1", Some("told")),
            ("3.17.1", "4.1-1~bpo12+1", Some("told")),
            ("3.17.1", "3.17-1", Some("RESTORE_CRIU")),
            ("3.17.1", "3.9.9", Some("RESTORE_CRIU")),
            ("4.0", "3.99.99", Some("RESTORE_CRIU")),
            // What is not known is not claimed.
            ("", "3.17.1", None),
            ("3.17.1", "", None),
            ("3.17.1", "git", None),
        ] {
            assert_eq!(code(before, here), expected, "{before} {here}");
        }
        let line = compare_criu("3.17.1", "3.16-1").unwrap().line;
        assert!(line.contains("3.17.1") && line.contains("3.16-1"), "{line}");
    }

    #[test]
    fn another_kernel_is_told_and_one_that_cannot_is_refused() {
        let facts = |version: &str, criu_lacks| Facts { version: Some(version.into()), criu_lacks };
        assert_eq!(compare_kernel("6.1 #1", &facts("6.1 #1", Some(vec!["KCMP"]))), None);
        let told = compare_kernel("6.1 #1", &facts("6.2 #1", Some(vec![]))).unwrap();
        assert!(told.refused.is_none() && told.line.contains("6.1 #1") && told.line.contains("6.2 #1"), "{told:?}");
        assert!(compare_kernel("6.1 #1", &facts("6.2 #1", None)).unwrap().refused.is_none());
        assert!(compare_kernel("6.1 #1", &Facts::default()).unwrap().refused.is_none());
        let found = compare_kernel("6.1 #1", &facts("6.2 #1", Some(vec!["KCMP", "VETH"]))).unwrap();
        assert!(found.refused.is_some_and(|(code, _)| code == "RESTORE_KERNEL"));
        assert!(found.line.ends_with("CONFIG_KCMP CONFIG_VETH"), "{}", found.line);
    }
}

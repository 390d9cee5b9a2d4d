//! Names of machines: what they may be, and which of them are nearly the one that was meant.

use crate::error::{Error, Result};

/// Most bytes of a name.
pub const MOST_BYTES: usize = 200;

/// Refuses what cannot be a name: a path-shaped word (`worker/9012`) that no tool takes for anything else.
///
/// # Errors
/// `REGISTRY_NAME_INVALID`, with the rule.
pub fn check(name: &str) -> Result<()> {
    let rule = if name.is_empty() {
        "it is empty"
    } else if name.len() > MOST_BYTES {
        "it has more than 200 bytes"
    } else if name.chars().any(char::is_control) {
        "it has a control character"
    } else if name.starts_with('-') {
        "it starts with a dash, like an option"
    } else if name.bytes().all(|byte| byte.is_ascii_digit()) {
        "it is only digits, like a process number"
    } else if name.split('/').any(|part| part == "..") {
        "it has a part .."
    } else if name.contains(':') {
        "it has a colon, which is between a name and a path"
    } else {
        return Ok(());
    };
    let message = format!("name {}: {rule}", show(name));
    Err(Error::new("REGISTRY_NAME_INVALID", message).hint("1 to 200 bytes, as web or worker/9012"))
}

/// For a message: on one line, and not without end.
pub fn show(name: &str) -> String {
    let short: String = name.chars().take(MOST_BYTES).collect();
    let rest = if short.len() < name.len() { "…" } else { "" };
    format!("{short:?}{rest}")
}

/// Those of `names` that differ from `meant` by few characters or contain it, the nearest first, three at most.
pub fn near<'a>(meant: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let most = (meant.chars().count() / 3).max(1);
    let mut near: Vec<(usize, &str)> = names
        .into_iter()
        .filter_map(|name| match distance(meant, name) {
            edits if edits <= most => Some((edits, name)),
            _ if !meant.is_empty() && name.contains(meant) => Some((most + 1, name)),
            _ => None,
        })
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().map(|(_, name)| name).take(3).collect()
}

/// Characters to add, take away, change, or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut last = None;
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX - 1);
            let mut best = (at(&row, j) + usize::from(from != *to)).min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            if last == Some(*to) && j > 0 && b.get(j - 1) == Some(&from) {
                best = best.min(at(&before, j - 1) + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
        last = Some(from);
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    #[test]
    fn rules() {
        let long = "n".repeat(200);
        for name in ["web", "worker/9012", "a/9", "9/9", "7a", ".", "a..b", "...", "naïve", "a b", "/x", &long] {
            assert!(check(name).is_ok(), "{name}");
        }
        let too_long = "n".repeat(201);
        for (name, rule) in [
            ("", "empty"),
            (too_long.as_str(), "200 bytes"),
            ("a\nb", "control"),
            ("a\0", "control"),
            ("a\u{85}", "control"),
            ("-a", "dash"),
            ("1234", "digits"),
            ("..", "part .."),
            ("a/../b", "part .."),
            ("a/..", "part .."),
            ("a:b", "colon"),
        ] {
            let error = check(name).unwrap_err();
            assert_eq!(error.code(), "REGISTRY_NAME_INVALID");
            assert!(error.to_string().contains(rule) && !error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn near_names() {
        let names = ["web", "web-2", "worker/1", "worker/2", "db"];
        assert_eq!(near("wbe", names), ["web"]);
        assert_eq!(near("bwe", names), Vec::<&str>::new());
        assert_eq!(near("wen", names), ["web"]);
        assert_eq!(near("worker/3", names), ["worker/1", "worker/2"]);
        assert_eq!(near("worker", names), ["worker/1", "worker/2"]);
        assert_eq!(near("", names), Vec::<&str>::new());
        for (a, b, edits) in
            [("kitten", "sitting", 3), ("ab", "ba", 1), ("", "ab", 2), ("lgos", "logs", 1), ("ca", "abc", 3)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_as_far_as_its_edits(a in "[a-c]{0,12}", b in "[a-c]{0,12}", at in any::<proptest::sample::Index>()) {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &a), 0);
            let mut longer = a.clone();
            longer.insert(at.index(a.len() + 1), 'z');
            prop_assert_eq!(distance(&a, &longer), 1);
        }
    }
}

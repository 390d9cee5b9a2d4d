//! Patterns of glob(7) over bytes, where nothing but a slash matches a slash.

/// Whether a path is left out: `path` is relative to the top of what is packed. A pattern without a slash is compared with
/// the last part of the path, any other one with all of it.
#[must_use]
pub fn excludes(pattern: &[u8], path: &[u8]) -> bool {
    let pattern = pattern.strip_suffix(b"/").unwrap_or(pattern);
    match pattern.strip_prefix(b"/") {
        Some(rooted) => matches(rooted, path),
        None if pattern.contains(&b'/') => matches(pattern, path),
        None => matches(pattern, path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()),
    }
}

/// Whether all of `name` matches `pattern`: `*` is any run of bytes, `?` any byte, `[a-z]` and `[!a-z]` one in or out of a
/// set, `\` takes the next byte as it is. A `[` without its `]` stands for itself. Time is at most the product of the two
/// lengths.
#[must_use]
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on after the latest `*`, should what follows it not match.
    let mut retry = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, n));
            continue;
        }
        if p == pattern.len() && n == name.len() {
            return true;
        }
        let step = name.get(n).and_then(|byte| one(pattern.get(p..).unwrap_or_default(), *byte));
        match (step, retry) {
            (Some(width), _) => (p, n) = (p + width, n + 1),
            (None, Some((after, from))) if name.get(from).is_some_and(|byte| *byte != b'/') => {
                retry = Some((after, from + 1));
                (p, n) = (after, from + 1);
            }
            _ => return false,
        }
        // What a `*` took ends at a slash.
        if n > 0 && name[n - 1] == b'/' && step.is_some() {
            retry = None;
        }
    }
}

/// Width of the pattern's first element if it matches `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => (byte != b'/').then_some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', set @ ..] => match in_set(set, byte) {
            Some((found, width)) => (found && byte != b'/').then_some(1 + width),
            None => (byte == b'[').then_some(1),
        },
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

/// Whether `byte` is in the set after a `[`, and the set's width with its `]`; `None` if it does not end.
fn in_set(set: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(set.first(), Some(b'!' | b'^'));
    let first = usize::from(negated);
    let (mut at, mut found) = (first, false);
    loop {
        match set.get(at..)? {
            [] => return None,
            [b']', ..] if at > first => return Some((found != negated, at + 1)),
            [low, b'-', high, ..] if *high != b']' => {
                found |= (*low..=*high).contains(&byte);
                at += 3;
            }
            [single, ..] => {
                found |= *single == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{excludes, matches};
    use proptest::prelude::{any, prop, proptest};

    /// The same by trying everything.
    fn slow(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => {
                slow(rest, name)
                    || name.split_first().is_some_and(|(first, tail)| *first != b'/' && slow(pattern, tail))
            }
            (_, [first, tail @ ..]) => super::one(pattern, *first).is_some_and(|width| slow(&pattern[width..], tail)),
            (_, []) => false,
        }
    }

    #[test]
    fn table() {
        let yes = [
            ("", ""),
            ("*", ""),
            ("*", "ab"),
            ("*a*b", "xxaxxbxb"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[]x]", "]"),
            ("[", "["),
            ("[a", "[a"),
            ("\\*", "*"),
            ("\\", "\\"),
            ("a/*/c", "a/bb/c"),
            ("*/x", "/x"),
        ];
        for (pattern, name) in yes {
            assert!(matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        let no = [
            ("", "a"),
            ("a", ""),
            ("*a", "ab"),
            ("[a-c]", "d"),
            ("\\*", "a"),
            ("?", ""),
            ("a*b*c", "acb"),
            ("*", "a/b"),
            ("a?c", "a/c"),
            ("a[!x]c", "a/c"),
            ("a[/]c", "a/c"),
            ("*b", "a/b"),
            ("a/*", "a/b/c"),
            ("*/*x", "a/b/x"),
        ];
        for (pattern, name) in no {
            assert!(!matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_without_slash_is_for_a_name_anywhere() {
        let excluded = |pattern: &str, path: &str| excludes(pattern.as_bytes(), path.as_bytes());
        assert!(excluded("*.o", "a/b/c.o") && excluded("target", "x/target") && excluded("target/", "target"));
        assert!(excluded("a/*.o", "a/c.o") && excluded("/c.o", "c.o"));
        assert!(!excluded("a/*.o", "b/a/c.o") && !excluded("/c.o", "a/c.o") && !excluded("a/*.o", "a/b/c.o"));
    }

    proptest! {
        #[test]
        fn it_is_what_trying_everything_finds(pattern in "[*?a/\\[\\]!-]{0,7}", name in "[ab/]{0,7}") {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), slow(pattern.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn any_bytes_will_do(pattern in prop::collection::vec(any::<u8>(), 0..30), name in prop::collection::vec(any::<u8>(), 0..30)) {
            assert_eq!(matches(&pattern, &name), slow(&pattern, &name));
        }
    }
}

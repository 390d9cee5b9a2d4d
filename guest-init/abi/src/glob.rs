//! Patterns of file names over bytes: what [`Tag::Exclude`](crate::open::Tag::Exclude) means on both sides, and what layouts leave out.

/// What a slash in a name is to `*`, `?` and sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slash {
    /// Nothing but a slash matches it: glob(7).
    Apart,
    /// A byte like any other: fnmatch(3) without flags.
    Ordinary,
}

/// Whether a path is left out: `path` is relative to the top of what is packed. A pattern without a slash is compared with
/// the last part of the path, any other one with all of it.
#[must_use]
pub fn excludes(pattern: &[u8], path: &[u8]) -> bool {
    let pattern = pattern.strip_prefix(b"./").unwrap_or(pattern);
    let pattern = pattern.strip_suffix(b"/").unwrap_or(pattern);
    match pattern.strip_prefix(b"/") {
        Some(rooted) => matches(rooted, path, Slash::Apart),
        None if pattern.contains(&b'/') => matches(pattern, path, Slash::Apart),
        None => matches(pattern, path.rsplit(|byte| *byte == b'/').next().unwrap_or_default(), Slash::Apart),
    }
}

/// Whether all of `name` matches `pattern`: `*` is any run of bytes, `?` any byte, `[a-z]` and `[!a-z]` one in or out of a
/// set, `\` takes the next byte as it is. A `[` without its `]` stands for itself. Time is at most the product of the two
/// lengths.
#[must_use]
pub fn matches(pattern: &[u8], name: &[u8], slash: Slash) -> bool {
    let apart = |byte: u8| byte == b'/' && slash == Slash::Apart;
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
        let step = name.get(n).and_then(|byte| one(pattern.get(p..).unwrap_or_default(), *byte, apart(*byte)));
        match (step, retry) {
            (Some(width), _) => (p, n) = (p + width, n + 1),
            (None, Some((after, from))) if name.get(from).is_some_and(|byte| !apart(*byte)) => {
                retry = Some((after, from + 1));
                (p, n) = (after, from + 1);
            }
            _ => return false,
        }
        // What a `*` took ends at a slash.
        if step.is_some() && n > 0 && apart(name[n - 1]) {
            retry = None;
        }
    }
}

/// Width of the pattern's first element if it matches `byte`, which with `apart` only itself does.
fn one(pattern: &[u8], byte: u8, apart: bool) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => (!apart).then_some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', set @ ..] => match in_set(set, byte) {
            Some((found, width)) => (found && !apart).then_some(1 + width),
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
    use super::Slash::{Apart, Ordinary};
    use super::{Slash, excludes, matches};
    use proptest::prelude::{any, prop, proptest};

    /// The same by trying everything.
    fn slow(pattern: &[u8], name: &[u8], slash: Slash) -> bool {
        let apart = |byte: u8| byte == b'/' && slash == Apart;
        match (pattern, name) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => {
                slow(rest, name, slash)
                    || name.split_first().is_some_and(|(first, tail)| !apart(*first) && slow(pattern, tail, slash))
            }
            (_, [first, tail @ ..]) => {
                super::one(pattern, *first, apart(*first)).is_some_and(|width| slow(&pattern[width..], tail, slash))
            }
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
            assert!(matches(pattern.as_bytes(), name.as_bytes(), Apart), "{pattern} {name}");
        }
        let crossing = [("*", "a/b"), ("usr/share/doc/*", "usr/share/doc/x/y"), ("*.pyc", "a/b.pyc"), ("a?c", "a/c")];
        for (pattern, name) in crossing {
            assert!(matches(pattern.as_bytes(), name.as_bytes(), Ordinary), "{pattern} {name}");
            assert!(!matches(pattern.as_bytes(), name.as_bytes(), Apart), "{pattern} {name}");
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
            assert!(!matches(pattern.as_bytes(), name.as_bytes(), Apart), "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_without_slash_is_for_a_name_anywhere() {
        let excluded = |pattern: &str, path: &str| excludes(pattern.as_bytes(), path.as_bytes());
        assert!(excluded("*.o", "a/b/c.o") && excluded("target", "x/target") && excluded("target/", "target"));
        assert!(excluded("a/*.o", "a/c.o") && excluded("/c.o", "c.o") && excluded("./c.o", "a/c.o"));
        assert!(!excluded("a/*.o", "b/a/c.o") && !excluded("/c.o", "a/c.o") && !excluded("a/*.o", "a/b/c.o"));
    }

    proptest! {
        #[test]
        fn it_is_what_trying_everything_finds(pattern in "[*?a/\\[\\]!-]{0,7}", name in "[ab/]{0,7}") {
            for slash in [Apart, Ordinary] {
                let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
                assert_eq!(matches(pattern, name, slash), slow(pattern, name, slash));
            }
        }

        #[test]
        fn any_bytes_will_do(
            pattern in prop::collection::vec(any::<u8>(), 0..30), name in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            for slash in [Apart, Ordinary] {
                assert_eq!(matches(&pattern, &name, slash), slow(&pattern, &name, slash));
            }
        }
    }
}

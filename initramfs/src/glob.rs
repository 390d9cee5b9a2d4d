//! Patterns of `--exclude`: fnmatch(3) over bytes, where `*` also matches `/`.

/// Whether all of `name` matches `pattern`.
///
/// `*` is any run of bytes, `?` any byte, `[a-z]` and `[!a-z]` one byte in or out of a set, `\` takes the next byte as
/// it is. A `[` without its `]` stands for itself. Time is at most the product of the two lengths.
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
        let step = name.get(n).and_then(|&byte| one(pattern.get(p..).unwrap_or_default(), byte));
        match (step, retry) {
            (Some(width), _) => (p, n) = (p + width, n + 1),
            (None, Some((after_star, from))) if from < name.len() => {
                retry = Some((after_star, from + 1));
                (p, n) = (after_star, from + 1);
            }
            _ => return false,
        }
    }
}

/// Width of the pattern's first element if it matches `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (literal == byte).then_some(2),
        [b'[', ref set @ ..] => match set_matches(set, byte) {
            Some((true, width)) => Some(1 + width),
            Some((false, _)) => None,
            None => (byte == b'[').then_some(1),
        },
        [literal, ..] => (literal == byte).then_some(1),
    }
}

/// Whether `byte` is in the set after a `[`, and the set's width with its `]`; `None` if it does not end.
fn set_matches(set: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(set.first(), Some(b'!' | b'^'));
    let first = usize::from(negated);
    let mut at = first;
    let mut found = false;
    loop {
        match *set.get(at..)? {
            [] => return None,
            [b']', ..] if at > first => return Some((found != negated, at + 1)),
            [low, b'-', high, ..] if high != b']' => {
                found |= (low..=high).contains(&byte);
                at += 3;
            }
            [single, ..] => {
                found |= single == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn table() {
        let yes: &[(&str, &str)] = &[
            ("", ""),
            ("*", ""),
            ("*", "a/b"),
            ("usr/share/doc/*", "usr/share/doc/x/y"),
            ("*.pyc", "a/b.pyc"),
            ("*a*b", "xxaxxbxb"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[]x]", "]"),
            ("[", "["),
            ("[a", "[a"),
            ("\\*", "*"),
            ("a?c", "a/c"),
            ("\\", "\\"),
        ];
        for (pattern, name) in yes {
            assert!(matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        let no: &[(&str, &str)] = &[
            ("", "a"),
            ("a", ""),
            ("a", "ab"),
            ("*a", "ab"),
            ("[a-c]", "d"),
            ("[!a-c]", "b"),
            ("\\*", "a"),
            ("?", ""),
            ("a*b*c", "acb"),
        ];
        for (pattern, name) in no {
            assert!(!matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn total(pattern: std::vec::Vec<u8>, name: std::vec::Vec<u8>) {
            matches(&pattern, &name);
            let mut anything = pattern.clone();
            anything.push(b'*');
            if matches(&pattern, &name) {
                proptest::prop_assert!(matches(&anything, &name));
            }
        }
    }
}

//! The command line as text, before any parser sees it.

use std::ffi::OsString;

/// Stands before a word that argh would take for something else. No argument can contain a NUL.
const GUARD: char = '\0';

/// The arguments as UTF-8, in the form for argh; turn each value back with [`plain`].
///
/// A lone `-`, and `help` among other words (a file or machine of that name), are protected, `--name=value` becomes `--name value`,
/// and `-h` `--help`; none after `--`. Fails with the number of the first argument that is not UTF-8, counted from 1, and its
/// readable rest.
pub fn prepare(args: impl IntoIterator<Item = OsString>) -> Result<Vec<String>, (usize, String)> {
    let mut prepared = Vec::new();
    let mut options_ended = false;
    let args: Vec<OsString> = args.into_iter().collect();
    let is_alone = args.len() == 1;
    for (i, arg) in args.into_iter().enumerate() {
        let arg = arg.into_string().map_err(|arg| (i + 1, arg.to_string_lossy().into_owned()))?;
        options_ended |= arg == "--";
        if options_ended {
            prepared.push(arg);
        } else if arg == "-" || arg == "help" && !is_alone {
            prepared.push(format!("{GUARD}{arg}"));
        } else if arg == "-h" {
            prepared.push("--help".to_string());
        } else if let Some((name, value)) = arg.strip_prefix("--").and_then(|a| a.split_once('=')) {
            prepared.extend([format!("--{name}"), value.to_string()]);
        } else {
            prepared.push(arg);
        }
    }
    Ok(prepared)
}

/// A value as it was given.
pub fn plain(value: String) -> String {
    value.strip_prefix(GUARD).map(str::to_owned).unwrap_or(value)
}

/// A message of argh's, as the tools write theirs.
pub fn message(text: &str) -> String {
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(GUARD, "");
    // argh starts its messages with a capital letter.
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn dashes_and_equals() {
        let args = ["-", "--env=A=b", "--cmd", "x=y", "--", "-", "--a=b"];
        let prepared = prepare(args.map(OsString::from)).unwrap();
        let expected = ["\0-", "--env", "A=b", "--cmd", "x=y", "--", "-", "--a=b"];
        assert_eq!(prepared, expected);
        assert_eq!(plain(prepared[0].clone()), "-");
        for (words, expected) in
            [(&["help"][..], &["help"][..]), (&["help", "x:/y"], &["\0help", "x:/y"]), (&["-h"], &["--help"])]
        {
            assert_eq!(prepare(words.iter().map(OsString::from)).unwrap(), expected);
        }
        assert_eq!(
            (plain("\0help".into()), message("Unrecognized\n \0help")),
            ("help".into(), "unrecognized help".into())
        );
    }

    #[test]
    fn bytes_that_are_not_text_are_named() {
        let args = [OsString::from("a"), OsString::from_vec(b"b\xff".to_vec())];
        assert_eq!(prepare(args), Err((2, "b\u{fffd}".to_string())));
    }
}

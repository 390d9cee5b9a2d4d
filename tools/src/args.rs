//! The command line as text, before any parser sees it.

use std::ffi::OsString;

/// Stands for a lone `-` while argh parses, which would take it for an option. No argument can contain a NUL.
const DASH: &str = "\0";

/// The arguments as UTF-8, in the form for argh; turn each value back with [`plain`].
///
/// A lone `-` is protected, `--name=value` becomes `--name value`, and `-h` `--help`; none after `--`. Fails with the number of the first
/// argument that is not UTF-8, counted from 1, and its readable rest.
pub fn prepare(args: impl IntoIterator<Item = OsString>) -> Result<Vec<String>, (usize, String)> {
    let mut prepared = Vec::new();
    let mut options_ended = false;
    for (i, arg) in args.into_iter().enumerate() {
        let arg = arg.into_string().map_err(|arg| (i + 1, arg.to_string_lossy().into_owned()))?;
        options_ended |= arg == "--";
        if options_ended {
            prepared.push(arg);
        } else if arg == "-" {
            prepared.push(DASH.to_string());
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
    if value == DASH { "-".to_string() } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn dashes_and_equals() {
        let args = ["-", "--env=A=b", "--cmd", "x=y", "--", "-", "--a=b"];
        let prepared = prepare(args.map(OsString::from)).unwrap();
        let expected = [DASH, "--env", "A=b", "--cmd", "x=y", "--", "-", "--a=b"];
        assert_eq!(prepared, expected);
        assert_eq!(plain(prepared[0].clone()), "-");
    }

    #[test]
    fn bytes_that_are_not_text_are_named() {
        let args = [OsString::from("a"), OsString::from_vec(b"b\xff".to_vec())];
        assert_eq!(prepare(args), Err((2, "b\u{fffd}".to_string())));
    }
}

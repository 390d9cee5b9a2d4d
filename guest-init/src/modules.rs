//! The list of kernel modules to load, `/machinen-modules`.

use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// One module of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Absolute path of the file.
    pub path: CString,
    /// Parameters as finit_module(2) takes them, separated by spaces; empty when there are none.
    pub parameters: CString,
}

impl Module {
    /// True when the kernel has to decompress the file (`MODULE_INIT_COMPRESSED_FILE`).
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        let path = self.path.to_bytes();
        [b".xz".as_slice(), b".zst", b".gz"].iter().any(|suffix| path.ends_with(suffix))
    }
}

/// A line that names no module.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Line number, from 1.
    pub line: usize,
    /// The line, lossily decoded.
    pub text: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: not an absolute path: {}", self.line, self.text)
    }
}

/// Parses the list: one absolute path a line, then optional parameters; blank lines are skipped.
///
/// # Errors
/// The first line that does not start with an absolute path or contains a NUL.
pub fn parse(list: &[u8]) -> Result<Vec<Module>, BadLine> {
    let mut modules = Vec::new();
    for (index, line) in list.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let bad = || BadLine { line: index + 1, text: String::from_utf8_lossy(line).into_owned() };
        let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
        let (path, parameters) = line.split_at(end);
        if !path.starts_with(b"/") {
            return Err(bad());
        }
        modules.push(Module {
            path: CString::new(path).map_err(|_| bad())?,
            parameters: CString::new(parameters.trim_ascii()).map_err(|_| bad())?,
        });
    }
    Ok(modules)
}

#[cfg(test)]
mod tests {
    use super::parse;
    use proptest::prelude::{any, prop, proptest};

    #[test]
    fn paths_in_order_with_parameters() {
        let modules = parse(b"/m/a.ko\n\n  /m/b.ko.xz  nested=1  debug=\"a b\" \r\n/m/c.ko.zst").unwrap();
        let parts: Vec<_> = modules
            .iter()
            .map(|m| (m.path.to_str().unwrap(), m.parameters.to_str().unwrap(), m.is_compressed()))
            .collect();
        assert_eq!(
            parts,
            [("/m/a.ko", "", false), ("/m/b.ko.xz", "nested=1  debug=\"a b\"", true), ("/m/c.ko.zst", "", true),]
        );
    }

    #[test]
    fn an_empty_list_loads_nothing() {
        assert_eq!(parse(b""), Ok(vec![]));
        assert_eq!(parse(b"\n \n"), Ok(vec![]));
    }

    #[test]
    fn a_relative_path_and_a_nul_are_named_with_their_line() {
        let bad = parse(b"/a.ko\nb.ko x=1\n").unwrap_err();
        assert_eq!(bad.to_string(), "line 2: not an absolute path: b.ko x=1");
        assert_eq!(parse(b"/a\0b.ko").unwrap_err().line, 1);
        assert_eq!(parse(b"/a.ko x=\0").unwrap_err().line, 1);
    }

    proptest! {
        #[test]
        fn any_list_parses_to_absolute_paths_or_is_refused(list in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(modules) = parse(&list) {
                assert!(modules.iter().all(|module| module.path.to_bytes().starts_with(b"/")));
            }
        }
    }
}

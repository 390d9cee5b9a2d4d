//! The directories of the host that the configuration of this boot names.

use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::{Map, Value};

use crate::config::{Refusal, c_string};
use crate::disks::mount_point;

/// A directory of the host, to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The device's name for it.
    pub tag: CString,
    /// Where it appears: absolute, below `/`, without a slash at the end.
    pub path: CString,
    /// Nothing is written to it.
    pub read_only: bool,
}

/// Reads `"shares": [{"tag": text, "path": path, "readOnly": bool}, …]`; the key may be absent, and so may `readOnly`. Other
/// keys are ignored.
///
/// # Errors
/// [`Refusal`] for anything else.
pub fn parse(config: &Map<String, Value>) -> Result<Vec<Share>, Refusal> {
    const WANTED: Refusal = Refusal::Type("shares", "an array of objects");
    let Some(shares) = config.get("shares") else { return Ok(Vec::new()) };
    shares.as_array().ok_or(WANTED)?.iter().map(|share| self::share(share.as_object().ok_or(WANTED)?)).collect()
}

fn share(share: &Map<String, Value>) -> Result<Share, Refusal> {
    let tag = share.get("tag").and_then(Value::as_str).filter(|tag| !tag.is_empty());
    let read_only = match share.get("readOnly") {
        None => false,
        Some(read_only) => read_only.as_bool().ok_or(Refusal::Type("shares: readOnly", "true or false"))?,
    };
    Ok(Share {
        tag: c_string(tag.ok_or(Refusal::Type("shares: tag", "a text"))?, "shares: tag")?,
        path: mount_point(share.get("path"), "shares: path")?,
        read_only,
    })
}

#[cfg(test)]
mod tests {
    use super::Share;
    use crate::config::Config;

    #[test]
    fn shares_are_read() {
        let json = br#"{"shares": [{"tag": "share0", "path": "/work/", "readOnly": true, "later": 1}, {"tag": "b", "path": "/a/b c"}]}"#;
        let shares = Config::parse(json).unwrap().shares().unwrap();
        let share = |tag: &std::ffi::CStr, path: &std::ffi::CStr, read_only| Share {
            tag: tag.into(),
            path: path.into(),
            read_only,
        };
        assert_eq!(shares, [share(c"share0", c"/work", true), share(c"b", c"/a/b c", false)]);
        assert!(Config::parse(b"{}").unwrap().shares().unwrap().is_empty());
        // An image cannot know its machines' directories.
        assert!(Config::parse(b"{}").unwrap().over(Config::parse(json).unwrap()).shares().unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            (r#"{"shares":{}}"#, "shares: not an array of objects"),
            (r#"{"shares":[1]}"#, "shares: not an array of objects"),
            (r#"{"shares":[{"path":"/a"}]}"#, "shares: tag: not a text"),
            (r#"{"shares":[{"tag":"","path":"/a"}]}"#, "shares: tag: not a text"),
            (r#"{"shares":[{"tag":"a\u0000","path":"/a"}]}"#, "shares: tag: contains a NUL character"),
            (r#"{"shares":[{"tag":"a"}]}"#, "shares: path: not a string"),
            (r#"{"shares":[{"tag":"a","path":"/"}]}"#, r#"shares: path: not a plain absolute path below /: "/""#),
            (
                r#"{"shares":[{"tag":"a","path":"/a/../b"}]}"#,
                r#"shares: path: not a plain absolute path below /: "/a/../b""#,
            ),
            (r#"{"shares":[{"tag":"a","path":"/a","readOnly":1}]}"#, "shares: readOnly: not true or false"),
        ];
        for (json, why) in table {
            assert_eq!(Config::parse(json.as_bytes()).unwrap().shares().unwrap_err().to_string(), why, "{json}");
        }
    }
}

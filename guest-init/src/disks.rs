//! The disks that the configuration of this boot names: the root, and overlays.

use alloc::borrow::ToOwned;
use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::{Map, Value};

use crate::config::{Refusal, c_string};

/// What to mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disks {
    /// The root file system; `None` when the initramfs is it.
    pub root: Option<Root>,
    /// Overlays, in the order to mount them.
    pub mounts: Vec<Overlay>,
}

/// A root disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Path of the device: an ext4 file system.
    pub device: CString,
    /// Nothing is ever written to it.
    pub read_only: bool,
}

/// Two disks that appear as one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Path of the device of a squashfs: what is there at first.
    pub lower: CString,
    /// Path of the device of an ext4 file system: what is written.
    pub upper: CString,
    /// Where they appear: absolute, below `/`, without a slash at the end.
    pub at: CString,
}

/// Reads `"root": {"device": path, "ro": bool}` and `"mounts": [{"lower": path, "upper": path, "at": path}, …]`; both
/// may be absent, and so may `ro`. Other keys are ignored.
///
/// # Errors
/// [`Refusal`] for anything else.
pub fn parse(config: &Map<String, Value>) -> Result<Disks, Refusal> {
    const WANTED: Refusal = Refusal::Type("mounts", "an array of objects");
    let mounts = match config.get("mounts") {
        None => Vec::new(),
        Some(mounts) => mounts.as_array().ok_or(WANTED)?.iter().map(overlay).collect::<Result<_, _>>()?,
    };
    Ok(Disks { root: config.get("root").map(root).transpose()?, mounts })
}

fn root(value: &Value) -> Result<Root, Refusal> {
    let root = value.as_object().ok_or(Refusal::Type("root", "an object"))?;
    let read_only = match root.get("ro") {
        None => false,
        Some(ro) => ro.as_bool().ok_or(Refusal::Type("root: ro", "true or false"))?,
    };
    Ok(Root { device: device(root, "device", "root: device")?, read_only })
}

fn overlay(value: &Value) -> Result<Overlay, Refusal> {
    let mount = value.as_object().ok_or(Refusal::Type("mounts", "an array of objects"))?;
    Ok(Overlay {
        lower: device(mount, "lower", "mounts: lower")?,
        upper: device(mount, "upper", "mounts: upper")?,
        at: mount_point(mount.get("at"), "mounts: at")?,
    })
}

fn device(object: &Map<String, Value>, key: &str, part: &'static str) -> Result<CString, Refusal> {
    let path = object.get(key).and_then(Value::as_str).ok_or(Refusal::Type(part, "a string"))?;
    match path.strip_prefix("/dev/") {
        Some(name) if is_plain(name) => c_string(path, part),
        _ => Err(Refusal::Device(part, path.to_owned())),
    }
}

/// The absolute path below `/` that `part` of the configuration is.
pub(crate) fn mount_point(at: Option<&Value>, part: &'static str) -> Result<CString, Refusal> {
    let at = at.and_then(Value::as_str).ok_or(Refusal::Type(part, "a string"))?;
    let path = at.strip_suffix('/').unwrap_or(at);
    match path.strip_prefix('/') {
        Some(names) if is_plain(names) => c_string(path, part),
        _ => Err(Refusal::MountPoint(part, at.to_owned())),
    }
}

/// Names between single slashes, none of which means another place.
fn is_plain(names: &str) -> bool {
    names.split('/').all(|name| !["", ".", ".."].contains(&name))
}

#[cfg(test)]
mod tests {
    use super::Overlay;
    use crate::config::Config;
    use proptest::prelude::{prop, proptest};

    fn refusal(json: &str) -> String {
        Config::parse(json.as_bytes()).unwrap().disks().unwrap_err().to_string()
    }

    #[test]
    fn a_root_and_overlays_are_read() {
        let json = br#"{"root": {"device": "/dev/vda", "ro": true, "later": 1},
            "mounts": [{"lower": "/dev/vdb", "upper": "/dev/vdc", "at": "/work/"}, {"lower": "/dev/vdd", "upper": "/dev/vde", "at": "/a/b c"}]}"#;
        let disks = Config::parse(json).unwrap().disks().unwrap();
        let root = disks.root.unwrap();
        assert_eq!((root.device.as_c_str(), root.read_only), (c"/dev/vda", true));
        let overlay = |lower: &std::ffi::CStr, upper: &std::ffi::CStr, at: &std::ffi::CStr| Overlay {
            lower: lower.into(),
            upper: upper.into(),
            at: at.into(),
        };
        let expected = [overlay(c"/dev/vdb", c"/dev/vdc", c"/work"), overlay(c"/dev/vdd", c"/dev/vde", c"/a/b c")];
        assert_eq!(disks.mounts, expected);
    }

    #[test]
    fn without_the_keys_there_are_no_disks() {
        let disks = Config::parse(br#"{"cmd":["x"]}"#).unwrap().disks().unwrap();
        assert!(disks.root.is_none() && disks.mounts.is_empty());
        let disks = Config::parse(br#"{"root":{"device":"/dev/vda"},"mounts":[]}"#).unwrap().disks().unwrap();
        assert!(!disks.root.unwrap().read_only && disks.mounts.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            (r#"{"root":"/dev/vda"}"#, "root: not an object"),
            (r#"{"root":null}"#, "root: not an object"),
            (r#"{"root":{}}"#, "root: device: not a string"),
            (r#"{"root":{"device":"vda"}}"#, r#"root: device: not a device under /dev: "vda""#),
            (r#"{"root":{"device":"/dev/"}}"#, r#"root: device: not a device under /dev: "/dev/""#),
            (r#"{"root":{"device":"/dev/../x"}}"#, r#"root: device: not a device under /dev: "/dev/../x""#),
            (r#"{"root":{"device":"/dev/a\u0000"}}"#, "root: device: contains a NUL character"),
            (r#"{"root":{"device":"/dev/vda","ro":"yes"}}"#, "root: ro: not true or false"),
            (r#"{"mounts":{}}"#, "mounts: not an array of objects"),
            (r#"{"mounts":[1]}"#, "mounts: not an array of objects"),
            (r#"{"mounts":[{"lower":"/dev/a"}]}"#, "mounts: upper: not a string"),
            (r#"{"mounts":[{"lower":"/dev/a","upper":"/dev/b"}]}"#, "mounts: at: not a string"),
        ];
        for (json, why) in table {
            assert_eq!(refusal(json), why, "{json}");
        }
        for at in ["", "/", "//", "work", "/a//b", "/a/../b", "/./a"] {
            let json = format!(r#"{{"mounts":[{{"lower":"/dev/a","upper":"/dev/b","at":"{at}"}}]}}"#);
            assert_eq!(refusal(&json), format!("mounts: at: not a plain absolute path below /: {at:?}"));
        }
    }

    proptest! {
        #[test]
        fn a_mount_point_that_is_taken_stays_below_the_root(at in "[/a.]{0,8}") {
            let json = serde_json::json!({ "mounts": [{ "lower": "/dev/a", "upper": "/dev/b", "at": at }] }).to_string();
            if let Ok(disks) = Config::parse(json.as_bytes()).unwrap().disks() {
                let path = std::path::Path::new(disks.mounts[0].at.to_str().unwrap());
                let names = path.components().skip(1).all(|part| matches!(part, std::path::Component::Normal(_)));
                assert!(path.is_absolute() && path.components().count() > 1 && names, "{at}");
            }
        }

        #[test]
        fn any_shape_is_read_or_refused(root in "[\\[\\]{}:,\"a-z/0-9]{0,40}", pick in prop::bool::ANY) {
            let key = if pick { "root" } else { "mounts" };
            if let Ok(config) = Config::parse(format!("{{\"{key}\":{root}}}").as_bytes()) {
                let _ = config.disks();
            }
        }
    }
}

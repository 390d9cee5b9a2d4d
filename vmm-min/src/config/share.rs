//! Directories of the host that the guest can mount.

use crate::error::{Error, Result};

/// Each is a device, and needs an interrupt line.
const MOST_SHARES: usize = 6;
/// As long as the device can show it (virtio 1.2, 5.11.4).
const MOST_TAG_BYTES: usize = 36;

/// A directory and its name in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareConfig {
    /// What the guest mounts it by.
    pub tag: String,
    /// Path of the directory. `None`: it is not there yet, and mounts fail.
    pub directory: Option<String>,
    /// The guest cannot change it.
    pub read_only: bool,
}

impl ShareConfig {
    /// Reads values of `--share`.
    ///
    /// Errors: `SHARE_INVALID`.
    pub fn parse_all(texts: &[String]) -> Result<Vec<ShareConfig>> {
        let shares = texts.iter().map(|text| ShareConfig::parse(text)).collect::<Result<Vec<_>>>()?;
        if shares.len() > MOST_SHARES {
            let message = format!("{} shares: at most {MOST_SHARES} are possible", shares.len());
            return Err(Error::usage("SHARE_INVALID", message, ""));
        }
        let twice =
            |(index, share): &(usize, &ShareConfig)| shares[..*index].iter().any(|other| other.tag == share.tag);
        match shares.iter().enumerate().find(twice) {
            Some((_, share)) => {
                let message = format!("two shares with the tag {}", share.tag);
                Err(Error::usage("SHARE_INVALID", message, "give each a tag of its own"))
            }
            None => Ok(shares),
        }
    }

    /// Reads `TAG=DIR`, `TAG=DIR:ro`, `TAG=DIR:rw` or `TAG=`.
    fn parse(text: &str) -> Result<ShareConfig> {
        let invalid = |why: &str| {
            Error::usage("SHARE_INVALID", format!("share {text:?}: {why}"), "--share TAG=DIR[:ro], or TAG= without one")
        };
        let (tag, place) = text.split_once('=').ok_or_else(|| invalid("no tag"))?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if tag.is_empty() || tag.len() > MOST_TAG_BYTES || !tag.bytes().all(plain) {
            return Err(invalid("its tag is not 1 to 36 letters, digits, dots, dashes and underscores"));
        }
        let forms = [(":ro", true), (":rw", false)];
        let (directory, read_only) = forms
            .into_iter()
            .find_map(|(suffix, read_only)| Some((place.strip_suffix(suffix)?, read_only)))
            .unwrap_or((place, false));
        if directory.contains(',') {
            return Err(invalid("a comma separates shares in MACHINEN_SHARE"));
        }
        if directory.is_empty() && directory != place {
            return Err(invalid("no directory to be read-only or not"));
        }
        let directory = Some(directory.to_string()).filter(|directory| !directory.is_empty());
        Ok(ShareConfig { tag: tag.into(), directory, read_only })
    }

    /// As it was given.
    pub fn to_text(&self) -> String {
        let directory = self.directory.as_deref().unwrap_or_default();
        // In full where a name ends like a form.
        let suffix = match self.read_only {
            true => ":ro",
            false if directory.ends_with(":ro") || directory.ends_with(":rw") => ":rw",
            false => "",
        };
        format!("{}={directory}{suffix}", self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Request;
    use super::super::tests::{code, config, parse_with};
    use super::*;

    #[test]
    fn shares_have_forms() {
        let share = |tag: &str, directory: Option<&str>, read_only| ShareConfig {
            tag: tag.into(),
            directory: directory.map(Into::into),
            read_only,
        };
        let env = config(&["--kernel", "k"], &[("MACHINEN_SHARE", "a=/x,b=y:ro,c=,d=z=1:rw,e=v:ro:rw")]);
        let expected = [
            share("a", Some("/x"), false),
            share("b", Some("y"), true),
            share("c", None, false),
            share("d", Some("z=1"), false),
            share("e", Some("v:ro"), false),
        ];
        assert_eq!(env.shares, expected);
        let flags = config(&["--kernel", "k", "--share=t=/d", "--share", "u="], &[("MACHINEN_SHARE", "a=b")]);
        assert_eq!(flags.shares, [share("t", Some("/d"), false), share("u", None, false)]);
        let printed = parse_with(&["-m", "64", "--share", "a=/x:rw", "--share", "e=v:ro:rw", "--print-env"], &[]);
        let text = "MACHINEN_MEMORY=64\nMACHINEN_SHARE=a=/x,e=v:ro:rw\n";
        assert_eq!(printed.expect("valid"), Request::Print(text.into()));
    }

    #[test]
    fn what_is_no_share_is_refused() {
        let long = format!("{}=/d", "t".repeat(37));
        for bad in ["", "/d", "=/d", "a/b=/d", "a=:ro", "a=/d,b", "ä=/d", &long] {
            assert_eq!(code(&["--kernel", "k", "--share", bad], &[]), "SHARE_INVALID", "{bad}");
        }
        assert_eq!(code(&["--kernel", "k", "--share", "a=/b", "--share", "a=/c"], &[]), "SHARE_INVALID");
        let all = ["a=", "b=", "c=", "d=", "e=", "f=", "g="].join(",");
        assert_eq!(code(&["--kernel", "k"], &[("MACHINEN_SHARE", &all)]), "SHARE_INVALID");
    }
}

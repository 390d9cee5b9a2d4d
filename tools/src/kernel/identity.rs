//! Which kernel a file is: what tells it from others without reading all of it, and what it says of itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::config::Config;
use super::features::find;
use super::input::{self, Content};
use crate::imagecache::hex;

/// Parts of the file that are looked at, and bytes of each.
const SAMPLES: u64 = 64;
const SAMPLE_BYTES: u16 = 512;
/// What the name and time of a build come after.
const BANNER: &[u8] = b"Linux version ";
/// No banner is longer.
const MOST_BANNER_BYTES: usize = 1024;

/// A code of the file's length and of samples of it, the same wherever it lies; two builds of a kernel have two. `None`: it cannot be
/// read, which whoever starts it will say.
pub(crate) fn identity(path: &Path) -> Option<String> {
    let read = || {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut hash = Sha256::new().chain_update(bytes.to_le_bytes());
        let mut sample = [0; SAMPLE_BYTES as usize];
        let room = bytes.saturating_sub(SAMPLE_BYTES.into());
        for number in 0..SAMPLES {
            let count = file.read_at(&mut sample, room.saturating_mul(number) / (SAMPLES - 1))?;
            hash.update(&sample[..count]);
        }
        Ok::<_, io::Error>(hex(&hash.finalize()[..16]))
    };
    read().ok()
}

/// What a kernel says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Release and version, as uname(2) has them in it.
    pub version: Option<String>,
    /// Options of its configuration that CRIU needs and it lacks; `None` where it does not say.
    pub criu_lacks: Option<Vec<&'static str>>,
}

/// Reads all of it, which takes a moment.
pub(crate) fn facts(path: &Path) -> Facts {
    let Some(name) = path.to_str() else { return Facts::default() };
    let version = match input::read(name).and_then(|bytes| input::open(name, bytes)) {
        Ok(Content::Elf(bytes) | Content::Image(bytes)) => version(&bytes),
        _ => None,
    };
    let config = input::config(name).ok().map(|text| Config::parse(&text));
    let criu_lacks = config.and_then(|config| Some(find("criu")?.support(&config).missing));
    Facts { version, criu_lacks }
}

/// `RELEASE #NUMBER …` out of `Linux version RELEASE (who) (how) #NUMBER …`.
fn version(kernel: &[u8]) -> Option<String> {
    let starts = kernel.iter().enumerate().filter(|(_, byte)| **byte == b'L').map(|(at, _)| at);
    let banners = starts.filter_map(|at| kernel.get(at..)?.strip_prefix(BANNER));
    let mut versions = banners.filter_map(|banner| {
        let banner = banner.get(..banner.len().min(MOST_BANNER_BYTES))?;
        let line = banner.split(|byte| [b'\n', 0].contains(byte)).next()?;
        let line = std::str::from_utf8(line).ok()?;
        let release = line.split(' ').next().filter(|release| release.starts_with(|c: char| c.is_ascii_digit()))?;
        let (_, build) = line.rsplit_once(" #").filter(|(_, build)| build.starts_with(|c: char| c.is_ascii_digit()))?;
        Some(format!("{release} #{build}"))
    });
    versions.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_its_content() {
        let dir = std::env::temp_dir().join(format!("machinen-identity-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let of = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.join(name), bytes).unwrap();
            identity(&dir.join(name)).unwrap()
        };
        let mut bytes = vec![7; 100_000];
        let first = of("a", &bytes);
        assert_eq!((of("b", &bytes), first.len()), (first.clone(), 32));
        assert_ne!(of("c", &bytes[1..]), first);
        bytes[99_999] = 8;
        assert_ne!(of("c", &bytes), first);
        assert_ne!(of("c", b""), of("d", b"x"));
        assert_eq!(identity(&dir.join("none")), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_version_is_that_of_uname() {
        let kernel = b"Linux version %s\0LLinux version 6.1 (a@b) (gcc) # SMP\n\0\xffLinux version 6.12.1-x (a@b) (gcc #3) #1 SMP Debian 2\n\0rest";
        assert_eq!(version(kernel).as_deref(), Some("6.12.1-x #1 SMP Debian 2"));
        assert_eq!((version(b"Linux version "), version(b"Linux version 6")), (None, None));
        assert_eq!(facts(Path::new("/nowhere")), Facts::default());
    }
}

//! Whether a bundle was made by this user, here: a code over what it names of the host, by a key that nobody else has.
//!
//! A bundle says which directories its machine is to share. One from somebody else could name any of this user's; one that was
//! given away and came back may hold other processes, so the code is of the directory's inode, too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::imagecache::{self, hex};

/// Its name in the cache.
const NAME: &str = "bundle.key";
/// Bytes of a key, and of a block of the hash (FIPS 180-4).
const KEY_BYTES: usize = 32;
const BLOCK_BYTES: usize = 64;

/// A user's key.
#[derive(Debug)]
pub(crate) struct Key(pub(super) [u8; KEY_BYTES]);

impl Key {
    /// That of this user, made when there is none yet. `None` where it cannot be kept: then no bundle is known as theirs.
    pub fn of_user() -> Option<Key> {
        let cache = imagecache::directory()?;
        Key::read(&cache).or_else(|_| Key::make(&cache).and_then(|()| Key::read(&cache))).ok()
    }

    fn read(cache: &Path) -> io::Result<Key> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or(0);
        let mut file = OpenOptions::new().read(true).custom_flags(flags).open(cache.join(NAME))?;
        let found = file.metadata()?;
        if !found.is_file() || !is_own(&found) || found.mode() & 0o077 != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut key = [0; KEY_BYTES];
        file.read_exact(&mut key)?;
        Ok(Key(key))
    }

    /// Whole under its name, or not there; the first of two makers wins.
    fn make(cache: &Path) -> io::Result<()> {
        fs::create_dir_all(cache)?;
        let mut key = [0; KEY_BYTES];
        getrandom(&mut key, GetRandomFlags::empty())?;
        let temporary = cache.join(format!(".{NAME}-{}", std::process::id()));
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(&key)?;
            match fs::hard_link(&temporary, cache.join(NAME)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => Ok(()),
            }
        };
        let made = write();
        let _ = fs::remove_file(&temporary);
        made
    }

    /// The code for the bundle that is open as `dir`, with what its `meta.json` says.
    pub fn seal(&self, dir: &File, meta: &Value) -> io::Result<String> {
        let what = json!([dir.metadata()?.ino(), meta["image"], meta["mounts"], meta["shares"]]).to_string();
        Ok(hex(&self.hmac(what.as_bytes())))
    }

    /// RFC 2104.
    fn hmac(&self, bytes: &[u8]) -> [u8; 32] {
        let pad = |with: u8| {
            let mut block = [with; BLOCK_BYTES];
            block.iter_mut().zip(self.0).for_each(|(byte, key)| *byte ^= key);
            block
        };
        let inner = Sha256::new().chain_update(pad(0x36)).chain_update(bytes).finalize();
        Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
    }
}

/// It belongs to this user, and nobody else writes to it.
pub(crate) fn is_own(found: &fs::Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_is_secret() {
        let cache = std::env::temp_dir().join(format!("machinen-seal-{}", std::process::id()));
        Key::make(&cache).unwrap();
        let key = Key::read(&cache).unwrap().0;
        Key::make(&cache).unwrap();
        assert_eq!(Key::read(&cache).unwrap().0, key);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
        fs::set_permissions(cache.join(NAME), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Key::read(&cache).is_err());
        fs::remove_dir_all(&cache).unwrap();
    }

    #[test]
    fn codes_are_those_of_the_specification() {
        let mut key = [0; KEY_BYTES];
        key[..4].copy_from_slice(b"Jefe");
        // A shorter key is one with zeros at its end: RFC 4231, 4.3.
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(&Key(key).hmac(b"what do ya want for nothing?")), expected);
    }

    #[test]
    fn a_code_is_of_one_directory_and_what_it_names() {
        let key = Key([7; KEY_BYTES]);
        let open = |path: &str| File::open(path).unwrap();
        let meta = json!({"image": "i", "mounts": ["/a:/b"], "shares": ["/c:/d"], "source": "x"});
        let code = key.seal(&open("/"), &meta).unwrap();
        for (name, value) in [("image", json!("j")), ("mounts", json!([])), ("shares", json!(["/c:/d:ro"]))] {
            let mut other = meta.clone();
            other[name] = value;
            assert_ne!(key.seal(&open("/"), &other).unwrap(), code, "{name}");
        }
        assert_ne!(key.seal(&open("/proc/self"), &meta).unwrap(), code);
        assert_ne!(Key([8; KEY_BYTES]).seal(&open("/"), &meta).unwrap(), code);
    }
}

//! Archives that are good, and archives that want out.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use rustix::fs::{CWD, openat};
use tar::{Builder, Header};

use super::*;
use crate::cp::pack::pack;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("machinen-unpack-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("in")).unwrap();
        Dir(path)
    }

    fn unpack(&self, archive: &[u8]) -> Result<bool> {
        let inside = self.0.join("in");
        let root = openat(CWD, &inside, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        unpack(archive, &root, &inside)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An archive of raw entries: name, type, content or link's target.
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = Header::new_ustar();
        // Not by set_path, which refuses what is tested here.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        let body: &[u8] = if is_link { b"" } else { content.as_bytes() };
        header.set_size(body.len() as u64);
        header.set_cksum();
        builder.append(&header, body).unwrap();
    }
    builder.into_inner().unwrap()
}

use EntryType::{Directory, Link, Regular, Symlink};

#[test]
fn a_tree_comes_back_as_it_was() {
    let dir = Dir::new("tree");
    let source = dir.0.join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("sub/file"), [0, 255, b'\n']).unwrap();
    fs::set_permissions(source.join("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(source.join("sub/file"), source.join("sub/second")).unwrap();
    symlink("/nowhere/at/all", source.join("link")).unwrap();
    fs::write(source.join("skipped.o"), "x").unwrap();
    let long = "n".repeat(150);
    fs::write(source.join(&long), "long").unwrap();
    fs::set_permissions(source.join("sub"), fs::Permissions::from_mode(0o555)).unwrap();
    let mut bytes = Vec::new();
    assert!(pack(&source, Path::new("top"), &["*.o".to_string()], &mut bytes).unwrap());
    assert!(dir.unpack(&bytes).unwrap());
    let top = dir.0.join("in/top");
    let found = fs::metadata(top.join("sub/file")).unwrap();
    assert_eq!((fs::read(top.join("sub/file")).unwrap(), found.mode() & 0o7777), (vec![0, 255, b'\n'], 0o640));
    assert_eq!(found.ino(), fs::metadata(top.join("sub/second")).unwrap().ino());
    assert_eq!(found.mtime(), fs::metadata(source.join("sub/file")).unwrap().mtime());
    assert_eq!(fs::read_link(top.join("link")).unwrap(), Path::new("/nowhere/at/all"));
    assert_eq!(fs::metadata(top.join("sub")).unwrap().mode() & 0o777, 0o555);
    assert_eq!(fs::read(top.join(long)).unwrap(), b"long");
    assert!(!top.join("skipped.o").exists());
    // Once more, over what is there.
    fs::set_permissions(top.join("sub"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(dir.unpack(&bytes).unwrap());
    for sub in [top.join("sub"), source.join("sub")] {
        fs::set_permissions(sub, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn nothing_is_written_outside() {
    let evil: [&[(&str, EntryType, &str)]; 6] = [
        &[("../out", Regular, "x")],
        &[("/tmp/machinen-out", Regular, "x")],
        &[("a/../../out", Regular, "x")],
        &[("s", Symlink, ".."), ("s/out", Regular, "x")],
        &[("s", Symlink, ".."), ("s", Directory, ""), ("s/out", Regular, "x")],
        &[("h", Link, "../secret")],
    ];
    for (number, entries) in evil.iter().enumerate() {
        let dir = Dir::new(&format!("evil{number}"));
        fs::write(dir.0.join("secret"), "secret").unwrap();
        let error = dir.unpack(&archive(entries)).unwrap_err();
        assert_eq!(error.code(), "COPY_ESCAPE", "{entries:?}");
        assert!(!dir.0.join("out").exists() && !Path::new("/tmp/machinen-out").exists(), "{entries:?}");
    }
}

#[test]
fn a_symlink_in_a_files_place_is_replaced_and_not_followed() {
    let dir = Dir::new("replace");
    fs::write(dir.0.join("secret"), "secret").unwrap();
    symlink("../secret", dir.0.join("in/f")).unwrap();
    assert!(dir.unpack(&archive(&[("f", Regular, "new")])).unwrap());
    assert_eq!(fs::read(dir.0.join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read(dir.0.join("in/f")).unwrap(), b"new");
    // A hard link to a symlink is one to the symlink.
    let twice = archive(&[("s", Symlink, "../secret"), ("h", Link, "s"), ("h", Regular, "new")]);
    assert!(dir.unpack(&twice).unwrap());
    assert_eq!(fs::read(dir.0.join("secret")).unwrap(), b"secret");
    // A directory is not replaced by a file.
    fs::create_dir(dir.0.join("in/d")).unwrap();
    assert_eq!(dir.unpack(&archive(&[("d", Regular, "x")])).unwrap_err().code(), "COPY_WRITE");
}

#[test]
fn an_archive_that_is_cut_is_told() {
    let whole = archive(&[("f", Regular, "content")]);
    for end in [100, 513, 516] {
        let dir = Dir::new("cut");
        assert!(!dir.unpack(&whole[..end]).unwrap(), "{end}");
    }
}

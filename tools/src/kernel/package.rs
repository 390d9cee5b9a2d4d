//! A kernel package: modules, the list of what is built in, the kernel itself. From a directory or a Debian package.
//!
//! Source of the package format: deb(5) (an ar archive with a tar of the files in it).

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use machinen_initramfs::error::show_path;

use super::modinfo::module_name;
use super::{broken, failed};
use crate::diagnostic::Diagnostic;

/// A package whose files are more than this is not read to its end.
const MOST_BYTES: u64 = 4 << 30;
const XZ_MEMORY_KIB: u32 = 256 << 10;
/// Modules lie at most this deep below their directory.
const MOST_DEPTH: u32 = 16;

/// A file of the package.
#[derive(Debug)]
pub enum Body {
    /// On the host.
    Path(PathBuf),
    /// Out of an archive.
    Bytes(Vec<u8>),
}

impl Body {
    /// Its content.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Body::Path(path) => fs::read(path),
            Body::Bytes(bytes) => Ok(bytes.clone()),
        }
    }
}

/// What of a package matters here.
#[derive(Debug, Default)]
pub struct Package {
    /// The package as the user named it, for messages.
    pub name: String,
    /// Module name (with underscores) → its file, perhaps compressed.
    pub modules: BTreeMap<String, Body>,
    /// Names of the modules that are built in.
    pub builtin: HashSet<String>,
    /// `boot/vmlinuz-VERSION`: the version and the file.
    pub kernel: Option<(String, Body)>,
}

impl Package {
    /// Reads `path`: a `.deb`; an unpacked package; or the modules' directory of an installed kernel. Errors:
    /// `KERNEL_HOST`, `KERNEL_BROKEN`, `KERNEL_NO_MODULES`.
    pub fn open(path: &Path) -> Result<Package, Diagnostic> {
        let mut package = Package { name: show_path(path), ..Package::default() };
        let found = fs::metadata(path).map_err(failed("open", path))?;
        if found.is_dir() {
            let base = modules_dir(path)?;
            package.walk(&base, 0)?;
            package.find_kernel(&path.join("boot"))?;
        } else {
            let bytes = super::input::read(&path.to_string_lossy())?;
            let data = member(&bytes, "data.tar").ok_or_else(|| {
                Diagnostic::new("KERNEL_BROKEN", format!("{}: not a Debian package", package.name))
                    .hint("give a .deb or a directory such as /lib/modules/VERSION")
            })?;
            let name = package.name.clone();
            package.unpack(data).map_err(|cause| broken(&name, format_args!("does not unpack: {cause}")))?;
        }
        if package.modules.is_empty() && package.builtin.is_empty() {
            return Err(Diagnostic::new("KERNEL_NO_MODULES", format!("{}: there are no kernel modules", package.name))
                .hint("give a linux-image package (not a metapackage) or /lib/modules/VERSION"));
        }
        Ok(package)
    }

    fn walk(&mut self, dir: &Path, depth: u32) -> Result<(), Diagnostic> {
        if depth > MOST_DEPTH {
            return Err(broken(&show_path(dir), "the directories are too deep"));
        }
        for item in fs::read_dir(dir).map_err(failed("list", dir))? {
            let item = item.map_err(failed("list", dir))?;
            let kind = item.file_type().map_err(failed("list", dir))?;
            if kind.is_dir() {
                self.walk(&item.path(), depth + 1)?;
            } else if kind.is_file() {
                self.take(&item.path().to_string_lossy(), |path| Ok(Body::Path(path.into())))
                    .map_err(failed("read", &item.path()))?;
            }
        }
        Ok(())
    }

    fn find_kernel(&mut self, boot: &Path) -> Result<(), Diagnostic> {
        let Ok(items) = fs::read_dir(boot) else { return Ok(()) };
        for item in items {
            let path = item.map_err(failed("list", boot))?.path();
            self.take(&path.to_string_lossy(), |path| Ok(Body::Path(path.into()))).map_err(failed("read", &path))?;
        }
        Ok(())
    }

    fn unpack(&mut self, (name, data): (&str, &[u8])) -> io::Result<()> {
        let reader: Box<dyn Read + '_> = match name.rsplit('.').next() {
            Some("tar") => Box::new(data),
            Some("xz") => Box::new(lzma_rust2::XzReader::new_mem_limit(data, true, XZ_MEMORY_KIB)),
            Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(data)),
            Some("zst") => Box::new(ruzstd::decoding::StreamingDecoder::new(data).map_err(io::Error::other)?),
            _ => return Err(io::Error::other(format!("{name} is compressed by none of gzip, xz and zstd"))),
        };
        for entry in tar::Archive::new(reader.take(MOST_BYTES)).entries()? {
            let mut entry = entry?;
            if entry.header().entry_type().is_file() {
                let path = entry.path()?.to_string_lossy().into_owned();
                self.take(&path, |_| {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes)?;
                    Ok(Body::Bytes(bytes))
                })?;
            }
        }
        Ok(())
    }

    /// Keeps the file at `path` if it matters.
    fn take(&mut self, path: &str, body: impl FnOnce(&str) -> io::Result<Body>) -> io::Result<()> {
        let name = path.rsplit('/').next().unwrap_or_default();
        if let Some(module) = module_name(name).filter(|name| is_safe(name)) {
            self.modules.insert(module, body(path)?);
        } else if name == "modules.builtin" {
            let list = body(path)?.read()?;
            self.builtin.extend(String::from_utf8_lossy(&list).lines().filter_map(module_name));
        } else if let Some(version) = name.strip_prefix("vmlinuz-").filter(|version| is_safe(version)) {
            self.kernel = Some((version.to_string(), body(path)?));
        }
        Ok(())
    }
}

/// A name that can be one of a file: letters, digits, `_-+.~`.
fn is_safe(name: &str) -> bool {
    !name.starts_with('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-+.~".contains(c))
}

/// Where the modules of the unpacked package `dir` are; `dir` itself when it is no such.
fn modules_dir(dir: &Path) -> Result<PathBuf, Diagnostic> {
    for below in ["lib/modules", "usr/lib/modules"] {
        let Ok(items) = fs::read_dir(dir.join(below)) else { continue };
        let versions: Vec<PathBuf> = items.filter_map(|item| Some(item.ok()?.path())).filter(|p| p.is_dir()).collect();
        match &versions[..] {
            [] => {}
            [one] => return Ok(one.clone()),
            [one, ..] => {
                return Err(super::usage(format!("{}: modules of {} kernels", show_path(dir), versions.len()))
                    .hint(format!("name one, such as {}", show_path(one))));
            }
        }
    }
    Ok(dir.to_path_buf())
}

/// The member of the ar archive `bytes` whose name starts with `prefix`: its name and its bytes.
fn member<'a>(bytes: &'a [u8], prefix: &str) -> Option<(&'a str, &'a [u8])> {
    let mut rest = bytes.strip_prefix(b"!<arch>\n")?;
    loop {
        let (header, body) = rest.split_at_checked(60)?;
        let text = |from: usize, to: usize| std::str::from_utf8(&header[from..to]).ok().map(str::trim);
        let (name, size) = (text(0, 16)?.trim_end_matches('/'), text(48, 58)?.parse::<usize>().ok()?);
        let (content, after) = body.split_at_checked(size)?;
        if name.starts_with(prefix) {
            return Some((name, content));
        }
        // Members start at even offsets.
        rest = if size % 2 == 1 { after.get(1..)? } else { after };
    }
}

/// Whether the file at `path` starts as a Debian package.
pub fn is_deb(path: &Path) -> bool {
    let mut magic = [0; 8];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"!<arch>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = b"!<arch>\n".to_vec();
        for (name, content) in members {
            bytes.extend(format!("{name:16}{:12}{:6}{:6}{:8}{:<10}`\n", 0, 0, 0, 644, content.len()).bytes());
            bytes.extend_from_slice(content);
            bytes.extend(std::iter::repeat_n(b'\n', content.len() % 2));
        }
        bytes
    }

    #[test]
    fn members_of_an_archive() {
        let bytes = ar(&[("debian-binary", b"2.0"), ("control.tar.xz/", b"x"), ("data.tar.xz", b"data!")]);
        assert_eq!(member(&bytes, "data.tar"), Some(("data.tar.xz", &b"data!"[..])));
        assert_eq!(member(&bytes, "other"), None);
        for cut in 0..bytes.len() - 1 {
            assert_eq!(member(&bytes[..cut], "data.tar"), None, "{cut} bytes");
        }
    }

    #[test]
    fn what_matters_is_kept() {
        let mut package = Package::default();
        let bytes = |bytes: &'static [u8]| move |_: &str| Ok(Body::Bytes(bytes.to_vec()));
        package.take("./lib/modules/6/kernel/a-b.ko.xz", bytes(b"")).expect("in memory");
        package.take("./lib/modules/6/kernel/b c.ko", bytes(b"")).expect("in memory");
        package.take("./boot/vmlinuz-6.12", bytes(b"")).expect("in memory");
        package.take("lib/modules/6/modules.builtin", bytes(b"kernel/fs/ext4/ext4.ko\n\n")).expect("in memory");
        assert_eq!(package.modules.keys().collect::<Vec<_>>(), ["a_b"]);
        assert_eq!(package.kernel.expect("kernel").0, "6.12");
        assert!(package.builtin.contains("ext4") && package.builtin.len() == 1);
    }
}

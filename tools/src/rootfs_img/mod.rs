//! The work of `machinen-rootfs-img`: from a root file system to a checked ext4 image in the cache.

pub mod acl;
pub mod build;
pub mod digest;
pub mod directory;
pub mod source;
pub mod tar;
pub mod tree;
pub mod window;

use std::fs::{self, File};
use std::io::Seek;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use argh::FromArgs;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::args::plain;
use crate::diagnostic::Diagnostic;
use crate::fault::{Codes, Fault, Result};
use crate::imagecache::{self, Store, hex, is_settled};
use crate::outfile::Outfile;
use crate::phases::Phases;
use crate::program::Tool;
use crate::{e2fsck, ext4};
use build::{Input, Source};
use source::{Identity, nameless};
use tree::{Body, Tree};

/// The program.
pub const TOOL: Tool = Tool { name: "machinen-rootfs-img", usage: CODES.usage, output: "ROOTFS_IMG_OUTPUT" };

const CODES: Codes = Codes {
    tool: "machinen-rootfs-img",
    usage: "ROOTFS_IMG_USAGE",
    no_cache: "ROOTFS_IMG_NO_CACHE",
    host: "ROOTFS_IMG_HOST",
    source: "ROOTFS_IMG_SOURCE",
    path: "ROOTFS_IMG_PATH",
    limit: "ROOTFS_IMG_LIMIT",
    changed: "ROOTFS_IMG_CHANGED",
    missing: "ROOTFS_IMG_PROGRAM_MISSING",
    program: "ROOTFS_IMG_CHECK",
};

/// Changes when the same content makes another image.
const FORMAT: &str = "ext4-1";
/// Where /init looks for the command.
const CONFIG: &[u8] = b"machinen-config.json";
/// What Debian and those that come from it have installed.
const PACKAGES: &[u8] = b"var/lib/dpkg/status";
/// A larger one says nothing here.
const PACKAGES_MAX_BYTES: u64 = 32 << 20;
/// Suffix of the file beside an image that has the version of its package of CRIU, if it has one.
const CRIU: &str = "criu";
/// A larger one is only in the image: /init reads it there, up to 16 MiB.
const CONFIG_MAX_BYTES: u64 = 1 << 20;
const STDIN: &str = "standard input";

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Make an ext4 image of a root file system, once, and print its path in the cache.\n\n\
        SOURCE is a tar file (also compressed by gzip, zstd or xz), a directory, or - for\n\
        a tar file on standard input. Owners, modes, times, extended attributes, links and\n\
        device nodes are kept; no root is needed. The image is for reading: give it to\n\
        vmm-min, which puts what a guest writes elsewhere.",
    note = "Cache: DIR/rootfs with DIR from MACHINEN_CACHE_DIR, XDG_CACHE_HOME/machinen or\n  \
        ~/.cache/machinen. KEY.img is named by the SHA-256 of the tar file, or of what is in\n  \
        the directory; KEY.config.json is the image's own /machinen-config.json, if it has one.\n  \
        A source that has not changed is not read again. An image that was cut short or\n  \
        written to is made again.",
    note = "Size: a number of MiB, or one with K, M, G or T. A larger one than before makes the\n  \
        cached image longer, which takes no space; the guest's /init grows the file system\n  \
        in it. A smaller one leaves it.",
    note = "Refused: entries with .. in their path, or that lead through an absolute symlink or one\n  \
        out of the root; names that are not UTF-8; damaged and incomplete tar files.",
    note = "Environment: MACHINEN_CACHE_DIR (the cache), MACHINEN_E2FSCK, MACHINEN_ASSETS_DIR (where\n  \
        e2fsck is looked for, before the cache's assets/, PATH, /usr/sbin and /sbin).",
    note = "Exit codes: 0 done, 1 failed, 2 bad usage. A failure is one block on standard error:\n  \
        code, what failed, on what, why, and what to do. Codes: ROOTFS_IMG_SOURCE (damaged tar\n  \
        file), _PATH (refused entry), _LIMIT (does not fit), _CHANGED (changed while it was\n  \
        read), _HOST (a call failed), _PROGRAM_MISSING, _CHECK (e2fsck found something),\n  \
        _NO_CACHE, _OUTPUT, _USAGE. Nothing is left in the cache then.",
    example = "{command_name} rootfs.tar.zst",
    example = "docker export CONTAINER | {command_name} --size 8G -"
)]
pub struct Args {
    /// least size of the image (default: 2.5 times the content, at least 2G)
    #[argh(option)]
    pub size: Option<String>,
    /// program that checks the image (default: MACHINEN_E2FSCK, MACHINEN_ASSETS_DIR, PATH)
    #[argh(option)]
    pub e2fsck: Option<String>,
    /// print a line of JSON: image, config, key, bytes, cached, phases, total_ms; also for an error
    #[argh(switch)]
    pub json: bool,
    /// print phases with their times on standard error
    #[argh(switch, short = 'v')]
    pub verbose: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// tar file, directory, or -
    #[argh(positional, arg_name = "source")]
    pub source: Vec<String>,
}

/// Makes or finds the image; gives the text for standard output.
pub fn run(args: Args) -> std::result::Result<String, Diagnostic> {
    image(args).map_err(|fault| fault.diagnostic(&CODES))
}

fn image(args: Args) -> Result<String> {
    let word = match &args.source[..] {
        [word] if !word.is_empty() => plain(word.clone()),
        [_] => return Err(Fault::Usage("SOURCE is empty".to_string())),
        [] => return Err(Fault::Usage("no SOURCE is given".to_string())),
        _ => return Err(Fault::Usage("more than one SOURCE is given".to_string())),
    };
    let size = args.size.map(plain).map(|text| ext4::parse_size(&text)).transpose();
    let size = size.map_err(|why| Fault::Usage(format!("--size: {why}")))?;
    let e2fsck = args.e2fsck.map(plain).map(PathBuf::from);
    let mut phases = Phases::new(TOOL.name, args.verbose);
    let store = Store::open("rootfs", "img", FORMAT)?;
    let (key, cached) = make(&word, &store, size, e2fsck.as_deref(), &mut phases)?;
    let (key, path) = (&key, store.path(&key));
    if !args.json {
        return Ok(format!("{}\n", path.display()));
    }
    let config = Some(store.beside(key, "config.json")).filter(|path| path.is_file());
    let (list, total_ms) = phases.to_json();
    let value = json!({
        "image": path.display().to_string(), "config": config.map(|path| path.display().to_string()), "key": key,
        "bytes": store.intact_bytes(key), "cached": cached, "phases": list, "total_ms": total_ms,
    });
    Ok(format!("{value}\n"))
}

/// Makes or finds the image of a source, as the program takes it; gives its path.
///
/// # Errors
/// `ROOTFS_IMG_…`, as the program's help lists them.
pub fn image_of(word: &str, phases: &mut Phases) -> std::result::Result<PathBuf, Diagnostic> {
    let mut find = || {
        let store = Store::open("rootfs", "img", FORMAT)?;
        let (key, _) = make(word, &store, None, None, phases)?;
        Ok(store.path(&key))
    };
    find().map_err(|fault: Fault| fault.diagnostic(&CODES))
}

/// The key of the image, and whether it was there.
fn make(
    word: &str,
    store: &Store,
    size: Option<u64>,
    e2fsck: Option<&Path>,
    phases: &mut Phases,
) -> Result<(String, bool)> {
    let source = Opened::new(word, store)?;
    let named = source.name(store, phases)?;
    let builder = Builder { source: &source, store, size, e2fsck };
    let (key, built) = match &named.key {
        Some(key) => (key.clone(), None),
        None if named.known => {
            let hash = source.hash(|done, total| phases.progress("hashing", done, total))?;
            phases.end("hash");
            (hex(&hash), None)
        }
        // Never seen, so most likely new: made on one processor while the other one finds its name.
        None => std::thread::scope(|scope| {
            let hash = scope.spawn(|| source.hash(|_, _| ()));
            let built = builder.build(phases);
            let hash = hash.join().unwrap_or_else(|_| Err(changed(word)))?;
            phases.end("hash");
            Ok((hex(&hash), Some(built?)))
        })?,
    };

    let mut cached = is_good(store, &key);
    if !(cached && big_enough(store, &key, size)) {
        let _lock = store.lock(&key)?;
        phases.end("lock");
        // Another builder may have been faster.
        cached = is_good(store, &key);
        if !cached {
            let built = match built {
                Some(built) => built,
                None => builder.build(phases)?,
            };
            source.unchanged(&named, store)?;
            let beside = [("config.json", built.config.as_deref()), (CRIU, built.criu.as_deref().map(str::as_bytes))];
            store.commit(&key, built.image, built.least_bytes, &beside)?;
            phases.end("commit");
        } else if !big_enough(store, &key, size) {
            store.grow(&key, size.unwrap_or_else(|| store.least_bytes(&key)))?;
            phases.end("grow");
        }
    }
    if let Some(identity) = named.identity.filter(|_| named.settled && named.key.is_none()) {
        store.remember(identity.slot(), identity.fingerprint(), &key);
    }
    Ok((key, cached))
}

/// The version of CRIU's package in the image at this path, where it was made here, and after this was kept.
pub(crate) fn criu_of(image: &Path) -> Option<String> {
    imagecache::holds(image).then(|| fs::read_to_string(image.with_extension(CRIU)).ok())?
}

/// The version of an installed package, by dpkg's list of them (deb-control(5): paragraphs of fields).
fn version_of(package: &str, list: &[u8]) -> Option<String> {
    let list = String::from_utf8_lossy(list);
    let paragraph =
        list.split("\n\n").find(|text| text.trim_start().lines().next() == Some(&format!("Package: {package}")))?;
    let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    field("Status")?.ends_with(" installed").then(|| field("Version").map(str::to_owned))?
}

fn big_enough(store: &Store, key: &str, size: Option<u64>) -> bool {
    let least = size.unwrap_or_else(|| store.least_bytes(key));
    store.intact_bytes(key).is_some_and(|bytes| bytes >= least)
}

/// Whether the image is there, as it was when it was made, and looks like a clean file system.
fn is_good(store: &Store, key: &str) -> bool {
    let Some(bytes) = store.intact_bytes(key) else { return false };
    File::open(store.path(key)).is_ok_and(|file| ext4::looks_clean(&file, bytes))
}

/// The source, open.
enum Opened {
    /// A tar file, perhaps compressed, and its name for messages.
    File(File, String),
    /// A stream that was read to its end, its hash, and its name for messages.
    Spooled(File, [u8; 32], String),
    /// A directory.
    Directory(PathBuf, Box<directory::Found>),
}

/// What the source is called in the cache.
struct Named {
    /// `None` before it is read.
    key: Option<String>,
    /// What the source was when it got its key; streams have none.
    identity: Option<Identity>,
    /// Whether a further change would show in that.
    settled: bool,
    /// Whether there was something in its place before.
    known: bool,
}

impl Opened {
    fn new(word: &str, store: &Store) -> Result<Self> {
        if word == "-" {
            let stdin = std::io::stdin().as_fd().try_clone_to_owned();
            let mut stdin = File::from(stdin.map_err(|e| Fault::host("open", STDIN.as_ref(), e))?);
            let is_file = stdin.metadata().is_ok_and(|found| found.is_file());
            if is_file && matches!(stdin.stream_position(), Ok(0)) {
                return Ok(Opened::File(stdin, STDIN.to_string()));
            }
            let mut hash = Sha256::new();
            let file = source::spool(stdin, STDIN, store.dir(), |piece| hash.update(piece))?;
            return Ok(Opened::Spooled(file, hash.finalize().into(), STDIN.to_string()));
        }
        let path = Path::new(word);
        let found = fs::metadata(path).map_err(|e| Fault::host("open", path, e))?;
        if found.is_dir() {
            let path = fs::canonicalize(path).map_err(|e| Fault::host("open", path, e))?;
            let found = directory::read(&path, own(store)?)?;
            return Ok(Opened::Directory(path, Box::new(found)));
        }
        let file = File::open(path).map_err(|e| Fault::host("open", path, e))?;
        if found.is_file() {
            return Ok(Opened::File(file, word.to_string()));
        }
        let mut hash = Sha256::new();
        let file = source::spool(file, word, store.dir(), |piece| hash.update(piece))?;
        Ok(Opened::Spooled(file, hash.finalize().into(), word.to_string()))
    }

    fn name(&self, store: &Store, phases: &mut Phases) -> Result<Named> {
        let (identity, settled) = match self {
            Opened::Spooled(_, hash, _) => {
                phases.end("spool");
                return Ok(Named { key: Some(hex(hash)), identity: None, settled: false, known: true });
            }
            Opened::File(file, name) => {
                let found = file.metadata().map_err(|e| Fault::host("stat", name.as_ref(), e))?;
                (identity(file, name)?, is_settled((found.ctime(), found.ctime_nsec())))
            }
            Opened::Directory(path, found) => {
                phases.end("walk");
                (Identity::of_directory(path, &found.fingerprint), is_settled(found.newest))
            }
        };
        let key = store.recall(identity.slot(), identity.fingerprint()).filter(|_| settled);
        if key.is_some() {
            phases.end("recall");
        }
        let known = store.beside(identity.slot(), "seen").exists();
        Ok(Named { key, identity: Some(identity), settled, known })
    }

    /// SHA-256 of the content.
    fn hash(&self, tick: impl FnMut(u64, u64)) -> Result<[u8; 32]> {
        match self {
            Opened::File(file, name) => source::hash(file, name, tick),
            Opened::Spooled(_, hash, _) => Ok(*hash),
            Opened::Directory(path, found) => directory_hash(path, found),
        }
    }

    /// Fails unless what was read is what was hashed.
    fn unchanged(&self, named: &Named, store: &Store) -> Result<()> {
        let (name, now) = match self {
            Opened::File(file, name) => (name.clone(), identity(file, name)?),
            Opened::Directory(path, _) => {
                let now = directory::read(path, own(store)?)?;
                (path.display().to_string(), Identity::of_directory(path, &now.fingerprint))
            }
            Opened::Spooled(..) => return Ok(()),
        };
        if named.identity == Some(now) { Ok(()) } else { Err(changed(&name)) }
    }
}

fn identity(file: &File, name: &str) -> Result<Identity> {
    Identity::of(file).map_err(|e| Fault::host("stat", name.as_ref(), e))
}

fn changed(name: &str) -> Fault {
    Fault::Changed(format!("{name}: changed while it was read"))
}

/// Device and inode of the cache itself, which is no part of a directory that contains it.
fn own(store: &Store) -> Result<(u64, u64)> {
    let found = fs::metadata(store.dir()).map_err(|e| Fault::host("stat", store.dir(), e))?;
    Ok((found.dev(), found.ino()))
}

/// SHA-256 of a directory's tree with the bodies, wherever it lies.
fn directory_hash(path: &Path, found: &directory::Found) -> Result<[u8; 32]> {
    use std::os::unix::ffi::OsStrExt;
    let mut chunk = vec![0; 64 << 10];
    digest::digest(&found.tree, |body, hash| {
        let Body::Host(below) = body else { return Ok(()) };
        let whole = || path.join(std::ffi::OsStr::from_bytes(below));
        let file = directory::open(found.fd.as_fd(), below).map_err(|e| Fault::host("open", &whole(), e))?;
        let file = File::from(file);
        let mut at: u64 = 0;
        loop {
            match file.read_at(&mut chunk, at).map_err(|e| Fault::host("read", &whole(), e))? {
                0 => break,
                n => {
                    hash.update(&chunk[..n]);
                    at += n as u64;
                }
            }
        }
        hash.update(at.to_le_bytes());
        Ok(())
    })
}

/// Everything that an image is made from.
struct Builder<'a> {
    source: &'a Opened,
    store: &'a Store,
    size: Option<u64>,
    e2fsck: Option<&'a Path>,
}

/// An image that has no name yet.
struct Built {
    image: Outfile,
    /// Its length when no size is given.
    least_bytes: u64,
    config: Option<Vec<u8>>,
    criu: Option<String>,
}

impl Builder<'_> {
    /// Builds and checks the image.
    fn build(&self, phases: &mut Phases) -> Result<Built> {
        let mut spool = tar::Spool::new(nameless(self.store.dir())?);
        let parsed;
        let (tree, name, source) = match self.source {
            Opened::File(file, name) | Opened::Spooled(file, _, name) => {
                parsed = self.read_tar(file, name, &mut spool, phases)?;
                (&parsed.0, name.clone(), Source::Tar(&parsed.1))
            }
            Opened::Directory(path, found) => {
                (&found.tree, path.display().to_string(), Source::Directory(&found.fd, path))
            }
        };
        let input = Input { name: &name, tree, source, spool: spool.file() };
        let least_bytes = ext4::default_bytes(input.content_bytes(), tree.inodes().len() as u64);
        let image = self.store.create()?;
        // Not of the key, which may not be known yet.
        let uuid = uuid(&digest::digest(tree, |_, _| Ok(()))?);
        input.write(image.file(), self.size.unwrap_or(least_bytes), uuid, phases)?;
        let config = input.read(CONFIG, CONFIG_MAX_BYTES)?;
        let criu = input.read(PACKAGES, PACKAGES_MAX_BYTES)?.and_then(|packages| version_of("criu", &packages));
        e2fsck::check(&image.reach(), self.e2fsck)?;
        phases.end("e2fsck");
        Ok(Built { image, least_bytes, config, criu })
    }

    fn read_tar(&self, file: &File, name: &str, spool: &mut tar::Spool, phases: &mut Phases) -> Result<(Tree, File)> {
        let broken = |e| Fault::host("read", name.as_ref(), e);
        let mut head = [0; 8];
        let n = file.read_at(&mut head, 0).map_err(broken)?;
        let how = source::compression(&head[..n]).map_err(|kind| {
            Fault::Source(name.to_string(), format!("is compressed by {kind}, which is not supported here"))
        })?;
        let file = match how {
            Some(how) => {
                let plain = source::decompress(file, how, name, self.store.dir())?;
                phases.end("decompress");
                plain
            }
            None => file.try_clone().map_err(broken)?,
        };
        let found = tar::read(&file, name, spool)?;
        if found.acls > 0 {
            phases.warn(&format!("{name}: {} entries have an ACL in words, which is not kept", found.acls));
        }
        phases.end("read");
        Ok((found.tree, file))
    }
}

/// A UUID of a hash: its beginning, with the bits that make it one (RFC 9562, version 8).
fn uuid(hash: &[u8; 32]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash[..16]);
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn packages_have_the_version_that_is_installed() {
        let list = b"Package: a\nStatus: install ok installed\nVersion: 1\n\nPackage: criu\nStatus: install ok installed\n\
            Depends: a\nVersion: 3.17.1-2+deb12u2\n\nPackage: b\nStatus: deinstall ok config-files\nVersion: 2\n\nPackage: c\n";
        assert_eq!(version_of("criu", list).as_deref(), Some("3.17.1-2+deb12u2"));
        assert_eq!(version_of("a", list).as_deref(), Some("1"));
        assert_eq!(["b", "c", "cri", ""].map(|name| version_of(name, list)), [None, None, None, None]);
        assert_eq!(version_of("criu", b"\xff"), None);
    }
}

//! The work of `machinen-mountdisk`: a host directory as a squashfs lower in the cache, and a fresh ext4 upper.

pub mod walk;

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use argh::FromArgs;
use serde_json::json;

use crate::args::plain;
use crate::assets::{MKSQUASHFS, find_program};
use crate::diagnostic::Diagnostic;
use crate::ext4;
use crate::fault::{Codes, Fault, Result};
use crate::imagecache::{Store, hex, is_settled};
use crate::outfile::Outfile;
use crate::phases::Phases;
use crate::program::Tool;
use crate::rootfs_img::digest::digest;
use crate::rootfs_img::directory;
use crate::rootfs_img::source::Identity;

/// The program.
pub const TOOL: Tool = Tool { name: "machinen-mountdisk", usage: CODES.usage, output: "MOUNTDISK_OUTPUT" };

const CODES: Codes = Codes {
    tool: "machinen-mountdisk",
    usage: "MOUNTDISK_USAGE",
    no_cache: "MOUNTDISK_NO_CACHE",
    host: "MOUNTDISK_HOST",
    source: "MOUNTDISK_SOURCE",
    path: "MOUNTDISK_PATH",
    limit: "MOUNTDISK_LIMIT",
    changed: "MOUNTDISK_CHANGED",
    missing: "MOUNTDISK_PROGRAM_MISSING",
    program: "MOUNTDISK_MKSQUASHFS",
};

/// Changes when the same content makes another image.
const FORMAT: &str = "squashfs-zstd-1";
/// zstd is what stock kernels read and packs fastest at this level; small files stay apart, as the guest reads them one by
/// one; the order of blocks need not be the same each time, as the key is of the directory.
const OPTIONS: [&str; 11] = [
    "-comp",
    "zstd",
    "-Xcompression-level",
    "1",
    "-no-fragments",
    "-not-reproducible",
    "-no-exports",
    "-noappend",
    "-no-recovery",
    "-no-progress",
    "-quiet",
];
/// How often a directory that changes under way is packed.
const TRIES: u32 = 3;
const UPPER_BYTES: u64 = 4 << 30;

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Make disks that mount a host directory in a guest: a read-only image of DIR (squashfs,\n\
        made once and kept in the cache) and an empty, sparse one for what the guest writes\n\
        (ext4). Prints their paths, one a line, the lower first. Nothing that a guest writes\n\
        reaches DIR.",
    note = "UPPER must not exist. Without it the file is made in TMPDIR, else /tmp. It is yours to\n  \
        remove. Disks of other guests must not share it; the lower is for all.",
    note = "Cache: DIR/mountdisk with DIR from MACHINEN_CACHE_DIR, XDG_CACHE_HOME/machinen or\n  \
        ~/.cache/machinen. KEY.squashfs is named by the SHA-256 of the sorted manifest of the\n  \
        directory: path, type, mode, owner, length, time, link target, extended attributes.\n  \
        The cache itself is left out of a directory that contains it.",
    note = "A directory that changes while it is packed is packed again, three times in all.",
    note = "Environment: MACHINEN_CACHE_DIR (the cache), TMPDIR, MACHINEN_MKSQUASHFS,\n  \
        MACHINEN_ASSETS_DIR (where mksquashfs is looked for, before the cache's assets/, PATH,\n  \
        /usr/sbin and /sbin).",
    note = "Exit codes: 0 done, 1 failed, 2 bad usage. A failure is one block on standard error:\n  \
        code, what failed, on what, why, and what to do. Codes: MOUNTDISK_PATH (refused entry),\n  \
        _CHANGED (changed while it was packed), _HOST (a call failed), _PROGRAM_MISSING,\n  \
        _MKSQUASHFS (it failed, or left something out), _LIMIT, _NO_CACHE, _OUTPUT, _USAGE.\n  \
        No upper is left then.",
    example = "{command_name} ~/project",
    example = "{command_name} --json --upper-size 20G ~/project vm7-upper.img"
)]
pub struct Args {
    /// size of the upper: a number of MiB, or one with K, M, G or T (default: 4G)
    #[argh(option)]
    pub upper_size: Option<String>,
    /// program that packs (default: MACHINEN_MKSQUASHFS, MACHINEN_ASSETS_DIR, PATH)
    #[argh(option)]
    pub mksquashfs: Option<String>,
    /// print a line of JSON: lower, upper, key, lower_bytes, upper_bytes, cached, phases, total_ms; also for an error
    #[argh(switch)]
    pub json: bool,
    /// print phases with their times on standard error
    #[argh(switch, short = 'v')]
    pub verbose: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// directory, file for the upper
    #[argh(positional, arg_name = "dir, upper")]
    pub words: Vec<String>,
}

/// Makes or finds the disks; gives the text for standard output.
pub fn run(args: Args) -> std::result::Result<String, Diagnostic> {
    disks(args).map_err(|fault| fault.diagnostic(&CODES))
}

fn disks(args: Args) -> Result<String> {
    let words: Vec<String> = args.words.into_iter().map(plain).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (dir, upper) = match words[..] {
        [""] | ["", _] | [_, ""] => return Err(Fault::Usage("an argument is empty".to_string())),
        [dir] => (dir, None),
        [dir, upper] => (dir, Some(PathBuf::from(upper))),
        [] => return Err(Fault::Usage("no DIR is given".to_string())),
        _ => return Err(Fault::Usage("too many arguments: DIR and UPPER are taken".to_string())),
    };
    let size = args.upper_size.map(plain).map(|text| ext4::parse_size(&text)).transpose();
    let upper_bytes = size.map_err(|why| Fault::Usage(format!("--upper-size: {why}")))?.unwrap_or(UPPER_BYTES);
    if let Some(upper) = upper.as_deref().filter(|upper| upper.symlink_metadata().is_ok()) {
        let why = format!("{}: exists, and a fresh upper would replace it", upper.display());
        return Err(Fault::Usage(why));
    }
    let mksquashfs = args.mksquashfs.map(plain).map(PathBuf::from);
    let mut phases = Phases::new(TOOL.name, args.verbose);
    let store = Store::open("mountdisk", "squashfs", FORMAT)?;
    let dir = fs::canonicalize(dir).map_err(|e| Fault::host("open", dir.as_ref(), e))?;
    if !dir.is_dir() {
        return Err(Fault::host("open", &dir, rustix::io::Errno::NOTDIR));
    }
    let lower = Lower { dir: &dir, store: &store, mksquashfs: mksquashfs.as_deref() };
    let (key, cached) = lower.make(&mut phases)?;
    let upper = match upper {
        Some(path) => path,
        None => unused(&std::env::temp_dir()),
    };
    let upper = write_upper(&upper, upper_bytes)?;
    phases.end("upper");

    let lower = store.path(&key);
    if !args.json {
        return Ok(format!("{}\n{}\n", lower.display(), upper.display()));
    }
    let (list, total_ms) = phases.to_json();
    let value = json!({
        "lower": lower.display().to_string(), "upper": upper.display().to_string(), "key": key,
        "lower_bytes": store.intact_bytes(&key), "upper_bytes": upper_bytes, "cached": cached,
        "phases": list, "total_ms": total_ms,
    });
    Ok(format!("{value}\n"))
}

/// Makes or finds the read-only image of a directory; gives its path.
///
/// # Errors
/// `MOUNTDISK_…`, as the program's help lists them.
pub fn lower_of(dir: &Path, phases: &mut Phases) -> std::result::Result<PathBuf, Diagnostic> {
    let mut find = || {
        let store = Store::open("mountdisk", "squashfs", FORMAT)?;
        let dir = fs::canonicalize(dir).map_err(|e| Fault::host("open", dir, e))?;
        if !dir.is_dir() {
            return Err(Fault::host("open", &dir, rustix::io::Errno::NOTDIR));
        }
        let (key, _) = Lower { dir: &dir, store: &store, mksquashfs: None }.make(phases)?;
        Ok(store.path(&key))
    };
    find().map_err(|fault: Fault| fault.diagnostic(&CODES))
}

/// An empty file system for what guests write, of the usual size, in memory: whoever uses it puts what is written elsewhere.
///
/// # Errors
/// `MOUNTDISK_HOST`.
pub fn empty_upper() -> std::result::Result<fs::File, Diagnostic> {
    let make = || {
        let failed = |e: std::io::Error| Fault::host("make", "upper".as_ref(), e);
        let file = rustix::fs::memfd_create("machinen-upper", rustix::fs::MemfdFlags::CLOEXEC);
        let file = fs::File::from(file.map_err(|e| failed(e.into()))?);
        ext4::write_empty(&file, UPPER_BYTES, random_uuid().map_err(failed)?)?;
        Ok(file)
    };
    make().map_err(|fault: Fault| fault.diagnostic(&CODES))
}

/// The read-only half.
struct Lower<'a> {
    dir: &'a Path,
    store: &'a Store,
    mksquashfs: Option<&'a Path>,
}

impl Lower<'_> {
    /// Key of the image, and whether it was there.
    fn make(&self, phases: &mut Phases) -> Result<(String, bool)> {
        let own = fs::metadata(self.store.dir()).map_err(|e| Fault::host("stat", self.store.dir(), e))?;
        let skip = (own.dev(), own.ino());
        let mut before = walk::fingerprint(self.dir, skip)?;
        phases.end("walk");
        for attempt in 1.. {
            let identity = Identity::of_directory(self.dir, &before.hash);
            let recalled = self.store.recall(identity.slot(), identity.fingerprint());
            let is_new = recalled.is_none();
            let never_seen = is_new && !self.store.beside(identity.slot(), "seen").exists();
            // Most likely new: packed while its name is found. A failure shows again when it matters.
            let mut packing = if never_seen { self.start().ok() } else { None };
            let key = match recalled {
                Some(key) => key,
                None => {
                    let found = directory::read(self.dir, skip)?;
                    let key = hex(&digest(&found.tree, |_, _| Ok(()))?);
                    phases.end("manifest");
                    key
                }
            };
            let mut cached = self.is_good(&key);
            let mut same = true;
            if !cached {
                let _lock = self.store.lock(&key)?;
                phases.end("lock");
                cached = self.is_good(&key);
                if !cached {
                    let packing = match packing.take() {
                        Some(packing) => packing,
                        None => self.start()?,
                    };
                    let image = packing.finish()?;
                    phases.end("mksquashfs");
                    let after = walk::fingerprint(self.dir, skip)?;
                    phases.end("walk again");
                    same = after == before;
                    before = after;
                    if same {
                        self.store.commit(&key, image, 0, &[])?;
                        phases.end("commit");
                    }
                }
            }
            if same {
                if is_new && is_settled(before.newest) {
                    self.store.remember(identity.slot(), identity.fingerprint(), &key);
                }
                return Ok((key, cached));
            }
            if attempt == TRIES {
                break;
            }
            phases.note(&format!("{}: changed while it was packed, trying again", self.dir.display()));
        }
        Err(Fault::Changed(format!("{}: changed each of {TRIES} times that it was packed", self.dir.display())))
    }

    fn is_good(&self, key: &str) -> bool {
        let Some(bytes) = self.store.intact_bytes(key) else { return false };
        fs::File::open(self.store.path(key)).is_ok_and(|file| looks_whole(&file, bytes))
    }

    /// Starts to pack.
    fn start(&self) -> Result<Packing> {
        let program = find_program(&MKSQUASHFS, self.mksquashfs)?;
        let image = self.store.create()?;
        let mut command = Command::new(&program);
        command.arg(self.dir).arg(image.reach()).args(OPTIONS);
        if let Ok(own) = self.store.dir().strip_prefix(self.dir) {
            command.arg("-e").arg(own);
        }
        // It would replace the times of the files.
        command.env_remove("SOURCE_DATE_EPOCH").env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::piped()).spawn().map_err(|e| Fault::host("run", &program, e))?;
        Ok(Packing { image: Some(image), child })
    }
}

/// mksquashfs at work.
struct Packing {
    image: Option<Outfile>,
    child: Child,
}

impl Packing {
    /// Waits for the image, and looks at it.
    fn finish(mut self) -> Result<Outfile> {
        let failed = |why: String| Err(Fault::Program(MKSQUASHFS.name, why));
        let ended = |e| Fault::host("run", MKSQUASHFS.name.as_ref(), e);
        let mut text = Vec::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_end(&mut text).map_err(ended)?;
        }
        let status = self.child.wait().map_err(ended)?;
        let text = String::from_utf8_lossy(&text);
        let said: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
        let said = said.join("; ");
        if !status.success() {
            return failed(format!("{status}: {said}"));
        }
        // It leaves out what it cannot read, with status 0.
        if ["annot ", "ailed to", "ould not"].iter().any(|words| said.contains(words)) {
            return failed(said);
        }
        let Some(image) = self.image.take() else { return failed("there is no image".to_string()) };
        let file = fs::File::open(image.reach()).map_err(|e| Fault::host("open", &image.reach(), e))?;
        let bytes = file.metadata().map_or(0, |found| found.len());
        if !looks_whole(&file, bytes) {
            return failed(format!("the image is not whole: {said}"));
        }
        Ok(image)
    }
}

impl Drop for Packing {
    fn drop(&mut self) {
        // No use for it any more, or it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the superblock is one of squashfs, and the file as long as it says (Documentation/filesystems/squashfs.rst).
fn looks_whole(file: &fs::File, bytes: u64) -> bool {
    let mut block = [0; 96];
    if file.read_exact_at(&mut block, 0).is_err() {
        return false;
    }
    let used = block[40..48].try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
    block.starts_with(b"hsqs") && used <= bytes && used > 96
}

/// A path in `dir` that nothing has.
fn unused(dir: &Path) -> PathBuf {
    let name = |n: u32| dir.join(format!("machinen-upper-{}-{n}.img", std::process::id()));
    (0..).map(name).find(|path| path.symlink_metadata().is_err()).unwrap_or_else(|| name(0))
}

/// Writes an empty file system; gives its absolute path.
fn write_upper(path: &Path, bytes: u64) -> Result<PathBuf> {
    let failed = |e: std::io::Error| Fault::host("write", path, e);
    let text = path.to_str().ok_or_else(|| failed(std::io::ErrorKind::InvalidFilename.into()))?;
    let file = Outfile::create_new(text).map_err(failed)?;
    // What a guest writes is its owner's alone.
    file.file().set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    let written = ext4::write_empty(file.file(), bytes, random_uuid().map_err(failed)?);
    written.map_err(|fault| match fault {
        Fault::Host(_, _, cause) => failed(cause),
        other => other,
    })?;
    file.commit_new().map_err(failed)?;
    fs::canonicalize(path).map_err(failed)
}

/// A UUID of version 4 (RFC 9562).
fn random_uuid() -> std::io::Result<[u8; 16]> {
    let mut uuid = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut uuid)?;
    uuid[6] = (uuid[6] & 0x0f) | 0x40;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    Ok(uuid)
}

//! The work of `machinen-cp`: files and trees into a machine and out of it.

mod bounded;
mod pack;
mod unpack;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use argh::FromArgs;
use machinen_abi::open::{Operation, Tag};
use rustix::fs::{CWD, Mode, OFlags, openat};

use self::bounded::bounded;
use self::pack::pack;
use self::unpack::unpack;
use crate::agent::request::Request;
use crate::agent::transfer::Transfer;
use crate::args::plain;
use crate::diagnostic::{Diagnostic, EXIT_FAILURE};
use crate::error::{Error, Result};
use crate::program::Tool;
use crate::vm::{Vm, attach};

/// The program.
pub const TOOL: Tool = Tool { name: "machinen-cp", usage: "COPY_USAGE", output: "COPY_OUTPUT" };

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Copy a file or tree into a machine that runs, or out of it.\n\n\
        One of SRC and DST is NAME:PATH, with a machine's name, id or process number and a path\n\
        from its root. The other is a path here; with / or . before it, it may have a colon.",
    note = "As by cp -a: into DST where that is a directory, or ends in a slash, under SRC's own\n  \
        name; otherwise as DST, whose directory has to be there. SRC/. is what is in SRC. A\n  \
        symlink is copied, not followed. Owners, modes, times and hard links are kept, on the\n  \
        host owners by root only.",
    note = "- is standard input as SRC, standard output as DST, for the content of a file.",
    note = "What a guest sends is never written outside of DST: an entry whose way leads over a\n  \
        symlink or a parent directory is refused (COPY_ESCAPE).",
    note = "Exit codes: 0 done, 1 failed, 2 bad usage.",
    example = "{command_name} -x .git . web:/srv/app",
    example = "{command_name} web:/var/log/syslog - | tail"
)]
pub struct Args {
    /// leave out what matches (glob(7)): a name anywhere, or with a slash a path below SRC;
    /// repeatable
    #[argh(option, short = 'x', arg_name = "pattern")]
    pub exclude: Vec<String>,
    /// report an error as one line of JSON
    #[argh(switch)]
    pub json: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// source, destination
    #[argh(positional, arg_name = "src, dst")]
    pub words: Vec<String>,
}

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Side {
    Host(PathBuf),
    Guest(String, PathBuf),
    Stream,
}

impl Side {
    fn parse(word: &str) -> Side {
        match word.split_once(':') {
            _ if word == "-" => Side::Stream,
            Some((name, path)) if !name.is_empty() && !name.starts_with(['/', '.']) => {
                Side::Guest(name.to_owned(), Path::new("/").join(path))
            }
            _ => Side::Host(word.into()),
        }
    }
}

/// Copies.
pub fn run(args: Args) -> std::result::Result<(), Diagnostic> {
    let usage = |message: &str| Diagnostic::new(TOOL.usage, message).hint("see machinen-cp --help").usage();
    let excludes: Vec<String> = args.exclude.into_iter().map(plain).collect();
    let words: Vec<String> = args.words.into_iter().map(plain).collect();
    let [from, to] = &words[..] else { return Err(usage("SRC and DST are wanted")) };
    if from.is_empty() || to.is_empty() {
        return Err(usage("a path is empty"));
    }
    let find = |name: &str| attach(name).map_err(|error| error.diagnostic(EXIT_FAILURE));
    let done = match (Side::parse(from), Side::parse(to)) {
        (Side::Host(from), Side::Guest(name, to)) => push(&find(&name)?, &from, &to, &excludes),
        (Side::Guest(name, from), Side::Host(to)) => pull(&find(&name)?, &from, &to, &excludes),
        (Side::Stream, Side::Guest(name, to)) => write(&find(&name)?, &to, &mut io::stdin()),
        (Side::Guest(name, from), Side::Stream) => read(&find(&name)?, &from, io::stdout()),
        (Side::Guest(..), Side::Guest(..)) => {
            return Err(usage(
                "two machines: copy by way of this host, or: machinen exec A -- tar c X | machinen exec -i B -- tar x",
            ));
        }
        _ => return Err(usage("neither SRC nor DST is a machine's: NAME:PATH")),
    };
    done.map_err(|error| error.diagnostic(EXIT_FAILURE))
}

/// The last name of a path, `None` for one that means the content of a directory (`DIR/.`) or has no name.
fn last_name(path: &Path) -> Option<&OsStr> {
    let is_dot = matches!(path.as_os_str().as_bytes(), [.., b'/', b'.'] | [b'.']);
    path.file_name().filter(|_| !is_dot)
}

/// Whether the path says that it is of a directory.
fn says_directory(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/") || last_name(path).is_none()
}

/// Copies from the host to the guest; see [`Vm::push`].
pub(crate) fn push(vm: &Vm, host: &Path, guest: &Path, excludes: &[String]) -> Result<()> {
    fs::symlink_metadata(host).map_err(|cause| Error::host("COPY_READ", format!("read {}", host.display()), cause))?;
    let into = is_guest_directory(vm, guest)?;
    if !into && says_directory(guest) {
        return Err(Error::new(
            "COPY_WRITE",
            format!("write {}: there is no such directory in the guest", guest.display()),
        ));
    }
    let (directory, name) = match (last_name(host), into) {
        (Some(name), true) => (guest, Path::new(name)),
        (None, true) => (guest, Path::new(".")),
        (_, false) => (guest.parent().unwrap_or(Path::new("/")), Path::new(guest.file_name().unwrap_or_default())),
    };
    // Of DIR/. and .. the directory itself.
    let source = if last_name(host).is_none() {
        fs::canonicalize(host).unwrap_or_else(|_| host.to_owned())
    } else {
        host.to_owned()
    };
    let request = Request::new(Operation::TarIn).with(Tag::Path, directory.as_os_str().as_bytes());
    let mut transfer = vm.transfer(&request)?;
    let packed = pack(&source, name, excludes, &mut transfer);
    match packed {
        // What is half there stays, as by cp; the guest is told no end of the archive.
        Err(error) => Err(error),
        Ok(_) => transfer.finish(),
    }
}

/// Asks for the first entry of what the guest would pack at `path`.
fn first_entry(vm: &Vm, path: &Path) -> Result<()> {
    let request = Request::new(Operation::TarOut).with(Tag::Path, path.as_os_str().as_bytes()).with(Tag::Exclude, b"*");
    let transfer = vm.transfer(&request)?;
    // What there is of it is of no interest, and its end tells of a failure.
    transfer.finish()
}

/// Whether there is a directory at `path` in the guest, or a symlink to one.
fn is_guest_directory(vm: &Vm, path: &Path) -> Result<bool> {
    match first_entry(vm, &path.join(".")) {
        Ok(()) => Ok(true),
        Err(error) if error.code() == "EXEC_SYSTEM" || error.code() == "EXEC_INVALID" => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies from the guest to the host; see [`Vm::pull`].
pub(crate) fn pull(vm: &Vm, guest: &Path, host: &Path, excludes: &[String]) -> Result<()> {
    let into = fs::metadata(host).is_ok_and(|found| found.is_dir());
    if !into && host.as_os_str().as_bytes().ends_with(b"/") {
        return Err(Error::host("COPY_WRITE", format!("write {}", host.display()), ErrorKind::NotFound));
    }
    let own = last_name(guest);
    let (directory, name): (&Path, &OsStr) = match (own, into) {
        (Some(name), true) => (host, name),
        (None, true) => (host, OsStr::new(".")),
        (_, false) => {
            let parent = host.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (parent, host.file_name().unwrap_or_default())
        }
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, directory, flags, Mode::empty())
        .map_err(|cause| Error::host("COPY_WRITE", format!("open {}", directory.display()), cause))?;
    let mut request = Request::new(Operation::TarOut).with(Tag::Path, guest.as_os_str().as_bytes());
    // Of DIR/. the content has no name above it.
    if name != "." {
        request = request.with(Tag::Name, name.as_bytes());
    }
    for pattern in excludes {
        request = request.with(Tag::Exclude, pattern.as_bytes());
    }
    let mut transfer = vm.transfer(&request)?;
    let unpacked = unpack(&mut transfer, &root, directory)?;
    transfer.finish()?;
    if unpacked { Ok(()) } else { Err(Error::new("COPY_ARCHIVE", "the guest's archive is damaged")) }
}

/// Writes a stream to a file of the guest's.
fn write(vm: &Vm, path: &Path, input: &mut impl Read) -> Result<()> {
    let request = Request::new(Operation::WriteFile).with(Tag::Path, path.as_os_str().as_bytes());
    let mut transfer = vm.transfer(&request)?;
    let mut chunk = vec![0; 64 << 10];
    loop {
        match input.read(&mut chunk) {
            Ok(0) => break,
            // The agent says why at the end.
            Ok(count) if transfer.write_all(&chunk[..count]).is_err() => break,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(cause) => return Err(Error::host("COPY_READ", "read standard input", cause)),
        }
    }
    transfer.finish()
}

/// Writes a file of the guest's to a stream. A reader that has gone has had enough.
fn read(vm: &Vm, path: &Path, mut output: impl Write + IsTerminal) -> Result<()> {
    let request = Request::new(Operation::TarOut).with(Tag::Path, path.as_os_str().as_bytes());
    let mut transfer = vm.transfer(&request)?;
    let copied = content(&mut transfer, path, &mut output)?;
    if copied == Copied::Closed {
        return Ok(());
    }
    transfer.finish()?;
    if copied == Copied::Whole { Ok(()) } else { Err(Error::new("COPY_ARCHIVE", "the guest's archive is damaged")) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    Whole,
    /// The reader has gone.
    Closed,
    /// The archive ended early.
    Cut,
}

fn content(transfer: &mut Transfer, path: &Path, output: &mut (impl Write + IsTerminal)) -> Result<Copied> {
    let (input, bound) = bounded(transfer);
    let mut archive = tar::Archive::new(input);
    let first = archive.entries().ok().and_then(|mut entries| entries.next()).and_then(io::Result::ok);
    let Some(mut entry) = first else { return Ok(Copied::Cut) };
    if !entry.header().entry_type().is_file() {
        let message = format!("read {}: not a regular file", path.display());
        return Err(Error::new("COPY_READ", message).hint("a tree as a stream: machinen exec NAME -- tar c PATH"));
    }
    bound.content();
    let mut chunk = vec![0; 64 << 10];
    let mut first = true;
    loop {
        let count = match entry.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return Ok(Copied::Cut),
        };
        if first && chunk[..count].contains(&0) && output.is_terminal() {
            return Err(Error::new("COPY_TERMINAL", "the file is binary, and standard output a terminal")
                .hint("name a file, or pipe it into another program"));
        }
        first = false;
        match output.write_all(&chunk[..count]).and_then(|()| if count == 0 { output.flush() } else { Ok(()) }) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Copied::Closed),
            Err(cause) => return Err(Error::host("COPY_WRITE", "write standard output", cause)),
            Ok(()) if count == 0 => return Ok(Copied::Whole),
            Ok(()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides() {
        let guest = |name: &str, path: &str| Side::Guest(name.into(), path.into());
        assert_eq!(Side::parse("web:/etc"), guest("web", "/etc"));
        assert_eq!(Side::parse("a/b:etc/x:y"), guest("a/b", "/etc/x:y"));
        assert_eq!(Side::parse("web:"), guest("web", "/"));
        for host in ["./a:b", "/a:b", "a", "../x:y", ":x"] {
            assert_eq!(Side::parse(host), Side::Host(host.into()));
        }
        assert_eq!(Side::parse("-"), Side::Stream);
    }

    #[test]
    fn last_names() {
        let name = |path: &str| last_name(Path::new(path)).map(|name| name.to_str().unwrap().to_owned());
        assert_eq!((name("/a/b"), name("/a/b/")), (Some("b".into()), Some("b".into())));
        assert_eq!((name("/a/."), name("."), name(".."), name("/")), (None, None, None, None));
        assert!(says_directory(Path::new("/a/")) && says_directory(Path::new("/")) && !says_directory(Path::new("/a")));
    }
}

//! A job for the lab, its disk (a tar) and what comes back.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Arch, Error, terminal};

/// The first root of a system cannot be left by pivot_root(2), with which passt hides everything from itself. So the command
/// gets one over it, with the same files.
const MOVE_ROOT: &[u8] = b"mkdir -p /mnt; mount --rbind / /mnt; cd /mnt; mount --move . /; ";

/// One command to run in the lab, as root, without stdin, in `/`.
#[derive(Clone, Debug)]
pub struct Job {
    /// Program (searched in `/bin`, the applets of busybox) and arguments.
    pub argv: Vec<OsString>,
    /// Environment, in addition to `PATH` and `HOME`.
    pub env: Vec<(OsString, OsString)>,
    /// Files and directories to bring in: path on the host, absolute path in the lab.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Files and directories to bring back when the command has ended, in whatever way: absolute path in the
    /// lab, path on the host.
    pub wanted: Vec<(PathBuf, PathBuf)>,
    /// Memory of the machine. All files in the lab live in it.
    pub memory_mib: u32,
    /// Its clock counts instructions: one is a nanosecond. Slower, but a time is the same whatever else the host does.
    pub counting: bool,
    /// The command gets a terminal, which is this process's stdin and stdout.
    pub terminal: bool,
    /// The machine, its boot included, is killed when it takes longer.
    pub limit: Duration,
    /// It is also killed when nothing comes from it for so long.
    pub silence: Duration,
}

/// What came of a job.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code of the command; 128+n when signal n killed it.
    pub code: u8,
    /// Those of the wanted paths (in the lab) that did not exist.
    pub missing: Vec<PathBuf>,
}

impl Job {
    /// A job without files and environment, with 3 GiB and five minutes.
    pub fn new<I: IntoIterator<Item: Into<OsString>>>(argv: I) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            files: Vec::new(),
            wanted: Vec::new(),
            memory_mib: 3072,
            counting: false,
            terminal: false,
            limit: Duration::from_mins(5),
            silence: Duration::MAX,
        }
    }

    /// Writes the tar that init unpacks.
    pub(super) fn write_disk(&self, disk: &File, mark: &[u8], arch: Arch) -> Result<(), Error> {
        let mut tar = tar::Builder::new(disk);
        tar.mode(tar::HeaderMode::Deterministic);
        // busybox does not know sparse entries.
        tar.sparse(false);
        for (name, bytes) in
            [("job/run", &*self.run_script(arch)), ("job/send", &self.send_script()), ("job/mark", mark)]
        {
            add_bytes(&mut tar, name, bytes).map_err(Error::host("write the disk for", Path::new(name)))?;
        }
        for (host, guest) in &self.files {
            let name = Path::new(std::ffi::OsStr::from_bytes(relative(guest)));
            let added = match host.is_dir() {
                true => tar.append_dir_all(name, host),
                false => tar.append_path_with_name(host, name),
            };
            added.map_err(Error::host("put into the lab", host))?;
        }
        tar.finish().map_err(Error::host("finish the disk of", Path::new("the lab")))
    }

    /// Unpacks the wanted paths from a tar; returns those that are not in it.
    pub(super) fn unpack(&self, tar: File) -> Result<Vec<PathBuf>, Error> {
        let mut missing: Vec<PathBuf> = self.wanted.iter().map(|(guest, _)| guest.clone()).collect();
        let broken = Error::host("read what came from", Path::new("the lab"));
        for entry in tar::Archive::new(tar).entries().map_err(&broken)? {
            let mut entry = entry.map_err(&broken)?;
            let path = Path::new("/").join(entry.path().map_err(&broken)?);
            let found =
                self.wanted.iter().find_map(|(guest, host)| Some((guest, host, path.strip_prefix(guest).ok()?)));
            let Some((guest, host, rest)) = found else { continue };
            missing.retain(|path| path != guest);
            let target = if rest.as_os_str().is_empty() { host.clone() } else { host.join(rest) };
            save(&mut entry, &target).map_err(Error::host("write", &target))?;
        }
        Ok(missing)
    }

    /// The shell script that becomes the command.
    fn run_script(&self, arch: Arch) -> Vec<u8> {
        let mut script = MOVE_ROOT.to_vec();
        if self.terminal {
            // The shell leads a session without a terminal: the first that it opens becomes its own.
            script.extend(terminal::script(arch.line_device()));
        }
        script.extend_from_slice(b"exec chroot . env -i PATH=/bin HOME=/root");
        for (name, value) in &self.env {
            quote(&mut script, &[name.as_bytes(), b"=", value.as_bytes()].concat());
        }
        for word in &self.argv {
            quote(&mut script, word.as_bytes());
        }
        script.push(b'\n');
        script
    }

    /// The shell script that writes a tar of what is wanted. busybox passes over what does not exist.
    fn send_script(&self) -> Vec<u8> {
        let mut script = Vec::new();
        if !self.wanted.is_empty() {
            script.extend_from_slice(b"exec tar -c -f - -C /");
            for (guest, _) in &self.wanted {
                quote(&mut script, relative(guest));
            }
            script.push(b'\n');
        }
        script
    }
}

/// Appends a word, so quoted that the shell takes it as it is.
fn quote(script: &mut Vec<u8>, word: &[u8]) {
    script.extend_from_slice(b" '");
    for byte in word {
        match byte {
            b'\'' => script.extend_from_slice(br"'\''"),
            _ => script.push(*byte),
        }
    }
    script.push(b'\'');
}

/// Sixteen random bytes.
pub(super) fn mark() -> io::Result<[u8; 16]> {
    let mut mark = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut mark)?;
    Ok(mark)
}

/// The path as it is named in a tar.
fn relative(guest: &Path) -> &[u8] {
    guest.strip_prefix("/").unwrap_or(guest).as_os_str().as_bytes()
}

fn add_bytes(tar: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len().try_into().unwrap_or(u64::MAX));
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes)
}

/// A regular file keeps its place when it exists (it may be a device or a pipe on the host).
fn save(entry: &mut tar::Entry<impl Read>, target: &Path) -> io::Result<()> {
    if entry.header().entry_type().is_file() {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        return io::copy(entry, &mut File::create(target)?).map(drop);
    }
    entry.unpack(target).map(drop)
}

#[cfg(test)]
mod tests {
    use super::Job;

    #[test]
    fn words_reach_the_shell_as_they_are() {
        let mut job = Job::new(["echo", "it's", "$HOME `x` \"\\\n"]);
        job.env.push(("A B".into(), "c'd".into()));
        let script = String::from_utf8(job.run_script(super::Arch::OWN)).unwrap();
        let command = &script[script.find("exec").unwrap()..];
        assert_eq!(
            command,
            "exec chroot . env -i PATH=/bin HOME=/root 'A B=c'\\''d' 'echo' 'it'\\''s' '$HOME `x` \"\\\n'\n"
        );
    }
}

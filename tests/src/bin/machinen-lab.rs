//! `machinen-lab`: runs a command in the lab.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use machinen_tests::lab::{self, Arch, Error, Job, Lab};

const USAGE: &str = "\
usage: machinen-lab run [OPTION]... [--] COMMAND [ARG]...

Runs the command as root in the lab, a machine with a real /dev/kvm, without stdin. stdout, stderr and exit code
are the command's; 125 when the lab failed. make lab makes the lab.

  --arch NAME        a lab of this architecture, x86_64 or aarch64 (default: this host's)
  --file HOST:GUEST  bring a file or directory into the lab
  --program NAME     bring a program of this host, or of Debian, with the libraries that it needs
  --out GUEST:HOST   bring one back when the command has ended, in whatever way
  --env NAME=VALUE   add to the environment, which is empty but for PATH and HOME
  --limit SECONDS    kill the lab after that time, boot included (default 300)
  --terminal         give it a terminal, which is stdin and stdout
  --counting         its clock counts instructions, a nanosecond each: times that repeat
  --memory MIB       memory of the lab, files included (default 3072)
";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(OsStr::to_str) {
        Some("run") => {}
        Some("--help" | "-h") => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => return failed(USAGE.trim_end()),
    }
    let (arch, job) = match parse(args) {
        Ok(parsed) => parsed,
        Err(message) => return failed(message),
    };
    match Lab::open(arch).and_then(|lab| lab.run(&job, &mut io::stdout().lock(), &mut io::stderr().lock())) {
        Ok(outcome) => {
            for path in &outcome.missing {
                eprintln!("machinen-lab: the command left no {}", path.display());
            }
            match outcome.code {
                0 if !outcome.missing.is_empty() => ExitCode::from(125),
                code => ExitCode::from(code),
            }
        }
        // The reader has seen enough.
        Err(Error::Host { error, .. }) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => failed(error),
    }
}

fn failed(message: impl std::fmt::Display) -> ExitCode {
    eprintln!("machinen-lab: {message}");
    ExitCode::from(125)
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<(Arch, Job), String> {
    let (mut arch, mut job, mut programs) = (Arch::OWN, Job::new([""; 0]), Vec::new());
    while let Some(arg) = args.next() {
        let option = arg.to_str().filter(|word| word.starts_with("--")).map(str::to_owned);
        let Some(option) = option else {
            job.argv.push(arg);
            break;
        };
        match option.as_str() {
            "--" => break,
            "--counting" => {
                job.counting = true;
                continue;
            }
            "--terminal" => {
                job.terminal = true;
                continue;
            }
            _ => {}
        }
        let value = args.next().ok_or(format!("{option} needs a value"))?;
        let number =
            || value.to_str().and_then(|word| word.parse::<u32>().ok()).ok_or(format!("{option} needs a number"));
        match option.as_str() {
            "--arch" => {
                let name = value.to_str().unwrap_or_default();
                arch = Arch::parse(name).ok_or_else(|| format!("no lab for {name}: --arch x86_64 or aarch64"))?;
            }
            "--file" => job.files.push(paths(&option, &value)?),
            "--program" => {
                programs.push(value.to_str().unwrap_or_default().to_owned());
            }
            "--out" => job.wanted.push(paths(&option, &value)?),
            "--env" => job.env.push(split(&value, b'=').ok_or("--env needs NAME=VALUE")?),
            "--limit" => job.limit = Duration::from_secs(number()?.into()),
            "--memory" => job.memory_mib = number()?,
            _ => return Err(format!("unknown option {option}\n{}", USAGE.trim_end())),
        }
    }
    // Only now it is known for which lab.
    for name in programs {
        let files = lab::program::files(arch, &name);
        job.files.extend(files.ok_or_else(|| format!("no program {name} is there for {}", arch.name()))?);
    }
    job.argv.extend(args);
    if job.argv.is_empty() { Err(format!("no command\n{}", USAGE.trim_end())) } else { Ok((arch, job)) }
}

fn paths(option: &str, value: &OsStr) -> Result<(PathBuf, PathBuf), String> {
    let (from, to) = split(value, b':').ok_or(format!("{option} needs two paths, FROM:TO"))?;
    let (from, to) = (PathBuf::from(from), PathBuf::from(to));
    let guest: &Path = if option == "--file" { &to } else { &from };
    if guest.is_absolute() { Ok((from, to)) } else { Err(format!("{} is not absolute", guest.display())) }
}

fn split(value: &OsStr, at: u8) -> Option<(OsString, OsString)> {
    let bytes = value.as_bytes();
    let position = bytes.iter().position(|byte| *byte == at)?;
    let part = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    Some((part(&bytes[..position]), part(&bytes[position + 1..])))
}

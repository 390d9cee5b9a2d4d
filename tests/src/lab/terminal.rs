//! A terminal for the lab's command: a serial line of its own, which is this process's stdin and stdout.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use super::Error;

/// What the command's shell script begins with: the serial line `device` becomes its terminal, as large as ours. Then it
/// sends one byte: what comes before a line is open is lost.
pub(super) fn script(device: &str) -> Vec<u8> {
    let size = stty(&["size"]).ok();
    let size = size.as_ref().and_then(|size| size.trim().split_once(' ')).unwrap_or(("24", "80"));
    format!("exec <{device} >{device} 2>&1; stty rows {} cols {}; printf '\\0'; ", size.0, size.1).into_bytes()
}

/// The user's terminal while the lab has it; dropping this gives it back.
pub(super) struct Terminal {
    /// Modes to return to, in the form of stty(1); `None` when stdin is no terminal.
    modes: Option<String>,
    output: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Takes the terminal; also returns the end of the line for QEMU.
    pub(super) fn open() -> Result<(Terminal, UnixStream), Error> {
        let failed = Error::host("take", Path::new("the terminal"));
        let (ours, theirs) = UnixStream::pair().map_err(&failed)?;
        let (mut typed, mut shown) = (ours.try_clone().map_err(&failed)?, ours);
        let modes = if io::stdin().is_terminal() {
            let modes = stty(&["-g"]).map_err(&failed)?;
            stty(&["raw", "-echo"]).map_err(&failed)?;
            Some(modes.trim().to_string())
        } else {
            None
        };
        // The caller may hold the lock of stdout.
        let mut screen = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(&failed)?);
        // It waits for input until this process ends.
        let (open, opened) = mpsc::channel();
        thread::spawn(move || opened.recv().map(|()| copy(&mut io::stdin().lock(), &mut typed)));
        let output = thread::spawn(move || {
            if shown.read_exact(&mut [0]).is_ok() && open.send(()).is_ok() {
                copy(&mut shown, &mut screen);
            }
        });
        Ok((Terminal { modes, output: Some(output) }, theirs))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The other end is gone, or this waits for the last output.
        self.output.take().map(JoinHandle::join);
        if let Some(modes) = &self.modes {
            let _: io::Result<String> = stty(&[modes]);
        }
    }
}

/// Copies until one side has ended, each piece at once.
fn copy(from: &mut dyn Read, to: &mut dyn Write) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}

fn stty(words: &[&str]) -> io::Result<String> {
    let output = Command::new("stty").args(words).stdin(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_string()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

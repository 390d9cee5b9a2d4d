//! The independent check of every image that is kept: `e2fsck -fn`.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::assets::{E2FSCK, find_program};
use crate::fault::{Fault, Result};

/// Most lines of its output in a message.
const LINES: usize = 3;

/// Fails unless e2fsck finds nothing wrong with the image at `path`. It is read only.
pub fn check(path: &Path, given: Option<&Path>) -> Result<()> {
    let program = find_program(&E2FSCK, given)?;
    let mut command = Command::new(&program);
    command.arg("-fn").arg(path).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().map_err(|e| Fault::host("run", &program, e))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let said: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).take(LINES).collect();
    Err(Fault::Program(E2FSCK.name, format!("{}: the new image is damaged: {}", output.status, said.join("; "))))
}

//! The console's log of a machine. A long one has a hole where its middle was (`vmm-min --log-limit`).

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// What `machinen run` has kept of each end of a log.
pub const KEPT_MIB: &str = "8";
/// Most bytes of it that a message has.
const TAIL_BYTES: u64 = 2048;

/// Which side of a copy failed.
#[derive(Debug)]
pub enum Broken {
    /// Reading.
    Log(io::Error),
    /// Writing.
    Output(io::Error),
}

/// Copies the log from where it is read to its end, with a line in the place of a hole.
///
/// # Errors
/// Those of reading and writing.
pub fn copy(log: &mut File, output: &mut impl Write) -> Result<(), Broken> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let at = log.stream_position().map_err(Broken::Log)?;
        let (data, hole) = data(log, at).map_err(Broken::Log)?;
        if data > at {
            writeln!(output, "\n[{} bytes of the console are not kept]", data - at).map_err(Broken::Output)?;
        }
        match log.take(hole - data).read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => output.write_all(buffer.get(..length).unwrap_or_default()).map_err(Broken::Output)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::Log(error)),
        }
    }
}

/// Where the next bytes are that are no hole, and where the next hole begins; the file is then read from there.
fn data(log: &mut File, at: u64) -> io::Result<(u64, u64)> {
    let place = seek(&*log, SeekFrom::Data(at)).and_then(|data| Ok((data, seek(&*log, SeekFrom::Hole(data))?)));
    let (data, hole) = match place {
        Ok(place) => place,
        // At the end; or no file with holes, which reads as it is.
        Err(Errno::NXIO | Errno::INVAL) => (at, u64::MAX),
        Err(error) => return Err(error.into()),
    };
    log.seek(io::SeekFrom::Start(data))?;
    Ok((data, hole))
}

/// The last lines of a boot log, as one line without control characters.
pub fn tail(path: &Path) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(io::SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_else(|_: io::Error| Vec::new());
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text.lines().map(|line| line.replace(char::is_control, "")).collect();
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(4)..].join("; ")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::copy;

    #[test]
    fn a_hole_becomes_a_line() {
        const MIB: usize = 1 << 20;
        let path = std::env::temp_dir().join(format!("machinen-bootlog-{}", std::process::id()));
        let mut log = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for at in [0, 1 << 30] {
            log.write_all_at(&[b'a'; MIB], at).unwrap();
        }
        let mut copied = Vec::new();
        copy(&mut log, &mut copied).unwrap();
        let line = format!("\n[{} bytes of the console are not kept]\n", (1 << 30) - MIB);
        let (first, rest) = copied.split_at(MIB);
        let (middle, last) = rest.split_at(line.len());
        assert_eq!(String::from_utf8_lossy(middle), line);
        assert!(first == vec![b'a'; MIB] && last == first, "{} bytes", copied.len());
        // At the end there is nothing more, until something comes.
        copied.clear();
        copy(&mut log, &mut copied).unwrap();
        assert!(copied.is_empty());
        log.write_all_at(b"more", (1 << 30) + MIB as u64).unwrap();
        copy(&mut log, &mut copied).unwrap();
        assert_eq!(copied, b"more");
    }
}

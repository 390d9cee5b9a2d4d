//! What the user named as source: opened, decompressed where it has to be, and identified by its content.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use machinen_initramfs::error::reason;
use rustix::fs::OFlags;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest, Sha256};

use crate::fault::{Fault, Result};
use crate::imagecache::hex;

/// One read of a large file.
const CHUNK_BYTES: usize = 256 << 10;

/// How the bytes of a tar file are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip, of one or more members.
    Gzip,
    /// xz, of one or more streams.
    Xz,
    /// Zstandard, of one or more frames.
    Zstd,
}

/// Recognises a compression by the first bytes; the error is one that is not supported.
pub fn compression(head: &[u8]) -> std::result::Result<Option<Compression>, &'static str> {
    const KNOWN: [(&[u8], std::result::Result<Compression, &str>); 6] = [
        (b"\x1f\x8b", Ok(Compression::Gzip)),
        (b"\xfd7zXZ\0", Ok(Compression::Xz)),
        (b"\x28\xb5\x2f\xfd", Ok(Compression::Zstd)),
        (b"BZh", Err("bzip2")),
        (b"\x04\x22\x4d\x18", Err("lz4")),
        (b"PK\x03\x04", Err("zip")),
    ];
    match KNOWN.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, Ok(known))) => Ok(Some(*known)),
        Some((_, Err(name))) => Err(name),
        None => Ok(None),
    }
}

/// What says that a source is still the same, and where its key is remembered.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    slot: String,
    fingerprint: String,
}

impl Identity {
    /// Of a file: its place, length and times.
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        let times = [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())];
        let times = times.map(|(seconds, nanoseconds)| format!("{seconds}.{nanoseconds}"));
        let fingerprint = format!("{}-{}", found.len(), times.join("-"));
        let slot = slot("file", &[found.dev().to_le_bytes(), found.ino().to_le_bytes()].concat());
        Ok(Identity { slot, fingerprint })
    }

    /// The same for a directory: its path and what the walk found.
    pub fn of_directory(path: &Path, fingerprint: &[u8]) -> Self {
        use std::os::unix::ffi::OsStrExt;
        Identity { slot: slot("directory", path.as_os_str().as_bytes()), fingerprint: hex(fingerprint) }
    }

    /// Where it is remembered.
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// What is compared.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

fn slot(kind: &str, name: &[u8]) -> String {
    hex(&Sha256::new().chain_update(kind).chain_update(name).finalize())
}

/// SHA-256 of a whole file; `tick` is told how much is done, of how much.
pub fn hash(file: &File, name: &str, mut tick: impl FnMut(u64, u64)) -> Result<[u8; 32]> {
    let broken = |e: io::Error| Fault::host("read", name.as_ref(), e);
    let total = file.metadata().map_err(broken)?.len();
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        match file.read_at(&mut chunk, at) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(n) => {
                hash.update(&chunk[..n]);
                at += n as u64;
                tick(at, total);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(broken(e)),
        }
    }
}

/// A file without a name in `dir`; for file systems that have none, one whose name is removed at once.
pub fn nameless(dir: &Path) -> Result<File> {
    let flags = i32::try_from(OFlags::TMPFILE.bits()).unwrap_or(0);
    let mut options = File::options();
    options.read(true).write(true);
    let opened = options.clone().custom_flags(flags).mode(0o600).open(dir).or_else(|_| {
        let path = dir.join(format!(".machinen-{}.tmp", std::process::id()));
        let file = options.create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    });
    opened.map_err(|e: io::Error| Fault::host("create temporary file", dir, e))
}

/// Copies a stream to a nameless file in `dir`; each piece is shown to `look` first.
pub fn spool(mut stream: impl Read, name: &str, dir: &Path, mut look: impl FnMut(&[u8])) -> Result<File> {
    let mut file = nameless(dir)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(file),
            Ok(n) => {
                look(&chunk[..n]);
                file.write_all(&chunk[..n]).map_err(|e| Fault::host("write temporary file", dir, e))?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Fault::Source(name.to_string(), reason(&e))),
        }
    }
}

/// Decompresses `file` to a nameless file in `dir`. Only the tar file's own end mark ends it well, so it is the reader of
/// that who finds out whether it was cut short.
pub fn decompress(file: &File, how: Compression, name: &str, dir: &Path) -> Result<File> {
    let mut file = file;
    file.seek(SeekFrom::Start(0)).map_err(|e| Fault::host("read", name.as_ref(), e))?;
    let input = BufReader::with_capacity(CHUNK_BYTES, file);
    let plain = match how {
        Compression::Gzip => spool(flate2::bufread::MultiGzDecoder::new(input), name, dir, |_| ()),
        Compression::Xz => spool(lzma_rust2::XzReader::new(input, true), name, dir, |_| ()),
        Compression::Zstd => spool(Frames::new(input), name, dir, |_| ()),
    };
    plain.map_err(|fault| match fault {
        Fault::Source(name, why) => Fault::Source(name, format!("does not decompress: {why}")),
        other => other,
    })
}

/// All frames of a Zstandard file, skippable ones skipped (RFC 8878, 3.1).
struct Frames<R> {
    input: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Frames<R> {
    fn new(input: R) -> Self {
        Frames { input, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Begins the next frame; tells whether there is one.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.input.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.input) {
                Ok(()) => return Ok(true),
                // Its header has been taken, its content has not.
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut (&mut self.input).take(length.into()), &mut io::sink())?;
                }
                Err(e) => return Err(io::Error::other(e.to_string())),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.in_frame {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    let decoded = self.decoder.decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1));
                    decoded.map_err(|e| io::Error::other(e.to_string()))?;
                }
                let n = self.decoder.read(into)?;
                if n > 0 || into.is_empty() {
                    return Ok(n);
                }
                self.in_frame = false;
            }
            if !self.next_frame()? {
                return Ok(0);
            }
            self.in_frame = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(compressed: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Frames::new(compressed).read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn all_frames_and_no_skippable_one() {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let first = ruzstd::encoding::compress_to_vec(&b"first, "[..], level);
        let second = ruzstd::encoding::compress_to_vec(&b"second"[..], level);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let all = [&skippable[..], &first, &skippable, &second, &skippable].concat();
        assert_eq!(plain(&all).expect("frames"), b"first, second");
        assert_eq!(plain(b"").expect("nothing"), b"");
        for end in 1..second.len() {
            assert!(plain(&second[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn magic_numbers() {
        assert_eq!(compression(b"\x1f\x8b\x08"), Ok(Some(Compression::Gzip)));
        assert_eq!(compression(b"BZh9"), Err("bzip2"));
        assert_eq!(compression(b"./"), Ok(None));
        assert_eq!(compression(b""), Ok(None));
    }
}

//! The corpus of the tool benches: a file tree of the size of a small distribution, the same in each run.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::Random;

/// Files of the whole corpus.
pub const FILES: usize = 9932;
/// Their bytes.
pub const BYTES: usize = 228_000_000;
/// Directories at two levels.
const DIRECTORIES: [usize; 2] = [37, 27];
/// Size of the pools that bodies are cut from.
const POOL_BYTES: usize = 1 << 20;

/// A directory for the benches' files, removed in the end.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// On a tmpfs with `need_bytes` of room if there is one, so that no disk is measured.
    pub fn new(need_bytes: u64) -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let room = rustix::fs::statvfs(memory).map_or(0, |found| found.f_bavail * found.f_frsize);
        let base = if room > need_bytes { memory.to_owned() } else { std::env::temp_dir() };
        let path = base.join(format!("machinen-bench-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Scratch(path))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes the first `1 / part` of the corpus in the new directory `dir`: sizes like those of a root file system (half of
/// the files below 4 KiB, most bytes in few), two thirds text, one third noise.
pub fn make(dir: &Path, part: usize) -> io::Result<()> {
    let mut random = Random::default();
    let weights: Vec<f64> = (0..FILES / part).map(|_| (1.7 * normal(&mut random)).exp()).collect();
    let scale = f64::from(u32::try_from(BYTES / part).unwrap_or(u32::MAX)) / weights.iter().sum::<f64>();
    let noise: Vec<u8> = (0..POOL_BYTES).map(|_| random.bits().to_le_bytes()[3]).collect();
    let text: Vec<u8> =
        (0u32..).flat_map(|line| format!("{line} the quick brown fox\n").into_bytes()).take(POOL_BYTES).collect();
    let mut made = std::collections::HashSet::new();
    for (i, weight) in weights.iter().enumerate() {
        let below = format!("d{}/e{}", i % DIRECTORIES[0], i % DIRECTORIES[1]);
        let parent = dir.join(&below);
        if made.insert(below) {
            fs::create_dir_all(&parent)?;
        }
        let pool = if i % 3 == 0 { &noise } else { &text };
        let mut file = File::create(parent.join(format!("f{i}")))?;
        let mut left = whole(weight * scale);
        while left > 0 {
            let start = random.below(POOL_BYTES / 2);
            let n = left.min(POOL_BYTES / 2);
            file.write_all(&pool[start..start + n])?;
            left -= n;
        }
    }
    Ok(())
}

/// Of mean 0 and deviation 1, nearly: a sum of twelve.
fn normal(random: &mut Random) -> f64 {
    (0..12).map(|_| random.fraction()).sum::<f64>() - 6.0
}

/// A positive number without its fraction.
fn whole(number: f64) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive size below 2^32")]
    let whole = number.max(1.0) as usize;
    whole
}

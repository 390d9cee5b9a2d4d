//! What a guest wrote as a file, for another machine: a layer, where that has the same image, or the disk as the guest sees it.
//!
//! A layer's clusters lie where they lie on the disk, with holes between. After the last come the map of those that it has, 64-bit words, and a
//! trailer: the format's name, the disk's length in bytes, the number of words. All numbers are little-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layer::{CLUSTER_BYTES, Cluster, Layer, words};
use crate::sys;

const MAGIC: [u8; 8] = *b"mchnlyr1";
const TRAILER_BYTES: u64 = 24;
/// Clusters of one copy.
const RUN: u64 = 64;

/// Writes what `layers` (the lowest first) hold of a disk of `bytes` bytes to the empty file `out`.
pub fn save(layers: &[Layer], bytes: u64, out: &File) -> io::Result<()> {
    let words = words(bytes)?;
    let end = bytes.next_multiple_of(CLUSTER_BYTES);
    out.set_len(end)?;
    copy_clusters(layers, words, out)?;
    let present = |word| layers.iter().fold(0, |all, layer| all | layer.word(word));
    let map: Vec<u8> = (0..words).flat_map(|word| present(word).to_le_bytes()).collect();
    out.write_all_at(&map, end)?;
    let trailer = [MAGIC, bytes.to_le_bytes(), (words as u64).to_le_bytes()].concat();
    out.write_all_at(&trailer, end + map.len() as u64)
}

/// Writes what a disk of `bytes` bytes holds to the empty file `out`: `base`, with holes where it has some, and `layers` over it.
pub fn flatten(base: &File, layers: &[Layer], bytes: u64, out: &File) -> io::Result<()> {
    out.set_len(bytes)?;
    let mut buffer = buffer()?;
    let mut at = 0;
    while let Some(data) = sys::next_data(base, at)? {
        at = data.start;
        while at < data.end {
            let count = usize::try_from((data.end - at).min(buffer.len() as u64)).map_err(io::Error::other)?;
            base.read_exact_at(&mut buffer[..count], at)?;
            out.write_all_at(&buffer[..count], at)?;
            at += count as u64;
        }
    }
    copy_clusters(layers, words(bytes)?, out)?;
    // The last cluster may go beyond the disk.
    out.set_len(bytes)
}

fn buffer() -> io::Result<Vec<u8>> {
    Ok(vec![0; usize::try_from(RUN * CLUSTER_BYTES).map_err(io::Error::other)?])
}

/// Writes the clusters of `layers` where they lie on the disk, from the highest layer that has each.
fn copy_clusters(layers: &[Layer], words: usize, out: &File) -> io::Result<()> {
    let mut buffer = buffer()?;
    for word in 0..words {
        let first = word as u64 * RUN;
        let mut cluster = first;
        while cluster < first + RUN {
            let owner = layers.iter().rfind(|layer| layer.has(cluster));
            let Some(owner) = owner else {
                cluster += 1;
                continue;
            };
            let same =
                |at: &u64| layers.iter().rfind(|layer| layer.has(*at)).is_some_and(|layer| std::ptr::eq(layer, owner));
            let count = (cluster..first + RUN).take_while(same).count();
            let part = &mut buffer[..count * size_of::<Cluster>()];
            owner.file().read_exact_at(part, cluster * CLUSTER_BYTES)?;
            out.write_all_at(part, cluster * CLUSTER_BYTES)?;
            cluster += count as u64;
        }
    }
    Ok(())
}

/// Reads the map of a file that [`save`] made for a disk of as many bytes. Errors: of the host, `InvalidData` with why.
pub fn load(file: File, bytes: u64) -> io::Result<Layer> {
    let invalid = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    let length = file.metadata()?.len();
    let mut trailer = [[0; 8]; 3];
    let at = length.checked_sub(TRAILER_BYTES).ok_or_else(|| invalid("too short to be a layer"))?;
    file.read_exact_at(trailer.as_flattened_mut(), at)?;
    let [magic, of, count] = trailer;
    let words = words(bytes)?;
    if magic != MAGIC {
        return Err(invalid("not a layer that a snapshot made"));
    }
    if u64::from_le_bytes(of) != bytes || u64::from_le_bytes(count) != words as u64 {
        return Err(invalid("the layer of a disk of another length"));
    }
    let end = bytes.next_multiple_of(CLUSTER_BYTES);
    if at != end + words as u64 * 8 {
        return Err(invalid("cut short"));
    }
    let mut map = vec![0; words * 8];
    file.read_exact_at(&mut map, end)?;
    let present = map.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    Ok(Layer::of(file, present))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> File {
        let path = std::env::temp_dir().join(format!("machinen-saved-{}-{name}", std::process::id()));
        let file = File::options().create_new(true).read(true).write(true).open(&path).expect("a file");
        std::fs::remove_file(path).expect("removed");
        file
    }

    #[test]
    fn a_disk_is_flattened_with_its_holes() {
        use std::os::unix::fs::MetadataExt;
        let bytes = 300 * CLUSTER_BYTES - 512;
        let base = file("base");
        base.set_len(200 * CLUSTER_BYTES + 5).expect("long");
        for at in [0, 5 * CLUSTER_BYTES, 200 * CLUSTER_BYTES] {
            base.write_all_at(&[1; 5], at).expect("written");
        }
        let mut layer = Layer::new(bytes).expect("a layer");
        layer.put(5, &[0; 4096]).expect("put");
        layer.put(299, &[2; 4096]).expect("put");
        let out = file("flat");
        flatten(&base, &[layer], bytes, &out).expect("flattened");
        let value = |at: u64| {
            let mut byte = [9];
            out.read_exact_at(&mut byte, at).expect("read");
            byte[0]
        };
        assert_eq!([0, 4, 5, 5 * CLUSTER_BYTES, 200 * CLUSTER_BYTES + 4, bytes - 1].map(value), [1, 1, 0, 0, 1, 2]);
        let found = out.metadata().expect("metadata");
        assert!(found.len() == bytes && found.blocks() * 512 < bytes / 4, "{found:?}");
        // No layer at all, as for a disk that is only read.
        let out = file("plain");
        flatten(&base, &[], bytes, &out).expect("flattened");
        assert_eq!(out.metadata().expect("metadata").len(), bytes);
    }

    #[test]
    fn what_layers_hold_is_saved_and_loaded() {
        let bytes = 300 * CLUSTER_BYTES - 512;
        let content = |value: u8| -> Cluster { [value; 4096] };
        let (mut low, mut high) = (Layer::new(bytes).expect("a layer"), Layer::new(bytes).expect("a layer"));
        for (cluster, value) in [(0, 1), (63, 2), (64, 3), (299, 4)] {
            low.put(cluster, &content(value)).expect("put");
        }
        for (cluster, value) in [(63, 12), (65, 13)] {
            high.put(cluster, &content(value)).expect("put");
        }
        let out = file("good");
        save(&[low, high], bytes, &out).expect("saved");
        let layer = load(out.try_clone().expect("a copy"), bytes).expect("loaded");
        let held: Vec<u64> = (0..320).filter(|cluster| layer.has(*cluster)).collect();
        assert_eq!(held, [0, 63, 64, 65, 299]);
        let value = |cluster: u64| {
            let mut byte = [0];
            layer.file().read_exact_at(&mut byte, cluster * CLUSTER_BYTES + 77).expect("read");
            byte[0]
        };
        assert_eq!([0, 63, 64, 65, 299].map(value), [1, 12, 3, 13, 4]);

        let why =
            |file: &File, bytes| load(file.try_clone().expect("a copy"), bytes).expect_err("no layer").to_string();
        assert_eq!(why(&out, bytes + 512), "the layer of a disk of another length");
        assert_eq!(why(&file("empty"), bytes), "too short to be a layer");
        let length = out.metadata().expect("metadata").len();
        out.set_len(length - 1).expect("cut");
        assert_eq!(why(&out, bytes), "not a layer that a snapshot made");
    }
}

//! Writing an archive: headers; whoever calls writes the bodies between them.

use alloc::vec::Vec;

use super::field::write_number;
use super::{BLOCK_BYTES, Entry, Kind, pax};

/// The end mark.
pub const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// Zeroes to write after a body of `size` bytes.
#[must_use]
pub fn padding(size: u64) -> usize {
    usize::try_from(size.wrapping_neg() % BLOCK_BYTES as u64).unwrap_or(0)
}

/// The header of an entry, with an extended one before it where ustar has no room for something.
#[must_use]
pub fn header(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut block = [0; BLOCK_BYTES];
    let path = put(&mut block[..100], &entry.path);
    let (kind, link, device) = match &entry.kind {
        Kind::File => (b'0', None, None),
        Kind::HardLink(target) => (b'1', Some(target), None),
        Kind::SymbolicLink(target) => (b'2', Some(target), None),
        Kind::Character(major, minor) => (b'3', None, Some((*major, *minor))),
        Kind::Block(major, minor) => (b'4', None, Some((*major, *minor))),
        Kind::Directory => (b'5', None, None),
        Kind::Fifo => (b'6', None, None),
    };
    if !path {
        pax::write("path", &entry.path, &mut records);
    }
    if let Some(link) = link.filter(|link| !put(&mut block[157..257], link)) {
        pax::write("linkpath", link, &mut records);
    }
    let (major, minor) = device.unwrap_or_default();
    write_number(&mut block[329..337], major.into());
    write_number(&mut block[337..345], minor.into());
    let numbers =
        [(108..116, "uid", entry.uid.into()), (116..124, "gid", entry.gid.into()), (124..136, "size", entry.size)];
    for (field, key, value) in numbers {
        if !write_number(&mut block[field.clone()], value) {
            write_number(&mut block[field], 0);
            pax::write(key, alloc::format!("{value}").as_bytes(), &mut records);
        }
    }
    let seconds = u64::try_from(entry.mtime.seconds).unwrap_or(0);
    let whole = entry.mtime.nanoseconds == 0 && entry.mtime.seconds >= 0;
    if !write_number(&mut block[136..148], seconds) || !whole {
        pax::write_time("mtime", entry.mtime, &mut records);
    }
    write_number(&mut block[100..108], (entry.mode & 0o7777).into());
    let mut all = Vec::new();
    if !records.is_empty() {
        let mut extended = [0; BLOCK_BYTES];
        put(&mut extended[..100], b"pax");
        write_number(&mut extended[100..108], 0o644);
        for field in [108..116, 116..124, 136..148] {
            write_number(&mut extended[field], 0);
        }
        write_number(&mut extended[124..136], records.len() as u64);
        all.extend_from_slice(&sealed(extended, b'x'));
        all.extend_from_slice(&records);
        all.resize(all.len() + padding(records.len() as u64), 0);
    }
    all.extend_from_slice(&sealed(block, kind));
    all
}

/// Puts text into a field; false when only a part has room.
fn put(field: &mut [u8], text: &[u8]) -> bool {
    let count = text.len().min(field.len());
    field[..count].copy_from_slice(&text[..count]);
    count == text.len()
}

/// A header with its type, magic and checksum.
fn sealed(mut block: [u8; BLOCK_BYTES], kind: u8) -> [u8; BLOCK_BYTES] {
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().copied().map(u64::from).sum();
    write_number(&mut block[148..155], sum);
    block
}

#[cfg(test)]
mod tests {
    use super::super::read::{Archive, Fault};
    use super::super::{Entry, Kind, Time};
    use super::{END, header, padding};
    use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};
    use std::convert::Infallible;

    fn name() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(1..=255_u8, 1..12),
            prop::collection::vec(1..=255_u8, 95..105),
            prop::collection::vec(1..=255_u8, 1..4000),
        ]
        .prop_map(|mut name| {
            // A file's name does not end like a directory's.
            if name.last() == Some(&b'/') {
                name.push(b'x');
            }
            name
        })
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            4 => Just(Kind::File),
            1 => Just(Kind::Directory),
            1 => Just(Kind::Fifo),
            1 => (0..4096_u32, 0..1_048_576_u32).prop_map(|(major, minor)| Kind::Character(major, minor)),
            1 => (0..4096_u32, 0..1_048_576_u32).prop_map(|(major, minor)| Kind::Block(major, minor)),
            2 => name().prop_map(Kind::SymbolicLink),
            2 => name().prop_map(Kind::HardLink),
        ]
    }

    fn entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
        let ids = (prop_oneof![0..3000_u32, any::<u32>()], prop_oneof![0..3000_u32, any::<u32>()]);
        let seconds = prop_oneof![-5_000_000_000..5_000_000_000_i64, Just(1 << 33), Just((1 << 33) - 1)];
        let time = (seconds, prop_oneof![Just(0), 0..1_000_000_000_u32]);
        let body = prop::collection::vec(any::<u8>(), 0..1500);
        (name(), kind(), 0..0o10000_u32, ids, time, body).prop_map(|(path, kind, mode, (uid, gid), time, body)| {
            let body = if kind == Kind::File { body } else { vec![] };
            let mtime = Time { seconds: time.0, nanoseconds: time.1 };
            (Entry { path, kind, size: body.len() as u64, mode, uid, gid, mtime }, body)
        })
    }

    fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (entry, body) in entries {
            bytes.extend(header(entry));
            bytes.extend(body);
            bytes.resize(bytes.len() + padding(entry.size), 0);
        }
        bytes.extend(END);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Fault<Infallible>> {
        let (mut archive, mut all) = (Archive::new(bytes), Vec::new());
        while let Some(entry) = archive.next_entry()? {
            let mut body = vec![0; usize::try_from(entry.size).unwrap()];
            let mut filled = 0;
            while filled < body.len() {
                filled += archive.read(&mut body[filled..])?;
            }
            all.push((entry, body));
        }
        Ok(all)
    }

    #[test]
    fn what_octal_cannot_hold_goes_to_the_extended_header() {
        let mtime = Time { seconds: -1, nanoseconds: 5 };
        let big =
            Entry { path: b"big".to_vec(), kind: Kind::File, size: 1 << 33, mode: 0o4755, uid: 0, gid: 1 << 21, mtime };
        let bytes = header(&big);
        let mut archive = Archive::new(&bytes[..]);
        assert_eq!(archive.next_entry(), Ok(Some(big)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in prop::collection::vec(entry(), 0..6)) {
            assert_eq!(read(&archive(&entries)), Ok(entries));
        }

        #[test]
        fn the_tar_crate_reads_it_too(mut entries in prop::collection::vec(entry(), 0..6)) {
            // It takes every line end for the end of a record.
            let plain = |path: &mut Vec<u8>| path.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b'n');
            for (entry, _) in &mut entries {
                plain(&mut entry.path);
                if let Kind::SymbolicLink(target) | Kind::HardLink(target) = &mut entry.kind {
                    plain(target);
                }
            }
            let bytes = archive(&entries);
            let mut theirs = tar::Archive::new(&bytes[..]);
            let mut count = 0;
            for (found, (entry, body)) in theirs.entries().unwrap().zip(&entries) {
                let mut found = found.unwrap();
                assert_eq!(found.path_bytes(), &entry.path[..]);
                assert_eq!(found.header().mode().unwrap(), entry.mode);
                if let Kind::SymbolicLink(target) | Kind::HardLink(target) = &entry.kind {
                    assert_eq!(found.link_name_bytes().unwrap(), &target[..]);
                }
                let mut content = Vec::new();
                std::io::Read::read_to_end(&mut found, &mut content).unwrap();
                assert_eq!(&content, body);
                count += 1;
            }
            assert_eq!(count, entries.len());
        }
    }
}

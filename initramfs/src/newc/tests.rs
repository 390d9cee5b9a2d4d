//! The writer and reader against their limits, and against arbitrary and damaged bytes.

use std::borrow::ToOwned;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::{Device, Entry, Error, Fault, Kind, MAX_FILE_BYTES, NameFault, Reader, Sink, TRAILER, Writer, entry_bytes};

fn entry<'a>(path: &'a [u8], kind: Kind<'a>) -> Entry<'a> {
    Entry { path, kind, mode: 0o644, uid: 1, gid: 2, mtime: 3, ino: 4, nlink: 1 }
}

fn file(path: &[u8], len_bytes: u64) -> Entry<'_> {
    entry(path, Kind::File { len_bytes })
}

fn sample() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    writer.entry(&entry(b"dir", Kind::Directory)).unwrap();
    writer.entry(&file(b"dir/f", 5)).unwrap();
    writer.data(b"he").unwrap();
    writer.data(b"llo").unwrap();
    writer.entry(&entry(b"l", Kind::Symlink(b"dir/f"))).unwrap();
    let (major, minor) = (5, 1);
    let console = Kind::Char(Device { major, minor });
    writer.entry(&entry(b"console", console)).unwrap();
    writer.finish().unwrap()
}

#[test]
fn header_is_as_the_kernel_documents_it() {
    let mut writer = Writer::new(Vec::new());
    writer.entry(&file(b"abc", 2)).unwrap();
    writer.data(b"xy").unwrap();
    let archive = writer.finish().unwrap();
    let first = b"07070100000004000081A40000000100000002000000010000000300000002\
        0000000000000000000000000000000000000004\
        00000000abc\0\0\0xy\0\0";
    assert!(archive.starts_with(first));
    let trailer = &archive[first.len()..];
    assert_eq!(trailer.len(), 124);
    assert!(trailer.ends_with(b"0000000B00000000TRAILER!!!\0\0\0\0"));
    assert_eq!(first.len() as u64, entry_bytes(3, 2));
}

#[test]
fn bodies_must_have_their_announced_length() {
    let mut writer = Writer::new(Vec::new());
    writer.entry(&file(b"f", 3)).unwrap();
    let path = b"f".to_vec();
    let long = Err(Error::Long { path: path.clone() });
    assert_eq!(writer.data(b"four"), long);
    let missing_bytes = 3;
    let short = Error::Short { path, missing_bytes };
    assert_eq!(writer.entry(&file(b"g", 0)), Err(short.clone()));
    assert_eq!(writer.finish(), Err(short));
}

#[test]
fn nothing_of_a_refused_entry_is_written() {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out);
    let long = vec![b'x'; 4096];
    let len_bytes = MAX_FILE_BYTES + 1;
    let path = b"big".to_vec();
    let large = Error::TooLarge { path, len_bytes };
    assert_eq!(writer.entry(&file(b"big", len_bytes)), Err(large));
    for (name, fault) in [(&long[..], NameFault::TooLong), (b"", NameFault::Empty), (b"a\0b", NameFault::Nul)] {
        let path = Err(Error::Path(name.to_owned(), fault));
        assert_eq!(writer.entry(&file(name, 0)), path);
        let link = writer.entry(&entry(b"l", Kind::Symlink(name)));
        assert_eq!(link, Err(Error::Target(b"l".to_vec(), fault)));
    }
    let end = Err(Error::Path(TRAILER.to_vec(), NameFault::Trailer));
    assert_eq!(writer.entry(&file(TRAILER, 0)), end);
    assert!(out.is_empty());
    // The longest path and the largest file are fine.
    let mut writer = Writer::new(&mut out);
    writer.entry(&file(&long[..4095], MAX_FILE_BYTES)).unwrap();
}

/// Fails from the n-th write on.
struct Failing(usize);

impl Sink for Failing {
    type Error = ();

    fn write(&mut self, _: &[u8]) -> Result<(), ()> {
        self.0 = self.0.checked_sub(1).ok_or(())?;
        Ok(())
    }
}

#[test]
fn every_failing_write_is_reported() {
    let all = |n| -> Result<(), Error<()>> {
        let mut writer = Writer::new(Failing(n));
        writer.entry(&file(b"f", 1))?;
        writer.data(b"x")?;
        writer.entry(&entry(b"l", Kind::Symlink(b"target")))?;
        writer.finish().map(drop)
    };
    for n in 0..13 {
        assert_eq!(all(n), Err(Error::Sink(())), "write {n}");
    }
    assert_eq!(all(13), Ok(()));
}

#[test]
fn reader_names_each_fault() {
    let good = sample();
    assert_eq!(Reader::new(&good).filter(Result::is_ok).count(), 4);
    let damaged = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        Reader::new(&bad).find_map(Result::err).map(|e| (e.offset_bytes, e.fault))
    };
    assert_eq!(damaged(5, b'2'), Some((0, Fault::Magic)));
    assert_eq!(damaged(6, b'+'), Some((0, Fault::Digit)));
    assert_eq!(damaged(14, b'8'), Some((0, Fault::Mode)), "bits beyond 16");
    assert_eq!(damaged(18, b'0'), Some((0, Fault::Mode)), "no such type");
    assert_eq!(damaged(113, b'x'), Some((0, Fault::Name)));
    assert_eq!(damaged(111, 0), Some((0, Fault::Name)));
    assert_eq!(damaged(61, b'4'), Some((0, Fault::Body)), "directory");
    let mut more = good.clone();
    more.extend([0; 512]);
    assert!(Reader::new(&more).all(|item| item.is_ok()));
    more.push(1);
    let last = Reader::new(&more).last().unwrap();
    assert_eq!(last.unwrap_err().fault, Fault::AfterTrailer);
    for end in 0..good.len() {
        assert!(Reader::new(&good[..end]).any(|item| item.is_err()), "{end}");
    }
}

proptest! {
    #[test]
    fn reader_survives_anything(bytes: Vec<u8>) {
        prop_assert!(Reader::new(&bytes).count() <= bytes.len() / 110 + 1);
    }

    #[test]
    fn reader_survives_damage(hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = sample();
        for (at, byte) in hits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        prop_assert!(Reader::new(&bytes).count() <= 6);
    }

    #[test]
    fn what_is_written_is_read(
        path in prop::collection::vec(1_u8.., 1..300), body: Vec<u8>, mode in 0_u16..0o10000,
        numbers: [u32; 5],
    ) {
        prop_assume!(path != TRAILER);
        let [uid, gid, mtime, ino, nlink] = numbers;
        let len_bytes = body.len() as u64;
        let written = Entry { path: &path, kind: Kind::File { len_bytes }, mode, uid, gid, mtime, ino, nlink };
        let mut writer = Writer::new(Vec::new());
        writer.entry(&written).unwrap();
        writer.data(&body).unwrap();
        let archive = writer.finish().unwrap();
        prop_assert_eq!(archive.len() as u64, entry_bytes(path.len(), len_bytes) + entry_bytes(10, 0));
        let read = Reader::new(&archive).next().unwrap().unwrap();
        prop_assert_eq!(read.entry, written);
        prop_assert_eq!(read.data, &body[..]);
    }
}

//! What of CRIU's images is read here: bytes that were in a pipe, and which pages a process has.

use alloc::vec::Vec;

use machinen_abi::fault::Fault;

/// The file that has them.
pub const PIPES: &str = "pipes-data.img";

/// The first four bytes of an image, and those of this kind (criu/include/magic.h).
const COMMON_MAGIC: u32 = 0x5456_4319;
const PIPES_DATA_MAGIC: u32 = 0x5645_3709;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;

/// What is said of pages: they may come later, and they are in the image (criu/include/pagemap.h).
const LAZY: u64 = 2;
const PRESENT: u64 = 4;
const PAGE_BYTES: u64 = 4096;

/// The bytes that were in the pipe of this inode when it was dumped; none where the file has none, or is another.
///
/// After the magic numbers each pipe has the length of its entry (32 bits), the entry (images/pipe-data.proto: 1 is the pipe's
/// inode, 2 the number of its bytes), and the bytes.
#[must_use]
pub fn pipe_bytes(image: &[u8], inode: u64) -> &[u8] {
    let read = || {
        let (common, rest) = number(image)?;
        let (magic, mut rest) = number(rest)?;
        if (common, magic) != (COMMON_MAGIC, PIPES_DATA_MAGIC) {
            return None;
        }
        loop {
            let (length, after) = number(rest)?;
            let (entry, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
            let bytes = usize::try_from(field(entry, 2).unwrap_or(0)).ok()?;
            let (data, after) = after.split_at_checked(bytes)?;
            if field(entry, 1) == Some(inode) {
                return Some(data);
            }
            rest = after;
        }
    };
    read().unwrap_or_default()
}

/// A map of pages by which these pages of it, in order of their addresses, do not come later than the process. `None` where there are
/// none, or where it is something else.
///
/// After the magic numbers and the head each run of pages has the length of its entry (32 bits), and the entry
/// (images/pagemap.proto: 1 is the address, 2 the number of pages, 4 what is said of them). The bytes of all runs follow each
/// other in another file, so that a run may be split.
#[must_use]
pub fn with_first(map: &[u8], first: &[Fault]) -> Option<Vec<u8>> {
    let (common, rest) = number(map)?;
    let (magic, rest) = number(rest)?;
    let (head, rest) = number(rest)?;
    let mut rest = rest.get(usize::try_from(head).ok()?..)?;
    if (common, magic) != (COMMON_MAGIC, PAGEMAP_MAGIC) {
        return None;
    }
    let mut all = map.get(..map.len() - rest.len())?.to_vec();
    let mut found = false;
    while !rest.is_empty() {
        let (length, after) = number(rest)?;
        let (entry, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        let whole = rest.get(..rest.len() - after.len())?;
        rest = after;
        let (start, pages) = (field(entry, 1)?, field(entry, 2)?);
        let end = start.checked_add(pages.checked_mul(PAGE_BYTES)?)?;
        let is_plain = start.is_multiple_of(PAGE_BYTES) && [3, 5].iter().all(|more| field(entry, *more).is_none());
        let is_lazy = is_plain && field(entry, 4) == Some(LAZY | PRESENT);
        if !is_lazy {
            all.extend(whole);
            continue;
        }
        let (mut later, mut now) = (start, start);
        let from = first.partition_point(|page| page.address < start);
        for Fault { address, .. } in first[from..].iter().take_while(|page| page.address < end) {
            found = true;
            if *address > now {
                run(&mut all, later, now, PRESENT);
                run(&mut all, now, *address, LAZY | PRESENT);
                later = *address;
            }
            now = address + PAGE_BYTES;
        }
        run(&mut all, later, now, PRESENT);
        run(&mut all, now, end, LAZY | PRESENT);
    }
    found.then_some(all)
}

/// Adds a run of pages, unless it is empty.
fn run(map: &mut Vec<u8>, start: u64, end: u64, flags: u64) {
    if start == end {
        return;
    }
    let at = map.len();
    map.extend([0; 4]);
    for (key, mut value) in [(1, start), (2, (end - start) / PAGE_BYTES), (4, flags)] {
        map.push(key << 3);
        while value > 0x7f {
            map.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        map.push(value.to_le_bytes()[0]);
    }
    // No more than 30 bytes.
    map[at] = (map.len() - at - 4).to_le_bytes()[0];
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (u32::from_le_bytes(*number), rest))
}

/// A field of an entry all of whose fields are numbers.
fn field(mut entry: &[u8], wanted: u64) -> Option<u64> {
    while !entry.is_empty() {
        let (key, rest) = varint(entry)?;
        let (value, rest) = varint(rest)?;
        if key & 7 != 0 {
            return None;
        }
        if key >> 3 == wanted {
            return Some(value);
        }
        entry = rest;
    }
    None
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(at).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Fault, PAGE_BYTES, field, number, pipe_bytes, with_first};
    use proptest::prelude::{any, prop, proptest};

    /// As CRIU 3.17.1 wrote it for pipes of 161 (7 bytes) and 162 (none).
    fn image() -> Vec<u8> {
        let head = [0x19, 0x43, 0x56, 0x54, 0x09, 0x37, 0x45, 0x56];
        let first = [9, 0, 0, 0, 0x08, 0xa1, 0x01, 0x10, 7, 0x18, 0x80, 0x80, 0x04];
        let second = [9, 0, 0, 0, 0x08, 0xa2, 0x01, 0x10, 0, 0x18, 0x80, 0x80, 0x04];
        [&head[..], &first, b"unread\n", &second].concat()
    }

    #[test]
    fn bytes_are_those_of_the_pipe() {
        let image = image();
        assert_eq!([161, 162, 163].map(|inode| pipe_bytes(&image, inode)), [&b"unread\n"[..], b"", b""]);
        assert!((0..image.len()).all(|end| pipe_bytes(&image[..end], 162).is_empty()));
        assert_eq!(pipe_bytes(&[1; 40], 161), b"");
    }

    /// As CRIU 3.17.1 writes it: of images 1, three pages that may come later, one that may not, and one with a parent.
    fn map() -> Vec<u8> {
        let head = [0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56, 2, 0, 0, 0, 0x08, 1];
        let lazy = [8, 0, 0, 0, 0x08, 0x80, 0x80, 0x04, 0x10, 3, 0x20, 6];
        let stack = [8, 0, 0, 0, 0x08, 0x80, 0x80, 0x05, 0x10, 1, 0x20, 4];
        let parent = [10, 0, 0, 0, 0x08, 0x80, 0x80, 0x06, 0x10, 1, 0x18, 1, 0x20, 6];
        [&head[..], &lazy, &stack, &parent].concat()
    }

    fn faults(pages: &[u64]) -> Vec<Fault> {
        pages.iter().map(|address| Fault { pid: 7, address: *address }).collect()
    }

    /// Its runs: address, pages, flags.
    fn runs(map: &[u8]) -> Vec<(u64, u64, u64)> {
        let (mut all, mut rest) = (Vec::new(), &map[14..]);
        while let Some((length, after)) = number(rest) {
            let (entry, after) = after.split_at(length as usize);
            all.push((field(entry, 1).unwrap(), field(entry, 2).unwrap(), field(entry, 4).unwrap()));
            rest = after;
        }
        all
    }

    #[test]
    fn pages_come_first_where_they_may_come_later() {
        let first = |pages: &[u64]| with_first(&map(), &faults(pages));
        assert_eq!(runs(&map()), [(0x10000, 3, 6), (0x14000, 1, 4), (0x18000, 1, 6)]);
        let rest = [(0x14000, 1, 4), (0x18000, 1, 6)];
        for (pages, expected) in [
            (&[0x10000][..], &[(0x10000, 1, 4), (0x11000, 2, 6)][..]),
            (&[0x11000], &[(0x10000, 1, 6), (0x11000, 1, 4), (0x12000, 1, 6)]),
            (&[0x11000, 0x11000, 0x12000, 0x13000], &[(0x10000, 1, 6), (0x11000, 2, 4)]),
            (&[0x10000, 0x12000], &[(0x10000, 1, 4), (0x11000, 1, 6), (0x12000, 1, 4)]),
            (&[0x10000, 0x11000, 0x12000, 0x14000], &[(0x10000, 3, 4)]),
        ] {
            assert_eq!(runs(&first(pages).unwrap()), [expected, &rest].concat(), "{pages:x?}");
        }
        // Nothing of it: elsewhere, not later anyway, of a parent.
        for none in [&[][..], &[0], &[0x13000], &[0x14000], &[0x18000], &[u64::MAX]] {
            assert_eq!(first(none), None, "{none:x?}");
        }
        assert_eq!(with_first(&image(), &faults(&[0x10000])), None);
        assert!((0..map().len()).all(|end| {
            let cut = with_first(&map()[..end], &faults(&[0x10000]));
            cut.is_none_or(|cut| runs(&cut)[..2] == [(0x10000, 1, 4), (0x11000, 2, 6)])
        }));
    }

    proptest! {
        #[test]
        fn any_map_is_read(at in any::<prop::sample::Index>(), new in any::<[u8; 3]>(), pages in prop::collection::btree_set(0x0e_u64..0x1a, 0..6)) {
            let first = faults(&pages.into_iter().map(|page| page * PAGE_BYTES).collect::<Vec<_>>());
            let total = |map: &[u8]| runs(map).iter().map(|run| run.1).sum::<u64>();
            if let Some(changed) = with_first(&map(), &first) {
                assert_eq!(total(&changed), total(&map()));
            }
            let mut map = map();
            let at = at.index(map.len() - 2);
            map[at..at + 3].copy_from_slice(&new);
            let _ = with_first(&map, &first);
        }

        #[test]
        fn any_bytes_are_read(at in any::<prop::sample::Index>(), new in any::<[u8; 3]>()) {
            let mut image = image();
            let at = at.index(image.len() - 2);
            image[at..at + 3].copy_from_slice(&new);
            let _ = (pipe_bytes(&image, 161), pipe_bytes(&image, 162));
        }
    }
}

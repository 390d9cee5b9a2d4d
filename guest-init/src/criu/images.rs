//! What of CRIU's images is read here: bytes that were in a pipe.

/// The file that has them.
pub const PIPES: &str = "pipes-data.img";

/// The first four bytes of an image, and those of this kind (criu/include/magic.h).
const COMMON_MAGIC: u32 = 0x5456_4319;
const PIPES_DATA_MAGIC: u32 = 0x5645_3709;

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
    use super::pipe_bytes;
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

    proptest! {
        #[test]
        fn any_bytes_are_read(at in any::<prop::sample::Index>(), new in any::<[u8; 3]>()) {
            let mut image = image();
            let at = at.index(image.len() - 2);
            image[at..at + 3].copy_from_slice(&new);
            let _ = (pipe_bytes(&image, 161), pipe_bytes(&image, 162));
        }
    }
}

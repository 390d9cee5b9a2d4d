//! Fields of a header: numbers and strings of a fixed width.

/// Reads a number: octal digits, perhaps with blanks before and a blank or NUL after, or GNU's base 256, whose first bit is
/// set. An empty field is 0. `None` for anything else, and for what 64 bits cannot hold.
#[must_use]
pub fn number(field: &[u8]) -> Option<i64> {
    if let Some((first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) {
        // Two's complement in the bits after the first one.
        let start = if first & 0x40 != 0 { -1 } else { 0 };
        let first = i64::from(first & 0x7f) | (start & !0x7f);
        return rest.iter().try_fold(first, |sum, byte| sum.checked_mul(256)?.checked_add(i64::from(*byte)));
    }
    let end = |byte: &u8| [b' ', 0].contains(byte);
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let count = digits.iter().position(end).unwrap_or(digits.len());
    if !digits[count..].iter().all(end) {
        return None;
    }
    digits[..count].iter().try_fold(0_i64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// The bytes before the first NUL.
#[must_use]
pub fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Writes a number as octal digits and a NUL. False, and nothing written, when the field is too short.
pub fn write_number(field: &mut [u8], value: u64) -> bool {
    let Some((last, digits)) = field.split_last_mut() else { return false };
    let bits = u32::try_from(digits.len() * 3).unwrap_or(u32::MAX);
    if value.checked_shr(bits).unwrap_or(0) != 0 {
        return false;
    }
    let mut rest = value;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest & 7).unwrap_or(0);
        rest >>= 3;
    }
    *last = 0;
    true
}

#[cfg(test)]
mod tests {
    use super::{number, write_number};
    use proptest::prelude::{any, prop, proptest};

    #[test]
    fn numbers_of_all_sorts() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  644 \0\0"), Some(0o644));
        assert_eq!(number(b"77777777777"), Some((1 << 33) - 1));
        assert_eq!((number(b""), number(b"\0\0"), number(b"   ")), (Some(0), Some(0), Some(0)));
        assert_eq!((number(b"8"), number(b"1 2"), number(b"-1"), number(b"1\x002")), (None, None, None, None));
        assert_eq!(number(b"\x80\0\0\x01\0"), Some(256));
        assert_eq!(number(b"\xff\xff\xff\xff"), Some(-1));
        assert_eq!(number(b"\xff\xff\xff\x00"), Some(-256));
        assert_eq!(number(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in any::<u64>(), width in 0..24_usize) {
            let mut field = vec![0xee; width];
            if write_number(&mut field, value) {
                assert_eq!(number(&field), i64::try_from(value).ok());
            } else {
                assert!(width < 23 && field.iter().all(|byte| *byte == 0xee));
            }
        }

        #[test]
        fn any_field_is_read_or_refused(field in prop::collection::vec(any::<u8>(), 0..13)) {
            let _ = number(&field);
        }
    }
}

//! Records of a pax extended header: `LENGTH KEY=VALUE\n`, the length with itself and the line end.

use alloc::vec::Vec;

use super::Time;

/// What an extended header says, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// `path`.
    pub path: Option<Vec<u8>>,
    /// `linkpath`.
    pub link: Option<Vec<u8>>,
    /// `size`.
    pub size: Option<u64>,
    /// `uid`.
    pub uid: Option<u64>,
    /// `gid`.
    pub gid: Option<u64>,
    /// `mtime`.
    pub mtime: Option<Time>,
    /// There is a key of GNU's sparse files, whose content is not what it looks like.
    pub sparse: bool,
}

impl Records {
    /// Reads records over what is known; keys that do not matter are passed over, an empty value takes the key back.
    /// `None` when they are malformed.
    pub fn add(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let blank = bytes.iter().position(|byte| *byte == b' ')?;
            let length = usize::try_from(decimal(&bytes[..blank])?).ok()?;
            let record = bytes.get(..length)?.get(blank + 1..)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let value = Some(value).filter(|value| !value.is_empty());
            match key {
                b"path" => self.path = value.map(Vec::from),
                b"linkpath" => self.link = value.map(Vec::from),
                b"size" => self.size = value.map(decimal).map_or(Some(None), |number| number.map(Some))?,
                b"uid" => self.uid = value.map(decimal).map_or(Some(None), |number| number.map(Some))?,
                b"gid" => self.gid = value.map(decimal).map_or(Some(None), |number| number.map(Some))?,
                b"mtime" => self.mtime = value.map(time).map_or(Some(None), |time| time.map(Some))?,
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
            bytes = &bytes[length..];
        }
        Some(())
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}

/// `-?DIGITS[.DIGITS]`
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain([b'0'; 9]).take(9);
    let nanoseconds = digits.fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// Adds a record.
pub fn write(key: &str, value: &[u8], records: &mut Vec<u8>) {
    // Blank, equals sign and line end.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + digits(rest);
    if rest + digits(length) != length {
        length = rest + digits(length);
    }
    records.extend_from_slice(alloc::format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Adds a record of a time.
pub fn write_time(key: &str, time: Time, records: &mut Vec<u8>) {
    let Time { seconds, nanoseconds } = time;
    let value = match (seconds < 0, nanoseconds) {
        (_, 0) => alloc::format!("{seconds}"),
        (false, _) => alloc::format!("{seconds}.{nanoseconds:09}"),
        (true, _) => alloc::format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    };
    write(key, value.as_bytes(), records);
}

fn digits(mut number: usize) -> usize {
    let mut count = 1;
    while number >= 10 {
        number /= 10;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::{Records, Time, write, write_time};
    use proptest::prelude::{any, prop, proptest};

    fn read(bytes: &[u8]) -> Option<Records> {
        let mut records = Records::default();
        records.add(bytes).map(|()| records)
    }

    #[test]
    fn records_are_read_as_the_standard_has_them() {
        let records = read(b"11 path=a\nb\n19 linkpath=\xff=\n\xfe\x01\n").unwrap_or_default();
        assert_eq!(records, Records::default(), "a wrong length");
        let records = read(b"12 path=a\nb\n12 size=123\n23 SCHILY.xattr.user=x\n").unwrap();
        assert_eq!((records.path, records.size), (Some(b"a\nb".to_vec()), Some(123)));
        assert!(read(b"8 size=\n9 path=x\n8 path=\n").unwrap() == Records::default());
        for bad in ["x", "9 path=x", "99 path=x\n", "9 path+x\n", "1 a=\n", "0 \n", "12 size=-12\n", "13 mtime=1.x\n"] {
            assert_eq!(read(bad.as_bytes()), None, "{bad}");
        }
        assert!(read(b"22 GNU.sparse.major=1\n").unwrap().sparse);
    }

    #[test]
    fn times_may_be_before_1970() {
        let time = |text: &str| {
            let mut bytes = Vec::new();
            write("mtime", text.as_bytes(), &mut bytes);
            read(&bytes).unwrap().mtime.map(|time| (time.seconds, time.nanoseconds))
        };
        assert_eq!(time("1.5"), Some((1, 500_000_000)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!((time("-3"), time("7.1234567899")), (Some((-3, 0)), Some((7, 123_456_789))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(path in prop::collection::vec(any::<u8>(), 1..1100), seconds in any::<i32>(), nanoseconds in 0..1_000_000_000_u32) {
            let mut bytes = Vec::new();
            let time = Time { seconds: seconds.into(), nanoseconds };
            write("path", &path, &mut bytes);
            write_time("mtime", time, &mut bytes);
            assert_eq!(read(&bytes), Some(Records { path: Some(path), mtime: Some(time), ..Records::default() }));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60), text in "[0-9]{1,2} (path|size|uid|mtime)=[-.0-9]{0,9}\n") {
            let _ = (read(&bytes), read(text.as_bytes()));
        }
    }
}

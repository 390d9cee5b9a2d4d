//! Reading an archive.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use super::field::{number, text};
use super::pax::Records;
use super::{BLOCK_BYTES, Entry, Kind, Time};

/// No extended header or long name is longer.
const MOST_EXTRA_BYTES: u64 = 1 << 20;

/// Where the bytes come from.
pub trait Input {
    /// Why reading fails.
    type Error;
    /// Reads some bytes; none at the end.
    ///
    /// # Errors
    /// When that fails.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Self::Error>;
}

/// Why an archive cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault<E> {
    /// The input failed.
    Input(E),
    /// It ends before its end mark.
    Truncated,
    /// The header at this byte is none: its checksum is wrong.
    Checksum(u64),
    /// A field of the header at this byte, or what it needs, makes no sense.
    Field(u64, &'static str),
    /// An entry of a kind that is not known: this type, at this byte.
    Type(u64, u8),
}

impl<E: fmt::Display> fmt::Display for Fault<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Input(error) => write!(f, "cannot be read: {error}"),
            Fault::Truncated => f.write_str("ends before its end mark"),
            Fault::Checksum(at) => write!(f, "no header at byte {at}"),
            Fault::Field(at, what) => write!(f, "the header at byte {at} has a bad {what}"),
            Fault::Type(at, kind) => write!(f, "the entry at byte {at} has the type {kind:#04x}, which is not known"),
        }
    }
}

/// An archive that is read from its start to its end.
#[derive(Debug)]
pub struct Archive<I> {
    input: I,
    /// Bytes read.
    at: u64,
    /// Bytes of the body that have not been read, and of its padding.
    body: u64,
    padding: u64,
    global: Records,
}

impl<I: Input> Archive<I> {
    /// An archive from its first byte on.
    pub fn new(input: I) -> Self {
        Self { input, at: 0, body: 0, padding: 0, global: Records::default() }
    }

    /// The next entry; what is left of the body before it is passed over. `None` after the end mark, when the input has
    /// been read to its end.
    ///
    /// # Errors
    /// [`Fault`]; then nothing more can be read.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Fault<I::Error>> {
        let mut records = self.global.clone();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.pass()?;
            let (at, mut block) = (self.at, [0; BLOCK_BYTES]);
            self.fill(&mut block)?;
            if block.iter().all(|byte| *byte == 0) {
                return self.finish().map(|()| None);
            }
            if !is_header(&block) {
                return Err(Fault::Checksum(at));
            }
            let bad = |what| Fault::Field(at, what);
            let size = number(&block[124..136]).and_then(|size| u64::try_from(size).ok()).ok_or(bad("size"))?;
            match block[156] {
                b'x' => records.add(&self.extra(at, size)?).ok_or(bad("extended header"))?,
                b'g' => {
                    let bytes = self.extra(at, size)?;
                    self.global.add(&bytes).ok_or(bad("global header"))?;
                    records.add(&bytes).ok_or(bad("global header"))?;
                }
                b'L' => long_path = Some(text(&self.extra(at, size)?).to_vec()),
                b'K' => long_link = Some(text(&self.extra(at, size)?).to_vec()),
                // A volume's label.
                b'V' => self.expect(size),
                _ => {
                    records.path = records.path.or(long_path);
                    records.link = records.link.or(long_link);
                    return self.entry(at, &block, size, records).map(Some);
                }
            }
        }
    }

    /// Reads from the entry's body; nothing at its end.
    ///
    /// # Errors
    /// When the input fails or ends.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Fault<I::Error>> {
        let most = usize::try_from(self.body).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.some(&mut buffer[..most])?;
        self.body -= count as u64;
        Ok(count)
    }

    fn entry(
        &mut self,
        at: u64,
        block: &[u8; BLOCK_BYTES],
        size: u64,
        extra: Records,
    ) -> Result<Entry, Fault<I::Error>> {
        let bad = |what| Fault::Field(at, what);
        if extra.sparse {
            return Err(bad("map: sparse files are not supported"));
        }
        let size = extra.size.unwrap_or(size);
        let path = extra.path.unwrap_or_else(|| own_path(block));
        let link = extra.link.unwrap_or_else(|| text(&block[157..257]).to_vec());
        if path.is_empty() || path.contains(&0) {
            return Err(bad("path"));
        }
        let small = |field: &[u8]| number(field).and_then(|number| u32::try_from(number).ok());
        let id = |extra: Option<u64>, field: &[u8]| match extra {
            Some(id) => u32::try_from(id).ok(),
            None => small(field),
        };
        let device = || small(&block[329..337]).zip(small(&block[337..345])).ok_or(bad("device"));
        let checked = |link: Vec<u8>| if link.is_empty() || link.contains(&0) { Err(bad("link")) } else { Ok(link) };
        let kind = match block[156] {
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink(checked(link)?),
            b'2' => Kind::SymbolicLink(checked(link)?),
            b'3' => device().map(|(major, minor)| Kind::Character(major, minor))?,
            b'4' => device().map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            kind => return Err(Fault::Type(at, kind)),
        };
        self.expect(size);
        let mtime = match extra.mtime {
            Some(time) => time,
            None => Time { seconds: number(&block[136..148]).ok_or(bad("time"))?, nanoseconds: 0 },
        };
        Ok(Entry {
            size: if kind == Kind::File { size } else { 0 },
            path,
            kind,
            mode: small(&block[100..108]).ok_or(bad("mode"))? & 0o7777,
            uid: id(extra.uid, &block[108..116]).ok_or(bad("user"))?,
            gid: id(extra.gid, &block[116..124]).ok_or(bad("group"))?,
            mtime,
        })
    }

    /// A body of so many bytes follows.
    fn expect(&mut self, bytes: u64) {
        self.body = bytes;
        self.padding = bytes.wrapping_neg() % BLOCK_BYTES as u64;
    }

    /// The body of an extended header or a long name.
    fn extra(&mut self, at: u64, size: u64) -> Result<Vec<u8>, Fault<I::Error>> {
        let bytes = usize::try_from(size).ok().filter(|_| size <= MOST_EXTRA_BYTES);
        let mut content = vec![0; bytes.ok_or(Fault::Field(at, "size"))?];
        self.fill(&mut content)?;
        self.expect(size);
        self.body = 0;
        Ok(content)
    }

    /// Passes over what is left of a body.
    fn pass(&mut self) -> Result<(), Fault<I::Error>> {
        let mut buffer = [0; 4096];
        self.body = self.body.checked_add(core::mem::take(&mut self.padding)).ok_or(Fault::Truncated)?;
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// After the first block of zeroes there is another, and then nothing that matters.
    fn finish(&mut self) -> Result<(), Fault<I::Error>> {
        let mut buffer = [0; 4096];
        self.fill(&mut buffer[..BLOCK_BYTES])?;
        while self.input.read(&mut buffer).map_err(Fault::Input)? > 0 {}
        Ok(())
    }

    fn fill(&mut self, mut buffer: &mut [u8]) -> Result<(), Fault<I::Error>> {
        while !buffer.is_empty() {
            let count = self.some(buffer)?;
            buffer = &mut buffer[count..];
        }
        Ok(())
    }

    fn some(&mut self, buffer: &mut [u8]) -> Result<usize, Fault<I::Error>> {
        match self.input.read(buffer).map_err(Fault::Input)? {
            0 => Err(Fault::Truncated),
            count => {
                let count = count.min(buffer.len());
                self.at = self.at.saturating_add(count as u64);
                Ok(count)
            }
        }
    }
}

/// The sum of all bytes, those of its own field as blanks, is in the header. Old writers added them with signs.
fn is_header(block: &[u8; BLOCK_BYTES]) -> bool {
    let bytes = || block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    let plain: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    number(&block[148..156]).is_some_and(|sum| sum == plain || sum == signed)
}

/// The path in the header itself; only ustar has more of it in front.
fn own_path(block: &[u8; BLOCK_BYTES]) -> Vec<u8> {
    let name = text(&block[..100]);
    let prefix = if block[257..263] == *b"ustar\0" { text(&block[345..500]) } else { &[] };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::{Archive, Entry, Fault, Input, Kind};
    use proptest::prelude::{any, prop, proptest};
    use std::convert::Infallible;
    use tar::{EntryType, Header};

    impl Input for &[u8] {
        type Error = Infallible;
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Infallible> {
            // Small pieces of changing size.
            let count = buffer.len().min(self.len()).min(1 + self.len() % 1000);
            buffer[..count].copy_from_slice(&self[..count]);
            *self = &self[count..];
            Ok(count)
        }
    }

    type Read = Result<Vec<(Entry, Vec<u8>)>, Fault<Infallible>>;

    pub fn read(bytes: &[u8]) -> Read {
        let (mut archive, mut all) = (Archive::new(bytes), Vec::new());
        while let Some(entry) = archive.next_entry()? {
            let (mut body, mut buffer) = (Vec::new(), [0; 333]);
            loop {
                let count = archive.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                body.extend(&buffer[..count]);
            }
            all.push((entry, body));
        }
        Ok(all)
    }

    fn header(mut header: Header, kind: EntryType, size: u64) -> Header {
        header.set_entry_type(kind);
        header.set_mode(0o100_751);
        header.set_size(size);
        header.set_uid(1000);
        header.set_gid(0o7_777_777);
        header.set_mtime(1_700_000_000);
        header
    }

    #[test]
    fn what_the_tar_crate_writes() {
        let long = "d/".repeat(150) + "file";
        let mut tar = tar::Builder::new(Vec::new());
        for new in [Header::new_gnu, Header::new_ustar, Header::new_old] {
            let mut file = header(new(), EntryType::Regular, 700);
            tar.append_data(&mut file, "a/b", &[7; 700][..]).unwrap();
        }
        let mut file = header(Header::new_gnu(), EntryType::Regular, 1);
        tar.append_data(&mut file, &long, &[8][..]).unwrap();
        tar.append_link(&mut header(Header::new_gnu(), EntryType::Link, 0), "l", &long).unwrap();
        let records = [("path", "pax/é".as_bytes()), ("mtime", b"5.25"), ("uid", b"4000000000")];
        tar.append_pax_extensions(records).unwrap();
        tar.append_data(&mut header(Header::new_ustar(), EntryType::Directory, 0), "x", &[][..]).unwrap();
        let mut device = header(Header::new_ustar(), EntryType::Char, 0);
        device.set_device_major(5).unwrap();
        device.set_device_minor(1).unwrap();
        tar.append_data(&mut device, "console", &[][..]).unwrap();
        let prefixed = "p/".repeat(60) + "end";
        tar.append_data(&mut header(Header::new_ustar(), EntryType::Fifo, 0), &prefixed, &[][..]).unwrap();
        let all = read(&tar.into_inner().unwrap()).unwrap();
        assert_eq!(all.len(), 8);
        for (entry, body) in &all[..3] {
            assert_eq!((&entry.path[..], &entry.kind, entry.mode), (&b"a/b"[..], &Kind::File, 0o751));
            assert_eq!(
                (entry.uid, entry.gid, entry.mtime.seconds, entry.size),
                (1000, 0o7_777_777, 1_700_000_000, 700)
            );
            assert_eq!(body, &[7; 700]);
        }
        assert_eq!((&all[3].0.path[..], &all[3].1[..]), (long.as_bytes(), &[8][..]));
        assert_eq!(all[4].0.kind, Kind::HardLink(long.into_bytes()));
        let (pax, _) = &all[5];
        assert_eq!((&pax.path[..], &pax.kind, pax.uid), ("pax/é".as_bytes(), &Kind::Directory, 4_000_000_000));
        assert_eq!((pax.mtime.seconds, pax.mtime.nanoseconds), (5, 250_000_000));
        assert_eq!(all[6].0.kind, Kind::Character(5, 1));
        assert_eq!((&all[7].0.path[..], &all[7].0.kind), (prefixed.as_bytes(), &Kind::Fifo));
    }

    #[test]
    fn an_archive_that_is_cut_or_changed_is_refused() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut file = header(Header::new_gnu(), EntryType::Regular, 10);
        tar.append_data(&mut file, "a", &[1; 10][..]).unwrap();
        let whole = tar.into_inner().unwrap();
        assert_eq!(whole.len(), 2048);
        assert!(read(&whole).is_ok());
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end]), Err(Fault::Truncated), "{end}");
        }
        let mut bad = whole.clone();
        bad[3] ^= 1;
        assert_eq!(read(&bad), Err(Fault::Checksum(0)));
        let odd = |kind: u8| {
            let mut header = header(Header::new_gnu(), EntryType::new(kind), 0);
            header.set_path("x").unwrap();
            header.set_cksum();
            read(&[&header.as_bytes()[..], &[0; 1024]].concat())
        };
        assert_eq!(odd(b'S'), Err(Fault::Type(0, b'S')));
        assert_eq!(odd(b'V'), Ok(vec![]));
        let mut huge = header(Header::new_gnu(), EntryType::XHeader, 2 << 20);
        huge.set_cksum();
        assert_eq!(read(huge.as_bytes()), Err(Fault::Field(0, "size")));
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(
            fields in prop::collection::vec((0..500_usize, any::<u8>()), 0..40), kind in any::<u8>(), size in 0..3000_u64,
        ) {
            let mut block = header(Header::new_ustar(), EntryType::new(kind), size);
            block.set_path("some/path").unwrap();
            for (at, byte) in fields {
                block.as_mut_bytes()[at] = byte;
            }
            block.set_cksum();
            let _ = read(&[&block.as_bytes()[..], &[b'1'; 3584], &[0; 1024]].concat());
        }
    }
}

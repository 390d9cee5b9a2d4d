//! The checksum that a driver leaves to its device.
//!
//! Source: RFC 1071; virtio 1.2, 5.1.6.2 (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).

use crate::ram::Ram;
use crate::virtio::queue::Buffers;

/// Read at a time; even, so that every part starts with the first byte of a pair.
const PART_BYTES: usize = 4096;

/// The two bytes that complete what lies in `buffers` from `offset` to their end, where the sum of the pseudo-header stands in
/// their place. `None`: there is nothing from `offset` on.
pub fn complete(buffers: Buffers<'_>, ram: &Ram, offset: u64) -> Option<[u8; 2]> {
    let end = buffers.bytes();
    if offset >= end {
        return None;
    }
    let (mut sum, mut at, mut part) = (0, offset, [0; PART_BYTES]);
    while at < end {
        let bytes = usize::try_from(end - at).map_or(PART_BYTES, |left| left.min(PART_BYTES));
        if !buffers.read(ram, at, &mut part[..bytes]) {
            return None;
        }
        sum += add(&part[..bytes]);
        at += bytes as u64;
    }
    // Zero would mean that there is no checksum (RFC 768); both stand for the same number.
    let checksum = !fold(sum);
    Some(if checksum == 0 { [0xff; 2] } else { checksum.to_ne_bytes() })
}

/// The sum of 16-bit words in the machine's order: the order only swaps the bytes of the result (RFC 1071, 2B).
fn add(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    sum + u64::from(u32::from_ne_bytes(last))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::queue::Buffer;
    use crate::virtio::testing::ram;
    use proptest::prelude::{any, prop, proptest};
    use vm_memory::GuestAddress;

    /// Word by word, as RFC 1071 describes it.
    fn slowly(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        let sum = words.fold(0u16, |sum, word| {
            let (sum, carry) = sum.overflowing_add(word);
            sum + u16::from(carry)
        });
        !sum
    }

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 1071, 3: the sum of these is 0xddf2.
        assert_eq!(fold(add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])).to_ne_bytes(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            bytes in prop::collection::vec(any::<u8>(), 1..9000),
            cuts in prop::collection::vec(0..9000usize, 0..5),
            offset in 0..9000usize,
        ) {
            let ram = ram();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % bytes.len()).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let buffers: Vec<Buffer> = cuts.windows(2).map(|cut| {
                let at = GuestAddress(0x1000 + cut[0] as u64);
                assert!(ram.write(at, &bytes[cut[0]..cut[1]]));
                Buffer { at, bytes: u32::try_from(cut[1] - cut[0]).expect("short") }
            }).collect();
            let offset = offset % bytes.len();
            let expected = slowly(&bytes[offset..]);
            let expected = if expected == 0 { 0xffff } else { expected };
            let found = complete(Buffers::new(&buffers), &ram, offset as u64);
            assert_eq!(found, Some(expected.to_be_bytes()));
        }
    }
}

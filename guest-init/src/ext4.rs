//! How large an ext4 file system is (Documentation/filesystems/ext4/super.rst).

/// Bytes from the start of a disk that [`Size::parse`] reads.
pub const START_BYTES: usize = 2048;

const SUPER_BLOCK_AT: usize = 1024;
const MAGIC: u16 = 0xef53;
/// `INCOMPAT_64BIT`: block numbers have a high half.
const WIDE: u32 = 0x80;

/// Size of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Blocks.
    pub blocks: u64,
    /// Most blocks that its block numbers reach.
    limit: u64,
}

impl Size {
    /// Reads the size from the first [`START_BYTES`] of a disk; `None` when that is no ext4 file system.
    #[must_use]
    pub fn parse(start: &[u8]) -> Option<Self> {
        let field = |at: usize| start.get(SUPER_BLOCK_AT + at..);
        let word = |at| Some(u32::from_le_bytes(*field(at)?.first_chunk()?));
        let magic = u16::from_le_bytes(*field(0x38)?.first_chunk()?);
        // The kernel takes blocks of 1 KiB to 64 KiB.
        let block_shift = word(0x18)?;
        if magic != MAGIC || block_shift > 6 {
            return None;
        }
        let is_wide = word(0x60)? & WIDE != 0;
        let high = if is_wide { u64::from(word(0x150)?) << 32 } else { 0 };
        Some(Self {
            block_bytes: 1024 << block_shift,
            blocks: high | u64::from(word(0x4)?),
            limit: if is_wide { u64::MAX } else { u32::MAX.into() },
        })
    }

    /// Blocks to grow it to on a disk of `disk_bytes`; `None` when it is as large as it can be.
    #[must_use]
    pub fn larger(&self, disk_bytes: u64) -> Option<u64> {
        let blocks = (disk_bytes / self.block_bytes).min(self.limit);
        (blocks > self.blocks).then_some(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::{START_BYTES, Size};
    use proptest::prelude::{any, prop, proptest};

    fn start(block_shift: u32, features: u32, blocks: u64) -> [u8; START_BYTES] {
        let mut start = [0; START_BYTES];
        let mut put = |at: usize, value: u32| start[1024 + at..][..4].copy_from_slice(&value.to_le_bytes());
        put(0x4, (blocks & 0xffff_ffff) as u32);
        put(0x150, (blocks >> 32) as u32);
        put(0x18, block_shift);
        put(0x38, 0xef53);
        put(0x60, features);
        start
    }

    #[test]
    fn it_grows_to_whole_blocks_of_the_disk() {
        let size = Size::parse(&start(2, 0x80, 1000)).unwrap();
        assert_eq!((size.block_bytes, size.blocks), (4096, 1000));
        assert_eq!(size.larger(1001 * 4096 - 1), None);
        assert_eq!(size.larger(1001 * 4096), Some(1001));
        assert_eq!(size.larger(0), None);
    }

    #[test]
    fn the_high_half_counts_only_with_its_feature() {
        let blocks = 5 << 32 | 7;
        assert_eq!(Size::parse(&start(0, 0x80, blocks)).unwrap().blocks, blocks);
        let narrow = Size::parse(&start(2, 0, blocks)).unwrap();
        assert_eq!((narrow.blocks, narrow.larger(1 << 60)), (7, Some(u32::MAX.into())));
    }

    #[test]
    fn what_is_no_ext4_is_not_read() {
        assert_eq!(Size::parse(&[0; START_BYTES]), None);
        assert_eq!(Size::parse(&start(7, 0, 1)), None);
        assert_eq!(Size::parse(&start(2, 0, 1)[..1060]), None);
        assert_eq!(Size::parse(b""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(super_block in prop::collection::vec(any::<u8>(), 0..1024), disk: u64) {
            let mut bytes = vec![0; 1024];
            bytes.extend(super_block);
            if let Some(size) = Size::parse(&bytes) {
                assert!(size.larger(disk).is_none_or(|blocks| blocks > size.blocks && blocks <= disk / size.block_bytes));
            }
        }
    }
}

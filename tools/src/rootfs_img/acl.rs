//! POSIX ACLs: from the form of getxattr(2) to the one that ext4 stores (fs/ext4/acl.h).

/// Tags of entries that name a user or group.
const NAMED: [u16; 2] = [0x02, 0x08];

/// Converts `value`; `None` if it is not an ACL of version 2.
pub fn to_ext4(value: &[u8]) -> Option<Vec<u8>> {
    let entries = value.strip_prefix(&2u32.to_le_bytes())?;
    let mut out = 1u32.to_le_bytes().to_vec();
    let (entries, rest) = entries.as_chunks::<8>();
    for entry in entries {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let bytes = if NAMED.contains(&tag) { 8 } else { 4 };
        out.extend_from_slice(&entry[..bytes]);
    }
    rest.is_empty().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_where_they_mean_something() {
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &7u16.to_le_bytes(), &id.to_le_bytes()].concat();
        let acl = [2u32.to_le_bytes().to_vec(), entry(1, u32::MAX), entry(2, 1000), entry(4, u32::MAX)].concat();
        assert_eq!(to_ext4(&acl).expect("an ACL").len(), 4 + 4 + 8 + 4);
        assert_eq!(to_ext4(&acl[1..]), None);
        assert_eq!(to_ext4(&acl[..acl.len() - 1]), None);
    }
}

//! CPUID: what KVM supports, kept from one start to the next, and made into one processor with one thread.
//!
//! KVM_GET_SUPPORTED_CPUID executes CPUID about a hundred times, and where the host is itself a guest each of them
//! leaves it: 320 µs of a start of 1.1 ms. The answer only changes with the boot and with a reload of KVM, so it is
//! kept in the cache directory under both.

use std::arch::x86_64::__cpuid_count;
use std::fs::{self, File};
use std::io::Read;
use std::mem::size_of;
use std::path::{Path, PathBuf};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use crate::error::{Error, Result};
use crate::{cache, sys};

/// Words of an entry in the file, the padding of the structure left out.
const ENTRY_WORDS: usize = 7;
/// Longest file: the key and every entry.
const MOST_BYTES: usize = 256 + KVM_MAX_CPUID_ENTRIES * ENTRY_WORDS * size_of::<u32>();

/// Gives the vCPU the host's CPUID with KVM's own leaves, as one processor with one thread.
pub fn set(kvm: &Kvm, vcpu: &VcpuFd) -> Result<()> {
    let mut cpuid = supported(kvm)?;
    describe_one_thread(&mut cpuid, kvm.check_extension(Cap::TscDeadlineTimer));
    vcpu.set_cpuid2(&cpuid).map_err(Error::kvm("KVM_SET_CPUID2"))
}

/// What KVM supports: from the cache when it has an answer for this boot and this KVM, else asked and kept.
fn supported(kvm: &Kvm) -> Result<CpuId> {
    let place = path().zip(key(kvm));
    let mut buffer = [0; MOST_BYTES + 1];
    if let Some(cpuid) = place.as_ref().and_then(|(path, key)| from_bytes(key, read_own(path, &mut buffer)?)) {
        return Ok(cpuid);
    }
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    if let Some((path, key)) = place {
        // A cache that cannot be written costs the next start its time, nothing else.
        let _: std::io::Result<File> = cache::store(&path, &to_bytes(&key, &cpuid));
    }
    Ok(cpuid)
}

fn path() -> Option<PathBuf> {
    cache::directory().map(|directory| directory.join("cpuid"))
}

/// Names this boot, this loading of KVM (whose device node is made anew each time), this processor (a host that is
/// itself a guest may have moved to another one), and the format.
fn key(kvm: &Kvm) -> Option<Vec<u8>> {
    let boot = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let (seconds, nanoseconds) = sys::change_time(kvm).ok()?;
    let (model, features) = (__cpuid_count(1, 0), __cpuid_count(7, 0));
    let processor = [model.eax, model.edx, features.ebx, features.ecx, features.edx];
    let mut key = format!("machinen cpuid 2 {seconds}.{nanoseconds} {processor:x?} ").into_bytes();
    key.extend_from_slice(&boot);
    Some(key)
}

/// The content of a file that belongs to this user; somebody else's could lie to the guest. Cut at the buffer's end.
fn read_own<'a>(path: &Path, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut file = File::open(path).ok()?;
    let count = if sys::is_own_file(&file) { file.read(buffer).ok()? } else { 0 };
    Some(&buffer[..count])
}

fn to_bytes(key: &[u8], cpuid: &CpuId) -> Vec<u8> {
    let words = |entry: &kvm_cpuid_entry2| {
        [entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx]
    };
    let mut bytes = key.to_vec();
    bytes.extend(cpuid.as_slice().iter().flat_map(words).flat_map(u32::to_ne_bytes));
    bytes
}

/// `None`: not under this key, or not of whole entries.
fn from_bytes(key: &[u8], bytes: &[u8]) -> Option<CpuId> {
    let (entries, rest) = bytes.strip_prefix(key)?.as_chunks::<{ ENTRY_WORDS * size_of::<u32>() }>();
    if entries.is_empty() || !rest.is_empty() {
        return None;
    }
    let mut cpuid = CpuId::new(entries.len()).ok()?;
    for (entry, bytes) in cpuid.as_mut_slice().iter_mut().zip(entries) {
        let (words, _) = bytes.as_chunks();
        let fields = [
            &mut entry.function,
            &mut entry.index,
            &mut entry.flags,
            &mut entry.eax,
            &mut entry.ebx,
            &mut entry.ecx,
            &mut entry.edx,
        ];
        for (field, word) in fields.into_iter().zip(words) {
            *field = u32::from_ne_bytes(*word);
        }
    }
    Some(cpuid)
}

/// Source: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.
fn describe_one_thread(cpuid: &mut CpuId, tsc_deadline: bool) {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                // Initial APIC id 0, one logical processor.
                entry.ebx = (entry.ebx & 0x0000_ffff) | (1 << 16);
                entry.ecx |= 1 << 31;
                entry.ecx = (entry.ecx & !(1 << 24)) | (u32::from(tsc_deadline) << 24);
                entry.edx &= !(1 << 28);
            }
            // Cache topology: each cache serves one thread of one core.
            0x4 | 0x8000_001d => entry.eax &= 0x3fff,
            // x2APIC topology: no level exists.
            0xb | 0x1f => {
                entry.eax = 0;
                entry.ebx = 0;
                entry.edx = 0;
            }
            0x8000_0008 => entry.ecx = 0,
            0x8000_001e => {
                entry.eax = 0;
                entry.ebx &= !0xffff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_sees_one_thread_whatever_the_host_has() {
        let leaf = |function| kvm_cpuid_entry2 {
            function,
            eax: 0xffff_ffff,
            ebx: 0xffff_ffff,
            ecx: 0xffff_ffff,
            edx: 0xffff_ffff,
            ..Default::default()
        };
        let mut cpuid = CpuId::from_entries(&[leaf(1), leaf(4), leaf(0xb), leaf(0x8000_0008)]).expect("four");
        describe_one_thread(&mut cpuid, false);
        let leaves = cpuid.as_slice();
        assert_eq!(leaves[0].ebx >> 16, 1, "APIC id 0, one logical processor");
        assert_eq!(leaves[0].ecx >> 31, 1, "hypervisor present");
        assert_eq!(leaves[0].ecx & (1 << 24), 0, "no deadline timer without KVM's");
        assert_eq!(leaves[0].edx & (1 << 28), 0, "no hyper-threading");
        assert_eq!(leaves[1].eax >> 14, 0);
        assert_eq!(leaves[2].ebx, 0);
        assert_eq!(leaves[3].ecx, 0);
    }

    #[test]
    fn what_was_kept_comes_back_under_its_key_only() {
        let entry = |function| kvm_cpuid_entry2 { function, flags: 1, eax: 2, edx: 0xffff_ffff, ..Default::default() };
        let cpuid = CpuId::from_entries(&[entry(0), entry(0x8000_0000)]).expect("two");
        let bytes = to_bytes(b"key", &cpuid);
        assert_eq!(from_bytes(b"key", &bytes).expect("kept").as_slice(), cpuid.as_slice());
        assert!(from_bytes(b"kex", &bytes).is_none(), "another boot");
        for cut in 0..bytes.len() {
            let whole = cut > 3 && (cut - 3) % 28 == 0;
            assert_eq!(from_bytes(b"key", &bytes[..cut]).is_some(), whole, "{cut} bytes");
        }
    }
}

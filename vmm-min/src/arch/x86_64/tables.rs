//! The tables in low RAM that a kernel starts with: GDT, page tables, boot parameters, command line,
//! ACPI, MP table.

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend};

use super::layout::{HIGH_RAM_START, LOW_RAM_END};
use super::{acpi, mptable};
use crate::arch::Boot;
use crate::error::{Error, Result};
use crate::ram::{PAGE_BYTES, Ram};
use crate::sys;

/// Address of the global descriptor table.
pub const GDT: u64 = 0x6000;
/// Its limit: four descriptors.
pub const GDT_LIMIT: u16 = 4 * 8 - 1;
/// `__BOOT_CS` of the boot protocol.
pub const CODE_SELECTOR: u16 = 0x10;
/// `__BOOT_DS` of the boot protocol.
pub const DATA_SELECTOR: u16 = 0x18;
/// Address of the boot parameters.
pub const ZERO_PAGE: u64 = 0x7000;
/// First stack pointer.
pub const STACK: u64 = 0x8ff0;
/// Root of the page tables.
pub const PAGE_TABLES: u64 = 0x9000;

const CMDLINE: u64 = 0xc000;
/// What the kernel's own limit (COMMAND_LINE_SIZE on x86) leaves, NUL included.
const CMDLINE_BYTES: u32 = 2048;
const LOW_RAM_E820_END: u64 = 0x9_fc00;
const ACPI_START: u64 = 0xe_0000;
/// Where a kernel looks for it in the end.
const MP_TABLE_START: u32 = 0xf_0000;
const HIGH_MEMORY: u64 = 0x10_0000;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

/// Writes everything. Errors: `CMDLINE_TOO_LONG`.
pub fn write(ram: &Ram, boot: &Boot) -> Result<()> {
    if boot.cmdline.len() as u64 >= u64::from(CMDLINE_BYTES) {
        return Err(Error::usage(
            "CMDLINE_TOO_LONG",
            format!("kernel command line of {} bytes: the kernel takes {}", boot.cmdline.len(), CMDLINE_BYTES - 1),
            "shorten --cmdline",
        ));
    }
    let put = |at: u64, bytes: &[u8]| {
        assert!(ram.write(GuestAddress(at), bytes), "low memory is RAM");
    };
    ram.populate(GuestAddress(GDT), CMDLINE + PAGE_BYTES - GDT);
    put(GDT, Table(GDT_ENTRIES).as_slice());
    let [root, directories, pages] = [0, 1, 2].map(|index| PAGE_TABLES + index * PAGE_BYTES);
    put(root, &(directories | PRESENT_WRITABLE).to_le_bytes());
    put(directories, &(pages | PRESENT_WRITABLE).to_le_bytes());
    put(pages, identity_map().as_slice());
    put(CMDLINE, boot.cmdline.as_bytes());
    put(ACPI_START, &acpi::tables(ACPI_START, boot.devices));
    let mut generation_id = [0; 16];
    sys::random(&mut generation_id).map_err(|cause| Error::host("HOST_RANDOM", "getrandom", cause))?;
    put(acpi::GENERATION_ID.into(), &generation_id);
    put(MP_TABLE_START.into(), &mptable::table(MP_TABLE_START));
    let last = ram.memory().last_addr().0;
    put(ZERO_PAGE, boot_parameters(boot, last + 1).as_slice());
    Ok(())
}

/// Null, unused, flat 64-bit code, flat data.
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Entries of a page table.
const ENTRIES: usize = 512;

/// Consecutive 64-bit entries as they lie in memory.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Table<const N: usize>([u64; N]);

// SAFETY: integers without padding: every byte pattern is a value and a value has no undefined byte.
unsafe impl<const N: usize> ByteValued for Table<N> {}

/// The lowest level of the page tables: the first GiB onto itself, by pages of 2 MiB.
fn identity_map() -> Table<ENTRIES> {
    let mut entries = [0; ENTRIES];
    for (page, entry) in (0..).zip(&mut entries) {
        *entry = (page << 21) | PRESENT_WRITABLE | LARGE_PAGE;
    }
    Table(entries)
}

/// The zero page for a guest whose RAM ends at `ram_end`.
fn boot_parameters(boot: &Boot, ram_end: u64) -> boot_params {
    let mut params = boot_params::default();
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = u32::from_le_bytes(*b"HdrS");
    params.hdr.version = 0x20f;
    params.hdr.type_of_loader = 0xff;
    params.hdr.loadflags = 1;
    params.hdr.kernel_alignment = 0x100_0000;
    params.hdr.cmd_line_ptr = low(CMDLINE);
    params.hdr.cmdline_size = CMDLINE_BYTES - 1;
    if let Some((start, bytes)) = boot.initrd {
        params.hdr.ramdisk_image = low(start.0);
        params.hdr.ramdisk_size = low(bytes);
    }
    params.acpi_rsdp_addr = ACPI_START;
    let low_end = ram_end.min(LOW_RAM_END);
    let mut map = vec![
        (0, LOW_RAM_E820_END, E820_RAM),
        (ACPI_START, HIGH_MEMORY - ACPI_START, E820_RESERVED),
        (HIGH_MEMORY, low_end - HIGH_MEMORY, E820_RAM),
    ];
    if ram_end > HIGH_RAM_START {
        map.push((HIGH_RAM_START, ram_end - HIGH_RAM_START, E820_RAM));
    }
    params.e820_entries = map.len().to_le_bytes()[0];
    for (entry, (addr, size, r#type)) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, r#type };
    }
    params
}

/// An address or size below the hole under 4 GiB.
fn low(value: u64) -> u32 {
    u32::try_from(value).expect("below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::MOST_DEVICES;

    fn boot() -> Boot {
        Boot {
            entry: GuestAddress(0x100_0000),
            initrd: Some((GuestAddress(0x700_0000), 0x1234)),
            cmdline: "quiet".into(),
            devices: 0,
            dtb: None,
        }
    }

    fn map(ram_end: u64) -> Vec<(u64, u64, u32)> {
        let params = boot_parameters(&boot(), ram_end);
        let table = params.e820_table;
        table[..usize::from(params.e820_entries)].iter().map(|e| (e.addr, e.size, e.r#type)).collect()
    }

    #[test]
    fn the_memory_map_has_the_hole() {
        assert_eq!(map(0x800_0000), [(0, 0x9_fc00, 1), (0xe_0000, 0x2_0000, 2), (0x10_0000, 0x7f0_0000, 1)], "128 MiB");
        assert_eq!(map(0x2_4000_0000).last(), Some(&(0x1_0000_0000, 0x1_4000_0000, 1)), "8 GiB");
        assert_eq!(map(0x2_4000_0000)[2], (0x10_0000, 0xbff0_0000, 1));
    }

    #[test]
    fn the_header_names_initrd_and_command_line() {
        let hdr = boot_parameters(&boot(), 0x800_0000).hdr;
        let (image, size, cmdline) = (hdr.ramdisk_image, hdr.ramdisk_size, hdr.cmd_line_ptr);
        assert_eq!((image, size, cmdline), (0x700_0000, 0x1234, 0xc000));
    }

    #[test]
    fn page_tables_map_the_first_gib_onto_itself() {
        let pages = identity_map().0;
        assert_eq!((pages[0], pages[1], pages[511]), (0x83, 0x20_0083, 0x3fe0_0083));
    }

    const _: () = assert!(GDT + (GDT_LIMIT as u64) < ZERO_PAGE && ZERO_PAGE + PAGE_BYTES < STACK);
    const _: () = assert!(STACK < PAGE_TABLES && PAGE_TABLES + 3 * PAGE_BYTES <= CMDLINE);
    const _: () = assert!(CMDLINE + (CMDLINE_BYTES as u64) <= LOW_RAM_E820_END);

    #[test]
    fn acpi_and_mp_tables_have_room() {
        let tables = acpi::tables(ACPI_START, MOST_DEVICES).len() as u64;
        assert!(ACPI_START + tables <= u64::from(MP_TABLE_START));
        assert!(u64::from(MP_TABLE_START) + mptable::table(MP_TABLE_START).len() as u64 <= acpi::GENERATION_ID.into());
        assert!(u64::from(acpi::GENERATION_ID) + 16 <= HIGH_MEMORY);
    }
}

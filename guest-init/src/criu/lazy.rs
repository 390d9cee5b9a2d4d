//! What the log of CRIU's server of memory tells: how much has come, and what was asked for first.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use machinen_abi::fault::{Fault, MOST_FAULTS};

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// The first version whose server of memory works on processors whose pages may be of several sizes: older ones cut the address of a
/// page that is waited for down to 32 bits (checkpoint-restore/criu, pull request 2270).
const FIRST_FOR_AARCH64: [u32; 2] = [3, 19];

/// Whether this version of CRIU can bring memory later on a machine of that name.
#[must_use]
pub fn can_serve(machine: &str, criu: &str) -> bool {
    let mut numbers = criu.split('.').map(|number| number.parse().unwrap_or(0));
    let version = [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)];
    machine != "aarch64" || version >= FIRST_FOR_AARCH64
}

/// Pages of all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// Those that were to come.
    pub total: u64,
    /// Those that have.
    pub served: u64,
    /// Those that still may.
    pub pending: u64,
    /// Accesses that had to wait for one.
    pub faults: u64,
}

/// What the lines that were read say.
#[derive(Debug, Default)]
pub struct Sum {
    processes: BTreeMap<String, Process>,
    faults: u64,
}

#[derive(Debug, Default)]
struct Process {
    total: u64,
    served: u64,
    over: bool,
}

/// What the server says about one process: its name, and the words.
fn words(line: &[u8]) -> Option<(&str, &str)> {
    let (_, rest) = core::str::from_utf8(line).ok()?.split_once("uffd: ")?;
    rest.split_once(": ")
}

impl Sum {
    /// Reads a line.
    pub fn add(&mut self, line: &[u8]) {
        let Some((name, text)) = words(line) else { return };
        if let Some(rest) = text.strip_prefix("Found ") {
            if let Some((count, "to be handled by UFFD")) = rest.split_once(" pages ") {
                self.process(name).total = count.parse().unwrap_or(0);
            }
        } else if let Some(rest) = text.strip_prefix("uffd_copy: ") {
            let bytes: u64 = rest.split_once('/').and_then(|(_, bytes)| bytes.parse().ok()).unwrap_or(0);
            let process = self.process(name);
            process.served = process.served.saturating_add(bytes / PAGE_BYTES);
        } else if text.starts_with("#PF at ") {
            self.faults += 1;
        } else if text.starts_with("UFFD transferred pages: ") {
            self.process(name).over = true;
        }
    }

    fn process(&mut self, name: &str) -> &mut Process {
        self.processes.entry(name.into()).or_default()
    }

    /// The processes to which pages were to come when the server has ended.
    #[must_use]
    pub fn unserved(&self) -> Vec<i32> {
        let left = self.processes.iter().filter(|(_, process)| !process.over && process.served < process.total);
        left.filter_map(|(name, _)| name.split_once('-')?.0.parse().ok()).filter(|pid| *pid > 1).collect()
    }

    /// All together; with `over` the server has ended, and nothing is to come any more.
    #[must_use]
    pub fn pages(&self, over: bool) -> Pages {
        let mut pages = Pages { faults: self.faults, ..Pages::default() };
        for process in self.processes.values() {
            pages.total = pages.total.saturating_add(process.total);
            pages.served = pages.served.saturating_add(process.served.min(process.total));
            if !over && !process.over {
                pages.pending = pages.pending.saturating_add(process.total.saturating_sub(process.served));
            }
        }
        pages
    }
}

impl Pages {
    /// As the operation `stats` answers.
    #[must_use]
    pub fn text(self) -> String {
        let Pages { total, served, pending, faults } = self;
        format!("total {total}\nserved {served}\npending {pending}\nfaults {faults}\npage_bytes {PAGE_BYTES}\n")
    }
}

/// A page that was waited for: process number and address (hexadecimal) with a line end. `None` for lines of other things.
#[must_use]
pub fn fault(line: &[u8]) -> Option<String> {
    let (name, text) = words(line)?;
    let pid = name.split_once('-').map_or(name, |(pid, _)| pid);
    let address = text.strip_prefix("#PF at 0x").filter(|_| pid.parse::<u32>().is_ok())?;
    Some(format!("{pid} {address}\n"))
}

/// The pages that a bundle says were waited for, by process and address. Lines that make no sense count, and say nothing.
#[must_use]
pub fn hints(text: &[u8]) -> Vec<Fault> {
    let lines = text.split(|byte| *byte == b'\n').take(MOST_FAULTS);
    let mut all: Vec<Fault> = lines.filter_map(Fault::parse).collect();
    // Shell's sort, with Ciura's gaps: the library's has some kilobytes for each type.
    for gap in [1750, 701, 301, 132, 57, 23, 10, 4, 1] {
        for end in gap..all.len() {
            let mut at = end;
            while at >= gap && all[at] < all[at - gap] {
                all.swap(at, at - gap);
                at -= gap;
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{Fault, Pages, Sum, can_serve, fault, hints};
    use proptest::prelude::{any, prop, proptest};

    #[test]
    fn an_old_server_is_not_asked_on_aarch64() {
        for old in ["3.17.1", "3.18", "2.20", "", "x"] {
            assert!(!can_serve("aarch64", old) && can_serve("x86_64", old), "{old}");
        }
        for new in ["3.19", "3.19.1", "3.20", "4.0"] {
            assert!(can_serve("aarch64", new), "{new}");
        }
    }

    const LOG: &str = "(00.224014) uffd: Waiting for incoming connections on lazy-pages.socket\n\
        (00.404025) uffd: Received PID: 1001, uffd: 9\n\
        (00.404025) uffd: 1001-9: Found 59 VMAs in image\n\
        (00.404025) uffd: 1001-9: Found 17075 pages to be handled by UFFD\n\
        (00.416026) uffd: 1000-10: Found 235 pages to be handled by UFFD\n\
        (00.420026) uffd: 1001-9: UNMAP: 7f90eeafd000(4000)\n\
        (00.424026) uffd: 1001-9: #PF at 0x7f90ee7e9000\n\
        (00.424026) pr1001-1 Read 7f90ee7e9000 1 pages\n\
        (00.424026) uffd: 1001-9: uffd_copy: 0x7f90ee7e9000/4096\n\
        (00.432027) uffd: 1000-10: #PF at 0x7f90ee7e9000\n\
        (00.432027) uffd: 1000-10: uffd_copy: 0x7f90ee7e9000/4096\n\
        (00.436027) uffd: 1001-9: uffd_copy: 0xabf000/8192\n";

    fn pages(log: &[u8], over: bool) -> Pages {
        let mut sum = Sum::default();
        log.split(|byte| *byte == b'\n').for_each(|line| sum.add(line));
        sum.pages(over)
    }

    fn faults(log: &[u8]) -> String {
        log.split(|byte| *byte == b'\n').filter_map(fault).collect()
    }

    #[test]
    fn pages_are_added_up() {
        let half = Pages { total: 17_310, served: 4, pending: 17_306, faults: 2 };
        assert_eq!((pages(LOG.as_bytes(), false), pages(LOG.as_bytes(), true).pending), (half, 0));
        let log = format!("{LOG}(02.748172) uffd: 1000-10: UFFD transferred pages: (1/235)\n");
        assert_eq!(pages(log.as_bytes(), false).pending, 17_072);
        assert_eq!(half.text(), "total 17310\nserved 4\npending 17306\nfaults 2\npage_bytes 4096\n");
        assert_eq!(faults(log.as_bytes()), "1001 7f90ee7e9000\n1000 7f90ee7e9000\n");
        assert_eq!(pages(b"", false), Pages::default());
        let page = |pid| Fault { pid, address: 0x7f90_ee7e_9000 };
        assert_eq!(hints(faults(log.as_bytes()).as_bytes()), [page(1000), page(1001)]);
        // The one of which the server says that it is done with it needs no more.
        let mut sum = Sum::default();
        log.lines().for_each(|line| sum.add(line.as_bytes()));
        assert_eq!(sum.unserved(), [1001]);
    }

    #[test]
    fn hints_are_few_sorted_and_of_one_form() {
        let text: String = (1..=5000).map(|page| format!("{} {page:x}000\n", 9 - page % 3)).collect();
        let all = hints(text.as_bytes());
        assert!(all.len() == 4096 && all.is_sorted());
        let page = |address| Fault { pid: 7, address };
        assert_eq!(hints(b"7 2000\n7 1001\n\xff\n\n0 1000\n7 1000\n7 2000"), [0x1000, 0x2000, 0x2000].map(page));
    }

    proptest! {
        #[test]
        fn any_log_is_read(lines in prop::collection::vec((0..6_usize, any::<u64>(), any::<u64>()), 0..40)) {
            let text = lines.iter().fold(String::new(), |text, (kind, one, two)| {
                let said = [
                    format!("Found {one} pages to be handled by UFFD"), format!("uffd_copy: {one:#x}/{two}"),
                    format!("#PF at {one:#x}"), "UFFD transferred pages: (".into(), "Found pages".into(), String::new(),
                ];
                text + &format!("(0) uffd: {}-1: {}\n", two % 3, said[*kind])
            });
            let Pages { total, served, pending, .. } = pages(text.as_bytes(), false);
            assert!(served <= total && pending <= total);
            let _ = faults(text.as_bytes());
        }
    }
}

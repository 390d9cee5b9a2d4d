//! What a machine's monitor takes of the host's memory.

use std::fs;

use super::process::Process;

/// Bytes of memory of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Pages that are there.
    pub rss_bytes: u64,
    /// The same, each page divided by the number of those who share it.
    pub pss_bytes: u64,
    /// [`Memory::pss_bytes`] without the guest's RAM; `None` where that cannot be told from the rest.
    pub overhead_bytes: Option<u64>,
}

/// Of a monitor whose guest has `ceiling_mib` of RAM. `None`: it has ended, or is another user's.
pub fn of(process: Process, ceiling_mib: u64) -> Option<Memory> {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid)).ok()?;
    let (rss_bytes, pss_bytes) = (field(&rollup, "Rss")?, field(&rollup, "Pss")?);
    let ram = fs::read_to_string(format!("/proc/{}/smaps", process.pid)).ok();
    let ram = ram.and_then(|smaps| guest_ram(&smaps, ceiling_mib.checked_mul(1 << 20)?));
    // Its number was this process's until now.
    (Process::of(process.pid) == Some(process)).then_some(Memory {
        rss_bytes,
        pss_bytes,
        overhead_bytes: ram.map(|ram| pss_bytes.saturating_sub(ram)),
    })
}

/// Pss of the guest's RAM: the largest anonymous mapping, whose parts have different attributes but no gap between
/// them. `None` when no mapping is that large. Source of the format: proc_pid_smaps(5).
fn guest_ram(smaps: &str, ceiling_bytes: u64) -> Option<u64> {
    /// Neighbours without a gap: where they end, their bytes, their Pss.
    type Run = (u64, u64, u64);
    let mut best: Option<Run> = None;
    let mut run: Option<Run> = None;
    for line in smaps.lines() {
        if let Some((start, end)) = anonymous(line) {
            let (bytes, pss) = run.filter(|run| run.0 == start).map_or((0, 0), |run| (run.1, run.2));
            run = Some((end, bytes + (end - start), pss));
        } else if let (Some(run), Some(pss)) = (&mut run, field(line, "Pss")) {
            run.2 += pss;
        } else if is_mapping(line) {
            run = None;
        }
        if let Some(found) = run
            && best.is_none_or(|best| found.1 >= best.1)
        {
            best = run;
        }
    }
    best.filter(|best| ceiling_bytes > 0 && best.1 >= ceiling_bytes).map(|best| best.2)
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE [PATH]`, hexadecimal.
fn is_mapping(line: &str) -> bool {
    line.split_once(' ').and_then(|(range, _)| range.split_once('-')).is_some()
}

/// First and last address of a writable mapping without a file or a name.
fn anonymous(line: &str) -> Option<(u64, u64)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [range, "rw-p", _, _, "0"] = fields[..] else { return None };
    let (start, end) = range.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (start < end).then_some((start, end))
}

/// Bytes of a field that is given in kB.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 08:01 77                                 /bin/vmm-min
Size:               1024 kB
Pss:                 100 kB
Pss_Dirty:             0 kB
01000000-01200000 rw-p 00000000 00:00 0
Size:               2048 kB
Pss:                  12 kB
01200000-03000000 rw-p 00000000 00:00 0
Size:              30720 kB
Pss:                2048 kB
04000000-04010000 rw-p 00000000 00:00 0
Pss:                   4 kB
05000000-05010000 rw-p 00000000 00:00 0                                  [stack]
Pss:                   8 kB
";

    #[test]
    fn guest_ram_is_told_from_the_rest() {
        assert_eq!(guest_ram(SMAPS, 32 << 20), Some((12 + 2048) << 10));
        assert_eq!(guest_ram(SMAPS, 33 << 20), None);
        assert_eq!(guest_ram(SMAPS, 0), None);
        assert_eq!(guest_ram("", 1), None);
    }

    #[test]
    fn of_this_process() {
        let own = Process::of(std::process::id()).unwrap();
        let memory = of(own, 0).unwrap();
        assert!(memory.rss_bytes > 0 && memory.pss_bytes <= memory.rss_bytes && memory.overhead_bytes.is_none());
        assert_eq!(of(Process { start_time: own.start_time + 1, ..own }, 0), None);
    }
}

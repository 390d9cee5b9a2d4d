//! A page that a lazy restore waited for, as a line: what bundles keep of them, and what a guest is asked for.

use core::fmt;

/// Most that are kept of a restore: with 16 MiB of memory the processes do not go on much later.
pub const MOST_FAULTS: usize = 4096;
/// What pages are counted in.
const PAGE_BYTES: u64 = 4096;

/// A page of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The process number.
    pub pid: u32,
    /// Address of the page.
    pub address: u64,
}

impl Fault {
    /// Reads a line, without its end, in exactly the form in which it is written.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Fault> {
        let at = line.iter().position(|byte| *byte == b' ')?;
        let (pid, address) = (number(&line[..at], 10)?, number(&line[at + 1..], 16)?);
        Some(Fault { pid: pid.try_into().ok()?, address }).filter(|fault| fault.address.is_multiple_of(PAGE_BYTES))
    }
}

/// A number from 1 on, without zeros before it. (The library's ways are larger than /init should be.)
fn number(text: &[u8], base: u8) -> Option<u64> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        _ => u8::MAX,
    };
    let mut value: u64 = 0;
    for byte in text {
        let digit = Some(digit(*byte)).filter(|digit| *digit < base && (value > 0 || *digit > 0))?;
        value = value.checked_mul(base.into())?.checked_add(digit.into())?;
    }
    Some(value).filter(|value| *value > 0)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:x}", self.pid, self.address)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Fault;
    use std::string::ToString;

    #[test]
    fn a_fault_has_one_form() {
        let fault = Fault { pid: 1000, address: 0x7f90_ee7e_9000 };
        assert_eq!(fault.to_string(), "1000 7f90ee7e9000");
        assert_eq!(Fault::parse(b"1000 7f90ee7e9000"), Some(fault));
        for bad in [
            "",
            "1000",
            "1000 ",
            " 7f000",
            "0 1000",
            "01000 1000",
            "+1 1000",
            "1000 +1000",
            "1000 01000",
            "1000 0x1000",
            "1000 A000",
            "1000 1001",
            "1000 1000 ",
            "1000  1000",
            "4294967296 1000",
            "1 10000000000000000",
            "-1 1000",
            "1 0",
        ] {
            assert_eq!(Fault::parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(Fault::parse(b"1000 \xff000"), None);
    }
}

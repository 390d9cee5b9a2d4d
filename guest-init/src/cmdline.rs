//! The words of the kernel's command line that are meant for PID 1.

use alloc::string::String;
use core::fmt;

use crate::net::{self, BadNet, Net};

/// What the command line says. A word that says nothing useful is an error of its own, so that the others count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// `machinen.epoch`: wall clock (Unix time, UTC) when the guest started.
    pub epoch: Result<Option<Time>, BadEpoch>,
    /// `machinen.tty=1`: the console is a terminal.
    pub tty: bool,
    /// `machinen.net`: the address of the first interface, its gateway and the resolvers.
    pub net: Result<Option<Net>, BadNet>,
}

/// A point in time or a time span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

impl Time {
    /// The later time; `None` when it does not fit.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let nanoseconds = self.nanoseconds + other.nanoseconds;
        let seconds = self.seconds.checked_add(other.seconds)?;
        Some(Self {
            seconds: seconds.checked_add(i64::from(nanoseconds / 1_000_000_000))?,
            nanoseconds: nanoseconds % 1_000_000_000,
        })
    }
}

/// A value of `machinen.epoch` that is no time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadEpoch(pub String);

impl fmt::Display for BadEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not seconds.nanoseconds: {}", self.0)
    }
}

/// Reads the words from the text of `/proc/cmdline`; of two equal words the last counts, as in the kernel.
#[must_use]
pub fn parse(line: &[u8]) -> Words {
    let (mut epoch, mut tty, mut net) = (None, false, None);
    for word in kernel_words(line) {
        if let Some(value) = word.strip_prefix(b"machinen.epoch=") {
            epoch = Some(value);
        } else if let Some(value) = word.strip_prefix(b"machinen.tty=") {
            tty = value == b"1";
        } else if let Some(value) = word.strip_prefix(b"machinen.net=") {
            net = Some(value);
        }
    }
    Words {
        epoch: epoch
            .map(|value| time(value).ok_or_else(|| BadEpoch(String::from_utf8_lossy(value).into_owned())))
            .transpose(),
        tty,
        net: net.map(net::parse).transpose(),
    }
}

/// Splits as the kernel does (lib/cmdline.c, `next_arg`): blanks inside double quotes do not separate, and
/// after `--` come the arguments of /init.
fn kernel_words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    line.split(move |&byte| {
        quoted ^= byte == b'"';
        !quoted && byte.is_ascii_whitespace()
    })
    .filter(|word| !word.is_empty())
    .take_while(|word| word != b"--")
}

/// `SECONDS.NANOSECONDS`: decimal digits, nine of them after the point.
fn time(text: &[u8]) -> Option<Time> {
    let text = core::str::from_utf8(text).ok()?;
    let (seconds, nanoseconds) = text.split_once('.')?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds) || !digits(nanoseconds) || nanoseconds.len() != 9 {
        return None;
    }
    Some(Time { seconds: seconds.parse().ok()?, nanoseconds: nanoseconds.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::{Time, Words, parse};
    use proptest::prelude::{any, prop, proptest};

    const NOTHING: Words = Words { epoch: Ok(None), tty: false, net: Ok(None) };

    #[test]
    fn words_are_found_and_the_last_one_counts() {
        let line = b"console=ttyS0 machinen.epoch=1.000000000 machinen.tty=1 machinen.epoch=1700000000.000000042\n";
        let epoch = Ok(Some(Time { seconds: 1_700_000_000, nanoseconds: 42 }));
        assert_eq!(parse(line), Words { epoch, tty: true, net: Ok(None) });
        assert_eq!(parse(b"machinen.tty=1 machinen.tty=0"), NOTHING);
        assert_eq!(parse(b""), NOTHING);
        let net = parse(b"machinen.net=bad machinen.net=10.0.2.15/24").net.unwrap().unwrap();
        assert_eq!(net, crate::net::parse(b"10.0.2.15/24").unwrap());
    }

    #[test]
    fn quoted_words_and_words_for_init_are_not_ours() {
        assert_eq!(parse(b"x=\"a machinen.tty=1 b\" quiet"), NOTHING);
        assert_eq!(parse(b"quiet -- machinen.tty=1"), NOTHING);
        assert_eq!(parse(b"xmachinen.tty=1 machinen.tty machinen.tty=2"), NOTHING);
    }

    #[test]
    fn a_bad_word_is_named_and_the_others_count() {
        let words = parse(b"machinen.epoch=x machinen.net=y machinen.tty=1");
        assert!(words.epoch.is_err() && words.net.is_err() && words.tty);
        for bad in [
            "",
            "1",
            "1.",
            ".000000001",
            "1.5",
            "-1.000000000",
            "+1.000000000",
            "1.0000000000",
            "9223372036854775808.000000000",
            "1.00000000x",
            "1.000000000.0",
        ] {
            let error = parse(format!("machinen.epoch={bad}").as_bytes()).epoch.unwrap_err();
            assert_eq!(error.to_string(), format!("not seconds.nanoseconds: {bad}"));
        }
    }

    #[test]
    fn times_add_with_carry() {
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
        assert_eq!(time(1, 600_000_000).checked_add(time(2, 500_000_000)), Some(time(4, 100_000_000)));
        assert_eq!(time(i64::MAX, 999_999_999).checked_add(time(0, 1)), None);
    }

    proptest! {
        #[test]
        fn a_written_epoch_is_read_back(seconds in 0..i64::MAX, nanoseconds in 0_u32..1_000_000_000) {
            let line = format!("quiet machinen.epoch={seconds}.{nanoseconds:09} panic=-1");
            assert_eq!(parse(line.as_bytes()).epoch, Ok(Some(Time { seconds, nanoseconds })));
        }

        #[test]
        fn any_line_is_read(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }
    }
}

//! `machinen-kernel check`: which of our features a kernel's configuration supports. Its text output is itself a
//! configuration fragment: what is missing, with the rest as comments.

use argh::FromArgs;
use serde_json::json;

use super::config::{Config, State};
use super::features::{FEATURES, Feature, Support};
use super::{input, usage};
use crate::args::plain;
use crate::diagnostic::{Diagnostic, EXIT_USAGE};
use crate::program::Said;

/// say which features a kernel supports, and print what is missing as a configuration fragment
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "check")]
pub struct Args {
    /// one line of JSON for each feature, and for an error
    #[argh(switch)]
    pub json: bool,
    /// only this feature; repeatable (default: all)
    #[argh(option, long = "for")]
    pub only: Vec<String>,
    /// configuration, also compressed by gzip (/proc/config.gz), or a kernel that carries its own or
    /// has config-VERSION beside it; - is standard input
    #[argh(positional, arg_name = "KERNEL|CONFIG")]
    pub kernel: String,
}

/// The table; the code is 0 when nothing is missing, else 1. Failures have code 2, as with diff(1).
pub fn run(args: Args) -> Result<Said, Diagnostic> {
    let features = select(args.only)?;
    let text = input::config(&plain(args.kernel)).map_err(|failure| Diagnostic { exit: EXIT_USAGE, ..failure })?;
    let config = Config::parse(&text);
    let rows: Vec<(&Feature, Support)> = features.iter().map(|feature| (*feature, feature.support(&config))).collect();
    let text = if args.json { rows.iter().map(json_line).collect() } else { fragment(&rows) };
    let is_missing = rows.iter().any(|(_, support)| support.state == State::No);
    Ok(Said { text, exit: u8::from(is_missing) })
}

/// The features of these names, all without any. Errors: `KERNEL_USAGE`.
pub(crate) fn select(names: Vec<String>) -> Result<Vec<&'static Feature>, Diagnostic> {
    if names.is_empty() {
        return Ok(FEATURES.iter().collect());
    }
    let unknown = |name: &str| usage(format!("--for: there is no feature {name}, only {}", super::features::names()));
    names.into_iter().map(plain).map(|name| super::features::find(&name).ok_or_else(|| unknown(&name))).collect()
}

fn json_line((feature, support): &(&Feature, Support)) -> String {
    let with = |names: &[&str]| names.iter().map(|name| format!("CONFIG_{name}")).collect::<Vec<_>>();
    let line = json!({
        "feature": feature.name, "what": feature.what, "state": support.state.word(),
        "modules": with(&support.modules), "missing": with(&support.missing),
    });
    format!("{line}\n")
}

fn fragment(rows: &[(&Feature, Support)]) -> String {
    let mut text = String::new();
    for (feature, support) in rows {
        text += &format!("# {:8} {:7} {}\n", feature.name, support.state.word(), feature.what);
        if !support.modules.is_empty() {
            text += &format!("#          modules: {}\n", support.modules.join(" "));
        }
        text.extend(support.missing.iter().map(|name| format!("CONFIG_{name}=y\n")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_is_a_fragment_that_mends_what_it_found() {
        let rows = |text: &str| -> Vec<(&Feature, Support)> {
            let config = Config::parse(text);
            FEATURES.iter().map(|feature| (feature, feature.support(&config))).collect()
        };
        let before = "CONFIG_X86_64=y\nCONFIG_VIRTIO_BLK=m\n";
        let missing = fragment(&rows(before));
        assert!(missing.contains("# disk     no      ") && missing.contains("\nCONFIG_EXT4_FS=y\n"), "{missing}");
        let after = format!("{before}{missing}");
        assert!(rows(&after).iter().all(|(_, support)| support.state != State::No));
        assert!(!fragment(&rows(&after)).contains("\nCONFIG_"));
    }
}

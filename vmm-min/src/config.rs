//! What the user asked for: flags over `MACHINEN_*` variables over defaults.

mod net;
mod share;

use argh::FromArgs;

pub use self::net::{NetConfig, NetSocket};
pub use self::share::ShareConfig;
use crate::arch;
use crate::disk::Access;
use crate::error::{Error, Result};
use crate::sys;
use crate::virtio::vsock::bridge::Bridge;

const MIB: u64 = 1 << 20;
/// Every device needs an interrupt line, and some are kept for devices that are not disks.
const MOST_DISKS: usize = 8;
const LEAST_MEMORY_MIB: u64 = 4;
const MOST_LOG_MIB: u64 = 1 << 20;
/// Every 64-bit processor can address this much, so it need not be asked.
const ANY_HOST_MIB: u64 = 32 << 10;
const DEFAULT_MEMORY_MIB: std::ops::RangeInclusive<u64> = 512..=16384;

/// Boot one KVM virtual machine on this process: its console is stdin and stdout, its exit code is the guest's.
///
/// Exit status: the code that the guest wrote to its exit register; 0 when it switched off or was reset, or the reader of
/// stdout went away; 125 when the machine could not start or crashed, with one message on stderr; death by the signal
/// that ended it.
#[derive(FromArgs)]
struct Args {
    /// kernel: ELF vmlinux, bzImage or arm64 Image, - for stdin [MACHINEN_KERNEL]
    #[argh(option, arg_name = "file")]
    kernel: Option<String>,
    /// initial RAM file system, - for stdin [MACHINEN_INITRD]
    #[argh(option, arg_name = "file")]
    initrd: Option<String>,
    /// device tree to boot with instead of the monitor's, for aarch64: memory, virtio devices, command line and initrd are put
    /// in [MACHINEN_DTB]
    #[argh(option, arg_name = "file")]
    dtb: Option<String>,
    /// words appended to the kernel command line [MACHINEN_CMDLINE]
    #[argh(option, arg_name = "words")]
    cmdline: Option<String>,
    /// RAM in MiB; default: half of the host's, at least 512, at most 16384 [MACHINEN_MEMORY]
    #[argh(option, short = 'm', arg_name = "mib")]
    memory: Option<String>,
    /// first disk, /dev/vda; FILE:ro for one that the guest knows not to write, FILE:rw to write to the file itself; otherwise
    /// the file stays as it is and what the guest writes is gone at its end [MACHINEN_ROOTDISK]
    #[argh(option, arg_name = "file")]
    root_disk: Option<String>,
    /// what another machine's guest wrote to the same root disk, from its control socket; lies over it, and stays as it is
    /// [MACHINEN_ROOTLAYER]
    #[argh(option, arg_name = "file")]
    root_layer: Option<String>,
    /// another disk, in the same forms; may be repeated [MACHINEN_DISK: separated by commas]
    #[argh(option, arg_name = "file")]
    disk: Vec<String>,
    /// file that shows how many bytes the guest has given back, see docs/architecture.md [MACHINEN_STATS_FILE]
    #[argh(option, arg_name = "file")]
    stats_file: Option<String>,
    /// vsock bridge, may be repeated [MACHINEN_VSOCK: separated by commas]. in:PORT:SOCKET makes a Unix socket that leads to the
    /// guest's port, out:PORT:SOCKET leads the guest's connections to the host's port (CID 2) to a Unix socket,
    /// hybrid:SOCKET does both for all ports: its clients begin with CONNECT PORT, the guest's go to SOCKET_PORT
    #[argh(option, arg_name = "bridge")]
    vsock: Vec<String>,
    /// directory that the guest can mount by its tag (mount -t virtiofs TAG PLACE): TAG=DIR, TAG=DIR:ro for one that it cannot
    /// change, TAG= for one that is not there yet; may be repeated [MACHINEN_SHARE: separated by commas]
    #[argh(option, arg_name = "tag=dir")]
    share: Vec<String>,
    /// network interface over this Unix stream socket, or fd:N for an inherited one; machinen-net starts what is at its other
    /// end [MACHINEN_NET_SOCKET]
    #[argh(option, arg_name = "path")]
    net_socket: Option<String>,
    /// its hardware address; default: one that is random [MACHINEN_NET_MAC]
    #[argh(option, arg_name = "mac")]
    net_mac: Option<String>,
    /// largest packet that the socket's peer takes; default: as the guest has it, 1500 [MACHINEN_NET_MTU]
    #[argh(option, arg_name = "bytes")]
    net_mtu: Option<String>,
    /// the console is a terminal session even when stdin and stdout are not terminals [MACHINEN_TTY]
    #[argh(switch)]
    tty: bool,
    /// where stdout is a file keep its first and its last so many MiB [MACHINEN_LOG_LIMIT]
    #[argh(option, arg_name = "mib")]
    log_limit: Option<String>,
    /// leave the caller's session, so that neither its terminal nor its end matters [MACHINEN_DETACH]
    #[argh(switch)]
    detach: bool,
    /// socket to make, by which the running machine is told what to do, see docs/architecture.md [MACHINEN_CTL]
    #[argh(option, arg_name = "path")]
    ctl: Option<String>,
    /// end when this process, the one that starts the machine, ends [MACHINEN_DIE_WITH_PARENT]
    #[argh(option, arg_name = "pid")]
    die_with_parent: Option<String>,
    /// file to which named marks of the start are added, a line of JSON each [MACHINEN_TRACE]
    #[argh(option, arg_name = "file")]
    trace: Option<String>,
    /// end at the guest's first output byte and report the time to it on stderr [MACHINEN_BOOT_TEST]
    #[argh(switch)]
    boot_test: bool,
    /// errors and reports on stderr as one JSON object a line
    #[argh(switch)]
    #[expect(dead_code, reason = "read by wants_json, which also works when the rest does not parse")]
    json: bool,
    /// print the variables that would give this configuration, and end
    #[argh(switch)]
    print_env: bool,
    /// print the version, and end
    #[argh(switch)]
    version: bool,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Path of the kernel.
    pub kernel: String,
    /// Path of the initrd.
    pub initrd: Option<String>,
    /// Path of the device tree.
    pub dtb: Option<String>,
    /// The user's words of the command line.
    pub cmdline: Option<String>,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// The first disk.
    pub root_disk: Option<DiskConfig>,
    /// Path of a layer over it.
    pub root_layer: Option<String>,
    /// The others, in order.
    pub disks: Vec<DiskConfig>,
    /// Path of the file for [`crate::stats::Stats`].
    pub stats_file: Option<String>,
    /// Bridges of the vsock device, which is there when there are any.
    pub vsock: Vec<Bridge>,
    /// Directories that the guest can mount.
    pub shares: Vec<ShareConfig>,
    /// The network interface.
    pub net: Option<NetConfig>,
    /// The console is a terminal session.
    pub tty: bool,
    /// MiB kept of each end of a stdout that is a file.
    pub log_mib: Option<u64>,
    /// Leave the caller's session.
    pub detach: bool,
    /// Path of the control socket.
    pub ctl: Option<String>,
    /// End with this process, the parent.
    pub parent: Option<u32>,
    /// Path of the file for [`crate::trace::Trace`].
    pub trace: Option<String>,
    /// End at the first output byte.
    pub boot_test: bool,
}

/// An image and who may write to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Path of the image.
    pub path: String,
    /// Who may write to it.
    pub access: Access,
}

impl DiskConfig {
    /// Reads `FILE`, `FILE:cow`, `FILE:ro` or `FILE:rw`.
    fn parse(text: &str) -> Result<DiskConfig> {
        let forms = [(":cow", Access::CopyOnWrite), (":ro", Access::ReadOnly), (":rw", Access::InPlace)];
        let (path, access) = forms
            .into_iter()
            .find_map(|(suffix, access)| Some((text.strip_suffix(suffix)?, access)))
            .unwrap_or((text, Access::CopyOnWrite));
        if path.is_empty() || path.contains(',') {
            let why = if path.is_empty() { "no file named" } else { "a comma separates disks in MACHINEN_DISK" };
            return Err(Error::usage("DISK_INVALID", format!("disk {text:?}: {why}"), "--disk FILE[:ro|:rw]"));
        }
        Ok(DiskConfig { path: path.into(), access })
    }

    fn to_text(&self) -> String {
        let suffix = match self.access {
            Access::CopyOnWrite => "",
            Access::ReadOnly => ":ro",
            Access::InPlace => ":rw",
        };
        format!("{}{suffix}", self.path)
    }
}

/// What a command line asks for.
#[expect(clippy::large_enum_variant, reason = "there is one of it, for the whole run")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Run this machine; messages as JSON or not.
    Run(Config),
    /// Print this to stdout and end with success.
    Print(String),
}

/// Where values of variables come from: `std::env::var_os`, or a table in tests.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<std::ffi::OsString>;

/// Reads arguments (without the program's name) and variables. No side effects.
///
/// Errors: `USAGE`, `ENV_INVALID`, `NOT_SUPPORTED`, `KERNEL_MISSING`, `MEMORY_INVALID`, `DISK_INVALID`, `NET_INVALID`,
/// `SHARE_INVALID`.
pub fn parse(arguments: &[String], env: Env<'_>) -> Result<Request> {
    let arguments: Vec<&str> = arguments.iter().flat_map(|argument| usual_forms(argument)).collect();
    let args = match Args::from_args(&["vmm-min"], &arguments) {
        Ok(args) => args,
        Err(exit) if exit.status.is_ok() => return Ok(Request::Print(exit.output)),
        Err(exit) => return Err(Error::usage("USAGE", exit.output.trim().replace('\n', " "), "vmm-min --help")),
    };
    if args.version {
        return Ok(Request::Print(format!("vmm-min {} {}\n", env!("CARGO_PKG_VERSION"), arch::NAME)));
    }
    let kernel = args.kernel.map_or_else(|| text(env, "MACHINEN_KERNEL"), |kernel| Ok(Some(kernel)))?;
    let initrd = args.initrd.map_or_else(|| text(env, "MACHINEN_INITRD"), |initrd| Ok(Some(initrd)))?;
    let cmdline = args.cmdline.map_or_else(|| text(env, "MACHINEN_CMDLINE"), |words| Ok(Some(words)))?;
    let memory = args.memory.map_or_else(|| text(env, "MACHINEN_MEMORY"), |memory| Ok(Some(memory)))?;
    let tty = args.tty || switch(env, "MACHINEN_TTY")?;
    let boot_test = args.boot_test || switch(env, "MACHINEN_BOOT_TEST")?;
    let root_disk = args.root_disk.map_or_else(|| text(env, "MACHINEN_ROOTDISK"), |disk| Ok(Some(disk)))?;
    let root_disk = root_disk.as_deref().map(DiskConfig::parse).transpose()?;
    let disks = list(args.disk, env, "MACHINEN_DISK")?;
    let disks = disks.iter().map(|disk| DiskConfig::parse(disk)).collect::<Result<Vec<_>>>()?;
    let vsock = list(args.vsock, env, "MACHINEN_VSOCK")?;
    let vsock = vsock.iter().map(|bridge| Bridge::parse(bridge)).collect::<Result<Vec<_>>>()?;
    Bridge::check(&vsock)?;
    let shares = ShareConfig::parse_all(&list(args.share, env, "MACHINEN_SHARE")?)?;
    let stats_file = args.stats_file.map_or_else(|| text(env, "MACHINEN_STATS_FILE"), |file| Ok(Some(file)))?;
    let of = |flag: Option<String>, name| flag.map_or_else(|| text(env, name), |value| Ok(Some(value)));
    let dtb = of(args.dtb, "MACHINEN_DTB")?;
    if dtb.is_some() && arch::MOST_DTB_BYTES == 0 {
        let message = format!("a machine of {} has no device tree", arch::NAME);
        return Err(Error::usage("NOT_SUPPORTED", message, "leave out --dtb, unset MACHINEN_DTB"));
    }
    let root_layer = of(args.root_layer, "MACHINEN_ROOTLAYER")?;
    if root_layer.is_some() && root_disk.is_none() {
        return Err(Error::usage("DISK_INVALID", "a layer without a root disk", "--root-disk FILE"));
    }
    let net_socket = of(args.net_socket, "MACHINEN_NET_SOCKET")?;
    let net_mac = of(args.net_mac, "MACHINEN_NET_MAC")?;
    let net_mtu = of(args.net_mtu, "MACHINEN_NET_MTU")?;
    let net = NetConfig::parse(net_socket.as_deref(), net_mac.as_deref(), net_mtu.as_deref())?;
    let log_limit = of(args.log_limit, "MACHINEN_LOG_LIMIT")?;
    let log_mib = log_limit.as_deref().map(log_mib).transpose()?;
    let detach = args.detach || switch(env, "MACHINEN_DETACH")?;
    let ctl = of(args.ctl, "MACHINEN_CTL")?;
    let trace = of(args.trace, "MACHINEN_TRACE")?;
    let parent = of(args.die_with_parent, "MACHINEN_DIE_WITH_PARENT")?;
    let parent = parent.as_deref().map(process).transpose()?;
    let memory_mib = memory.as_deref().map_or_else(default_memory_mib, memory_mib)?;
    if args.print_env {
        let switch = |on: bool| on.then(|| "1".to_string());
        let memory = Some(memory_mib.to_string());
        let set = [
            ("KERNEL", kernel),
            ("INITRD", initrd),
            ("DTB", dtb),
            ("CMDLINE", cmdline),
            ("MEMORY", memory),
            ("ROOTDISK", root_disk.as_ref().map(DiskConfig::to_text)),
            ("ROOTLAYER", root_layer.clone()),
            ("DISK", joined(disks.iter().map(DiskConfig::to_text))),
            ("VSOCK", joined(vsock.iter().map(Bridge::to_text))),
            ("STATS_FILE", stats_file),
            ("SHARE", joined(shares.iter().map(ShareConfig::to_text))),
            ("NET_SOCKET", net.as_ref().map(NetConfig::socket_to_text)),
            ("NET_MAC", net.as_ref().and_then(NetConfig::mac_to_text)),
            ("NET_MTU", net.as_ref().and_then(NetConfig::mtu_to_text)),
            ("TTY", switch(tty)),
            ("LOG_LIMIT", log_limit),
            ("DETACH", switch(detach)),
            ("CTL", ctl),
            ("DIE_WITH_PARENT", parent.map(|pid| pid.to_string())),
            ("TRACE", trace),
            ("BOOT_TEST", switch(boot_test)),
        ];
        let line = |(name, value)| Some(format!("MACHINEN_{name}={}\n", quote(&Option::<String>::clone(&value)?)));
        return Ok(Request::Print(set.into_iter().filter_map(line).collect()));
    }
    let kernel = kernel.ok_or_else(|| {
        Error::usage("KERNEL_MISSING", "no kernel given", "vmm-min --kernel FILE, or set MACHINEN_KERNEL")
    })?;
    if [Some(kernel.as_str()), initrd.as_deref(), dtb.as_deref()].iter().filter(|path| **path == Some("-")).count() > 1
    {
        let message = "kernel, initrd and device tree cannot share stdin";
        return Err(Error::usage("USAGE", message, "give all but one of them as a file"));
    }
    if disks.len() > MOST_DISKS {
        let message = format!("{} disks: at most {MOST_DISKS} and the root disk are possible", disks.len());
        return Err(Error::usage("DISK_INVALID", message, ""));
    }
    Ok(Request::Run(Config {
        kernel,
        initrd,
        dtb,
        cmdline,
        memory_mib,
        root_disk,
        root_layer,
        disks,
        vsock,
        stats_file,
        shares,
        net,
        tty,
        log_mib,
        detach,
        ctl,
        parent,
        trace,
        boot_test,
    }))
}

/// What people type and argh does not know: `-h`, and `--name=value` in one word.
fn usual_forms(argument: &str) -> Vec<&str> {
    match argument.split_once('=') {
        _ if argument == "-h" => vec!["--help"],
        Some((name, value)) if name.starts_with("--") => vec![name, value],
        _ => vec![argument],
    }
}

/// Whether errors are to be printed as JSON; works on arguments that do not parse.
pub fn wants_json(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| argument == "--json")
}

/// A variable as text; an empty one counts as not set.
fn text(env: Env<'_>, name: &str) -> Result<Option<String>> {
    match env(name).filter(|value| !value.is_empty()).map(std::ffi::OsString::into_string) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => Err(Error::usage("ENV_INVALID", format!("{name} is not valid UTF-8"), "")),
    }
}

/// Values of a repeated flag, or of a variable that separates them by commas.
fn list(flags: Vec<String>, env: Env<'_>, name: &str) -> Result<Vec<String>> {
    if !flags.is_empty() {
        return Ok(flags);
    }
    Ok(text(env, name)?.map(|text| text.split(',').map(String::from).collect()).unwrap_or_default())
}

/// The value of such a variable; `None` when there is nothing in it.
fn joined(values: impl Iterator<Item = String>) -> Option<String> {
    Some(values.collect::<Vec<_>>().join(",")).filter(|text| !text.is_empty())
}

fn switch(env: Env<'_>, name: &str) -> Result<bool> {
    match text(env, name)?.as_deref() {
        None | Some("0" | "false" | "no") => Ok(false),
        Some("1" | "true" | "yes") => Ok(true),
        Some(other) => {
            Err(Error::usage("ENV_INVALID", format!("{name}={other}: not one of 0, 1, no, yes, false, true"), ""))
        }
    }
}

fn log_mib(text: &str) -> Result<u64> {
    let mib = text.parse().ok().filter(|mib| (1..=MOST_LOG_MIB).contains(mib));
    mib.ok_or_else(|| Error::usage("USAGE", format!("log limit {text:?}: not 1 to {MOST_LOG_MIB} MiB"), ""))
}

fn process(text: &str) -> Result<u32> {
    let pid = text.parse().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| Error::usage("USAGE", format!("parent {text:?}: not the number of a process"), ""))
}

fn memory_mib(text: &str) -> Result<u64> {
    const HINT: &str = "--memory MIB or MACHINEN_MEMORY=MIB";
    let invalid = |why: String| Error::usage("MEMORY_INVALID", format!("memory of {text:?}: {why}"), HINT);
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid("not a number of MiB".into()));
    }
    match text.parse::<u64>() {
        Ok(mib) if mib < LEAST_MEMORY_MIB => Err(invalid(format!("at least {LEAST_MEMORY_MIB} MiB are needed"))),
        Ok(mib) if mib <= ANY_HOST_MIB => Ok(mib),
        mib => {
            let most = arch::host_ram_limit_bytes() / MIB;
            mib.ok()
                .filter(|mib| *mib <= most)
                .ok_or_else(|| invalid(format!("the host's processor can address {most} MiB of guest RAM")))
        }
    }
}

fn default_memory_mib() -> Result<u64> {
    let host = sys::host_memory_bytes().map_err(|cause| Error::host("HOST_MEMORY", "sysinfo", cause))?;
    Ok((host / 2 / MIB).clamp(*DEFAULT_MEMORY_MIB.start(), *DEFAULT_MEMORY_MIB.end()))
}

/// `value` as one word of a shell.
fn quote(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,=@%".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.into();
    }
    format!("'{}'", value.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn parse_with(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Request> {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        parse(&arguments, &|name| {
            variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone().into())
        })
    }

    pub(super) fn config(arguments: &[&str], variables: &[(&str, &str)]) -> Config {
        match parse_with(arguments, variables).expect("valid") {
            Request::Run(config) => config,
            Request::Print(text) => panic!("printed {text}"),
        }
    }

    pub(super) fn code(arguments: &[&str], variables: &[(&str, &str)]) -> &'static str {
        parse_with(arguments, variables).expect_err("refused").code()
    }

    #[test]
    fn flags_win_over_variables() {
        let variables = [("MACHINEN_KERNEL", "env"), ("MACHINEN_MEMORY", "64"), ("MACHINEN_BOOT_TEST", "1")];
        let both = config(&["--kernel", "flag", "-m", "128"], &variables);
        assert_eq!((both.kernel.as_str(), both.memory_mib, both.boot_test), ("flag", 128, true));
        let one_word = config(&["--kernel=flag", "--cmdline=a=b"], &variables);
        assert_eq!((one_word.kernel.as_str(), one_word.cmdline.as_deref()), ("flag", Some("a=b")));
        let env = config(&[], &variables);
        assert_eq!((env.kernel.as_str(), env.memory_mib), ("env", 64));
    }

    #[test]
    fn disks_have_forms() {
        let disk = |path: &str, access| DiskConfig { path: path.into(), access };
        let variables = [("MACHINEN_ROOTDISK", "root:rw"), ("MACHINEN_DISK", "a,b:ro,c:d:cow")];
        let env = config(&["--kernel", "k"], &variables);
        assert_eq!(env.root_disk, Some(disk("root", Access::InPlace)));
        let all = [disk("a", Access::CopyOnWrite), disk("b", Access::ReadOnly), disk("c:d", Access::CopyOnWrite)];
        assert_eq!(env.disks, all);
        let flags = config(&["--kernel", "k", "--disk", "x:ro", "--disk", "y"], &variables);
        assert_eq!(flags.disks, [disk("x", Access::ReadOnly), disk("y", Access::CopyOnWrite)]);
        for bad in ["", ":ro", "a,,b"] {
            let refused = code(&["--kernel", "k", "--disk", bad], &[]);
            assert_eq!(refused, "DISK_INVALID", "{bad}");
        }
        let nine = ["--disk", "d"].repeat(9);
        assert_eq!(code(&[&["--kernel", "k"], &nine[..]].concat(), &[]), "DISK_INVALID");
        let printed =
            parse_with(&["--root-disk", "r:ro", "--disk", "x:rw", "--disk", "y", "-m", "64", "--print-env"], &[]);
        let expected = "MACHINEN_MEMORY=64\nMACHINEN_ROOTDISK=r:ro\nMACHINEN_DISK=x:rw,y\n";
        assert_eq!(printed.expect("valid"), Request::Print(expected.into()));
    }

    #[test]
    fn the_default_memory_is_within_its_bounds() {
        assert!(DEFAULT_MEMORY_MIB.contains(&config(&["--kernel", "k"], &[]).memory_mib));
    }

    #[test]
    fn bad_input_has_its_code() {
        assert_eq!(code(&[], &[]), "KERNEL_MISSING");
        assert_eq!(code(&["--frobnicate"], &[]), "USAGE");
        for memory in ["0", "3", "", "x", "-1", "1.5", "1G", "99999999999999999999", "9999999999999"] {
            assert_eq!(code(&["--kernel", "k", "--memory", memory], &[]), "MEMORY_INVALID", "{memory}");
        }
        assert_eq!(code(&["--kernel", "k"], &[("MACHINEN_TTY", "maybe")]), "ENV_INVALID");
        assert_eq!(code(&["--kernel", "k"], &[("MACHINEN_VSOCK", "in:1:x,in:1:x")]), "VSOCK_INVALID");
        assert_eq!(code(&["--kernel", "-", "--initrd", "-"], &[]), "USAGE");
        let dtb = if arch::MOST_DTB_BYTES == 0 { "NOT_SUPPORTED" } else { "USAGE" };
        assert_eq!(code(&["--kernel", "-", "--dtb", "-"], &[]), dtb);
        assert_eq!(code(&["--kernel", "-"], &[("MACHINEN_DTB", "-")]), dtb);
        for parent in ["0", "-1", "x"] {
            assert_eq!(code(&["--kernel", "k", "--die-with-parent", parent], &[]), "USAGE", "{parent}");
        }
    }

    #[test]
    fn print_env_can_be_read_back_by_a_shell() {
        let printed = parse_with(&["--kernel", "a b", "--cmdline", "it's", "-m", "64", "--print-env"], &[]);
        let expected = "MACHINEN_KERNEL='a b'\nMACHINEN_CMDLINE='it'\\''s'\nMACHINEN_MEMORY=64\n";
        assert_eq!(printed.expect("valid"), Request::Print(expected.into()));
    }
}

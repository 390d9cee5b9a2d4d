//! The work of `machinen-mkinitramfs`: from its arguments to an archive.

use std::io;

use argh::FromArgs;
use machinen_initramfs::error::{Error, reason};
use machinen_initramfs::layout::config::{Config, Overlay, Parts, Root, Share};
use machinen_initramfs::layout::{self, Layout, Source, Spec, WORKSPACE_MAX_MIB};
use machinen_initramfs::output::Output;
use machinen_initramfs::pack::pack;

use crate::args::plain;
use crate::assets::find_init;
use crate::diagnostic::Diagnostic;
use crate::outfile::Outfile;
use crate::program::Tool;

const USAGE: &str = "MKINITRAMFS_USAGE";

/// The program.
pub const TOOL: Tool = Tool { name: "machinen-mkinitramfs", usage: USAGE, output: "MKINITRAMFS_OUTPUT" };

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Make an initramfs (newc cpio) for a machinen guest. OUT is a file, or - for standard output.",
    note = "Layouts:\n  \
        minimal OUT            /init and the nodes it needs\n  \
        tiny BUNDLE OUT        minimal, with BUNDLE/machinen-config.json\n  \
        rootfs TAR|DIR|- OUT   a root file system\n  \
        bundle BUNDLE OUT      BUNDLE/rootfs and its configuration, over --base\n  \
        workspace DIR OUT      DIR at --mountpoint\n\n  \
        Tar files keep their owners and times; what comes from a directory is\n  \
        owned by root and dated SOURCE_DATE_EPOCH, else 1970.",
    note = "Exit codes: 0 done (also when the reader of OUT went away), 1 failed, 2 bad usage.",
    example = "{command_name} rootfs ROOTFS.tar --cmd 'sh -c \"echo out; exit 7\"' initrd.cpio",
    example = "{command_name} minimal --root /dev/vda --cmd /bin/bash initrd.cpio",
    example = "zstd -dc ROOTFS.tar.zst | {command_name} rootfs - initrd.cpio"
)]
pub struct Args {
    /// program for /init (default: MACHINEN_INIT, init beside this program, MACHINEN_ASSETS_DIR/init)
    #[argh(option)]
    pub init: Option<String>,
    /// guest command, split into words as a shell would, run without one
    #[argh(option)]
    pub cmd: Option<String>,
    /// guest environment, NAME=VALUE, or NAME to pass the value on from here; repeatable
    #[argh(option)]
    pub env: Vec<String>,
    /// working directory of the guest command
    #[argh(option)]
    pub cwd: Option<String>,
    /// configuration file; over the one in the root file system or bundle, under the flags
    #[argh(option)]
    pub config: Option<String>,
    /// root file system on a disk: the guest's path of an ext4 disk, DEVICE or DEVICE:ro; for minimal and tiny. The
    /// configuration on it counts too, under all given here
    #[argh(option, arg_name = "device[:ro]")]
    pub root: Option<String>,
    /// directory PATH of the guest from two disks, LOWER:UPPER:PATH: squashfs, and ext4 for what is
    /// written; repeatable
    #[argh(option, arg_name = "lower:upper:path")]
    pub mount: Vec<String>,
    /// directory PATH of the guest from the host, by the TAG of the machine's virtio-fs device:
    /// TAG:PATH or TAG:PATH:ro; repeatable
    #[argh(option, arg_name = "tag:path[:ro]")]
    pub share: Vec<String>,
    /// have the guest serve the agent: what to run comes from the host, by vsock
    #[argh(switch)]
    pub agent: bool,
    /// leave out what matches: a path from the root; in a workspace a name anywhere, instead of the
    /// default list (.git, node_modules, target and such); repeatable
    #[argh(option)]
    pub exclude: Vec<String>,
    /// kernel module for /init to load; repeatable, loaded in this order
    #[argh(option)]
    pub module: Vec<String>,
    /// directory of machinen-kernel modules --out: all modules in it, before those of --module
    #[argh(option)]
    pub modules: Option<String>,
    /// keep the owners of files that come from a directory
    #[argh(switch)]
    pub keep_owners: bool,
    /// bundle: root file system (TAR, DIR or -) that the bundle's files go over
    #[argh(option)]
    pub base: Option<String>,
    /// workspace: where it goes in the guest (default: workspace)
    #[argh(option)]
    pub mountpoint: Option<String>,
    /// workspace: limit of the archive in MiB (default: 500)
    #[argh(option)]
    pub max_mb: Option<u64>,
    /// report an error as one line of JSON
    #[argh(switch)]
    pub json: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// layout, its argument, output
    #[argh(positional, arg_name = "layout, argument, out")]
    pub words: Vec<String>,
}

/// Makes the archive. That the reader of the output went away is no failure.
pub fn run(args: Args) -> Result<(), Diagnostic> {
    let (layout, out) = layout(&args)?;
    let mut spec = spec(args, layout)?;
    let opened = |e: io::Error| Diagnostic::new("MKINITRAMFS_OUTPUT", format!("open: {out}: {}", reason(&e)));
    let file = Outfile::create(&out).map_err(opened)?;
    if file.is_terminal() {
        let message = format!("{out}: is a terminal, and an archive is binary");
        let hint = "name a file, or pipe it into another program";
        return Err(Diagnostic::new("MKINITRAMFS_TERMINAL", message).hint(hint).usage());
    }
    spec.output = file.identity();
    let (tree, plan) = layout::build(&spec).map_err(diagnostic)?;
    match pack(&tree, &plan, &mut Output::new(file.file())) {
        Err(Error::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        done => done.map_err(diagnostic)?,
    }
    file.commit().map_err(opened)
}

fn layout(args: &Args) -> Result<(Layout, String), Diagnostic> {
    let words: Vec<String> = args.words.iter().cloned().map(plain).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let Some(word) = words.iter().find(|word| word.is_empty()) {
        return Err(usage(format!("an argument is empty: {word:?}")));
    }
    let (layout, out) = match words[..] {
        ["minimal", out] => (Layout::Minimal, out),
        ["tiny", bundle, out] => (Layout::Tiny { bundle: bundle.into() }, out),
        ["rootfs", source, out] => (Layout::Rootfs { source: self::source(source) }, out),
        ["bundle", bundle, out] => {
            let base = args.base.clone().map(|base| self::source(&plain(base)));
            (Layout::Bundle { bundle: bundle.into(), base }, out)
        }
        ["workspace", dir, out] => {
            let mountpoint = args.mountpoint.clone().map(plain);
            let layout = Layout::Workspace {
                dir: dir.into(),
                mountpoint: mountpoint.unwrap_or_else(|| "workspace".to_string()),
                max_mib: args.max_mb.unwrap_or(WORKSPACE_MAX_MIB),
            };
            (layout, out)
        }
        [] => return Err(usage("no layout is given")),
        ["minimal", ..] => return Err(usage("minimal takes one argument: OUT")),
        [name @ ("tiny" | "rootfs" | "bundle" | "workspace"), ..] => {
            let what = match name {
                "rootfs" => "TAR|DIR|-",
                "workspace" => "DIR",
                _ => "BUNDLE",
            };
            return Err(usage(format!("{name} takes two arguments: {what} OUT")));
        }
        [name, ..] => return Err(usage(format!("there is no layout {name}"))),
    };
    let (is_bundle, is_workspace) = (words[0] == "bundle", words[0] == "workspace");
    let misplaced = [
        (args.base.is_some() && !is_bundle, "--base is for bundle"),
        (args.mountpoint.is_some() && !is_workspace, "--mountpoint is for workspace"),
        (args.max_mb.is_some() && !is_workspace, "--max-mb is for workspace"),
        (
            !args.exclude.is_empty() && matches!(words[0], "minimal" | "tiny"),
            "--exclude is for rootfs, bundle and workspace",
        ),
    ];
    match misplaced.iter().find(|(wrong, _)| *wrong) {
        Some((_, why)) => Err(usage(*why)),
        None => Ok((layout, out.to_string())),
    }
}

fn source(word: &str) -> Source {
    match word {
        "-" => Source::Stdin,
        path => Source::Path(path.into()),
    }
}

fn spec(args: Args, layout: Layout) -> Result<Spec, Diagnostic> {
    let init = args.init.map(plain);
    let init = find_init(init.as_deref().map(str::as_ref)).map_err(|tried| {
        let message = format!("find init: no program for /init: tried {}", tried.join(", "));
        Diagnostic::new("MKINITRAMFS_NO_INIT", message)
            .hint("give it with --init PATH or MACHINEN_INIT; make builds it")
    })?;
    let words = match args.cmd.map(plain) {
        Some(text) => {
            let words = shlex::split(&text).ok_or_else(|| usage(format!("--cmd: a quote is not closed: {text}")))?;
            if words.is_empty() {
                return Err(usage("--cmd: there is no word in it"));
            }
            Some(words)
        }
        None => None,
    };
    let env = args.env.into_iter().map(|item| env(plain(item)));
    let env = env.collect::<Result<_, _>>()?;
    let cwd = args.cwd.map(plain);
    let root = args.root.map(|text| root(&plain(text)));
    let mounts = args.mount.into_iter().map(|text| mount(&plain(text))).collect::<Result<_, _>>()?;
    let shares = args.share.into_iter().map(|text| share(&plain(text))).collect::<Result<_, _>>()?;
    let parts = Parts { cmd: words, env, cwd, root, mounts, shares, agent: args.agent };
    let config = Config::of_parts(parts, "flags").map_err(|e| diagnostic(e).usage())?;
    let mut modules = match args.modules.map(plain) {
        Some(dir) => crate::kernel::modules::packed(dir.as_ref())?,
        None => Vec::new(),
    };
    modules.extend(args.module.into_iter().map(|path| plain(path).into()));
    let excludes = args.exclude.into_iter().map(plain).collect::<Vec<_>>();
    Ok(Spec {
        layout,
        init,
        config_file: args.config.map(|path| plain(path).into()),
        config,
        excludes: Some(excludes).filter(|list| !list.is_empty()),
        modules,
        keep_owners: args.keep_owners,
        epoch: epoch()?,
        output: None,
    })
}

fn root(text: &str) -> Root {
    match text.strip_suffix(":ro") {
        Some(device) => Root { device: device.to_string(), read_only: true },
        None => Root { device: text.to_string(), read_only: false },
    }
}

/// The path comes last, so that it may contain a colon.
fn mount(text: &str) -> Result<Overlay, Diagnostic> {
    let mut parts = text.splitn(3, ':').map(str::to_string);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(lower), Some(upper), Some(at)) => Ok(Overlay { lower, upper, at }),
        _ => Err(usage(format!("--mount: {text}: not LOWER:UPPER:PATH"))),
    }
}

fn share(text: &str) -> Result<Share, Diagnostic> {
    let (text, read_only) = text.strip_suffix(":ro").map_or((text, false), |text| (text, true));
    let (tag, path) = text.split_once(':').ok_or_else(|| usage(format!("--share: {text}: not TAG:PATH")))?;
    Ok(Share { tag: tag.into(), path: path.into(), read_only })
}

fn env(item: String) -> Result<(String, String), Diagnostic> {
    match item.split_once('=') {
        Some((name, value)) => Ok((name.to_string(), value.to_string())),
        None if item.is_empty() => Err(usage("--env: the name is empty")),
        None => match std::env::var(&item) {
            Ok(value) => Ok((item, value)),
            Err(_) => Err(usage(format!("--env: {item} is not set here, or is not UTF-8"))),
        },
    }
}

/// `SOURCE_DATE_EPOCH` of <https://reproducible-builds.org/specs/source-date-epoch/>.
fn epoch() -> Result<Option<u32>, Diagnostic> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| {
        let text = text.to_string_lossy();
        usage(format!("SOURCE_DATE_EPOCH: {text}: not a number of seconds below 2^32"))
    })
}

fn usage(message: impl Into<String>) -> Diagnostic {
    Diagnostic::new(USAGE, message).hint("see machinen-mkinitramfs --help").usage()
}

fn diagnostic(error: Error) -> Diagnostic {
    let diagnostic = Diagnostic {
        code: error.code(),
        message: error.to_string(),
        hint: error.hint(),
        retryable: error.retryable(),
        exit: crate::diagnostic::EXIT_FAILURE,
    };
    match error {
        Error::Usage(_) => diagnostic.usage(),
        _ => diagnostic,
    }
}

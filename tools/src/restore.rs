//! The work of `machinen-restore`: the processes of a bundle go on in a machine of their own.

use argh::FromArgs;

use crate::args::plain;
use crate::bundle::{RestoreOptions, Tcp};
use crate::diagnostic::Diagnostic;
use crate::guestio::{Stdio, seconds};
use crate::program::{EXIT_TOOL, Said, Tool};
use crate::run::{Life, live, place_mount, place_share};
use crate::vm::BootOptions;

/// Name and codes of the program.
pub const TOOL: Tool = Tool { name: "machinen-restore", usage: "RESTORE_USAGE", output: "RESTORE_OUTPUT" };
/// Switches that may be given together.
pub const SHORT: &str = "dv";

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Let the processes of a bundle go on in a virtual machine of their own, as if the\n\
        main command were a process here. The bundle stays as it is: any number of machines\n\
        can be restored from it.",
    note = "Standard input, output and error are the main command's, and its terminal where it had\n  \
        one, as with machinen run. The machine ends with it.",
    note = "Image, memory, and directories of --mount and -v are the bundle's where none are given;\n  \
        ports are not inherited. A file that a process has open and that differs is refused.",
    note = "A bundle that another user or host made gets nothing that it names of this host, unless --trust:\n  \
        say with --image, --mount and -v what it shall have.",
    note = "Exit codes: as of machinen run; 125 it cannot be restored.",
    example = "{command_name} web.bundle",
    example = "{command_name} -d --lazy --name web/2 -p 8081:80 web.bundle"
)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct Args {
    /// leave the machine running: prints its name once the processes go on
    #[argh(switch, short = 'd')]
    pub detach: bool,
    /// bring memory page by page, when it is needed; the bundle must stay until all has come
    #[argh(switch)]
    pub lazy: bool,
    /// name, unique among the machines that live
    #[argh(option)]
    pub name: Option<String>,
    /// image instead of the bundle's, with the same files
    #[argh(option, arg_name = "image")]
    pub image: Option<String>,
    /// most RAM in MiB (default: the bundle's)
    #[argh(option, short = 'm', arg_name = "mib")]
    pub memory: Option<u64>,
    /// port of the host that leads to the guest's: [IP:]HOST:GUEST[/tcp|udp]; repeatable
    #[argh(option, short = 'p', arg_name = "ports")]
    pub publish: Vec<String>,
    /// directory instead of the bundle's at a path of the guest, HOST:GUEST; repeatable
    #[argh(option, arg_name = "host:guest")]
    pub mount: Vec<String>,
    /// shared directory instead of the bundle's at a path of the guest, HOST:GUEST[:ro], also as
    /// -v HOST:GUEST; repeatable
    #[argh(option, arg_name = "host:guest[:ro]")]
    pub share: Vec<String>,
    /// kernel: vmlinux or bzImage
    #[argh(option, arg_name = "file")]
    pub kernel: Option<String>,
    /// its modules, as machinen-kernel modules --out makes them
    #[argh(option, arg_name = "dir")]
    pub modules: Option<String>,
    /// close the TCP connections that were dumped
    #[argh(switch)]
    pub tcp_close: bool,
    /// let TCP connections go on that were dumped with --tcp-keep
    #[argh(switch)]
    pub tcp_keep: bool,
    /// use image and directories that the bundle names, though it was not made by this user here
    #[argh(switch)]
    pub trust: bool,
    /// try it where processor, kernel or CRIU lack what the processes have seen or need
    #[argh(switch)]
    pub force: bool,
    /// end after so many seconds, with 124; 0 is no limit, as without it
    #[argh(option, arg_name = "seconds")]
    pub timeout: Option<String>,
    /// write a trace of the start (Chrome trace JSON, for ui.perfetto.dev)
    #[argh(option, arg_name = "file")]
    pub trace: Option<String>,
    /// keep the machine's directory with the console's log, until machinen gc
    #[argh(switch)]
    pub keep: bool,
    /// let the machine live on when this program is killed
    #[argh(switch)]
    pub no_pdeathsig: bool,
    /// at the end print the times of the start and the console on standard error
    #[argh(switch, short = 'v')]
    pub verbose: bool,
    /// report an error, and with -d the machine, as one line of JSON
    #[argh(switch)]
    pub json: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// directory that machinen snapshot made
    #[argh(positional, arg_name = "DIR")]
    pub bundle: Vec<String>,
}

/// Restores; gives the exit code of the main command, and what is to be printed.
pub fn run(args: Args) -> std::result::Result<Said, Diagnostic> {
    let usage = |message: String| Diagnostic::new(TOOL.usage, message).hint("see machinen-restore --help").usage();
    let [bundle] = args.bundle.as_slice() else {
        return Err(usage(format!("one bundle is needed, {} are given", args.bundle.len())));
    };
    let bundle = plain(bundle.clone());
    let trouble = |error: crate::error::Error| error.diagnostic(EXIT_TOOL);
    let restore = RestoreOptions::new(&bundle).map_err(trouble)?;
    let restore =
        restore.lazy(args.lazy).tcp(Tcp::of_switches(args.tcp_close, args.tcp_keep).map_err(usage)?).force(args.force);
    let restore = restore.trust(args.trust);
    let stdio = Stdio::look(restore.meta().terminal && !args.detach, !restore.meta().terminal || args.detach);
    let mut options = BootOptions::new(args.image.map(plain).unwrap_or_default());
    options.name = args.name.map(plain);
    options.memory_mib = args.memory;
    options.publish = args.publish.into_iter().map(plain).collect();
    options.kernel = args.kernel.map(|path| plain(path).into());
    options.modules = args.modules.map(|path| plain(path).into());
    for text in args.mount.into_iter().map(plain) {
        options = place_mount(options, &text).map_err(usage)?;
    }
    for text in args.share.into_iter().map(plain) {
        options = place_share(options, &text).map_err(usage)?;
    }
    options.command.terminal = stdio.size();
    options.command.detached = args.detach;
    options.keep = args.keep;
    options.outlives_parent = args.no_pdeathsig;
    options.trace = args.trace.is_some() || args.verbose;
    options.verbose = args.verbose;
    let options = restore.boot_options(options).map_err(trouble)?;
    let limit = args.timeout.as_deref().map(seconds).transpose().map_err(usage)?.flatten();
    live(
        &options,
        &stdio,
        &Life { tool: TOOL.name, limit, trace: args.trace.map(plain), verbose: args.verbose, json: args.json },
        None,
    )
}

//! The work of `machinen-run`: a command in a machine of its own, as if it were a process here.

use std::any::Any;
use std::ffi::OsString;
use std::io::Write;
use std::time::{Duration, Instant};

use argh::FromArgs;
use machinen_abi::body::Reason;
use serde_json::json;

use crate::agent::relay::{Done, Over, Pause, now_ns};
use crate::agent::signals::Signals;
use crate::agent::wire::Wire;
use crate::args::plain;
use crate::diagnostic::Diagnostic;
use crate::error::{Error, Result};
use crate::guestio::{Stdio, channels, deadline, end, env_item, seconds};
use crate::outfile::Outfile;
use crate::program::{EXIT_TOOL, Said, Tool};
use crate::vm::start::{Outcome, prepare};
use crate::vm::trace::{Mark, chrome, table};
use crate::vm::{BootOptions, ShareOption, Vm, launch};

/// The program.
pub const TOOL: Tool = Tool { name: "machinen-run", usage: "RUN_USAGE", output: "RUN_OUTPUT" };
/// Switches that may be given together.
pub const SHORT: &str = "dtTiv";

/// A guest that shall show its last lines gets so long to end by itself.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Run a command in a virtual machine of its own, as if it were a process here.\n\n\
        IMAGE is a tar file (also compressed by gzip, zstd or xz), - for one on standard\n\
        input, a directory, or an ext4 image. Nothing that the guest writes reaches it.\n\
        Without a COMMAND after -- the image's own is run. The machine ends with it.",
    note = "Standard input, output and error are the command's. It gets a terminal when standard\n  \
        input and output are one. INT, TERM, HUP, QUIT, USR1 and USR2 go to the command, a\n  \
        second INT or TERM ends the machine; TSTP stops the machine and then this program.",
    note = "Kernel: --kernel, MACHINEN_KERNEL, MACHINEN_ASSETS_DIR, the tuned kernel in the cache,\n  \
        the host's that machinen-kernel host made ready.",
    note = "Environment: MACHINEN_NAME, _KERNEL, _MODULES, _MEMORY, _PUBLISH, _MOUNT and _SHARE\n  \
        (separated by commas), _TIMEOUT, _TRACE, _DETACH for the flags; MACHINEN_VMM, _INIT,\n  \
        _ASSETS_DIR, _CACHE_DIR, _REGISTRY_DIR.",
    note = "Exit codes: the command's; 128+n when signal n killed it; 124 time limit; 125 this\n  \
        program or the machine failed; 126 the command cannot be executed; 127 not found. When\n  \
        the reader of standard output goes away the machine ends, with 0.",
    example = "{command_name} debian.tar -- uname -a",
    example = "tar c . | {command_name} debian.tar -- tar x -C /tmp -f -",
    example = "{command_name} -d --name web -p 8080:80 web.tar"
)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct Args {
    /// leave the machine running: prints its name once the command has started; its output goes to
    /// the console's log, its input is empty [MACHINEN_DETACH]
    #[argh(switch, short = 'd')]
    pub detach: bool,
    /// name, unique among the machines that live [MACHINEN_NAME]
    #[argh(option)]
    pub name: Option<String>,
    /// variable for the command: NAME=VALUE, or NAME for its value here; repeatable
    #[argh(option, short = 'e', arg_name = "name[=value]")]
    pub env: Vec<String>,
    /// working directory of the command
    #[argh(option, short = 'w', arg_name = "dir")]
    pub workdir: Option<String>,
    /// most RAM in MiB (default: half of the host's, at least 512, at most 16384) [MACHINEN_MEMORY]
    #[argh(option, short = 'm', arg_name = "mib")]
    pub memory: Option<String>,
    /// port of the host that leads to the guest's: [IP:]HOST:GUEST[/tcp|udp]; repeatable; gives
    /// the guest a network [MACHINEN_PUBLISH]
    #[argh(option, short = 'p', arg_name = "ports")]
    pub publish: Vec<String>,
    /// directory of the host at a path of the guest, HOST:GUEST; what the guest writes there is
    /// gone with it; repeatable [MACHINEN_MOUNT]
    #[argh(option, arg_name = "host:guest")]
    pub mount: Vec<String>,
    /// directory of the host, as it is and changes, at a path of the guest: HOST:GUEST or
    /// HOST:GUEST:ro, also as -v HOST:GUEST; repeatable, at most 5 [MACHINEN_SHARE]
    #[argh(option, arg_name = "host:guest[:ro]")]
    pub share: Vec<String>,
    /// kernel: vmlinux or bzImage [MACHINEN_KERNEL]
    #[argh(option, arg_name = "file")]
    pub kernel: Option<String>,
    /// its modules, as machinen-kernel modules --out makes them [MACHINEN_MODULES]
    #[argh(option, arg_name = "dir")]
    pub modules: Option<String>,
    /// end after so many seconds, with 124; 0 is no limit, as without it [MACHINEN_TIMEOUT]
    #[argh(option, arg_name = "seconds")]
    pub timeout: Option<String>,
    /// write a trace of the start (Chrome trace JSON, for ui.perfetto.dev) [MACHINEN_TRACE]
    #[argh(option, arg_name = "file")]
    pub trace: Option<String>,
    /// remove the machine's directory at its end (default; not with -d)
    #[argh(switch)]
    pub rm: bool,
    /// keep the machine's directory with the console's log, until machinen gc
    #[argh(switch)]
    pub keep: bool,
    /// let the machine live on when this program is killed
    #[argh(switch)]
    pub no_pdeathsig: bool,
    /// give the command a terminal
    #[argh(switch, short = 't')]
    pub tty: bool,
    /// give it none
    #[argh(switch, short = 'T')]
    pub no_tty: bool,
    /// pass standard input on, which is done anyway; not with -d
    #[argh(switch, short = 'i')]
    pub interactive: bool,
    /// at the end print the times of the start and the console on standard error
    #[argh(switch, short = 'v')]
    pub verbose: bool,
    /// report an error, and with -d the machine, as one line of JSON
    #[argh(switch)]
    pub json: bool,
    /// print the variables that would give this configuration, and end
    #[argh(switch)]
    pub print_env: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
    /// tar file, directory, ext4 image, or -
    #[argh(positional)]
    pub image: Vec<String>,
}

/// Runs the command; gives its exit code, and what is to be printed.
pub fn run(args: Args, command: Option<Vec<OsString>>) -> std::result::Result<Said, Diagnostic> {
    let args = over_environment(args)?;
    if args.print_env {
        return Ok(print_env(&args).into());
    }
    let stdio = Stdio::look(args.tty, args.no_tty || args.detach);
    let options = options(&args, command, &stdio)?;
    let limit = args.timeout.as_deref().map(seconds).transpose().map_err(usage)?.flatten();
    let Args { trace, verbose, json, .. } = args;
    live(&options, &stdio, &Life { tool: TOOL.name, limit, trace, verbose, json }, Held::default())
}

/// What is wanted of a machine's life, beside what it is.
#[derive(Debug)]
pub(crate) struct Life {
    /// The program's name.
    pub tool: &'static str,
    /// The most that it may take.
    pub limit: Option<Duration>,
    /// Where a trace of the start goes.
    pub trace: Option<String>,
    /// The times of the start, and the console, are printed at the end.
    pub verbose: bool,
    /// A detached machine is told as JSON.
    pub json: bool,
}

/// What has to be there until the main command has started.
pub(crate) type Held = Option<Box<dyn Any>>;

/// Starts a machine, and is its main command until that ends or, where it is detached, has started.
pub(crate) fn live(
    options: &BootOptions,
    stdio: &Stdio,
    life: &Life,
    held: Held,
) -> std::result::Result<Said, Diagnostic> {
    let limit = life.limit;
    let until = deadline(limit);
    let trouble = |error: Error| error.diagnostic(EXIT_TOOL);
    if let Some(path) = &life.trace {
        // Before the command, whose exit code would be lost.
        Outfile::create(path).map_err(|cause| no_trace(path, cause))?;
    }
    let prepared = prepare(options).map_err(trouble)?;
    for warning in prepared.warnings() {
        // With standard error gone there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "{}: {warning}", life.tool);
    }
    let mut signals = Signals::take().map_err(|cause| trouble(Error::host("RUN_SIGNALS", "take signals", cause)))?;
    let mut vm = match prepared.start(Some(&mut signals), until).map_err(trouble)? {
        Outcome::Started(claim, started) => launch(claim, *started, options).map_err(trouble)?,
        Outcome::Signal(signal) => return end(Over::Signal(signal), limit, unreachable_end).map(exit),
        Outcome::Limit => return end(Over::Limit, limit, unreachable_end).map(exit),
    };
    if options.command.detached {
        let over = vm.detach_if_asked(options, Some(signals), until).map_err(trouble)?;
        drop(held);
        if let Some(over) = over {
            return end(over, limit, || vm.lost()).map(exit);
        }
        write_trace(life, &vm.marks())?;
        return Ok(Said { text: describe(&vm, life.json), exit: 0 });
    }
    attached(options, life, stdio, vm, (signals, until), held).map(exit)
}

fn exit(code: u8) -> Said {
    Said { text: String::new(), exit: code }
}

/// The end of a start has no machine to be lost.
fn unreachable_end() -> Error {
    Error::new("BOOT_ENDED", "the start was given up")
}

/// The command's life, seen from here.
fn attached(
    options: &BootOptions,
    life: &Life,
    stdio: &Stdio,
    mut vm: Vm,
    ends: (Signals, Option<Instant>),
    held: Held,
) -> std::result::Result<u8, Diagnostic> {
    let (done, stream) = relay(stdio, &mut vm, ends, held).map_err(|error| error.diagnostic(EXIT_TOOL))?;
    let Done { over, marks, .. } = done;
    let over_ns = now_ns();
    if matches!(over, Over::Exit(_)) && options.restore.as_ref().is_some_and(|restore| restore.is_lazy()) {
        vm.record_faults();
    }
    // With this the machine ends.
    drop(stream);
    let all = |vm: &Vm| {
        let mut all = vm.marks();
        all.extend(marks.iter().cloned());
        all.push((over_ns, "command over".into()));
        all
    };
    // Whoever froze it is told so by a machine that still runs.
    let is_dumped = matches!(&over, Over::Refused(refusal) if refusal.reason == Reason::Dumped);
    if is_dumped || matches!(over, Over::Exit(_)) && (options.keep || life.verbose || life.trace.is_some()) {
        vm.await_end(LAST_WORDS);
    }
    if life.verbose {
        let console = vm.boot_log().unwrap_or_default();
        let text = [table(&all(&vm)).as_bytes(), b"console:\n", &console].concat();
        // With standard error gone there is nobody to tell.
        let _ = std::io::stderr().write_all(&text);
    }
    write_trace(life, &all(&vm))?;
    end(over, life.limit, || vm.lost())
}

fn relay(stdio: &Stdio, vm: &mut Vm, (signals, until): (Signals, Option<Instant>), held: Held) -> Result<(Done, Wire)> {
    let (input, output, error) = channels()?;
    let pause = match vm.monitor() {
        Some(Ok(monitor)) => Pause::Machine(monitor),
        _ => Pause::Nothing,
    };
    let relay = vm.relay_main(Some(input), output, error).ok_or_else(unreachable_end)?;
    let relay = relay.signals(signals, pause).limit(until).hold(held);
    match stdio.raw()? {
        Some(raw) => relay.terminal(raw).run_holding(),
        None => relay.run_holding(),
    }
}

fn write_trace(life: &Life, marks: &[Mark]) -> std::result::Result<(), Diagnostic> {
    let Some(path) = &life.trace else { return Ok(()) };
    let write = || {
        let file = Outfile::create(path)?;
        let text = format!("{}\n", chrome(marks));
        file.file().write_all(text.as_bytes())?;
        file.commit()
    };
    write().map_err(|cause| no_trace(path, cause))
}

fn no_trace(path: &str, cause: std::io::Error) -> Diagnostic {
    Error::host("RUN_TRACE", format!("write {path}"), cause).diagnostic(EXIT_TOOL)
}

fn describe(vm: &Vm, json: bool) -> String {
    if !json {
        return format!("{}\n", vm.label());
    }
    let value = json!({"id": vm.id(), "name": vm.label(), "dir": vm.dir().display().to_string(), "pid": vm.pid()});
    format!("{value}\n")
}

fn options(args: &Args, command: Option<Vec<OsString>>, stdio: &Stdio) -> std::result::Result<BootOptions, Diagnostic> {
    let contradictions = [
        (args.tty && args.no_tty, "-t and -T contradict each other"),
        (args.rm && args.keep, "--rm and --keep contradict each other"),
        (args.detach && args.interactive, "-i passes standard input on, and with -d nobody is there to do it"),
        (args.detach && args.tty, "-t is the terminal of whoever waits, and with -d nobody does"),
        (args.detach && args.rm, "--rm is done by whoever waits for the end; machinen gc removes what -d leaves"),
        (args.detach && args.timeout.is_some(), "--timeout is for whoever waits; machinen stop ends a machine"),
        (command.as_ref().is_some_and(Vec::is_empty), "no command after --"),
        (args.trace.as_deref() == Some("-"), "--trace -: standard output is the command's"),
    ];
    if let Some((_, why)) = contradictions.iter().find(|(wrong, _)| *wrong) {
        return Err(usage((*why).to_string()));
    }
    let image = match &args.image[..] {
        [] => String::new(),
        [image] if image.is_empty() => return Err(usage("IMAGE is empty".into())),
        [image] => image.clone(),
        [_, more, ..] => return Err(usage(format!("{more}: more than one IMAGE; a command comes after --"))),
    };
    let mut options = BootOptions::new(image);
    options.name = args.name.clone();
    options.kernel = args.kernel.clone().map(Into::into);
    options.modules = args.modules.clone().map(Into::into);
    let memory = |text: &String| text.parse::<u64>().map_err(|_| usage(format!("-m {text}: not a number of MiB")));
    options.memory_mib = args.memory.as_ref().map(memory).transpose()?;
    options.publish = args.publish.clone();
    for text in &args.mount {
        options = place_mount(options, text).map_err(usage)?;
    }
    for text in &args.share {
        options = place_share(options, text).map_err(usage)?;
    }
    options.command.words = command.unwrap_or_default();
    options.command.env = stdio.env();
    for item in &args.env {
        options.command.env.push(env_item(item).map_err(usage)?);
    }
    options.command.cwd = args.workdir.clone().map(Into::into);
    options.command.terminal = stdio.size();
    options.command.detached = args.detach;
    options.keep = args.keep;
    options.outlives_parent = args.no_pdeathsig;
    options.trace = args.trace.is_some() || args.verbose;
    options.verbose = args.verbose;
    Ok(options)
}

/// Reads `HOST:GUEST`.
pub(crate) fn place_mount(options: BootOptions, text: &str) -> std::result::Result<BootOptions, String> {
    let places = text.rsplit_once(':').filter(|(host, guest)| !host.is_empty() && guest.starts_with('/'));
    let (host, guest) =
        places.ok_or_else(|| format!("--mount {text}: not HOST:GUEST with an absolute path of the guest"))?;
    Ok(options.mount(host, guest))
}

/// Adds a share that is `HOST:GUEST`, `HOST:GUEST:ro` or `HOST:GUEST:rw`.
pub(crate) fn place_share(mut options: BootOptions, text: &str) -> std::result::Result<BootOptions, String> {
    let share = ShareOption::parse(text).ok_or_else(|| {
        format!("--share {text}: not HOST:GUEST or HOST:GUEST:ro with an absolute path of the guest below /")
    })?;
    options.shares.push(share);
    Ok(options)
}

/// Flags over variables.
fn over_environment(args: Args) -> std::result::Result<Args, Diagnostic> {
    let variable = |name: &str| match std::env::var(format!("MACHINEN_{name}")) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(_) => Err(usage(format!("MACHINEN_{name}: is not UTF-8"))),
    };
    let of = |flag: Option<String>, name: &str| match flag.map(plain) {
        Some(value) => Ok(Some(value)),
        None => variable(name),
    };
    let list = |flags: Vec<String>, name: &str| match flags.is_empty() {
        false => Ok(flags.into_iter().map(plain).collect()),
        true => Ok(variable(name)?.map(|text| text.split(',').map(String::from).collect()).unwrap_or_default()),
    };
    let detach = match variable("DETACH")?.as_deref() {
        None | Some("0" | "no" | "false") => args.detach,
        Some("1" | "yes" | "true") => true,
        Some(other) => return Err(usage(format!("MACHINEN_DETACH={other}: not one of 0, 1, no, yes, false, true"))),
    };
    Ok(Args {
        detach,
        name: of(args.name, "NAME")?,
        memory: of(args.memory, "MEMORY")?,
        publish: list(args.publish, "PUBLISH")?,
        mount: list(args.mount, "MOUNT")?,
        share: list(args.share, "SHARE")?,
        // Found again by the library, where it is the variable's.
        kernel: of(args.kernel, "KERNEL")?,
        modules: of(args.modules, "MODULES")?,
        timeout: of(args.timeout, "TIMEOUT")?,
        trace: of(args.trace, "TRACE")?,
        workdir: args.workdir.map(plain),
        env: args.env.into_iter().map(plain).collect(),
        image: args.image.into_iter().map(plain).collect(),
        ..args
    })
}

fn print_env(args: &Args) -> String {
    let list = |values: &[String]| Some(values.join(",")).filter(|text| !text.is_empty());
    let set = [
        ("NAME", args.name.clone()),
        ("KERNEL", args.kernel.clone()),
        ("MODULES", args.modules.clone()),
        ("MEMORY", args.memory.clone()),
        ("PUBLISH", list(&args.publish)),
        ("MOUNT", list(&args.mount)),
        ("SHARE", list(&args.share)),
        ("TIMEOUT", args.timeout.clone()),
        ("TRACE", args.trace.clone()),
        ("DETACH", args.detach.then(|| "1".to_string())),
    ];
    let quote = |value: &str| shlex::try_quote(value).map_or_else(|_| value.to_string(), std::borrow::Cow::into_owned);
    let line = |(name, value): (&str, Option<String>)| Some(format!("MACHINEN_{name}={}\n", quote(&value?)));
    set.into_iter().filter_map(line).collect()
}

fn usage(message: String) -> Diagnostic {
    let diagnostic = Diagnostic::new(TOOL.usage, message).hint("see machinen-run --help");
    Diagnostic { exit: EXIT_TOOL, ..diagnostic }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_two_places_and_a_form() {
        let read = |text: &str| place_share(BootOptions::new(""), text).map(|options| options.shares);
        for (text, host, guest, read_only) in [
            ("/a:/b", "/a", "/b", false),
            (".:/b/c/:ro", ".", "/b/c", true),
            ("a:b,c:/d e:rw", "a:b,c", "/d e", false),
            ("/x:ro:/y", "/x:ro", "/y", false),
        ] {
            let shares = read(text).unwrap();
            let [only] = &shares[..] else { panic!("{text}: {shares:?}") };
            let found = (only.host.to_str(), only.guest.as_str(), only.read_only);
            assert_eq!(found, (Some(host), guest, read_only), "{text}");
        }
        for bad in ["", "/a", "a:b", ":/b", "/a:/", "/a:/b/../c", "/a:/.", "/a://b", "/a:/b//c", "/a:ro"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}

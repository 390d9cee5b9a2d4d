//! The work of `machinen-net`: what is at the other end of a guest's network interface.

mod address;
mod forward;
mod holder;
mod passt;

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use argh::FromArgs;
use rustix::io::{FdFlags, fcntl_setfd};

use self::address::Address;
use self::forward::Forward;
use crate::diagnostic::Diagnostic;

/// Exit code of a tool that runs a command, for everything that fails before the command runs.
const EXIT_TOOL: u8 = 125;
const EXIT_CANNOT_EXECUTE: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;

/// The command line; see its help text.
#[derive(FromArgs, Debug)]
#[argh(
    description = "Give the virtual machine that COMMAND runs a network, and become COMMAND.",
    note = "Starts passt (Debian package passt) and tells COMMAND by MACHINEN_NET_SOCKET,\n  \
        MACHINEN_NET_MTU and a word machinen.net in MACHINEN_CMDLINE, which vmm-min\n  \
        takes from there; its flag --cmdline would replace that word. One machine\n  \
        for each machinen-net; passt ends with it.",
    note = "The guest reaches this host at its gateway, also what listens on 127.0.0.1,\n  \
        and everything that the host reaches. IPv4 only.",
    note = "Exit codes: COMMAND's; 125 failed, 126 COMMAND cannot be executed, 127 not found.",
    example = "{command_name} -p 8080:80 -- vmm-min --kernel VMLINUX --initrd INITRD",
    example = "{command_name} --socket GVPROXY.sock -- vmm-min --kernel VMLINUX --initrd INITRD"
)]
pub struct Args {
    /// forward a port: [IP:]HOST:GUEST[/tcp|udp]; of 127.0.0.1 without an IP; repeatable
    #[argh(option, short = 'p', arg_name = "ports")]
    pub publish: Vec<String>,
    /// guest's ADDRESS/PREFIX,GATEWAY[,RESOLVER...]; with passt 10.0.2.15/24,10.0.2.2,10.0.2.3, whose
    /// resolver asks the host's
    #[argh(option)]
    pub address: Option<String>,
    /// hand over this socket, as of gvproxy -listen-qemu, instead of starting passt
    #[argh(option, arg_name = "path")]
    pub socket: Option<String>,
    /// program (default: MACHINEN_PASST, MACHINEN_ASSETS_DIR/passt, passt in PATH)
    #[argh(option, arg_name = "path")]
    pub passt: Option<String>,
    /// report an error as one line of JSON
    #[argh(switch)]
    pub json: bool,
    /// print the version
    #[argh(switch)]
    pub version: bool,
}

/// Becomes `command`, with a network. Comes back only when that fails.
pub fn run(args: &Args, command: &[OsString]) -> Diagnostic {
    let Some((program, arguments)) = command.split_first() else {
        return usage("no command after --");
    };
    let mut next = Command::new(program);
    next.args(arguments);
    // Of passt's socket, which has to stay open until there is another program.
    let _socket = match args.socket.as_deref() {
        Some(path) => hand_over(args, path, &mut next).map(|()| None),
        None => start(args, &mut next).map(Some),
    };
    if let Err(diagnostic) = _socket {
        return diagnostic;
    }
    let error = next.exec();
    let message = format!("execute {}: {error}", program.display());
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    let diagnostic = Diagnostic::new("NET_COMMAND", message);
    Diagnostic { exit: if missing { EXIT_NOT_FOUND } else { EXIT_CANNOT_EXECUTE }, ..diagnostic }
}

/// Tells `next` of the socket at `path`.
fn hand_over(args: &Args, path: &str, next: &mut Command) -> Result<(), Diagnostic> {
    if !args.publish.is_empty() || args.passt.is_some() {
        return Err(usage("-p and --passt are for passt, and --socket starts none"));
    }
    let address = args.address.as_deref().map(Address::parse).transpose()?;
    let failed = |code, what: String| failure(code, format!("socket {path}: {what}"));
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(failed("NET_SOCKET_INVALID", "it is no socket".into())),
        Err(error) => {
            let hint = "start what listens there first";
            return Err(failed("NET_SOCKET_MISSING", error.to_string()).hint(hint));
        }
    }
    // COMMAND may be about to work elsewhere.
    let path = std::path::absolute(Path::new(path)).map_err(|error| failed("NET_SOCKET_INVALID", error.to_string()))?;
    next.env("MACHINEN_NET_SOCKET", path);
    address.iter().for_each(|address| add_word(next, address));
    Ok(())
}

/// Starts passt and tells `next` of it. The socket that is returned has to stay open until `next` runs.
///
/// # Errors
/// `NET_…`.
pub fn start(args: &Args, next: &mut Command) -> Result<std::os::unix::net::UnixStream, Diagnostic> {
    let address = Address::parse(args.address.as_deref().unwrap_or(passt::ADDRESS))?;
    let forwards = args.publish.iter().map(|text| Forward::parse(text)).collect::<Result<Vec<_>, _>>()?;
    forward::check(&forwards)?;
    let socket = passt::start(args.passt.as_deref(), &address, &forwards)?;
    fcntl_setfd(&socket, FdFlags::empty())
        .map_err(|error| failure("NET_PASST_FAILED", format!("hand on passt's socket: {error}")))?;
    next.env("MACHINEN_NET_SOCKET", format!("fd:{}", socket.as_raw_fd()));
    next.env("MACHINEN_NET_MTU", passt::MTU.to_string());
    add_word(next, &address);
    Ok(socket)
}

/// The passt that forwards these ports, once it is started.
pub fn helper(publish: &[String]) -> Option<u32> {
    publish.iter().find_map(|text| Some(holder::of(Forward::parse(text).ok()?)?.pid))
}

/// A port of `ours` that `theirs`, which work, have already.
///
/// # Errors
/// `NET_USAGE` for what is no port.
pub fn clash(ours: &[String], theirs: &[String]) -> Result<Option<String>, Diagnostic> {
    let theirs: Vec<Forward> = theirs.iter().filter_map(|text| Forward::parse(text).ok()).collect();
    let ours = ours.iter().map(|text| Forward::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let taken = |own: &&Forward| theirs.iter().any(|other| other.clashes(**own));
    Ok(ours.iter().find(taken).map(Forward::to_string))
}

fn add_word(next: &mut Command, address: &Address) {
    let mut words = std::env::var_os("MACHINEN_CMDLINE").unwrap_or_default();
    if !words.is_empty() {
        words.push(" ");
    }
    words.push(format!("machinen.net={address}"));
    next.env("MACHINEN_CMDLINE", words);
}

fn failure(code: &'static str, message: impl Into<String>) -> Diagnostic {
    Diagnostic { exit: EXIT_TOOL, ..Diagnostic::new(code, message) }
}

/// A wrong argument.
pub fn usage(message: impl Into<String>) -> Diagnostic {
    failure("NET_USAGE", message).hint("see machinen-net --help")
}

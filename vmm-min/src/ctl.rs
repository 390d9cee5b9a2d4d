//! The control socket: what a running machine can be asked for from outside.
//!
//! A connection carries one request: a line of words, with a descriptor where it needs one (SCM_RIGHTS, with the first byte). The
//! answer is a line too, `ok` or `error CODE WHY`; then the connection ends. Everybody who can open the socket may ask.
//!
//! | request | with | |
//! |---|---|---|
//! | `share TAG [ro]` | a directory | that is what the guest finds when it mounts TAG from now on |
//! | `unshare TAG` | | TAG has no directory any more |
//! | `layer` | an empty file, writable | gets what the guest has written to the root disk, for `--root-layer` |
//! | `disk NUMBER` | an empty file, writable | gets all that the guest finds on that disk: 0 is the first, the root disk where there is one |

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::error::Result;
use crate::listener::{BACKLOG, CTL, Listener};
use crate::sys;

/// No request is longer.
const MOST_BYTES: usize = 256;
/// Connections taken in one go, more than can wait ([`BACKLOG`]): the guest has its turn, whoever knocks.
const MOST_ACCEPTS: usize = 256;
const _: () = assert!(MOST_ACCEPTS > BACKLOG as usize);
/// Clients at a time. Whoever comes later takes the place of the one who has been silent longest.
const MOST_CLIENTS: usize = 8;

/// What is asked for.
#[derive(Debug)]
pub enum Request {
    /// A directory for a share.
    Share {
        /// Name of the share.
        tag: String,
        /// The directory.
        root: OwnedFd,
        /// The guest cannot change anything in it.
        read_only: bool,
    },
    /// No directory for a share.
    Unshare {
        /// Name of the share.
        tag: String,
    },
    /// What was written to the root disk.
    Layer {
        /// Gets it.
        file: OwnedFd,
    },
    /// What is on a disk.
    Disk {
        /// Which one.
        number: usize,
        /// Gets it.
        file: OwnedFd,
    },
}

/// Why something is not done.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A stable name for programs.
    pub code: &'static str,
    /// One line.
    pub why: String,
}

impl Refusal {
    /// With a code, and why.
    pub fn new(code: &'static str, why: impl Into<String>) -> Refusal {
        Refusal { code, why: why.into() }
    }
}

/// The socket and who is connected.
#[derive(Debug)]
pub struct Ctl {
    listener: Listener,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

impl Ctl {
    /// Listens at `path`. Errors: of [`Listener::open`].
    pub fn open(path: &str) -> Result<Ctl> {
        Ok(Ctl { listener: Listener::open(&CTL, path)?, clients: Vec::new() })
    }

    /// A signal came: there may be something to read.
    pub fn woken(&mut self) {
        self.listener.ready = true;
    }

    /// Takes what has come, without waiting, and has `act` do it.
    pub fn serve(&mut self, act: &mut dyn FnMut(Request) -> std::result::Result<(), Refusal>) {
        if !std::mem::take(&mut self.listener.ready) {
            return;
        }
        for _ in 0..MOST_ACCEPTS {
            let Ok(stream) = self.listener.accept() else { break };
            // Without notice of its bytes it would wait for ever.
            if sys::notify_by_signal(stream.as_fd(), true).unwrap_or(false) {
                if self.clients.len() == MOST_CLIENTS {
                    self.clients.remove(0);
                }
                self.clients.push(Client { stream, line: Vec::new(), descriptor: None });
            }
        }
        self.clients.retain_mut(|client| client.serve(act));
    }
}

impl Client {
    /// Whether there is more to come from it.
    fn serve(&mut self, act: &mut dyn FnMut(Request) -> std::result::Result<(), Refusal>) -> bool {
        let mut buffer = [0; MOST_BYTES];
        loop {
            match sys::receive_descriptor(self.stream.as_fd(), &mut buffer) {
                Ok((0, _)) => return false,
                Ok((count, descriptor)) => {
                    self.line.extend_from_slice(&buffer[..count]);
                    self.descriptor = self.descriptor.take().or(descriptor);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
            let end = self.line.iter().position(|byte| *byte == b'\n');
            let done = match end {
                Some(end) => parse(&self.line[..end], self.descriptor.take()).and_then(&mut *act),
                None if self.line.len() < MOST_BYTES => continue,
                None => Err(Refusal::new("CTL_REQUEST", "too long")),
            };
            let answer = match done {
                Ok(()) => "ok\n".to_owned(),
                Err(Refusal { code, why }) => format!("error {code} {why}\n"),
            };
            // Who does not wait for the answer does not get it.
            let _: io::Result<usize> = sys::send(self.stream.as_fd(), answer.as_bytes());
            return false;
        }
    }
}

/// Reads a request. Errors: `CTL_REQUEST`.
fn parse(line: &[u8], descriptor: Option<OwnedFd>) -> std::result::Result<Request, Refusal> {
    const NO_DESCRIPTOR: &str = "it needs a descriptor (SCM_RIGHTS)";
    let bad = |why: &str| Err(Refusal::new("CTL_REQUEST", why));
    let Ok(line) = std::str::from_utf8(line) else { return bad("not UTF-8") };
    let words: Vec<&str> = line.split(' ').collect();
    let (tag, read_only) = match words.as_slice() {
        ["share", tag] => (tag, false),
        ["share", tag, "ro"] => (tag, true),
        ["layer"] => {
            return match descriptor {
                Some(file) => Ok(Request::Layer { file }),
                None => bad(NO_DESCRIPTOR),
            };
        }
        ["disk", number] => {
            return match (number.parse(), descriptor) {
                (Ok(number), Some(file)) => Ok(Request::Disk { number, file }),
                (Ok(_), None) => bad(NO_DESCRIPTOR),
                (Err(_), _) => bad("disk needs a number"),
            };
        }
        ["unshare", tag] => return Ok(Request::Unshare { tag: (*tag).to_owned() }),
        _ => return bad("known are: share TAG [ro], unshare TAG, layer, disk NUMBER"),
    };
    match descriptor {
        Some(root) => Ok(Request::Share { tag: (*tag).to_owned(), root, read_only }),
        None => bad(NO_DESCRIPTOR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::connect;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::path::{Path, PathBuf};

    fn open(name: &str) -> (Ctl, PathBuf) {
        sys::ignore_sigio();
        let directory = std::env::temp_dir().join(format!("machinen-ctl-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("ctl");
        (Ctl::open(path.to_str().expect("UTF-8")).expect("listens"), path)
    }

    /// What the socket answers to `pieces`, which come one by one, and what was done.
    fn ask(ctl: &mut Ctl, path: &Path, pieces: &[&[u8]], descriptor: Option<&File>) -> (String, Vec<String>) {
        let mut client = connect(path).expect("connects");
        let mut done = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            match descriptor.filter(|_| index == 0) {
                Some(file) => sys::send_descriptors(client.as_fd(), piece, &[file.as_fd()]).map(drop).expect("sent"),
                None => client.write_all(piece).expect("sent"),
            }
            ctl.woken();
            ctl.serve(&mut |request| {
                done.push(match request {
                    Request::Share { tag, root, read_only } => {
                        let kind = File::from(root).metadata().expect("metadata").is_dir();
                        format!("share {tag} {read_only} directory {kind}")
                    }
                    Request::Unshare { tag } => format!("unshare {tag}"),
                    Request::Layer { file } => {
                        format!("layer {}", File::from(file).metadata().expect("metadata").is_file())
                    }
                    Request::Disk { number, .. } => format!("disk {number}"),
                });
                if done[0].contains("busy") { Err(Refusal::new("BUSY", "it is mounted")) } else { Ok(()) }
            });
        }
        client.set_nonblocking(false).expect("waits");
        let mut answer = String::new();
        // A connection that is cut off has no answer.
        let _: io::Result<usize> = client.read_to_string(&mut answer);
        (answer, done)
    }

    fn close(ctl: Ctl, path: &Path) {
        drop(ctl);
        std::fs::remove_dir_all(path.parent().expect("a directory")).expect("removed");
    }

    #[test]
    fn requests_are_done_once_and_answered() {
        let (mut ctl, path) = open("good");
        let directory = File::open("/").expect("a directory");
        for pieces in [&[b"share bundle ro\n".as_slice()] as &[&[u8]], &[b"sha", b"re bundle", b" ro\nrest"]] {
            let (answer, done) = ask(&mut ctl, &path, pieces, Some(&directory));
            assert_eq!(
                (answer.as_str(), done.as_slice()),
                ("ok\n", &["share bundle true directory true".to_owned()][..])
            );
        }
        let (answer, done) = ask(&mut ctl, &path, &[b"unshare x\n"], None);
        assert_eq!((answer.as_str(), done.as_slice()), ("ok\n", &["unshare x".to_owned()][..]));
        let (answer, done) = ask(&mut ctl, &path, &[b"disk 10\n"], Some(&directory));
        assert_eq!((answer.as_str(), done.as_slice()), ("ok\n", &["disk 10".to_owned()][..]));
        let (answer, _) = ask(&mut ctl, &path, &[b"unshare busy\n"], None);
        assert_eq!(answer, "error BUSY it is mounted\n");
        close(ctl, &path);
    }

    #[test]
    fn no_descriptor_stays_open() {
        let (mut ctl, path) = open("many");
        for count in 1..=4 {
            let (mut kept, sent): (Vec<_>, Vec<_>) = (0..count).map(|_| UnixStream::pair().expect("a pair")).unzip();
            let client = connect(&path).expect("connects");
            let descriptors: Vec<_> = sent.iter().map(UnixStream::as_fd).collect();
            sys::send_descriptors(client.as_fd(), b"unshare x\n", &descriptors).map(drop).expect("sent");
            drop(sent);
            ctl.woken();
            ctl.serve(&mut |_| Ok(()));
            for stream in &mut kept {
                stream.set_nonblocking(true).expect("does not wait");
                assert_eq!(stream.read(&mut [0]).expect("nobody has its other end"), 0, "{count}");
            }
        }
        close(ctl, &path);
    }

    #[test]
    fn nonsense_is_refused_and_others_are_served() {
        let (mut ctl, path) = open("bad");
        let long = [b'x'; 300];
        for bad in [
            b"\n".as_slice(),
            b"share\n",
            b"share a\n",
            b"share a rw\n",
            b"\xff\n",
            b"unshare a b\n",
            b"layer\n",
            b"disk 0\n",
            b"disk -1\n",
            b"disk\n",
            &long,
        ] {
            let (answer, done) = ask(&mut ctl, &path, &[bad], None);
            assert!(answer.starts_with("error CTL_REQUEST ") && done.is_empty(), "{bad:?}: {answer:?}");
        }
        // Who says nothing is in nobody's way.
        let silent: Vec<UnixStream> = (0..3 * MOST_CLIENTS).map(|_| connect(&path).expect("connects")).collect();
        ctl.woken();
        let (answer, _) = ask(&mut ctl, &path, &[b"unshare x\n"], None);
        assert_eq!(answer, "ok\n");
        assert!(ctl.clients.len() < MOST_CLIENTS);
        drop(silent);
        ctl.woken();
        ctl.serve(&mut |_| Ok(()));
        assert!(ctl.clients.is_empty());
        close(ctl, &path);
    }
}

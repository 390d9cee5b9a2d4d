//! A small client of the guest agent, which can also break the protocol; and a guest that has an agent.

#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use machinen_abi::VERSION;
use machinen_abi::body::{Credit, Exit, Failure, Mark, Reason, Started, Stream as Data};
use machinen_abi::frame::{HEADER_BYTES, Header, Kind};
use machinen_abi::open::{Operation, Tag, add, begin};
use machinen_abi::window::Receipt;

use crate::asset;
use crate::guest::{Guest, Scratch};
use crate::session::Session;

/// For each thing that is waited for.
const LIMIT: Duration = Duration::from_secs(60);

/// The modules of the stock kernel that an agent needs, in order.
pub const MODULES: [&str; 4] =
    ["virtio_mmio", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];

/// A frame that came.
pub type Frame = (Kind, Vec<u8>);

/// A connection to the agent.
#[derive(Debug)]
pub struct Client {
    /// The socket, for those who want to send something else than frames.
    pub socket: UnixStream,
    receipts: [Receipt; 2],
    /// Names and times of all marks that came.
    pub marks: Vec<(String, u64)>,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The last frame was `exit`.
    Exit(Exit),
    /// The last frame was `failed`: reason, errno, message.
    Failed(Reason, u32, String),
    /// There was no last frame.
    Lost,
}

/// Everything that an operation sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its output.
    pub output: Vec<u8>,
    /// The standard error.
    pub error: Vec<u8>,
    /// How it ended.
    pub end: End,
    /// The kinds of all frames, in order, without repetition.
    pub kinds: Vec<Kind>,
    /// The process number.
    pub pid: u32,
    /// Names and times of all marks that came on the stream.
    pub marks: Vec<(String, u64)>,
}

impl Outcome {
    /// Its output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// Standard output, standard error, code.
    ///
    /// # Panics
    /// When there is no code.
    #[must_use]
    pub fn triple(&self) -> (String, String, u8) {
        let End::Exit(Exit::Code(code)) = self.end else { panic!("no exit code: {self:?}") };
        (self.text(), String::from_utf8_lossy(&self.error).into_owned(), code)
    }

    /// The reason of a failure.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let End::Failed(reason, ..) = self.end else { panic!("no failure: {self:?}") };
        reason
    }
}

impl Client {
    fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.set_write_timeout(Some(LIMIT)).unwrap();
        Self { socket, receipts: [Receipt::default(); 2], marks: vec![] }
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// When that fails.
    pub fn send(&mut self, kind: Kind, payload: &[u8]) {
        self.try_send(kind, payload).unwrap();
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When that fails.
    pub fn try_send(&mut self, kind: Kind, payload: &[u8]) -> std::io::Result<()> {
        let header = Header::new(kind, payload.len()).unwrap().to_bytes();
        self.socket.write_all(&[&header[..], payload].concat())
    }

    /// Sends the first frame.
    pub fn open(&mut self, operation: Operation, fields: &[(Tag, &[u8])]) {
        let mut payload = Vec::new();
        begin(VERSION, operation, &mut payload);
        fields.iter().for_each(|(tag, value)| add(&mut payload, *tag, value).unwrap());
        self.send(Kind::Open, &payload);
    }

    /// Sends bytes of input, then its end; for less than a window, to what reads them.
    pub fn input(&mut self, bytes: &[u8]) {
        bytes.chunks(60_000).for_each(|piece| self.send(Kind::Input, piece));
        self.send(Kind::InputEnd, &[]);
    }

    /// The next frame; gives credit for data. `None` at the end of the stream.
    ///
    /// # Panics
    /// When nothing comes, or what comes is no frame.
    pub fn receive(&mut self) -> Option<Frame> {
        let frame = self.receive_only()?;
        let (index, stream) = match frame.0 {
            Kind::Output => (0, Data::Output),
            Kind::Error => (1, Data::Error),
            _ => return Some(frame),
        };
        assert!(self.receipts[index].take(frame.1.len()), "more than the window came");
        if let Some(bytes) = self.receipts[index].consume(frame.1.len()) {
            // It may have ended by now.
            let _ = self.try_send(Kind::Credit, &Credit { stream, bytes }.to_bytes());
        }
        Some(frame)
    }

    /// The next frame, without an answer. `None` at the end of the stream.
    ///
    /// # Panics
    /// When nothing comes, or what comes is no frame.
    pub fn receive_only(&mut self) -> Option<Frame> {
        let mut header = [0; HEADER_BYTES];
        match self.socket.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return None,
            Err(error) => panic!("nothing comes from the agent: {error}"),
        }
        let Header { kind, length } = Header::from_bytes(header).unwrap();
        let mut payload = vec![0; length as usize];
        self.socket.read_exact(&mut payload).unwrap();
        if kind == Kind::Mark {
            let Mark { time_ns, name } = Mark::parse(&payload).unwrap();
            self.marks.push((name.to_owned(), time_ns));
        }
        Some((kind, payload))
    }

    /// Waits for a frame of this kind; others are passed over.
    ///
    /// # Panics
    /// When none comes.
    pub fn expect(&mut self, kind: Kind) -> Vec<u8> {
        let mut seen = Vec::new();
        while let Some((came, payload)) = self.receive() {
            if came == kind {
                return payload;
            }
            seen.push((came, String::from_utf8_lossy(&payload).into_owned()));
        }
        panic!("no {kind:?} came, but {seen:?}");
    }

    /// Waits for output that contains this.
    ///
    /// # Panics
    /// When it does not come.
    pub fn expect_output(&mut self, text: &str) {
        let mut all = Vec::new();
        while !all.windows(text.len()).any(|window| window == text.as_bytes()) {
            match self.receive() {
                Some((Kind::Output, bytes)) => all.extend(bytes),
                Some((Kind::Started | Kind::Mark | Kind::Error | Kind::ErrorEnd | Kind::Credit, _)) => {}
                other => panic!("{other:?} came instead of {text:?}, after {:?}", String::from_utf8_lossy(&all)),
            }
        }
    }

    /// Everything up to the end of the stream.
    #[must_use]
    pub fn outcome(mut self) -> Outcome {
        let (output, error) = (Vec::new(), Vec::new());
        let mut all = Outcome { output, error, end: End::Lost, kinds: vec![], pid: 0, marks: vec![] };
        while let Some((kind, payload)) = self.receive() {
            assert_eq!(all.end, End::Lost, "something follows the last frame");
            if all.kinds.last() != Some(&kind) {
                all.kinds.push(kind);
            }
            match kind {
                Kind::Output => all.output.extend(payload),
                Kind::Error => all.error.extend(payload),
                Kind::Started => all.pid = Started::parse(&payload).unwrap().0,
                Kind::Exit => all.end = End::Exit(Exit::parse(&payload).unwrap()),
                Kind::Failed => {
                    let Failure { reason, errno, message } = Failure::parse(&payload).unwrap();
                    all.end = End::Failed(reason, errno, message.to_owned());
                }
                _ => {}
            }
        }
        all.marks = self.marks;
        all
    }
}

/// A guest with an agent.
#[derive(Debug)]
pub struct Machine {
    /// The monitor, and what is on the console.
    pub session: Session,
    sockets: Scratch,
    main: UnixListener,
    _initrd: Scratch,
}

impl Machine {
    /// Boots a guest of the stock kernel (`vmlinux`, with its modules) or the tuned one (`vmlinux-tuned`).
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(kernel: &str, guest: Guest) -> Self {
        let guest = if kernel == "vmlinux" { guest.modules(&MODULES) } else { guest };
        let guest = guest.make(&["--agent"]);
        Self::boot(|bridges| {
            let bridges: Vec<&str> = bridges.iter().map(String::as_str).collect();
            let (command, initrd) = guest.monitor(&["-m", "256"]).monitor(&bridges).start();
            (if kernel == "vmlinux" { command } else { with_kernel(&command, &asset(kernel)) }, initrd)
        })
    }

    /// Boots what `make` gives for the monitor's flags about the agent's sockets: a command, and what has to outlive it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn boot(make: impl FnOnce(&[String]) -> (Command, Scratch)) -> Self {
        let sockets = Scratch::new();
        let main = UnixListener::bind(sockets.path("main.sock")).unwrap();
        let bridge = |kind: &str, name: &str| format!("{kind}:{}", sockets.path(name).display());
        let bridges = [bridge("in:1024", "agent.sock"), bridge("out:1025", "main.sock")];
        let flags: Vec<String> = bridges.into_iter().flat_map(|bridge| ["--vsock".to_owned(), bridge]).collect();
        let (command, initrd) = make(&flags);
        Self { session: Session::on_pipes(command), sockets, main, _initrd: initrd }
    }

    /// The stream for the main command, after `ready`.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn ready(&self) -> Client {
        self.main.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + LIMIT;
        let socket = loop {
            match self.main.accept() {
                Ok((socket, _)) => break socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("the guest does not connect: {error}; {:?}", self.session),
            }
        };
        socket.set_nonblocking(false).unwrap();
        let mut client = Client::new(socket);
        assert_eq!(client.receive(), Some((Kind::Ready, VERSION.to_le_bytes().to_vec())));
        client
    }

    /// A new stream to the agent.
    ///
    /// # Panics
    /// When the monitor does not take it.
    #[must_use]
    pub fn connect(&self) -> Client {
        let deadline = Instant::now() + LIMIT;
        loop {
            match UnixStream::connect(self.sockets.path("agent.sock")) {
                Ok(socket) => return Client::new(socket),
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
                Err(error) => panic!("no monitor takes the connection: {error}"),
            }
        }
    }

    /// A command on a stream of its own.
    #[must_use]
    pub fn exec(&self, words: &[&str]) -> Client {
        let mut client = self.connect();
        exec(&mut client, words);
        client
    }

    /// A machine whose main command waits, and that command's stream; [`Machine::stop`] ends it.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn waiting(kernel: &str, guest: Guest) -> (Self, Client) {
        let machine = Self::start(kernel, guest);
        let mut main = machine.ready();
        exec(&mut main, &["sleep", "1000"]);
        main.expect(Kind::Started);
        (machine, main)
    }

    /// Ends such a machine by a signal to its main command.
    ///
    /// # Panics
    /// When it ends in any other way, or has printed something.
    pub fn stop(self, mut main: Client) {
        main.send(Kind::Signal, &[15, 0, 0, 0]);
        assert_eq!(main.outcome().end, End::Exit(Exit::Signal(15)));
        assert_eq!(self.finish(), (143, String::new()));
    }

    /// Runs a script without input to its end.
    #[must_use]
    pub fn run(&self, script: &str) -> Outcome {
        let mut client = self.exec(&["sh", "-c", script]);
        // It may have ended by now.
        let _ = client.try_send(Kind::InputEnd, &[]);
        client.outcome()
    }

    /// Waits for the end; returns the exit code and what was printed.
    #[must_use]
    pub fn finish(mut self) -> (i32, String) {
        let status = self.session.end();
        (status.code().unwrap_or(-1), self.session.printed())
    }
}

/// Opens `exec` of these words.
pub fn exec(client: &mut Client, words: &[&str]) {
    let fields: Vec<(Tag, &[u8])> = words.iter().map(|word| (Tag::Argument, word.as_bytes())).collect();
    client.open(Operation::Exec, &fields);
}

/// The same command line with another kernel.
fn with_kernel(command: &Command, kernel: &Path) -> Command {
    let mut other = Command::new(command.get_program());
    let mut is_kernel = false;
    for arg in command.get_args() {
        if is_kernel {
            other.arg(kernel)
        } else {
            other.arg(arg)
        };
        is_kernel = arg == "--kernel";
    }
    other
}

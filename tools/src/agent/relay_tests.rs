//! The relay against an agent of the test's own, at the other end of a socket.

use std::io::{PipeReader, Read, Write};
use std::os::unix::net::UnixStream;

use machinen_abi::frame::Header;
use machinen_abi::window::WINDOW_BYTES;

use super::super::output::LAST_BYTES;
use super::*;

/// The agent's end.
struct Agent(UnixStream);

impl Agent {
    fn send(&mut self, kind: Kind, payload: &[u8]) {
        self.0.write_all(&Header::new(kind, payload.len()).unwrap().to_bytes()).unwrap();
        self.0.write_all(payload).unwrap();
    }

    fn receive(&mut self) -> (Kind, Vec<u8>) {
        let mut header = [0; 8];
        self.0.read_exact(&mut header).unwrap();
        let header = Header::from_bytes(header).unwrap();
        let mut payload = vec![0; header.length as usize];
        self.0.read_exact(&mut payload).unwrap();
        (header.kind, payload)
    }
}

fn pair() -> (Wire, Agent) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Wire::new(ours).unwrap(), Agent(theirs))
}

fn output() -> (PipeReader, Out) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader, Out::To(Channel::output(writer.as_fd()).unwrap()))
}

#[test]
fn output_and_error_are_kept_apart_and_the_exit_is_last() {
    let (wire, mut agent) = pair();
    agent.send(Kind::Mark, b"\x01\0\0\0\0\0\0\0init");
    agent.send(Kind::Started, &[5, 0, 0, 0]);
    agent.send(Kind::Output, b"out");
    agent.send(Kind::Error, b"err");
    agent.send(Kind::Output, &[0; 256]);
    agent.send(Kind::Exit, &[0, 7]);
    let done = Relay::new(wire, None, Out::Keep(vec![]), Out::Keep(vec![])).run().unwrap();
    assert_eq!((done.over, &done.error[..], done.output.len()), (Over::Exit(Exit::Code(7)), &b"err"[..], 259));
    let names: Vec<&str> = done.marks.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["init", "command started", "first output byte"]);
    assert_eq!(done.marks[0].0, 1);
}

#[test]
fn of_endless_output_the_end_is_kept() {
    let (wire, agent) = pair();
    let talker = std::thread::spawn(move || {
        let (mut agent, mut left) = (agent, WINDOW_BYTES);
        for number in 0..200_u8 {
            while left < 16 << 10 {
                left += Credit::parse(&agent.receive().1).unwrap().bytes;
            }
            left -= 16 << 10;
            agent.send(Kind::Output, &[number; 16 << 10]);
        }
        agent.send(Kind::Exit, &[0, 0]);
        agent
    });
    let done = Relay::new(wire, None, Out::Last(vec![]), Out::Last(vec![])).run().unwrap();
    talker.join().unwrap();
    assert!((LAST_BYTES..=2 * LAST_BYTES).contains(&done.output.len()), "{}", done.output.len());
    assert_eq!(done.output.last(), Some(&199));
}

#[test]
fn input_goes_as_far_as_the_window_and_then_waits_for_credit() {
    let (wire, mut agent) = pair();
    let (input, mut writer) = std::io::pipe().unwrap();
    let sent = vec![9; WINDOW_BYTES as usize + 1000];
    let expected = sent.len();
    let feeder = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let channel = Channel::input(input.as_fd()).unwrap();
    let relay = std::thread::spawn(move || Relay::new(wire, Some(channel), Out::Nowhere, Out::Nowhere).run());
    let mut got = 0;
    while got < WINDOW_BYTES as usize {
        let (kind, payload) = agent.receive();
        assert_eq!(kind, Kind::Input);
        got += payload.len();
    }
    assert_eq!(got, WINDOW_BYTES as usize);
    agent.send(Kind::Credit, &Credit { stream: Stream::Input, bytes: 4096 }.to_bytes());
    let (mut last, mut kind) = (got, Kind::Input);
    while kind == Kind::Input {
        let (next, payload) = agent.receive();
        (last, kind) = (last + payload.len(), next);
    }
    assert_eq!((last, kind), (expected, Kind::InputEnd));
    agent.send(Kind::Exit, &[1, 9]);
    assert_eq!(relay.join().unwrap().unwrap().over, Over::Exit(Exit::Signal(9)));
    feeder.join().unwrap();
}

#[test]
fn a_reader_that_has_gone_is_an_end_and_one_that_stops_holds_up_its_stream_only() {
    let (wire, mut agent) = pair();
    let (reader, out) = output();
    drop(reader);
    agent.send(Kind::Output, b"x");
    assert_eq!(Relay::new(wire, None, out, Out::Nowhere).run().unwrap().over, Over::OutputClosed);

    let (wire, mut agent) = pair();
    let ((stopped, out), (mut reader, error)) = (output(), output());
    let relay = std::thread::spawn(move || Relay::new(wire, None, out, error).run());
    for _ in 0..4 {
        agent.send(Kind::Output, &[1; MOST_PAYLOAD_BYTES]);
    }
    agent.send(Kind::Error, b"passes");
    let mut passed = [0; 6];
    reader.read_exact(&mut passed).unwrap();
    assert_eq!(&passed, b"passes");
    agent.send(Kind::Exit, &[0, 0]);
    let mut all = Vec::new();
    let mut stopped = stopped;
    stopped.read_to_end(&mut all).unwrap();
    assert_eq!((all.len(), relay.join().unwrap().unwrap().over), (4 * MOST_PAYLOAD_BYTES, Over::Exit(Exit::Code(0))));
}

#[test]
fn an_agent_that_breaks_the_rules_is_refused() {
    let frames: [(Kind, Vec<u8>); 5] = [
        (Kind::Ready, vec![1, 0]),
        (Kind::Exit, vec![9]),
        (Kind::Started, vec![]),
        (Kind::Credit, Credit { stream: Stream::Input, bytes: 1 }.to_bytes().to_vec()),
        (Kind::Mark, vec![1]),
    ];
    for (kind, payload) in frames {
        let (wire, mut agent) = pair();
        agent.send(kind, &payload);
        let error = Relay::new(wire, None, Out::Nowhere, Out::Nowhere).run().unwrap_err();
        assert_eq!(error.code(), "EXEC_PROTOCOL", "{kind:?}");
    }
    let (wire, mut agent) = pair();
    let (_reader, out) = output();
    let flood = std::thread::spawn(move || {
        // Until the relay has had enough.
        while agent.0.write_all(&Header::new(Kind::Output, 65536).unwrap().to_bytes()).is_ok()
            && agent.0.write_all(&[0; 65536]).is_ok()
        {}
    });
    let error = Relay::new(wire, None, out, Out::Nowhere).run().unwrap_err();
    assert_eq!(error.code(), "EXEC_PROTOCOL");
    flood.join().unwrap();
}

#[test]
fn silence_ends_at_the_limit_or_with_the_stream() {
    let (wire, agent) = pair();
    let relay = Relay::new(wire, None, Out::Nowhere, Out::Nowhere).limit(Some(Instant::now()));
    assert_eq!(relay.run().unwrap().over, Over::Limit);
    drop(agent);
    let (wire, agent) = pair();
    drop(agent);
    assert_eq!(Relay::new(wire, None, Out::Nowhere, Out::Nowhere).run().unwrap().over, Over::Lost);
}

#[test]
fn the_keys_that_leave_are_found_wherever_reads_are_cut() {
    let try_it = |text: &[u8], half| {
        let mut bytes = text.to_vec();
        (scan(&mut bytes, half), bytes)
    };
    assert_eq!(try_it(b"ab", false), (Some(false), b"ab".to_vec()));
    assert_eq!(try_it(b"a\x1d", false), (Some(true), b"a".to_vec()));
    assert_eq!(try_it(b"b", true), (Some(false), b"\x1db".to_vec()));
    assert_eq!(try_it(b"\x1db", true).0, None);
    assert_eq!(try_it(b"a\x1d\x1d", false).0, None);
    assert_eq!(try_it(b"", true), (Some(true), vec![]));
}

#[test]
fn a_reader_that_is_never_done_keeps_memory_flat() {
    let (mut reader, out) = output();
    let mut stream = Output::new(Stream::Output, out);
    let mut chunk = vec![0; MOST_PAYLOAD_BYTES];
    for _ in 0..100 {
        // As much as the window allows, less what is pending.
        while stream.pending.len() - stream.written + MOST_PAYLOAD_BYTES <= WINDOW_BYTES as usize {
            stream.pending.extend_from_slice(&[7; MOST_PAYLOAD_BYTES]);
        }
        stream.pump().unwrap();
        assert!(stream.is_waiting());
        assert!(stream.pending.len() <= WINDOW_BYTES as usize + 2 * MOST_PAYLOAD_BYTES, "{}", stream.pending.len());
        reader.read_exact(&mut chunk).unwrap();
    }
}

#[test]
fn it_stops_at_a_mark_and_goes_on_with_an_answer() {
    for (answer, heard) in [(Some(b'c'), (Kind::Input, vec![b'c'])), (None, (Kind::InputEnd, vec![]))] {
        let (wire, mut agent) = pair();
        agent.send(Kind::Started, &[0; 4]);
        agent.send(Kind::Output, b"first");
        agent.send(Kind::Mark, b"\x01\0\0\0\0\0\0\0criu");
        agent.send(Kind::Mark, b"\x02\0\0\0\0\0\0\0held");
        agent.send(Kind::Mark, b"\x03\0\0\0\0\0\0\0held");
        let mut relay = Relay::new(wire, None, Out::Last(vec![]), Out::Last(vec![]));
        let done = relay.run_until("held").unwrap();
        assert_eq!((done.over, &done.output[..]), (Over::Marked, &b"first"[..]));
        assert_eq!(done.marks.last(), Some(&(2, "held".to_owned())));
        relay.answer(answer);
        let talker = std::thread::spawn(move || {
            assert_eq!(agent.receive(), heard);
            agent.send(Kind::Output, b"second");
            agent.send(Kind::Exit, &[0, 0]);
        });
        let done = relay.run().unwrap();
        talker.join().unwrap();
        assert_eq!((done.over, &done.output[..]), (Over::Exit(Exit::Code(0)), &b"second"[..]));
        assert_eq!(done.marks, [(3, "held".to_owned())]);
    }
    // What ends before says how.
    let (wire, mut agent) = pair();
    agent.send(Kind::Exit, &[0, 3]);
    let mut relay = Relay::new(wire, None, Out::Nowhere, Out::Nowhere);
    assert_eq!(relay.run_until("held").unwrap().over, Over::Exit(Exit::Code(3)));
}

//! machinen-stop as transcripts, without guests: what it does when there is no agent, or one that does not do its work.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use machinen::registry::{Claim, Process};
use machinen_abi::body::{Exit, Failure, Reason};
use machinen_abi::frame::{HEADER_BYTES, Header, Kind};
use machinen_abi::open::{Open, Operation};
use machinen_tests::Finished;
use machinen_tests::machines::{Machine, Machines};
use machinen_tests::monitor::{LIMIT, Live};
use serde_json::Value;

const DEAF: &str = "trap '' TERM; echo; exec sleep 1000";
const TERM: i32 = 15;
const KILL: i32 = 9;

fn signal(machine: &mut Machine) -> Option<i32> {
    machine.child.wait().unwrap().signal()
}

fn stderr(run: &Finished) -> String {
    String::from_utf8(run.stderr.clone()).unwrap()
}

/// Listens where the agent does, in a thread that plays it for one stream: what it was asked, and then `play`.
fn agent(claim: &Claim, play: impl FnOnce(std::os::unix::net::UnixStream) + Send + 'static) {
    let listener = std::os::unix::net::UnixListener::bind(claim.socket("agent.sock").unwrap()).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header).unwrap();
        let header = Header::from_bytes(header).unwrap();
        let mut payload = vec![0; usize::try_from(header.length).unwrap()];
        stream.read_exact(&mut payload).unwrap();
        let open = Open::parse(&payload).unwrap();
        assert_eq!((header.kind, open.version), (Kind::Open, machinen_abi::VERSION));
        assert_eq!(Operation::of(open.operation), Some(Operation::PowerOff));
        play(stream);
    });
}

fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&Header::new(kind, payload.len()).unwrap().to_bytes(), payload].concat()
}

#[test]
fn without_an_agent_the_monitor_is_ended() {
    let machines = Machines::default();
    let mut web = machines.start(Some("web"), |_, _| {});
    let run = machines.tool("machinen-stop").arg("web").finish();
    assert_eq!((run.code(), run.stdout.len()), (0, 0), "{}", run.printed());
    let said = stderr(&run);
    assert!(
        said.starts_with("machinen-stop: web: ended by SIGTERM: the machine's agent cannot be reached: "),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1);
    assert_eq!(signal(&mut web), Some(TERM));
    assert!(!web.dir.exists());
    assert!(machines.registry.gc(true).unwrap().is_empty(), "gc finds nothing left");
    let run = machines.tool("machinen-stop").arg("web").finish();
    assert_eq!(run.code(), 1);
    assert!(stderr(&run).starts_with("machinen-stop: REGISTRY_VM_NOT_FOUND: machine \"web\": "), "{}", run.printed());
}

#[test]
fn a_monitor_that_does_not_end_is_killed() {
    let machines = Machines::default();
    let mut web = machines.start_with(Some("web"), DEAF, |_, _| {});
    let run = machines.tool("machinen-stop").args(["-t", "0", "--json", "web"]).finish();
    let value: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!((run.code(), &value["by"], &value["name"]), (0, &Value::from("SIGKILL"), &Value::from("web")));
    assert_eq!(signal(&mut web), Some(KILL));
    assert!(!web.dir.exists());
}

#[test]
fn several_at_once_and_one_that_is_not_there() {
    const COUNT: usize = 8;
    let machines = Machines::default();
    // None of these guests switches off before all were asked to.
    let asked = Arc::new(Barrier::new(COUNT));
    let start = |n: usize| {
        machines.start_with(Some(&format!("many/{n}")), DEAF, |claim, _| {
            let (entry, asked) = (claim.dir.join("vm.json"), Arc::clone(&asked));
            agent(claim, move |_stream| {
                asked.wait();
                let entry: Value = serde_json::from_slice(&fs::read(entry).unwrap()).unwrap();
                assert!(Command::new("kill").args(["-9", &entry["pid"].to_string()]).status().unwrap().success());
            });
        })
    };
    let mut many: Vec<Machine> = (0..COUNT).map(start).collect();
    let spared = machines.start(Some("spared"), |_, _| {});
    let pid = many[0].child.id().to_string();
    let many_names: Vec<String> = (0..COUNT).map(|n| format!("many/{n}")).collect();
    let names = ["no", &pid].into_iter().chain(many_names.iter().map(String::as_str));
    // One after the other the first would have its time, and then be ended by SIGTERM.
    let run = machines.tool("machinen-stop").args(["-t", "20", "--json"]).args(names).finish();
    assert_eq!(run.code(), 1);
    assert_eq!(stderr(&run).lines().filter(|line| line.contains("NOT_FOUND")).count(), 1, "{}", run.printed());
    let by: Vec<Value> =
        run.stdout.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
    assert!(by.len() == COUNT && by.iter().all(|line| line["by"] == "guest"), "{}", run.printed());
    assert!(many.iter_mut().all(|machine| signal(machine) == Some(KILL)));
    let left = machines.registry.list().unwrap();
    assert_eq!(left.iter().map(|vm| vm.id.as_str()).collect::<Vec<_>>(), [spared.id.as_str()]);
}

#[test]
fn helpers_go_with_it() {
    let machines = Machines::default();
    let spawn = || Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let mut helper = spawn();
    let mut bystander = spawn();
    let process = |child: &Child| Process::of(child.id()).unwrap();
    let recycled = Process { start_time: process(&bystander).start_time + 1, ..process(&bystander) };
    let mut web = machines.start(Some("web"), |_, entry| entry.helpers = vec![process(&helper), recycled]);
    assert_eq!(machines.tool("machinen-stop").args(["-t", "0", "web"]).finish().code(), 0);
    assert_eq!((signal(&mut web), helper.wait().unwrap().signal()), (Some(TERM), Some(TERM)));
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn keep_leaves_the_log() {
    let machines = Machines::default();
    let mut web = machines.start(Some("web"), |claim, _| fs::write(claim.dir.join("boot.log"), "log\n").unwrap());
    assert_eq!(machines.tool("machinen-stop").args(["-k", "-t", "0", "web"]).finish().code(), 0);
    assert_eq!(signal(&mut web), Some(TERM));
    assert_eq!(machines.tool("machinen-logs").arg("web").finish().stdout, b"log\n");
    assert_eq!(
        machines.tool("machinen-gc").finish().stdout,
        format!("removed {}, of web\n", web.dir.display()).as_bytes()
    );
}

#[test]
fn a_guest_that_switches_off_is_let() {
    let machines = Machines::default();
    for gone in [false, true] {
        // It plays the guest: the monitor ends by itself when its standard output's reader has gone.
        let (dies, alive) = std::io::pipe().unwrap();
        let mut web = machines.start_with(Some("web"), DEAF, |claim, _| {
            agent(claim, move |mut stream| {
                let mut pid = String::new();
                // The test says which process it is.
                (&dies).take(10).read_to_string(&mut pid).unwrap();
                if !gone {
                    stream.write_all(&frame(Kind::Started, &[0; 4])).unwrap();
                    stream.write_all(&frame(Kind::Exit, &Exit::Code(0).to_bytes())).unwrap();
                }
                assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
            });
        });
        (&alive).write_all(format!("{:10}", web.child.id()).as_bytes()).unwrap();
        let run = machines.tool("machinen-stop").args(["--json", "web"]).finish();
        let value: Value = serde_json::from_slice(&run.stdout).unwrap();
        assert_eq!((run.code(), &value["by"], run.stderr.len()), (0, &Value::from("guest"), 0), "{}", run.printed());
        assert_eq!(signal(&mut web), Some(KILL));
        assert!(!web.dir.exists());
    }
}

#[test]
fn an_agent_that_refuses_or_talks_nonsense() {
    let refusal = {
        let mut payload = Vec::new();
        Failure { reason: Reason::Busy, errno: 0, message: "too\nmuch" }.write(&mut payload);
        frame(Kind::Failed, &payload)
    };
    let oversize = [18, 0, 0, 0, 255, 255, 255, 255].to_vec();
    let endless = frame(Kind::Output, &[b'x'; 1000]).repeat(1000);
    let machines = Machines::default();
    for (says, why) in [
        (refusal, "too\u{fffd}much"),
        (
            b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
            "the machine's agent broke the protocol: no kind of frame has the number 21576",
        ),
        (oversize, "the machine's agent broke the protocol: a payload of 4294967295 bytes is too long"),
        (endless, "the guest agent hung up"),
        (Vec::new(), "the guest agent hung up"),
        (vec![22, 0, 0], "the guest agent hung up"),
    ] {
        let mut web = machines.start(Some("web"), |claim, _| {
            agent(claim, move |mut stream| {
                // The tool may hang up at the first wrong word.
                let _: std::io::Result<()> = stream.write_all(&says);
            });
        });
        let run = machines.tool("machinen-stop").arg("web").finish();
        assert_eq!((run.code(), signal(&mut web)), (0, Some(TERM)), "{}", run.printed());
        assert_eq!(stderr(&run), format!("machinen-stop: web: ended by SIGTERM: {why}\n"));
    }
}

#[test]
fn a_guest_that_says_nothing_has_its_time() {
    let machines = Machines::default();
    let (held, holder) = std::io::pipe().unwrap();
    let mut web = machines.start(Some("web"), |claim, _| {
        agent(claim, move |stream| {
            (&held).read_to_end(&mut Vec::new()).unwrap();
            drop(stream);
        });
    });
    let run = machines.tool("machinen-stop").args(["-t", "0.2", "web"]).finish();
    assert!(run.elapsed >= Duration::from_millis(200));
    assert_eq!((run.code(), signal(&mut web)), (0, Some(TERM)));
    let late = "machinen-stop: web: ended by SIGTERM: the machine's agent cannot be reached: timed out\n";
    assert_eq!(stderr(&run), late);
    drop(holder);
    // Nor does one have more that never stops talking.
    let mut web = machines.start(Some("web"), |claim, _| {
        agent(claim, |mut stream| while stream.write_all(&frame(Kind::Output, b"x")).is_ok() {});
    });
    let run = machines.tool("machinen-stop").args(["-t", "0.2", "web"]).finish();
    assert_eq!((signal(&mut web), stderr(&run).as_str()), (Some(TERM), late));
}

#[test]
fn sockets_below_long_directories() {
    let machines = Machines::below(&format!("{}/{}", "d".repeat(150), "e".repeat(150)));
    let mut web = machines.start(Some("web"), |claim, _| {
        agent(claim, |mut stream| stream.write_all(b"no").unwrap());
    });
    assert!(web.dir.join("agent.sock").as_os_str().len() > 300);
    let run = machines.tool("machinen-stop").arg("web").finish();
    assert_eq!(stderr(&run), "machinen-stop: web: ended by SIGTERM: the guest agent hung up\n");
    assert_eq!(signal(&mut web), Some(TERM));
}

#[test]
fn a_tool_that_died_before_it_wrote_the_process_down() {
    let machines = Machines::default();
    let mut web = machines.start(Some("web"), |_, entry| {
        entry.pid = None;
        entry.start_time = 0;
    });
    assert_eq!(machines.tool("machinen-ls").finish().stdout.iter().filter(|byte| **byte == b'\n').count(), 2);
    let run = machines.tool("machinen-stop").args(["-t", "0"]).arg(web.child.id().to_string()).finish();
    assert_eq!((run.code(), signal(&mut web)), (0, Some(TERM)), "{}", run.printed());
}

#[test]
fn stopped_while_it_is_followed() {
    let machines = Machines::default();
    let mut web = machines.start(Some("web"), |claim, _| fs::write(claim.dir.join("boot.log"), "log\n").unwrap());
    let mut command = machines.command("machinen-logs");
    command.args(["-f", "web"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut logs = Live::start(command);
    logs.until_asleep();
    assert_eq!(machines.tool("machinen-stop").args(["-t", "0", "web"]).finish().code(), 0);
    assert!(logs.ends_within(LIMIT));
    assert_eq!((logs.wait().code(), signal(&mut web)), (Some(0), Some(TERM)));
}

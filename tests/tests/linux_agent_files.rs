//! The guest agent's work with files: archives in and out, and single files.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Read;

use machinen_abi::body::{Credit, Exit, Reason};
use machinen_abi::frame::Kind;
use machinen_abi::open::{Operation, Tag};
use machinen_tests::agent::{Client, End, Machine, Outcome};
use machinen_tests::guest::Guest;
use tar::{EntryType, Header};

fn machine(kernel: &str) -> (Machine, Client) {
    Machine::waiting(kernel, Guest::command(&["true"]))
}

/// Sends all of `bytes` as input, as credit allows, or until the operation ends.
fn send(machine: &Machine, operation: Operation, fields: &[(Tag, &[u8])], bytes: &[u8]) -> Outcome {
    let mut client = machine.connect();
    client.open(operation, fields);
    let mut allowed = 256 << 10;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(allowed).min(60_000));
        if !piece.is_empty() && client.try_send(Kind::Input, piece).is_err() {
            return client.outcome();
        }
        (rest, allowed) = (after, allowed - piece.len());
        while allowed < 60_000 && !rest.is_empty() {
            match client.receive_only() {
                Some((Kind::Credit, payload)) => allowed += Credit::parse(&payload).unwrap().bytes as usize,
                Some((Kind::Started | Kind::OutputEnd | Kind::ErrorEnd, _)) => {}
                Some((Kind::Failed, payload)) => {
                    let failure = machinen_abi::body::Failure::parse(&payload).unwrap();
                    let end = End::Failed(failure.reason, failure.errno, failure.message.into());
                    return Outcome { end, ..client.outcome() };
                }
                other => panic!("{other:?}"),
            }
        }
    }
    // It may have been refused by now.
    let _ = client.try_send(Kind::InputEnd, &[]);
    client.outcome()
}

fn unpack(machine: &Machine, path: &str, archive: &[u8]) -> Outcome {
    send(machine, Operation::TarIn, &[(Tag::Path, path.as_bytes())], archive)
}

fn pack(machine: &Machine, path: &str, more: &[(Tag, &[u8])]) -> Outcome {
    let mut client = machine.connect();
    client.open(Operation::TarOut, &[&[(Tag::Path, path.as_bytes())], more].concat());
    client.outcome()
}

fn done(outcome: &Outcome) {
    assert_eq!(outcome.end, End::Exit(Exit::Code(0)));
    assert_eq!(outcome.pid, 0);
}

fn do_it(machine: &Machine, script: &str) {
    assert_eq!(machine.run(script).triple(), (String::new(), String::new(), 0));
}

fn tar(change: impl Fn(&mut Tar)) -> Tar {
    let mut tar = Tar::new();
    change(&mut tar);
    tar
}

/// Everything that counts of an entry: type, mode, owner, time, link or content.
type Entry = (EntryType, u32, u64, u64, String, Vec<u8>);

fn entries(archive: &[u8]) -> BTreeMap<Vec<u8>, Entry> {
    let mut archive = tar::Archive::new(archive);
    let mut all = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut mtime = entry.header().mtime().unwrap().to_string();
        for record in entry.pax_extensions().unwrap().into_iter().flatten() {
            let record = record.unwrap();
            if record.key() == Ok("mtime") {
                mtime = record.value().unwrap().to_owned();
            }
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if let Some(link) = entry.link_name_bytes() {
            content = link.into_owned();
        }
        let header = entry.header();
        let (uid, gid) = (header.uid().unwrap(), header.gid().unwrap());
        let path = entry.path_bytes().strip_suffix(b"/").map_or(entry.path_bytes().to_vec(), <[u8]>::to_vec);
        all.insert(path, (header.entry_type(), header.mode().unwrap(), uid, gid, mtime, content));
    }
    all
}

/// An archive under construction.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1234);
        header.set_gid(567);
        header.set_mtime(1_234_567_890);
        header.set_size(0);
        header
    }

    fn file(&mut self, path: &[u8], mode: u32, content: &[u8]) -> &mut Self {
        let mut header = Self::header(EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        self.entry(header, path, content)
    }

    fn link(&mut self, kind: EntryType, path: &str, target: &str) -> &mut Self {
        let mut header = Self::header(kind, 0o777);
        header.set_link_name_literal(target).unwrap();
        self.entry(header, path.as_bytes(), &[])
    }

    fn other(&mut self, kind: EntryType, path: &str, mode: u32) -> &mut Self {
        let mut header = Self::header(kind, mode);
        if kind == EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        self.entry(header, path.as_bytes(), &[])
    }

    /// Long names as GNU has them, since other checks of the crate's would refuse what is tested here.
    fn entry(&mut self, mut header: Header, path: &[u8], content: &[u8]) -> &mut Self {
        if path.len() > 100 {
            let mut long = Self::header(EntryType::GNULongName, 0o644);
            long.set_path("././@LongLink").unwrap();
            long.set_size(path.len() as u64 + 1);
            long.set_cksum();
            self.0.append(&long, &[path, &[0]].concat()[..]).unwrap();
        }
        let count = path.len().min(100);
        header.as_mut_bytes()[..100].fill(0);
        header.as_mut_bytes()[..count].copy_from_slice(&path[..count]);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Bytes that look random, the same each time.
fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn what_goes_in_comes_out() {
    for kernel in ["vmlinux", "vmlinux-tuned"] {
        let (machine, main) = machine(kernel);
        let mut tar = Tar::new();
        tar.other(EntryType::Directory, "top/", 0o2751);
        for byte in (1..=255_u8).filter(|byte| *byte != b'/') {
            let name = if byte == b'.' { b"top/.x".to_vec() } else { [b"top/", &[byte][..]].concat() };
            tar.file(&name, 0o600 + u32::from(byte) % 0o100, &noise(byte.into(), usize::from(byte) * 9));
        }
        let deep = format!("top/{}end", "directory/".repeat(40));
        tar.file(deep.as_bytes(), 0o4755, b"deep").file(b"top/big", 0o644, &noise(7, 3_000_000)).file(
            b"top/empty",
            0,
            b"",
        );
        tar.link(EntryType::Link, "top/hard", "top/big").link(EntryType::Symlink, "top/soft", "/nowhere/../else");
        tar.other(EntryType::Fifo, "top/fifo", 0o640).other(EntryType::Char, "top/null", 0o666);
        let archive = tar.bytes();
        done(&unpack(&machine, "/tmp", &archive));
        let script =
            "cd /tmp/top; stat -c '%a %u %g %Y %h %s' . big hard; stat -c '%a %F %u' fifo null soft; readlink soft";
        let seen = machine.run(script).text();
        let expected = format!(
            "2751 1234 567 1234567890 3 {}\n644 1234 567 1234567890 2 3000000\n644 1234 567 1234567890 2 3000000\n\
             640 fifo 1234\n666 character special file 1234\n777 symbolic link 1234\n/nowhere/../else\n",
            seen.lines().next().unwrap().rsplit(' ').next().unwrap()
        );
        assert_eq!(seen, expected);

        let packed = pack(&machine, "/tmp/top", &[]);
        done(&packed);
        let (mut sent, mut came) = (entries(&archive), entries(&packed.output));
        // Directories that no entry named; and links of one file may change their parts.
        came.retain(|path, _| !path.starts_with(b"top/directory") || sent.contains_key(path));
        let (big, hard) = (came.remove(&b"top/big"[..]).unwrap(), came.remove(&b"top/hard"[..]).unwrap());
        assert_eq!((big.0, hard.0, &hard.5[..]), (EntryType::Regular, EntryType::Link, &b"top/big"[..]));
        assert!(big.5 == sent.remove(&b"top/big"[..]).unwrap().5);
        sent.remove(&b"top/hard"[..]);
        assert_eq!(sent.len(), 254 + 6);
        for (path, entry) in &sent {
            assert!(
                came.get(path) == Some(entry),
                "{}: {:?}",
                path.escape_ascii(),
                came.get(path).map(|entry| &entry.4)
            );
        }
        assert_eq!(came.len(), sent.len());

        // Again over itself, under another name and for root; what is in the way is replaced.
        do_it(&machine, "mkdir -p /tmp/n/soft /tmp/n/fifo; ln -s /etc /tmp/n/big; echo x >/tmp/n/empty");
        let fields: [(Tag, &[u8]); 3] = [(Tag::Path, b"/tmp"), (Tag::Name, b"n"), (Tag::NoOwner, b"")];
        done(&send(&machine, Operation::TarIn, &fields, &packed.output));
        let script = "cd /tmp; stat -c '%u %g %s' n/big n/hard; cmp top/big n/big && readlink n/soft; \
                      find n | wc -l; find top | wc -l; find n -user 1234 -o -group 567";
        assert_eq!(machine.run(script).text(), "0 0 3000000\n0 0 3000000\n/nowhere/../else\n303\n303\n");
        machine.stop(main);
    }
}

#[test]
fn no_archive_leads_out_of_its_destination() {
    let (machine, main) = machine("vmlinux-tuned");
    do_it(&machine, "mkdir -p /tmp/in /tmp/out; echo safe >/tmp/out/file; ln -s /tmp/out /tmp/in/old");
    let refused = |tar: Tar, name: &str| {
        let outcome = unpack(&machine, "/tmp/in", &tar.bytes());
        let End::Failed(Reason::Escape, _, message) = &outcome.end else { panic!("{name}: {outcome:?}") };
        assert!(message.starts_with(&format!("{name}: ")), "{message}");
        // What came before stays, and nothing outside is touched.
        let seen = machine.run("cd /tmp; ls out; cat out/file; ls -d /tmp/x /x 2>/dev/null").text();
        assert_eq!(seen, "file\nsafe\n", "{name}");
    };

    refused(tar(|tar| _ = tar.file(b"../x", 0o644, b"x")), "../x");
    refused(tar(|tar| _ = tar.file(b"a/../../x", 0o644, b"x")), "a/../../x");
    refused(tar(|tar| _ = tar.file(b"old/x", 0o644, b"x")), "old/x");
    refused(tar(|tar| _ = tar.file(b"old/file", 0o644, b"x")), "old/file");
    let through = tar(|tar| _ = tar.link(EntryType::Symlink, "l", "/tmp/out").file(b"l/x", 0o644, b"x"));
    refused(through, "l/x");
    let up = tar(|tar| _ = tar.link(EntryType::Symlink, "u", "..").other(EntryType::Directory, "u/x/", 0o755));
    refused(up, "u/x/");
    refused(tar(|tar| _ = tar.link(EntryType::Link, "h", "../out/file")), "../out/file");
    refused(tar(|tar| _ = tar.link(EntryType::Link, "h", "old/file")), "h");
    let inner = tar(|tar| _ = tar.other(EntryType::Directory, "d/", 0o755).link(EntryType::Symlink, "d/s", "/tmp"));
    assert_eq!(unpack(&machine, "/tmp/in", &inner.bytes()).end, End::Exit(Exit::Code(0)));
    refused(tar(|tar| _ = tar.file(b"d/s/x", 0o644, b"x")), "d/s/x");
    // In the place of a link: itself, not what it leads to. A name from the root is one below the destination.
    let replaced = tar(|tar| {
        tar.file(b"old", 0o644, b"new").link(EntryType::Symlink, "self", "/tmp/out/file").file(b"self", 0o644, b"new");
        tar.file(b"/x", 0o644, b"x");
    });
    done(&unpack(&machine, "/tmp/in", &replaced.bytes()));
    let seen = machine.run("cd /tmp; cat in/old in/self in/x out/file; ls /x 2>/dev/null").text();
    assert_eq!(seen, "newnewxsafe\n");
    machine.stop(main);
}

#[test]
fn archives_that_are_broken_are_refused() {
    let (machine, main) = machine("vmlinux-tuned");
    let mut tar = Tar::new();
    tar.file(b"a", 0o644, &noise(1, 100_000));
    let whole = tar.bytes();
    let end = |archive: &[u8]| match unpack(&machine, "/tmp", archive).end {
        End::Failed(reason, _, message) => (reason, message),
        end => panic!("{end:?}"),
    };
    for cut in [0, 100, 512, 5000, whole.len() - 1024, whole.len() - 1] {
        let (reason, message) = end(&whole[..cut]);
        assert_eq!((reason, &*message), (Reason::Invalid, "the archive: ends before its end mark"), "{cut}");
    }
    assert_eq!(end(&noise(3, 400_000)), (Reason::Invalid, "the archive: no header at byte 0".into()));
    let nowhere = unpack(&machine, "/nowhere", &whole).end;
    assert_eq!(nowhere, End::Failed(Reason::System, 2, "/nowhere: No such file or directory".into()));
    // A directory that is not empty stays.
    do_it(&machine, "rm /tmp/a; mkdir -p /tmp/a/b");
    let (reason, message) = end(&whole);
    assert_eq!((reason, &*message), (Reason::System, "a: Directory not empty"));
    machine.stop(main);
}

#[test]
fn what_is_excluded_stays() {
    let (machine, main) = machine("vmlinux-tuned");
    do_it(&machine, "mkdir -p /t/a/target /t/b; cd /t; touch a/x.o a/x.c a/target/y b/x.o b/target x.o; ln -s / link");
    let names = |path: &str, more: &[(Tag, &[u8])]| {
        let outcome = pack(&machine, path, more);
        done(&outcome);
        let names = entries(&outcome.output).into_keys().map(|name| String::from_utf8(name).unwrap());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names("/t/b/", &[]), "b b/target b/x.o");
    assert_eq!(names("/t/b/x.o", &[(Tag::Name, b"other")]), "other");
    assert_eq!(names("/t/link", &[]), "link");
    let exclude = [(Tag::Exclude, &b"target"[..]), (Tag::Exclude, b"b/*.o"), (Tag::Name, b"n")];
    assert_eq!(names("/t", &exclude), "n n/a n/a/x.c n/a/x.o n/b n/link n/x.o");
    assert_eq!(names("/t", &[(Tag::Exclude, b"[ab]"), (Tag::Exclude, b"/x.o")]), "t t/link");
    let nowhere = pack(&machine, "/nowhere", &[]).end;
    assert_eq!(nowhere, End::Failed(Reason::System, 2, "/nowhere: No such file or directory".into()));
    machine.stop(main);
}

#[test]
fn files_are_written() {
    let (machine, main) = machine("vmlinux-tuned");
    let write = |path: &str, more: &[(Tag, &[u8])], bytes: &[u8]| {
        send(&machine, Operation::WriteFile, &[&[(Tag::Path, path.as_bytes())], more].concat(), bytes)
    };
    let bytes = noise(5, 1_000_000);
    done(&write("/tmp/f", &[], &bytes));
    done(&write("/tmp/f", &[], b"short"));
    done(&write("/tmp/f", &[(Tag::Append, b"")], b" and more"));
    done(&write("/tmp/a/b/c", &[(Tag::Parents, b""), (Tag::Mode, &[0o355, 0o1, 0, 0])], b""));
    done(&write("/tmp/g", &[(Tag::Mode, &[0o200, 0o1, 0, 0])], &bytes));
    let seen = machine.run("cat /tmp/f; stat -c ' %a' /tmp/f; stat -c '%a %s' /tmp/a/b /tmp/a/b/c /tmp/g").text();
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!((lines[0], lines[2], lines[3]), ("short and more 644", "755 0", "600 1000000"));
    assert!(entries(&pack(&machine, "/tmp/g", &[]).output)[&b"g"[..]].5 == bytes);
    let end = |path: &str, more: &[(Tag, &[u8])], bytes: &[u8]| match write(path, more, bytes).end {
        End::Failed(Reason::System, errno, message) => (errno, message),
        end => panic!("{end:?}"),
    };
    assert_eq!(end("/tmp/no/f", &[], b"x"), (2, "/tmp/no/f: No such file or directory".into()));
    assert_eq!(end("/tmp", &[], b"x"), (21, "/tmp: Is a directory".into()));
    assert_eq!(end("/tmp/f/g", &[(Tag::Parents, b"")], b"x"), (20, "/tmp/f/g: Not a directory".into()));
    // A disk that is full.
    do_it(&machine, "mkdir /tmp/small; mount -t tmpfs -o size=64k none /tmp/small");
    assert_eq!(end("/tmp/small/f", &[], &bytes), (28, "/tmp/small/f: No space left on device".into()));
    let mut sync = machine.connect();
    sync.open(Operation::Sync, &[]);
    done(&sync.outcome());
    // A writer that goes away leaves nobody behind.
    let mut client = machine.connect();
    client.open(Operation::WriteFile, &[(Tag::Path, b"/tmp/cut")]);
    client.expect(Kind::Started);
    drop(client);
    let script = "while [ \"$(ls -d /proc/[0-9]*/exe | while read p; do readlink $p; done | grep -c '^/init$')\" -gt 1 ]; \
                  do usleep 9999; done; echo none";
    assert_eq!(machine.run(script).text(), "none\n");
    machine.stop(main);
}

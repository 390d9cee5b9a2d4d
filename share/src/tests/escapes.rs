//! Attempts to get out of the directory, at the protocol itself: no kernel of the guest's has to play along.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const RDWR: u32 = 2;
const CREATE: u32 = 0o100;

/// Every request with a name in it.
fn ask_all(guest: &mut Guest, node: u64, name: &[u8]) -> Vec<Result<Vec<u8>, Errno>> {
    let name = [name, b"\0"].concat();
    let good = text("good");
    let bodies = [
        (opcode::LOOKUP, name.clone()),
        (opcode::UNLINK, name.clone()),
        (opcode::RMDIR, name.clone()),
        (opcode::MKDIR, [words(&[0o755, 0]), name.clone()].concat()),
        (opcode::MKNOD, [words(&[0o100_644, 0, 0, 0]), name.clone()].concat()),
        (opcode::CREATE, [words(&[RDWR | CREATE, 0o644, 0, 0]), name.clone()].concat()),
        (opcode::SYMLINK, [name.clone(), text("x")].concat()),
        (opcode::LINK, [longs(&[node]), name.clone()].concat()),
        (opcode::RENAME, [longs(&[node]), name.clone(), good.clone()].concat()),
        (opcode::RENAME, [longs(&[node]), good.clone(), name.clone()].concat()),
        (opcode::RENAME2, [longs(&[node]), words(&[2, 0]), good, name].concat()),
    ];
    bodies.iter().map(|(opcode, body)| guest.ask(*opcode, node, body)).collect()
}

#[test]
fn a_name_is_one_component() {
    let place = Place::new();
    fs::write(place.outside("secret"), b"secret").expect("written");
    fs::create_dir(place.at("d")).expect("made");
    fs::write(place.at("d/good"), b"good").expect("written");
    let mut guest = Guest::new(&place);
    let directory = guest.look_up(ROOT_ID, "d").expect("there").node;
    let long = "n".repeat(256);
    for name in ["", ".", "..", "../secret", "/etc/passwd", "d/good", "good/", "/", &long] {
        let expected = if name == long { Errno::NAMETOOLONG } else { Errno::INVAL };
        for node in [ROOT_ID, directory] {
            for (number, answer) in ask_all(&mut guest, node, name.as_bytes()).iter().enumerate() {
                assert_eq!(*answer, Err(expected), "{name} {number}");
            }
        }
    }
    // Without an end, and with two.
    assert_eq!(guest.ask(opcode::LOOKUP, ROOT_ID, b"d"), Err(Errno::INVAL));
    assert_eq!(guest.ask(opcode::LOOKUP, ROOT_ID, b"\xff\xfe\0"), Err(Errno::NOENT), "any bytes are a name");
    assert!(guest.ask(opcode::LOOKUP, ROOT_ID, b"d\0../secret\0").is_ok(), "what follows counts for nothing");
    assert_eq!(content(place.outside("secret")), b"secret");
    assert_eq!(content(place.at("d/good")), b"good");
}

#[test]
fn a_link_is_only_a_link() {
    let place = Place::new();
    fs::create_dir(place.outside("dir")).expect("made");
    fs::write(place.outside("dir/secret"), b"secret").expect("written");
    symlink("/etc/passwd", place.at("passwd")).expect("linked");
    symlink("../dir", place.at("dir")).expect("linked");
    symlink("..", place.at("up")).expect("linked");
    let mut guest = Guest::new(&place);
    for name in ["passwd", "dir", "up"] {
        let link = guest.look_up(ROOT_ID, name).expect("a link");
        assert_eq!(link.mode & 0o170_000, 0o120_000, "{name}");
        assert_eq!(guest.open(link.node, 0), Err(Errno::LOOP), "{name}");
        assert_eq!(guest.ask(opcode::OPENDIR, link.node, &[0; 8]), Err(Errno::NOTDIR), "{name}");
        for answer in ask_all(&mut guest, link.node, b"secret") {
            assert_eq!(answer, Err(Errno::NOTDIR), "{name}");
        }
        // Neither its attributes nor what it leads to change.
        let set = Set { valid: crate::wire::set::MODE, mode: 0o777, ..Set::default() };
        assert_eq!(guest.set_attributes(link.node, &set).unwrap_err(), Errno::OPNOTSUPP);
        let set = Set { valid: crate::wire::set::SIZE, ..Set::default() };
        assert_eq!(guest.set_attributes(link.node, &set).unwrap_err(), Errno::LOOP);
        let found = guest.create(ROOT_ID, name, RDWR | CREATE | 0o1000, 0o644);
        assert_eq!(found.unwrap_err(), Errno::STALE, "{name}");
    }
    assert_eq!(content(place.outside("dir/secret")), b"secret");
    assert_eq!(fs::read_dir(place.outside("dir")).expect("there").count(), 1);
}

#[test]
fn a_link_that_comes_and_goes_leads_nowhere() {
    const ROUNDS: usize = 3000;
    let place = Place::new();
    fs::create_dir(place.outside("out")).expect("made");
    fs::create_dir(place.at("d")).expect("made");
    fs::write(place.outside("out/f"), b"secret").expect("written");
    fs::write(place.at("d/f"), b"inside").expect("written");
    symlink(place.outside("out"), place.at("link")).expect("linked");
    symlink(place.outside("out/f"), place.at("file-link")).expect("linked");
    fs::write(place.at("file"), b"inside").expect("written");
    let over = AtomicBool::new(false);
    let exchange = |one: &str, other: &str| {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(rustix::fs::CWD, place.at(one), rustix::fs::CWD, place.at(other), flags)
    };
    let (mut read, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                exchange("d", "link").expect("exchanged");
                exchange("file", "file-link").expect("exchanged");
            }
        });
        let mut guest = Guest::new(&place);
        // On until both have happened: a race without an opponent proves nothing.
        let mut rounds = 0;
        while rounds < ROUNDS || (read.min(refused) == 0 && rounds < 100 * ROUNDS) {
            rounds += 1;
            for path in ["d/f", "file"] {
                let found = guest.walk(path).and_then(|found| Ok((found.node, guest.open(found.node, RDWR)?)));
                match found {
                    Ok((node, handle)) => {
                        assert_eq!(guest.read(node, handle, 0, 100).expect("read"), b"inside");
                        guest.write(node, handle, 0, b"inside").expect("written");
                        guest.ask(opcode::RELEASE, node, &longs(&[handle, 0, 0])).expect("closed");
                        read += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
            // What is made in a place that turns into a link is not made where that leads.
            if let Ok(directory) = guest.look_up(ROOT_ID, "d") {
                let _ = guest.create(directory.node, "made", RDWR | CREATE, 0o644);
                let _ = guest.make_directory(directory.node, "made-too", 0o755);
                let _ = guest.rename((directory.node, "made"), (ROOT_ID, "moved"), 0);
            }
            guest.server.end_session();
            guest.mount().expect("mounted");
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(read > 0 && refused > 0, "{read} {refused}");
    assert_eq!(content(place.outside("out/f")), b"secret");
    assert_eq!(fs::read_dir(place.outside("out")).expect("there").count(), 1);
}

#[test]
fn what_is_moved_out_leads_no_further() {
    let place = Place::new();
    fs::create_dir_all(place.at("a/b")).expect("made");
    fs::write(place.outside("secret"), b"secret").expect("written");
    let mut guest = Guest::new(&place);
    let inner = guest.walk("a/b").expect("there").node;
    fs::rename(place.at("a/b"), place.outside("b")).expect("moved");
    // As for a process that has its working directory there: itself, and nothing above or beside.
    for answer in ask_all(&mut guest, inner, b"..") {
        assert_eq!(answer, Err(Errno::INVAL));
    }
    assert_eq!(guest.look_up(inner, "secret").unwrap_err(), Errno::NOENT);
    let outer = guest.look_up(ROOT_ID, "a").expect("there").node;
    assert_eq!(guest.rename((ROOT_ID, "a"), (outer, "a"), 0), Err(Errno::INVAL), "into itself");
}

#[test]
fn numbers_that_were_not_given_find_nothing() {
    let place = Place::new();
    fs::create_dir(place.at("d")).expect("made");
    fs::write(place.at("f"), b"f").expect("written");
    fs::write(place.at("g"), b"g").expect("written");
    let mut guest = Guest::new(&place);
    let file = guest.look_up(ROOT_ID, "f").expect("there").node;
    let directory = guest.look_up(ROOT_ID, "d").expect("there").node;
    for node in [0, 2, 3, file + 1, file ^ (1 << 32), file | (1 << 63), u64::MAX, 1 << 32, (1 << 32) | 1] {
        if node == directory {
            continue;
        }
        assert_eq!(guest.attributes(node).unwrap_err(), Errno::STALE, "{node:#x}");
        assert_eq!(guest.open(node, 0), Err(Errno::STALE), "{node:#x}");
        guest.forget(node, u64::MAX);
    }
    let handle = guest.open(file, RDWR).expect("opened");
    let listed = long(&guest.ask(opcode::OPENDIR, directory, &[0; 8]).expect("opened"), 0);
    for (node, handle) in [
        (file, handle + 1),
        (file, handle ^ (1 << 32)),
        (file, u64::MAX),
        (directory, handle),
        (ROOT_ID, handle),
        (file, listed),
        (directory, listed),
    ] {
        assert_eq!(guest.read(node, handle, 0, 1), Err(Errno::BADF), "{node:#x} {handle:#x}");
        assert_eq!(guest.write(node, handle, 0, b"x"), Err(Errno::BADF), "{node:#x} {handle:#x}");
    }
    assert_eq!(guest.ask(opcode::READDIR, file, &[longs(&[handle, 0]), words(&[512, 0])].concat()), Err(Errno::BADF));
    // Forgotten: more often than it was looked up, and again.
    guest.forget(file, 7);
    assert_eq!(guest.attributes(file).unwrap_err(), Errno::STALE);
    let other = guest.look_up(ROOT_ID, "g").expect("there").node;
    assert_eq!(other & 0xffff_ffff, file & 0xffff_ffff, "its place is used again");
    guest.forget(file, 1);
    assert!(guest.attributes(file).is_err() && guest.attributes(other).is_ok());
    guest.look_up(ROOT_ID, "g").expect("there");
    let pairs = longs(&[other, 1, ROOT_ID, u64::MAX, 77, 1]);
    guest.ask(opcode::BATCH_FORGET, 0, &[words(&[3, 0]), pairs.clone()].concat()).expect("no answer");
    assert!(guest.attributes(other).is_ok() && guest.attributes(ROOT_ID).is_ok());
    guest.ask(opcode::BATCH_FORGET, 0, &[words(&[u32::MAX, 0]), pairs].concat()).expect("no answer");
    assert!(guest.attributes(other).is_ok(), "a count that lies");
}

#[test]
fn what_is_mounted_in_it_is_not_part_of_it() {
    let mut server = Server::new(Owners::of_process(), 100);
    server.attach(File::open("/").expect("the root").as_fd(), true).expect("attached");
    let mut guest = Guest { server, memory: Memory::default(), user: (0, 0) };
    guest.mount().expect("mounted");
    assert_eq!(guest.look_up(ROOT_ID, "proc").unwrap_err(), Errno::XDEV);
    // Its name is told, its node is not.
    let list = guest.list(ROOT_ID, true, 4096).expect("listed");
    assert!(list.iter().any(|(name, _, _, node)| name == "proc" && *node == 0), "{list:?}");
    // And where /proc itself is shared, its links lead nowhere.
    let mut server = Server::new(Owners::of_process(), 100);
    server.attach(File::open("/proc").expect("proc").as_fd(), false).expect("attached");
    let mut guest = Guest { server, memory: Memory::default(), user: (0, 0) };
    guest.mount().expect("mounted");
    let own = std::process::id().to_string();
    let root = guest.walk(&format!("{own}/root")).expect("a link");
    assert_eq!(guest.look_up(root.node, "etc").unwrap_err(), Errno::NOTDIR);
    assert_eq!(guest.open(root.node, 0), Err(Errno::LOOP));
}

#[test]
fn what_could_stop_the_server_is_not_opened() {
    let place = Place::new();
    rustix::fs::mknodat(rustix::fs::CWD, place.at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .expect("made");
    let _socket = std::os::unix::net::UnixListener::bind(place.at("socket")).expect("made");
    let mut guest = Guest::new(&place);
    for name in ["fifo", "socket"] {
        let node = guest.look_up(ROOT_ID, name).expect("there").node;
        for flags in [0, 1, RDWR, 0o1001] {
            assert_eq!(guest.open(node, flags), Err(Errno::NXIO), "{name}");
        }
        let set = Set { valid: crate::wire::set::SIZE, ..Set::default() };
        assert_eq!(guest.set_attributes(node, &set).unwrap_err(), Errno::NXIO, "{name}");
    }
}

//! What is refused: by the session, by the share, for want of descriptors, and for what makes no sense.

use std::fs;

use proptest::prelude::{any, prop, proptest};

use super::*;

/// All that there are, and some that there are not.
fn opcodes() -> impl Iterator<Item = u32> {
    (0..60).chain([4096, u32::MAX])
}

#[test]
fn without_a_mount_there_is_nothing() {
    let place = Place::new();
    let mut guest = Guest::new(&place);
    guest.ask(opcode::DESTROY, 0, &[]).expect("over");
    assert!(!guest.server.is_mounted());
    assert_eq!(guest.attributes(ROOT_ID).unwrap_err(), Errno::NOTCONN);
    assert_eq!(guest.look_up(ROOT_ID, "x").unwrap_err(), Errno::NOTCONN);
    guest.forget(ROOT_ID, 1);
    assert_eq!(guest.reply(opcode::INTERRUPT, 0, &[], 0), Reply::Silence);
}

#[test]
fn a_directory_is_changed_only_while_it_is_not_mounted() {
    use crate::server::Refused;
    let (place, other) = (Place::new(), Place::new());
    fs::write(other.at("there"), b"").expect("written");
    let mut guest = Guest::new(&place);
    let root = File::open(other.at("")).expect("the directory");
    assert_eq!(guest.server.attach(root.as_fd(), false), Err(Refused::Busy));
    assert_eq!(guest.server.detach(), Err(Refused::Busy));
    guest.ask(opcode::DESTROY, 0, &[]).expect("over");
    let file = File::open(other.at("there")).expect("a file");
    assert_eq!(guest.server.attach(file.as_fd(), false), Err(Refused::Host(Errno::NOTDIR)));
    guest.server.attach(root.as_fd(), true).expect("attached");
    guest.mount().expect("mounted");
    assert!(guest.look_up(ROOT_ID, "there").is_ok());
    guest.server.end_session();
    guest.server.detach().expect("detached");
    assert_eq!(guest.mount(), Err(Errno::NODEV));
    assert_eq!(guest.attributes(ROOT_ID).unwrap_err(), Errno::NOTCONN);
}

#[test]
fn a_read_only_share_is_one() {
    let place = Place::new();
    fs::write(place.at("f"), b"content").expect("written");
    fs::create_dir(place.at("d")).expect("made");
    let before = fs::metadata(place.at("f")).expect("there").modified().expect("a time");
    let mut guest = Guest::with(&place, true, Owners::of_process());
    let file = guest.look_up(ROOT_ID, "f").expect("there").node;
    let handle = guest.open(file, 0).expect("opened");
    assert_eq!(guest.read(file, handle, 0, 100).expect("read"), b"content");
    for flags in [1, 2, 3, 0o1000, 0o1002] {
        assert_eq!(guest.open(file, flags), Err(Errno::ROFS), "{flags:o}");
    }
    let name = text("f");
    for (opcode, body) in [
        (opcode::SETATTR, vec![0; 88]),
        (opcode::SYMLINK, [text("l"), text("t")].concat()),
        (opcode::MKNOD, [words(&[0o100_644, 0, 0, 0]), text("n")].concat()),
        (opcode::MKDIR, [words(&[0o755, 0]), text("n")].concat()),
        (opcode::UNLINK, name.clone()),
        (opcode::RMDIR, text("d")),
        (opcode::RENAME, [longs(&[1]), name.clone(), text("g")].concat()),
        (opcode::RENAME2, [longs(&[1]), words(&[0, 0]), name.clone(), text("g")].concat()),
        (opcode::LINK, [longs(&[file]), text("g")].concat()),
        (opcode::CREATE, [words(&[0, 0o644, 0, 0]), name.clone()].concat()),
        (opcode::TMPFILE, [words(&[2, 0o644, 0, 0]), name.clone()].concat()),
        (opcode::WRITE, [longs(&[handle, 0]), words(&[1, 0, 0, 0, 0, 0])].concat()),
        (opcode::SETXATTR, [words(&[1, 0]), text("user.a"), vec![1]].concat()),
        (opcode::REMOVEXATTR, text("user.a")),
        (opcode::FALLOCATE, [longs(&[handle, 0, 9]), words(&[0, 0])].concat()),
        (opcode::COPY_FILE_RANGE, longs(&[handle, 0, file, handle, 3, 1, 0])),
    ] {
        let node = if [opcode::WRITE, opcode::SETXATTR, opcode::FALLOCATE].contains(&opcode) { file } else { ROOT_ID };
        assert_eq!(guest.ask(opcode, node, &body), Err(Errno::ROFS), "{opcode}");
    }
    assert_eq!(content(place.at("f")), b"content");
    assert_eq!(fs::metadata(place.at("f")).expect("there").modified().expect("a time"), before);
    assert_eq!(fs::read_dir(place.at("")).expect("there").count(), 2);
}

#[test]
fn a_guest_that_holds_on_to_everything_runs_out_and_goes_on_when_it_forgets() {
    let place = Place::new();
    for number in 0..20 {
        fs::write(place.at(&number.to_string()), b"").expect("written");
    }
    let mut guest = Guest::new(&place);
    guest.server = Server::new(Owners::of_process(), 10);
    guest.server.attach(File::open(place.at("")).expect("there").as_fd(), false).expect("attached");
    guest.mount().expect("mounted");
    let nodes: Vec<u64> =
        (0..9).map(|number| guest.look_up(ROOT_ID, &number.to_string()).expect("there").node).collect();
    assert_eq!(guest.look_up(ROOT_ID, "9").unwrap_err(), Errno::NFILE);
    assert_eq!(guest.look_up(ROOT_ID, "3").expect("known already").node, nodes[3]);
    assert_eq!(guest.open(nodes[0], 0), Err(Errno::NFILE));
    assert_eq!(guest.create(ROOT_ID, "new", 2, 0o644).unwrap_err(), Errno::NFILE);
    assert!(!place.at("new").exists(), "nothing is made that could not be answered");
    guest.forget(nodes[1], 1);
    guest.forget(nodes[2], 1);
    let handle = guest.open(nodes[0], 0).expect("opened");
    assert_eq!(guest.open(nodes[0], 0), Err(Errno::NFILE));
    guest.ask(opcode::RELEASE, nodes[0], &longs(&[handle, 0, 0])).expect("closed");
    // Names are told without their nodes.
    let list = guest.list(ROOT_ID, true, 4096).expect("listed");
    assert_eq!(list.len(), 22);
    assert!(list.iter().filter(|(_, _, _, node)| *node != 0).count() < 12, "{list:?}");
}

#[test]
fn an_answer_without_room_is_an_error() {
    let place = Place::new();
    fs::write(place.at("f"), b"0123456789").expect("written");
    let mut guest = Guest::new(&place);
    assert_eq!(guest.reply(opcode::LOOKUP, ROOT_ID, b"f\0", 127), Reply::Error(Errno::INVAL));
    let node = guest.look_up(ROOT_ID, "f").expect("there").node;
    let handle = guest.open(node, 0).expect("opened");
    let body = [longs(&[handle, 0]), words(&[u32::MAX, 0, 0, 0, 0, 0])].concat();
    assert_eq!(guest.reply(opcode::READ, node, &body, 4), Reply::Data(4));
    assert_eq!(guest.reply(opcode::READ, node, &body, 0), Reply::Data(0));
}

#[test]
fn what_is_cut_short_or_unknown_is_refused() {
    let place = Place::new();
    let mut guest = Guest::new(&place);
    for opcode in opcodes() {
        for length in 0..112 {
            let body = vec![0x41; length];
            if let Err(error) = guest.ask(opcode, ROOT_ID, &body) {
                assert_ne!(error, Errno::IO, "{opcode} {length}");
            }
            if !guest.server.is_mounted() {
                guest.mount().expect("mounted");
            }
        }
    }
    for unknown in [0, 7, 19, 25, 31, 34, 37, 39, 40, 48, 49, 50, 52, 4096, u32::MAX] {
        assert_eq!(guest.ask(unknown, ROOT_ID, &[0; 200]), Err(Errno::NOSYS), "{unknown}");
    }
}

proptest! {
    #[test]
    fn any_requests_get_an_answer(
        requests in prop::collection::vec(
            (0..60_u32, 0..6_u64, prop::collection::vec(prop::sample::select(vec![0, 0, 1, 2, 3, 0x40, b'a', b'b', 0xff]), 0..120)),
            1..40,
        ),
        room in any::<u16>(),
    ) {
        let place = Place::new();
        fs::write(place.outside("a"), b"outside").expect("written");
        fs::write(place.at("a"), b"inside").expect("written");
        let mut guest = Guest::new(&place);
        for (opcode, node, body) in requests {
            guest.reply(opcode, node, &body, room.into());
            let _ = guest.look_up(ROOT_ID, "a");
        }
        assert_eq!(content(place.outside("a")), b"outside");
    }
}

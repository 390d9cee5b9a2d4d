//! A state that is taken back: the guest goes on with its numbers, where the host still has what they were.

use std::fs;

use super::*;

#[test]
fn a_guest_goes_on_in_another_server() {
    let place = Place::new();
    fs::create_dir_all(place.at("d/e")).expect("made");
    fs::write(place.at("d/e/f"), b"content").expect("written");
    fs::write(place.at("gone"), b"").expect("written");
    fs::write(place.at("moved"), b"moved").expect("written");
    fs::write(place.at("open"), b"").expect("written");
    let mut guest = Guest::new(&place);
    let file = guest.walk("d/e/f").expect("there").node;
    guest.walk("d/e/f").expect("there");
    let gone = guest.look_up(ROOT_ID, "gone").expect("there").node;
    let moved = guest.look_up(ROOT_ID, "moved").expect("there").node;
    let open = guest.look_up(ROOT_ID, "open").expect("there").node;
    let closed = guest.open(open, 2).expect("opened");
    let handle = guest.open(open, 2).expect("opened");
    let of_gone = guest.open(gone, 0).expect("opened");
    guest.ask(opcode::RELEASE, open, &longs(&[closed, 0, 0])).expect("closed");
    let directory = guest.walk("d").expect("there").node;
    let listed = long(&guest.ask(opcode::OPENDIR, directory, &[0; 8]).expect("opened"), 0);
    fs::remove_file(place.at("gone")).expect("removed");
    // As /proc calls what is gone.
    fs::write(place.at("gone (deleted)"), b"").expect("written");
    // A state has the name that the host knows now, whoever changed it.
    fs::rename(place.at("moved"), place.at("d/renamed")).expect("moved");
    let state = guest.server.save();
    assert_eq!(state.session, Some(37));
    let of = |id: u64| state.nodes.iter().find(|node| node.id == id).expect("saved");
    assert_eq!((of(file).lookups, of(file).path.as_deref()), (2, Some(&b"d/e/f"[..])));
    assert_eq!((of(moved).path.as_deref(), &of(gone).path), (Some(&b"d/renamed"[..]), &None));
    assert_eq!((of(ROOT_ID).path.as_deref(), state.nodes.len(), state.handles.len()), (Some(&b""[..]), 7, 3));

    let mut other = Guest::new(&place);
    other.server.load(state.clone());
    assert!(other.server.is_mounted());
    for node in [file, moved, open, ROOT_ID] {
        assert_eq!(other.attributes(node), guest.attributes(node));
    }
    assert_eq!(other.write(open, handle, 0, b"on"), Ok(2));
    assert_eq!(content(place.at("open")), b"on");
    let body = [longs(&[listed, 0]), words(&[4096, 0])].concat();
    assert!(!other.ask(opcode::READDIR, directory, &body).expect("listed").is_empty());
    assert_eq!(other.attributes(gone).unwrap_err(), Errno::STALE);
    assert_eq!(other.read(gone, of_gone, 0, 1), Err(Errno::BADF));
    assert_eq!(other.read(open, closed, 0, 1), Err(Errno::BADF));
    // Lookups count from where they were, and numbers go on.
    other.forget(file, 1);
    assert!(other.attributes(file).is_ok());
    other.forget(file, 1);
    assert_eq!(other.attributes(file).unwrap_err(), Errno::STALE);
    fs::write(place.at("new"), b"").expect("written");
    let (new, same) = (other.look_up(ROOT_ID, "new").expect("there"), guest.look_up(ROOT_ID, "new").expect("there"));
    assert!(
        state.nodes.iter().all(|node| node.id != new.node) && new.node >> 32 == same.node >> 32,
        "{new:?} {same:?}"
    );
    assert_eq!(other.server.save().nodes.len(), 7);
}

#[test]
fn a_stale_node_does_not_become_a_file_of_another_kind() {
    use crate::state::{SavedNode, State};
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    std::os::unix::net::UnixListener::bind(place.at("socket")).expect("made");
    let found = fs::symlink_metadata(place.at("socket")).expect("there");
    let root = SavedNode { id: ROOT_ID, lookups: 1, kind: 0o040_000, identity: (0, 0), path: Some(Vec::new()) };
    // The inode has been a regular file's before.
    let gone = SavedNode { id: 2, lookups: 1, kind: 0o100_000, identity: (found.dev(), found.ino()), path: None };
    let mut guest = Guest::new(&place);
    guest.server.load(State { session: Some(37), generations: (9, 9), nodes: vec![root, gone], ..State::default() });
    let socket = guest.look_up(ROOT_ID, "socket").expect("there").node;
    assert_ne!(socket, 2);
    assert_eq!(guest.open(socket, 0), Err(Errno::NXIO));
    assert_eq!(guest.open(2, 0), Err(Errno::STALE));
}

#[test]
fn a_state_that_makes_no_sense_is_no_danger() {
    use crate::state::{SavedHandle, SavedNode, State};
    let place = Place::new();
    fs::write(place.outside("secret"), b"secret").expect("written");
    fs::write(place.at("f"), b"").expect("written");
    std::os::unix::fs::symlink("..", place.at("up")).expect("linked");
    let node =
        |id: u64, path: &str| SavedNode { id, lookups: 1, kind: 0o100_000, identity: (1, id), path: Some(path.into()) };
    let root = SavedNode { kind: 0o040_000, ..node(1, "") };
    let all =
        [root.clone(), node(2, "../secret"), node(3, "/etc/passwd"), node(4, "up/secret"), node(4, "f"), node(0, "f")];
    let handles = [2, 3, 4, 9].map(|node| SavedHandle { id: node, node, flags: Some(2) });
    let far = [node(u64::MAX, "f"), node(0xffff_ffff, "f")];
    let nodes = all.into_iter().chain(far).collect();
    let state = State { session: Some(37), generations: (9, 9), nodes, handles: handles.to_vec() };
    let mut guest = Guest::new(&place);
    guest.server.load(state);
    for node in [2, 3, 4] {
        assert_eq!(guest.attributes(node).unwrap_err(), Errno::STALE, "{node}");
        assert_eq!(guest.read(node, node, 0, 9), Err(Errno::BADF), "{node}");
    }
    assert!(guest.look_up(ROOT_ID, "f").is_ok());
    guest.server.load(State { session: Some(37), nodes: vec![node(1, "gone")], ..State::default() });
    assert_eq!(guest.attributes(ROOT_ID).unwrap_err(), Errno::STALE, "a root that is not one");
    guest.server.load(State { session: Some(37), ..State::default() });
    assert!(!guest.server.is_mounted());
}

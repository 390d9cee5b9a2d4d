//! Each operation does to the host's files what its name says.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;
use crate::wire::set;

const CREATE: u32 = 0o100;
const EXCL: u32 = 0o200;
const TRUNC: u32 = 0o1000;
const APPEND: u32 = 0o2000;
const RDWR: u32 = 2;

#[test]
fn a_file_is_made_written_and_read() {
    let place = Place::new();
    let mut guest = Guest::new(&place);
    let (file, handle) = guest.create(ROOT_ID, "f", RDWR | CREATE | EXCL, 0o100_640).expect("created");
    assert_eq!((file.mode, file.size, file.links), (0o100_640, 0, 1));
    assert_eq!(guest.write(file.node, handle, 0, b"hello world"), Ok(11));
    assert_eq!(guest.write(file.node, handle, 6, b"there"), Ok(5));
    assert_eq!(guest.read(file.node, handle, 3, 100).expect("read"), b"lo there");
    assert_eq!(guest.read(file.node, handle, 11, 100).expect("read"), b"");
    assert_eq!(guest.attributes(file.node).expect("there").size, 11);
    assert_eq!(content(place.at("f")), b"hello there");
    let sync = [longs(&[handle]), words(&[1, 0])].concat();
    guest.ask(opcode::FSYNC, file.node, &sync).expect("synced");
    guest.ask(opcode::RELEASE, file.node, &[longs(&[handle]), vec![0; 16]].concat()).expect("closed");
    assert_eq!(guest.read(file.node, handle, 0, 1), Err(Errno::BADF));
    // Exclusive, or what is there.
    assert_eq!(guest.create(ROOT_ID, "f", RDWR | CREATE | EXCL, 0o644).unwrap_err(), Errno::EXIST);
    let (again, handle) = guest.create(ROOT_ID, "f", RDWR | CREATE, 0o600).expect("opened");
    assert_eq!((again.node, again.mode, again.size), (file.node, 0o100_640, 11));
    assert_eq!(guest.read(file.node, handle, 0, 5).expect("read"), b"hello");
    guest.open(file.node, RDWR | TRUNC).expect("opened");
    assert_eq!(content(place.at("f")), b"");
}

#[test]
fn what_is_appended_goes_to_the_end_and_what_is_mapped_to_its_place() {
    let place = Place::new();
    fs::write(place.at("log"), b"one ").expect("written");
    let mut guest = Guest::new(&place);
    let file = guest.look_up(ROOT_ID, "log").expect("there");
    let handle = guest.open(file.node, RDWR | APPEND).expect("opened");
    // The host was faster.
    fs::write(place.at("log"), b"one two ").expect("written");
    assert_eq!(guest.write_with(file.node, handle, 4, b"three", 0, RDWR | APPEND), Ok(5));
    assert_eq!(guest.write_with(file.node, handle, 0, b"ONE", 1, RDWR | APPEND), Ok(3));
    assert_eq!(content(place.at("log")), b"ONE two three");
}

#[test]
fn attributes_are_set() {
    let place = Place::new();
    fs::write(place.at("f"), b"0123456789").expect("written");
    let mut guest = Guest::new(&place);
    let file = guest.look_up(ROOT_ID, "f").expect("there");
    let (valid, time) = (set::MODE | set::SIZE | set::ATIME | set::MTIME, (1_000_000_000, 123_456_789));
    let wanted = Set { valid, size: 4, mode: 0o751, atime: (5, 6), mtime: time, ..Set::default() };
    let found = guest.set_attributes(file.node, &wanted).expect("set");
    assert_eq!((found.mode, found.size, found.mtime), (0o100_751, 4, time));
    let host = fs::metadata(place.at("f")).expect("there");
    assert_eq!((host.mode(), host.atime(), host.atime_nsec(), host.mtime()), (0o100_751, 5, 6, 1_000_000_000));
    // Now, and by an open file that nobody may open any more.
    let handle = guest.open(file.node, RDWR).expect("opened");
    let wanted =
        Set { valid: set::MTIME | set::MTIME_NOW | set::SIZE | set::HANDLE, handle, size: 20, ..Set::default() };
    let found = guest.set_attributes(file.node, &wanted).expect("set");
    assert!(found.size == 20 && found.mtime.0 > 1_700_000_000, "{found:?}");
    let huge = Set { valid: set::SIZE, size: u64::MAX, ..Set::default() };
    assert_eq!(guest.set_attributes(file.node, &huge).unwrap_err(), Errno::FBIG);
    // A write by somebody without rights takes set-user-id away.
    fs::set_permissions(place.at("f"), fs::Permissions::from_mode(0o6755)).expect("set");
    guest.write_with(file.node, handle, 0, b"x", crate::wire::WRITE_KILL_SUIDGID, RDWR).expect("written");
    assert_eq!(fs::metadata(place.at("f")).expect("there").mode() & 0o7777, 0o755);
}

#[test]
fn directories_links_and_other_nodes_are_made_and_removed() {
    let place = Place::new();
    let mut guest = Guest::new(&place);
    let directory = guest.make_directory(ROOT_ID, "d", 0o1777).expect("made");
    assert_eq!((directory.mode, fs::metadata(place.at("d")).expect("there").mode()), (0o41_777, 0o41_777));
    let link = guest.symlink(directory.node, "l", "/etc/passwd").expect("made");
    assert_eq!(guest.ask(opcode::READLINK, link.node, &[]).expect("read"), b"/etc/passwd");
    assert_eq!(fs::read_link(place.at("d/l")).expect("a link").to_str(), Some("/etc/passwd"));
    for (name, mode) in [("fifo", 0o010_622), ("socket", 0o140_755), ("file", 0o100_604)] {
        let made = guest.ask(opcode::MKNOD, directory.node, &[words(&[mode, 0, 0, 0]), text(name)].concat());
        assert_eq!(entry(&made.expect("made")).mode, mode, "{name}");
    }
    assert!(fs::metadata(place.at("d/fifo")).expect("there").file_type().is_fifo());
    for (mode, number) in [(0o060_666, 0x800), (0o020_666, 0x103), (0o040_755, 0)] {
        let body = [words(&[mode, number, 0, 0]), text("dev")].concat();
        assert_eq!(guest.ask(opcode::MKNOD, directory.node, &body), Err(Errno::PERM), "{mode:o}");
    }
    let file = guest.look_up(directory.node, "file").expect("there");
    let body = [longs(&[file.node]), text("second")].concat();
    let second = entry(&guest.ask(opcode::LINK, ROOT_ID, &body).expect("linked"));
    assert_eq!((second.node, second.links), (file.node, 2));
    guest.unlink(directory.node, "file").expect("removed");
    assert_eq!(guest.attributes(file.node).expect("there").links, 1);
    assert_eq!(guest.unlink(ROOT_ID, "d"), Err(Errno::ISDIR));
    assert_eq!(guest.ask(opcode::RMDIR, ROOT_ID, &text("d")), Err(Errno::NOTEMPTY));
    for name in ["l", "fifo", "socket"] {
        guest.unlink(directory.node, name).expect("removed");
    }
    guest.ask(opcode::RMDIR, ROOT_ID, &text("d")).expect("removed");
    assert_eq!(guest.look_up(ROOT_ID, "d").unwrap_err(), Errno::NOENT);
    assert_eq!(guest.attributes(directory.node).expect("known while it is not forgotten").links, 0);
}

#[test]
fn names_are_moved_and_exchanged() {
    const NOREPLACE: u32 = 1;
    const EXCHANGE: u32 = 2;
    let place = Place::new();
    fs::create_dir(place.at("d")).expect("made");
    fs::write(place.at("a"), b"a").expect("written");
    fs::write(place.at("b"), b"b").expect("written");
    let mut guest = Guest::new(&place);
    let directory = guest.look_up(ROOT_ID, "d").expect("there").node;
    let file = guest.look_up(ROOT_ID, "a").expect("there").node;
    assert_eq!(guest.rename((ROOT_ID, "a"), (ROOT_ID, "b"), NOREPLACE), Err(Errno::EXIST));
    guest.rename((ROOT_ID, "a"), (ROOT_ID, "b"), EXCHANGE).expect("exchanged");
    assert_eq!((content(place.at("a")), content(place.at("b"))), (b"b".to_vec(), b"a".to_vec()));
    guest.rename((ROOT_ID, "b"), (directory, "c"), 0).expect("moved");
    assert_eq!(guest.look_up(directory, "c").expect("there").node, file);
    assert_eq!(guest.rename((ROOT_ID, "a"), (ROOT_ID, "b"), 4), Err(Errno::INVAL));
    let body = [longs(&[ROOT_ID]), text("c"), text("a")].concat();
    guest.ask(opcode::RENAME, directory, &body).expect("moved over");
    assert_eq!(content(place.at("a")), b"a");
}

#[test]
fn a_directory_is_listed_in_pieces_of_any_size() {
    let place = Place::new();
    fs::create_dir(place.at("d")).expect("made");
    let mut names: Vec<String> = (0..300).map(|number| format!("d/{}{number}", "n".repeat(number % 200))).collect();
    names.iter().for_each(|name| fs::write(place.at(name), b"").expect("written"));
    names.extend(["d/.".into(), "d/..".into()]);
    names.sort();
    let mut guest = Guest::new(&place);
    let node = guest.look_up(ROOT_ID, "d").expect("there").node;
    for (plus, size) in [(false, 512), (false, 1 << 17), (true, 512), (true, 4096), (true, 1 << 20)] {
        let mut list = guest.list(node, plus, size).expect("listed");
        list.sort();
        let found: Vec<String> = list.iter().map(|(name, ..)| format!("d/{name}")).collect();
        assert_eq!(found, names, "{plus} {size}");
        for (name, inode, kind, own) in list {
            let dots = name.starts_with('.');
            assert_eq!((kind, own != 0), (if dots { 4 } else { 8 }, plus && !dots), "{name}");
            if own != 0 {
                assert_eq!(guest.attributes(own).expect("known").inode, inode);
            }
        }
    }
    // Too small for any, which must not look like the end.
    assert_eq!(guest.list(node, true, 100).unwrap_err(), Errno::INVAL);
    // What is above the root is nobody's business.
    let root = guest.attributes(ROOT_ID).expect("there").inode;
    let list = guest.list(ROOT_ID, false, 4096).expect("listed");
    assert!(list.iter().any(|(name, inode, ..)| name == ".." && *inode == root), "{list:?}");
}

#[test]
fn extended_attributes_of_users_are_there_and_those_of_the_host_are_not() {
    let place = Place::new();
    fs::write(place.at("f"), b"").expect("written");
    let mut guest = Guest::new(&place);
    let node = guest.look_up(ROOT_ID, "f").expect("there").node;
    let put = |guest: &mut Guest, name: &str, value: &[u8], flags: u32| {
        let size = u32::try_from(value.len()).expect("short");
        guest.ask(opcode::SETXATTR, node, &[words(&[size, flags]), text(name), value.to_vec()].concat())
    };
    let get = |guest: &mut Guest, name: &str, size: u32| {
        guest.ask(opcode::GETXATTR, node, &[words(&[size, 0]), text(name)].concat())
    };
    match put(&mut guest, "user.a", b"value", 0) {
        // A tmpfs of an older host has none.
        Err(Errno::OPNOTSUPP) => return,
        done => done.expect("set"),
    };
    assert_eq!(put(&mut guest, "user.a", b"x", 1), Err(Errno::EXIST));
    assert_eq!(get(&mut guest, "user.a", 100).expect("there"), b"value");
    assert_eq!(get(&mut guest, "user.a", 0).expect("there"), words(&[5, 0]));
    assert_eq!(get(&mut guest, "user.a", 4), Err(Errno::RANGE));
    assert_eq!(get(&mut guest, "user.b", 100), Err(Errno::NODATA));
    for name in ["security.selinux", "system.posix_acl_access", "security.ima"] {
        assert_eq!(put(&mut guest, name, b"x", 0), Err(Errno::OPNOTSUPP), "{name}");
        assert_eq!(get(&mut guest, name, 100), Err(Errno::OPNOTSUPP), "{name}");
    }
    put(&mut guest, "user.b", &[7; 300], 0).expect("set");
    let mut list = guest.ask(opcode::LISTXATTR, node, &words(&[1000, 0])).expect("listed");
    list.sort_unstable();
    let mut expected = b"user.a\0user.b\0".to_vec();
    expected.sort_unstable();
    assert_eq!(list, expected);
    assert_eq!(guest.ask(opcode::LISTXATTR, node, &words(&[0, 0])).expect("listed"), words(&[14, 0]));
    guest.ask(opcode::REMOVEXATTR, node, &text("user.a")).expect("removed");
    assert_eq!(get(&mut guest, "user.a", 100), Err(Errno::NODATA));
}

#[test]
fn holes_copies_and_room() {
    let place = Place::new();
    let mut guest = Guest::new(&place);
    let (file, handle) = guest.create(ROOT_ID, "f", RDWR | CREATE, 0o644).expect("created");
    let allocate = |guest: &mut Guest, offset: u64, length: u64, mode: u32| {
        guest.ask(opcode::FALLOCATE, file.node, &[longs(&[handle, offset, length]), words(&[mode, 0])].concat())
    };
    allocate(&mut guest, 0, 1 << 20, 0).expect("reserved");
    assert_eq!(guest.attributes(file.node).expect("there").size, 1 << 20);
    assert_eq!(allocate(&mut guest, 0, 4096, 0x08), Err(Errno::OPNOTSUPP), "collapsing is not for guests");
    guest.write(file.node, handle, 1 << 19, &[1; 4096]).expect("written");
    allocate(&mut guest, 0, 1 << 19, 3).expect("a hole");
    let seek = |guest: &mut Guest, offset: u64, whence: u32| {
        guest.ask(opcode::LSEEK, file.node, &[longs(&[handle, offset]), words(&[whence, 0])].concat())
    };
    assert_eq!(seek(&mut guest, 0, 3).expect("data"), longs(&[1 << 19]));
    assert_eq!(seek(&mut guest, 0, 0), Err(Errno::INVAL));
    let (copy, to) = guest.create(ROOT_ID, "copy", RDWR | CREATE, 0o644).expect("created");
    let body = longs(&[handle, 1 << 19, copy.node, to, 0, 4096, 0]);
    match guest.ask(opcode::COPY_FILE_RANGE, file.node, &body) {
        // Not every file system of a host can.
        Err(Errno::XDEV | Errno::OPNOTSUPP) => {}
        done => {
            assert_eq!(done.expect("copied"), words(&[4096, 0]));
            assert_eq!(content(place.at("copy")), [1; 4096]);
        }
    }
    let room = guest.ask(opcode::STATFS, ROOT_ID, &[]).expect("told");
    assert!(room.len() == 80 && long(&room, 0) > 0 && word(&room, 44) == 255, "{room:?}");
    match guest.ask(opcode::TMPFILE, ROOT_ID, &[words(&[RDWR, 0o600, 0, 0]), text("x")].concat()) {
        Err(Errno::OPNOTSUPP) => {}
        done => {
            let made = done.expect("made");
            let (nameless, handle) = (entry(&made), long(&made, 128));
            guest.write(nameless.node, handle, 0, b"later named").expect("written");
            let body = [longs(&[nameless.node]), text("named")].concat();
            guest.ask(opcode::LINK, ROOT_ID, &body).expect("named");
            assert_eq!(content(place.at("named")), b"later named");
        }
    }
}

#[test]
fn what_a_user_of_the_guest_makes_is_that_users_when_the_host_is_root() {
    if !is_root() {
        println!("SKIP: only root can give files away");
        return;
    }
    let place = Place::new();
    fs::create_dir(place.at("group")).expect("made");
    std::os::unix::fs::chown(place.at("group"), Some(0), Some(44)).expect("given");
    fs::set_permissions(place.at("group"), fs::Permissions::from_mode(0o2777)).expect("set");
    let mut guest = Guest::new(&place);
    guest.user = (1000, 100);
    assert_eq!(guest.create(ROOT_ID, "f", RDWR | CREATE, 0o104_711).expect("made").0.owner, (1000, 100));
    assert_eq!(fs::metadata(place.at("f")).expect("there").mode(), 0o104_711, "set-user-id stays");
    assert_eq!(guest.make_directory(ROOT_ID, "d", 0o700).expect("made").owner, (1000, 100));
    assert_eq!(guest.symlink(ROOT_ID, "l", "x").expect("made").owner, (1000, 100));
    let group = guest.look_up(ROOT_ID, "group").expect("there").node;
    assert_eq!(guest.make_directory(group, "d", 0o700).expect("made").owner, (1000, 44));
    guest.user = (0, 0);
    let file = guest.look_up(ROOT_ID, "f").expect("there").node;
    let wanted = Set { valid: set::UID | set::GID, owner: (7, 8), ..Set::default() };
    assert_eq!(guest.set_attributes(file, &wanted).expect("given").owner, (7, 8));
}

#[test]
fn a_users_own_files_are_the_guests_roots_and_no_others() {
    let place = Place::new();
    fs::write(place.at("own"), b"").expect("written");
    let own = fs::metadata(place.at("own")).expect("there");
    let mut guest = Guest::with(&place, false, Owners::Mine { uid: own.uid(), gid: own.gid() });
    guest.user = (1000, 1000);
    let made = guest.make_directory(ROOT_ID, "made", 0o755).expect("made");
    assert_eq!(made.owner, (0, 0));
    let file = guest.look_up(ROOT_ID, "own").expect("there").node;
    let set = |owner| Set { valid: set::UID | set::GID, owner, ..Set::default() };
    assert_eq!(guest.set_attributes(file, &set((0, 0))).expect("no change").owner, (0, 0));
    assert_eq!(guest.set_attributes(file, &set((1000, 0))).unwrap_err(), Errno::PERM);
    assert_eq!(guest.set_attributes(file, &set((0, 1000))).unwrap_err(), Errno::PERM);
    let others = Owners::Mine { uid: own.uid() + 1, gid: own.gid() };
    let mut guest = Guest::with(&place, false, others);
    assert_eq!(guest.look_up(ROOT_ID, "own").expect("there").owner, (65534, 0));
}

#[test]
fn what_the_host_changes_is_seen() {
    let place = Place::new();
    let mut guest = Guest::new(&place);
    assert_eq!(guest.look_up(ROOT_ID, "f").unwrap_err(), Errno::NOENT);
    fs::write(place.at("f"), b"1").expect("written");
    let first = guest.look_up(ROOT_ID, "f").expect("there");
    fs::write(place.at("new"), b"another").expect("written");
    fs::rename(place.at("new"), place.at("f")).expect("replaced");
    let second = guest.look_up(ROOT_ID, "f").expect("there");
    assert!(second.node != first.node && second.size == 7);
    // The first one is still what it was, without a name.
    let handle = guest.open(first.node, 0).expect("opened");
    assert_eq!(guest.read(first.node, handle, 0, 10).expect("read"), b"1");
    assert_eq!(guest.attributes(first.node).expect("there").links, 0);
}

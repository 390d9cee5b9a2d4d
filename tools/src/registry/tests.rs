//! The registry with real processes that hold real locks.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::geteuid;

use super::testing::{DEAF, GENTLE, Holder, LIMIT, Scratch, machine, spawning, until_dead};
use super::{Entry, Process, Registry, State, What};

fn names(registry: &Registry) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(registry.path())
        .map(|dir| dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    names.retain(|name| name != ".lock");
    names.sort();
    names
}

/// The directories that a gc says it removed.
fn collected(registry: &Registry, dry_run: bool) -> Vec<String> {
    let removed = registry.gc(dry_run).unwrap();
    let mut ids: Vec<String> =
        removed.into_iter().filter(|one| matches!(one.what, What::Directory(..))).map(|one| one.id).collect();
    ids.sort();
    ids
}

#[test]
fn a_life() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    assert!(registry.list().unwrap().is_empty() && registry.gc(false).unwrap().is_empty());
    assert!(!registry.path().exists(), "looking makes nothing");
    let (id, holder) = machine(&registry, Some("web/1"), GENTLE);
    assert_eq!(names(&registry), [id.as_str()]);
    for key in ["web/1", &id, &holder.0.id().to_string()] {
        let vm = registry.find(key).unwrap();
        assert_eq!((vm.id.as_str(), &vm.state, vm.label()), (id.as_str(), &State::Alive, "web/1"));
        assert_eq!(vm.process(), Some(holder.process()));
        assert_eq!(vm.resident().unwrap().0, holder.0.id());
    }
    assert!(collected(&registry, false).is_empty());
    assert!(!registry.remove(&registry.find(&id).unwrap()).unwrap());
    let vm = registry.find("web/1").unwrap();
    assert!(!vm.wait_dead(Duration::ZERO));
    drop(holder);
    assert!(vm.wait_dead(LIMIT));
    let error = registry.find("web/1").unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        ("REGISTRY_VM_NOT_FOUND", "machine \"web/1\": it has ended")
    );
    let vm = registry.find_any("web/1").unwrap();
    assert!(!vm.is_alive() && vm.process().is_none() && vm.state != State::Alive);
    assert_eq!(collected(&registry, true), [id.as_str()]);
    assert_eq!(names(&registry), [id.as_str()]);
    assert_eq!(collected(&registry, false), [id.as_str()]);
    assert!(names(&registry).is_empty() && registry.find_any(&id).is_err());
}

#[test]
fn a_name_belongs_to_one_that_is_alive() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let (_, holder) = machine(&registry, Some("n"), GENTLE);
    let error = registry.create(Some("n")).unwrap_err();
    assert_eq!(error.code(), "REGISTRY_NAME_TAKEN");
    assert!(error.to_string().contains(&format!("process {}", holder.0.id())), "{error}");
    assert_eq!(registry.create(Some("a/../b")).unwrap_err().code(), "REGISTRY_NAME_INVALID");
    drop(holder);
    until_dead(&registry, &[]);
    // Free although nobody has collected the dead one, and the one that lives is found.
    let claim = registry.create(Some("n")).unwrap();
    assert_eq!(registry.find("n").unwrap().id, claim.id);
    assert_eq!(registry.find_any("n").unwrap().id, claim.id);
    assert_eq!(registry.list().unwrap().len(), 2);
    let id = claim.id.clone();
    drop(claim);
    assert!(registry.list().unwrap().iter().all(|vm| vm.id != id), "a claim that is dropped leaves nothing");
}

#[test]
fn of_many_who_want_a_name_one_gets_it() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    for round in 0..20 {
        let name = format!("race/{round}x");
        let claims: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| registry.create(Some(&name)))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let refused = claims.iter().filter_map(|claim| claim.as_ref().err());
        assert!(refused.clone().all(|error| error.code() == "REGISTRY_NAME_TAKEN"));
        assert_eq!(refused.count(), 15);
    }
    assert!(names(&registry).is_empty());
}

#[test]
fn the_entry_is_the_claims_whatever_it_says() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let claim = registry.create(Some("mine")).unwrap();
    let mut entry = Entry::new();
    (entry.name, entry.id, entry.image) = (Some("other".into()), "x".into(), "i".into());
    claim.write(&entry).unwrap();
    let vm = registry.find("mine").unwrap();
    assert_eq!((vm.entry.id.as_str(), vm.entry.image.as_str()), (claim.id.as_str(), "i"));
    assert_eq!(fs::metadata(&claim.dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(claim.dir.join("vm.json")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_lent_lock_is_held_by_the_child() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let claim = registry.create(None).unwrap();
    let mut command = Command::new("cat");
    let holder = {
        let _alone = spawning();
        Holder(claim.lend(|| command.stdin(Stdio::piped()).spawn()).unwrap())
    };
    let id = claim.id.clone();
    drop(claim.keep().unwrap());
    // The tool died before it wrote down the process.
    let vm = registry.find(&id).unwrap();
    assert_eq!(vm.entry.pid, None);
    assert_eq!(vm.process(), Some(holder.process()));
    assert_eq!(registry.find(&holder.0.id().to_string()).unwrap().id, id);
    assert!(vm.kill(LIMIT).unwrap());
    assert!(registry.find(&id).is_err());
}

#[test]
fn killed_gently_or_not() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    for (script, gently, limit) in [(GENTLE, true, LIMIT), (DEAF, false, Duration::from_millis(50))] {
        let (id, mut holder) = machine(&registry, None, script);
        let vm = registry.find(&id).unwrap();
        assert_eq!(vm.kill(limit).unwrap(), gently);
        assert!(holder.0.wait().unwrap().code().is_none());
        assert!(vm.kill(limit).unwrap(), "a dead one is dead");
        assert!(registry.remove(&vm).unwrap() && !registry.remove(&vm).unwrap());
    }
    assert!(names(&registry).is_empty());
}

#[test]
fn a_number_alone_is_no_process() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let bystander = machine(&registry, Some("bystander"), GENTLE);
    let claim = registry.create(Some("n")).unwrap();
    let holder = Holder::new(&claim, GENTLE);
    // The bystander's number and start: a coherent lie, but it does not hold the lock.
    let mut entry = Entry::new();
    entry.set_process(bystander.1.process());
    claim.write(&entry).unwrap();
    drop(claim.keep().unwrap());
    let vm = registry.find("n").unwrap();
    assert_eq!(vm.process(), Some(holder.process()));
    assert!(vm.kill(LIMIT).unwrap());
    assert_eq!(bystander.1.process().now(), super::process::Now::Same);
}

#[test]
fn a_recycled_number_is_seen() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let claim = registry.create(Some("n")).unwrap();
    let own = Process::of(std::process::id()).unwrap();
    let mut entry = Entry::new();
    entry.set_process(own);
    entry.start_time += 1;
    entry.helpers = vec![Process { start_time: own.start_time + 1, ..own }];
    claim.write(&entry).unwrap();
    // Alive by its lock, which this process holds; but not as the one that the entry means.
    assert_ne!(registry.find("n").unwrap().process(), Some(own));
    drop(claim.keep().unwrap());
    until_dead(&registry, &[]);
    let vm = registry.find_any("n").unwrap();
    assert_eq!(vm.state, State::Recycled);
    assert!(vm.helpers().is_empty() && vm.end_helpers().is_empty());
    assert!(vm.kill(Duration::ZERO).unwrap(), "and this process lives on");
}

#[test]
fn helpers_end_with_their_machine() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let mut helper = {
        let _alone = spawning();
        Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
    };
    let process = Process::of(helper.id()).unwrap();
    let claim = registry.create(Some("n")).unwrap();
    let mut entry = Entry::new();
    entry.helpers = vec![process];
    claim.write(&entry).unwrap();
    drop(claim.keep().unwrap());
    until_dead(&registry, &[]);
    let of_helpers = |dry_run| -> Vec<Process> {
        let removed = registry.gc(dry_run).unwrap().into_iter();
        removed.filter_map(|one| if let What::Helper(process, _) = one.what { Some(process) } else { None }).collect()
    };
    assert_eq!(of_helpers(true), [process]);
    assert_eq!(process.now(), super::process::Now::Same);
    assert_eq!(of_helpers(false), [process]);
    helper.wait().unwrap();
    assert!(names(&registry).is_empty());
}

#[test]
fn entries_that_cannot_be_read() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let (id, holder) = machine(&registry, Some("n"), GENTLE);
    let file = registry.path().join(&id).join("vm.json");
    let whole = fs::read(&file).unwrap();
    for content in [&b""[..], &whole[..whole.len() / 2], b"\xff\xfe", b"null", &vec![b' '; 2 << 20]] {
        fs::write(&file, content).unwrap();
        let vm = registry.find(&id).unwrap();
        assert!(vm.is_alive() && matches!(vm.state, State::Unreadable(_)), "{:?}", vm.state);
        assert_eq!(vm.process(), Some(holder.process()));
    }
    for replace in [":", "mkdir $1", "mkfifo $1", "ln -s /etc/passwd $1"] {
        let script = format!("rm -rf $1; {replace}");
        assert!(Command::new("sh").args(["-ec", &script, "sh"]).arg(&file).status().unwrap().success());
        assert!(matches!(registry.find(&id).unwrap().state, State::Unreadable(_)), "{replace}");
    }
    assert!(collected(&registry, false).is_empty());
    drop(holder);
    until_dead(&registry, &[]);
    assert_eq!(collected(&registry, false), [id.as_str()]);
    assert!(fs::metadata("/etc/passwd").is_ok());
}

#[test]
fn newer_entries_are_shown_and_not_touched() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let (id, holder) = machine(&registry, Some("n"), GENTLE);
    let file = registry.path().join(&id).join("vm.json");
    let text = fs::read_to_string(&file).unwrap().replace("\"version\": 1", "\"version\": 2, \"new\": {}");
    fs::write(&file, &text).unwrap();
    assert_eq!(registry.create(Some("n")).unwrap_err().code(), "REGISTRY_NAME_TAKEN");
    drop(holder);
    until_dead(&registry, &[]);
    let vm = registry.find_any("n").unwrap();
    assert!(vm.entry.is_newer() && !vm.is_alive());
    assert!(collected(&registry, false).is_empty() && !registry.remove(&vm).unwrap());
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn what_a_kill_at_any_step_leaves_is_collected() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let (alive, holder) = machine(&registry, Some("alive"), GENTLE);
    let states = [
        ("no lock", "mkdir .new-abcdefghij"),
        ("no entry", "mkdir .new-abcdefghij; touch .new-abcdefghij/lock"),
        ("half an entry", "mkdir .new-abcdefghij; cd .new-abcdefghij; touch lock; echo { >.vm.json.new"),
        ("no name", "mkdir .new-abcdefghij; cd .new-abcdefghij; touch lock; echo '{\"version\":1}' >vm.json"),
        ("named", "mkdir abcdefghij; cd abcdefghij; touch lock; echo '{\"version\":1}' >vm.json"),
        ("half rewritten", "mkdir abcdefghij; cd abcdefghij; touch lock vm.json .vm.json.new"),
        ("half removed", "mkdir .del-abcdefghij; touch .del-abcdefghij/boot.log"),
        ("nothing left", "mkdir .del-abcdefghij"),
        ("lock removed", "mkdir -p abcdefghij/d; ln -s / abcdefghij/d/l; touch abcdefghij/vm.json"),
    ];
    for (state, script) in states {
        let run = |script| Command::new("sh").args(["-ec", script]).current_dir(registry.path()).status();
        assert!(run(script).unwrap().success());
        assert!(registry.list().unwrap().iter().all(|vm| vm.is_alive() == (vm.id == alive)), "{state}");
        assert!(registry.create(Some("again")).is_ok(), "{state}");
        assert_eq!(collected(&registry, true), ["abcdefghij"], "{state}");
        assert_eq!(collected(&registry, false), ["abcdefghij"], "{state}");
        assert_eq!(names(&registry), [alive.as_str()], "{state}");
    }
    drop(holder);
}

#[test]
fn what_is_not_ours_stays() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    drop(registry.create(None).unwrap());
    let dir = registry.path();
    fs::write(dir.join("notes"), "").unwrap();
    fs::write(dir.join("abcdefghij"), "a file of a machine's name").unwrap();
    fs::create_dir_all(dir.join("photos/abcdefghij")).unwrap();
    fs::create_dir(dir.join(".new-x")).unwrap();
    fs::create_dir(scratch.path().join("elsewhere")).unwrap();
    symlink(scratch.path().join("elsewhere"), dir.join("bcdefghija")).unwrap();
    fs::write(scratch.path().join("elsewhere/lock"), "").unwrap();
    let before = names(&registry);
    assert!(collected(&registry, false).is_empty());
    assert_eq!(names(&registry), before);
    assert!(scratch.path().join("elsewhere/lock").exists());
}

#[test]
fn collectors_and_makers_at_once() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let made = std::thread::scope(|scope| {
        let maker = |number: usize| {
            let registry = &registry;
            move || -> Vec<String> {
                let keep = |round| {
                    let claim = registry.create(Some(&format!("m{number}/{round}"))).unwrap();
                    let id = claim.id.clone();
                    assert!(registry.find(&id).unwrap().is_alive());
                    // Dead from here on.
                    drop(claim.keep().unwrap());
                    id
                };
                (0..50).map(keep).collect()
            }
        };
        let makers: Vec<_> = (0..4).map(|number| scope.spawn(maker(number))).collect();
        let collectors: Vec<_> =
            (0..2).map(|_| scope.spawn(|| (0..50).flat_map(|_| collected(&registry, false)).collect())).collect();
        let mut collected: Vec<String> =
            collectors.into_iter().flat_map(|thread| -> Vec<String> { thread.join().unwrap() }).collect();
        let mut made: Vec<String> = makers.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        until_dead(&registry, &[]);
        collected.extend(super::tests::collected(&registry, false));
        collected.sort();
        made.sort();
        assert_eq!(collected, made, "each is collected once");
        made
    });
    assert_eq!(made.len(), 200);
    assert!(names(&registry).is_empty());
}

#[test]
fn a_registry_that_cannot_be_written() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let (id, _holder) = machine(&registry, Some("n"), GENTLE);
    let mode = |mode| fs::set_permissions(registry.path(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o500);
    assert_eq!(registry.find("n").unwrap().id, id);
    assert!(registry.gc(true).unwrap().is_empty());
    let refused = registry.create(Some("m"));
    mode(0o700);
    if geteuid().is_root() {
        println!("SKIP: root writes anywhere");
        return;
    }
    let error = refused.unwrap_err();
    assert_eq!(error.code(), "REGISTRY_DIRECTORY");
    assert!(error.what_to_do().unwrap().contains("MACHINEN_REGISTRY_DIR"));
}

#[test]
fn near_names_are_offered() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let hint = |key: &str| registry.find(key).unwrap_err().what_to_do().unwrap().to_owned();
    assert_eq!(hint("web"), "none is running: machinen run starts one");
    let _web = machine(&registry, Some("web-1"), GENTLE);
    let _db = machine(&registry, Some("db"), GENTLE);
    assert_eq!(hint("web-2"), "is it web-1?");
    assert_eq!(hint("other"), "machinen ls lists those that are there");
}

#[test]
fn reclaimed_bytes_are_the_monitors() {
    let scratch = Scratch::new();
    let registry = scratch.registry();
    let claim = registry.create(None).unwrap();
    let vm = registry.find(&claim.id).unwrap();
    assert_eq!(vm.reclaimed(), None);
    let stats = claim.dir.join("stats");
    fs::write(&stats, [1, 0, 0]).unwrap();
    assert_eq!(vm.reclaimed(), None);
    fs::write(&stats, [4096_u64, 2, 0].map(u64::to_le_bytes).as_flattened()).unwrap();
    assert_eq!(vm.reclaimed(), Some(4098));
}

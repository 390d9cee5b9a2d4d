//! fork: names, ports, the bundle between the two, connections that go on.

#![forbid(unsafe_code)]

use machinen_tests::bundles::{SERVER, TALK, find, free_port, get, listed, no_machine_is_left};
use machinen_tests::cli::Cli;
use machinen_tests::monitor::wait_until;
use machinen_tests::session::Session;
use serde_json::json;

#[test]
fn a_copy_has_a_name_and_ports_of_its_own() {
    let cli = Cli::of_debian();
    let bundle = cli.path("bundle");
    let dir = bundle.to_str().unwrap();
    let [first, second, third] = [(); 3].map(|()| free_port());
    let publish = |port: u16| format!("{port}:8000");
    let started = cli.run(&["-d", "--name", "web", "-p", &publish(first)], &["python3", "-c", SERVER]).finish();
    assert_eq!((started.code(), started.printed()), (0, "web\n".into()));
    wait_until("it serves", || get(first).is_some());
    let served: u32 = get(first).unwrap().parse().unwrap();

    let flags = ["-d", "--name", "copy", "-p", &publish(second), "--out", dir, "web"];
    let forked = cli.tool("fork", &flags).finish();
    assert_eq!((forked.code(), forked.printed()), (0, "copy\n".into()));
    let next = Some((served + 1).to_string());
    wait_until("the copy serves", || get(second) == next);
    assert_eq!(get(first), next);
    let copy = listed(&cli, "copy");
    assert_eq!((&copy["forked_from"], copy["ports"].as_array().unwrap().len()), (&json!("web"), 1), "{copy}");
    assert!(copy["ports"][0].as_str().unwrap().contains(&publish(second)), "{copy}");

    // The source's port is nobody else's, and a name is one machine's.
    for (flags, code) in [
        (["-d", "-p", &publish(first), "web"], "NET_PORT_TAKEN"),
        (["-d", "--name", "copy", "web"], "REGISTRY_NAME_TAKEN"),
    ] {
        let refused = cli.tool("fork", &flags).finish();
        assert_eq!(refused.code(), 125, "{}", refused.printed());
        assert!(refused.printed().contains(code), "{}", refused.printed());
    }
    let again = cli.tool("fork", &["-d", "--out", dir, "web"]).finish();
    assert!(again.code() == 125 && again.printed().contains("it is not empty"), "{}", again.printed());

    // Without -p it has none, and a copy of a copy knows where it comes from.
    let forked = cli.tool("fork", &["-d", "copy"]).finish();
    assert_eq!(forked.code(), 0, "{}", forked.printed());
    let name = forked.printed().trim_end().to_owned();
    assert!(name.strip_prefix("copy/").is_some_and(|pid| pid.parse::<u32>().is_ok()), "{name}");
    let of_copy = listed(&cli, &name);
    assert_eq!((&of_copy["forked_from"], &of_copy["ports"]), (&json!("copy"), &json!([])), "{of_copy}");
    assert_eq!(of_copy["lineage"], json!(["copy", "web"]), "{of_copy}");

    for name in ["web", "copy", &name] {
        assert_eq!(cli.tool("stop", &["-t", "0", name]).finish().code(), 0);
    }
    // The bundle between the two is one like any other.
    let restored = cli.tool("restore", &["-d", "--name", "web", "-p", &publish(third), dir]).finish();
    assert_eq!((restored.code(), restored.printed()), (0, "web\n".into()));
    wait_until("it serves", || get(third) == next);
    assert_eq!(cli.tool("stop", &["-t", "0", "web"]).finish().code(), 0);
    no_machine_is_left(&cli);
    assert_eq!(std::fs::read_dir(cli.path("cache/bundles")).unwrap().count(), 0);
}

#[test]
fn connections_go_on_in_both_where_that_is_wanted() {
    let cli = Cli::of_debian();
    cli.detach("talk", &["python3", "-c", TALK]);
    let mut logs = Session::on_pipes(cli.command("logs", &["-f", "talk"]));
    logs.expect("ready");
    let forked = cli.tool("fork", &["-d", "--tcp-keep", "--name", "kept", "talk"]).finish();
    assert_eq!((forked.code(), forked.printed()), (0, "kept\n".into()));
    let forked = cli.tool("fork", &["-d", "--name", "closed", "talk"]).finish();
    assert_eq!((forked.code(), forked.printed()), (0, "closed\n".into()));
    for name in ["talk", "kept"] {
        assert_eq!(cli.exec(name, &["touch", "/tmp/say"]).finish().code(), 0);
        let mut logs = Session::on_pipes(cli.command("logs", &["-f", name]));
        logs.expect("heard");
        assert_eq!(cli.tool("stop", &["-t", "0", name]).finish().code(), 0);
    }
    wait_until("the other copy has ended with its stream", || find(&cli, "closed").is_none());
    no_machine_is_left(&cli);
}

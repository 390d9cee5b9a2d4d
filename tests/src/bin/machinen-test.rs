//! `machinen-test`: runs the workspace's tests, each where it can run.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use machinen_tests::lab::Arch;
use machinen_tests::runner::discover::{self, Class, Executable};
use machinen_tests::runner::execute::{Setting, execute};
use machinen_tests::runner::inside;
use machinen_tests::runner::place::Place;
use machinen_tests::runner::record::{Line, Test};
use machinen_tests::runner::report::Report;

const USAGE: &str = "\
usage: machinen-test [OPTION]...

Builds and runs all tests of the workspace, on the host and, where its KVM does not do, in the lab.

  --filter TEXT      only tests whose `package::file name` contains the text
  --where host|lab   where tests run that need KVM (default: MACHINEN_TEST_WHERE, or what machinen-probe finds)
  --arch NAME        x86_64 or aarch64: for another one than this host's, tests that need KVM run in its lab, others not
  --limit SECONDS    kill a test after that time (default 120)
  --total SECONDS    tests in the lab that have not ended by then have failed (default 3600)
  --list             print the tests and do not run them
";

/// Tests at a time; the lab counts as one.
const PARALLEL: usize = 2;

struct Options {
    filter: String,
    arch: Arch,
    place: Option<Place>,
    limit: Duration,
    total: Duration,
    list: bool,
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let done = match args.next().as_deref() {
        Some("--help" | "-h") => {
            print!("{USAGE}");
            Ok(true)
        }
        Some("--inside") => inside::inside(Path::new(&args.next().unwrap_or_default())).map(|()| true),
        _ => parse(std::env::args().skip(1)).and_then(|options| run(&options)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("machinen-test: {message}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let forced = |word: &str| Place::forced(word).ok_or(format!("{word} is neither host nor lab"));
    let (limit, total) = (Duration::from_mins(2), Duration::from_hours(1));
    let mut options = Options { filter: String::new(), arch: Arch::OWN, place: None, limit, total, list: false };
    if let Some(word) = std::env::var("MACHINEN_TEST_WHERE").ok().filter(|word| !word.is_empty()) {
        options.place = Some(forced(&word)?);
    }
    while let Some(option) = args.next() {
        let mut value = || args.next().ok_or(format!("{option} needs a value"));
        match option.as_str() {
            "--list" => options.list = true,
            "--filter" => options.filter = value()?,
            "--arch" => {
                let name = value()?;
                options.arch = Arch::parse(&name).ok_or(format!("{name} is neither x86_64 nor aarch64"))?;
            }
            "--where" => options.place = Some(forced(&value()?)?),
            "--limit" | "--total" => {
                let seconds = value()?.parse().map_err(|_| format!("{option} needs a number of seconds"))?;
                let which = if option == "--limit" { &mut options.limit } else { &mut options.total };
                *which = Duration::from_secs(seconds);
            }
            _ => return Err(format!("unknown option {option}\n{}", USAGE.trim_end())),
        }
    }
    Ok(options)
}

/// Whether tests ran and none failed.
fn run(options: &Options) -> Result<bool, String> {
    let deadline = Instant::now() + options.total;
    let foreign = options.arch != Arch::OWN;
    let mut selected = Vec::new();
    for executable in discover::build(Arch::OWN, foreign)? {
        let mut tests = discover::tests(&executable)?;
        tests.retain(|test| test.to_string().contains(&options.filter));
        selected.push((executable, tests));
    }
    if foreign {
        // Only this host's executables can be asked for their tests here.
        let theirs = discover::build(options.arch, true)?;
        let same = |own: &Executable| theirs.iter().find(|executable| executable.label == own.label).cloned();
        selected = selected.into_iter().filter_map(|(own, tests)| Some((same(&own)?, tests))).collect();
    }
    selected.retain(|(_, tests)| !tests.is_empty());
    if selected.is_empty() {
        return Err(format!("no test has {:?} in its name; see machinen-test --list", options.filter));
    }
    if options.list {
        selected.iter().flat_map(|(_, tests)| tests).for_each(|test| println!("{test}"));
        return Ok(true);
    }

    let bin_dir = bin_dir(options.arch)?;
    let assets = options.arch.assets_dir();
    let setting = Setting { bin_dir: &bin_dir, assets: &assets, limit: options.limit, foreign };
    let needs_kvm = selected.iter().any(|(executable, _)| executable.class != Class::Host);
    let place = match &options.place {
        _ if foreign => Place::forced("lab"),
        Some(place) => Some(place.clone()),
        None if needs_kvm => Some(Place::probe(&bin_dir)?),
        None => None,
    };
    let count = selected.iter().map(|(_, tests)| tests.len()).sum();
    let report = Mutex::new(Report::new(count));
    let in_lab = |executable: &Executable| place.as_ref().is_some_and(|place| place.is_lab(executable.class));
    let (lab, host): (Vec<_>, Vec<_>) = selected.into_iter().partition(|(executable, _)| in_lab(executable));
    run_all(options.arch, &lab, host, &setting, deadline, &report);

    let report = report.into_inner().map_err(|_| "a thread of the runner panicked")?;
    report.finish();
    if let Some(place) = place.filter(|_| needs_kvm) {
        println!("{}", place.sentence());
    }
    print!("{}", report.summary());
    Ok(report.is_success())
}

fn run_all(
    arch: Arch,
    lab: &[(Executable, Vec<Test>)],
    host: Vec<(Executable, Vec<Test>)>,
    setting: &Setting,
    deadline: Instant,
    report: &Mutex<Report>,
) {
    let tell = |line| {
        if let Ok(mut report) = report.lock() {
            match line {
                Line::Started(test) => report.started(&test),
                Line::Ended(record) => report.ended(record),
            }
        }
    };
    let queue: VecDeque<(Executable, Test)> = host
        .into_iter()
        .flat_map(|(executable, tests)| tests.into_iter().map(move |test| (executable.clone(), test)))
        .collect();
    let queue = Mutex::new(queue);
    let work = || {
        while let Some((executable, test)) = queue.lock().ok().and_then(|mut queue| queue.pop_front()) {
            tell(Line::Started(test.clone()));
            tell(Line::Ended(execute(&executable.path, &executable.dir, test, setting)));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..PARALLEL {
            scope.spawn(work);
        }
        if !lab.is_empty() {
            inside::run(arch, lab, setting, deadline, &mut |line| tell(line));
        }
        work();
    });
}

/// The directory of the release programs: this program's own, or for another architecture the one beside its target's.
fn bin_dir(arch: Arch) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("cannot find the runner itself: {error}"))?;
    let own = own.parent().ok_or("the runner is nowhere")?;
    if arch == Arch::OWN {
        return Ok(own.to_owned());
    }
    let target = own.ancestors().nth(2).ok_or("the runner is in no target directory")?;
    Ok(target.join(arch.musl_target()).join("release"))
}

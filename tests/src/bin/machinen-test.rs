//! `machinen-test`: runs the workspace's tests, each where it can run.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use machinen_tests::lab::Arch;
use machinen_tests::runner::discover::{self, Class, Executable};
use machinen_tests::runner::elsewhere;
use machinen_tests::runner::execute::{Setting, execute};
use machinen_tests::runner::inside;
use machinen_tests::runner::place::Place;
use machinen_tests::runner::record::{Line, Record, Test, Verdict};
use machinen_tests::runner::report::Report;

const USAGE: &str = "\
usage: machinen-test [OPTION]...

Builds and runs all tests of the workspace, on the host and, where its KVM does not do, in the lab.

  --filter TEXT      only tests whose `package::file name` contains the text
  --where host|lab   where tests run that need KVM (default: MACHINEN_TEST_WHERE, or what machinen-probe finds)
  --arch NAME        x86_64 or aarch64 (default: this host's), repeatable: of another one than this host's, tests that need KVM
                     run in its lab, others not; beside this host's all in make soak, those of runner/elsewhere.rs otherwise
  --limit SECONDS    kill a test after that time (default 120)
  --total SECONDS    tests in the lab that have not ended by then have failed (default 3600)
  --list             print the tests and do not run them
";

struct Options {
    filter: String,
    archs: Vec<Arch>,
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
    let mut options = Options { filter: String::new(), archs: Vec::new(), place: None, limit, total, list: false };
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
                options.archs.push(Arch::parse(&name).ok_or(format!("{name} is neither x86_64 nor aarch64"))?);
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
    if options.archs.is_empty() {
        options.archs.push(Arch::OWN);
    }
    Ok(options)
}

/// Test executables with those of their tests that are to run.
type Selected = Vec<(Executable, Vec<Test>)>;

/// Whether tests ran and none failed.
fn run(options: &Options) -> Result<bool, String> {
    let deadline = Instant::now() + options.total;
    let foreign = options.archs.iter().copied().find(|arch| *arch != Arch::OWN);
    let has_own = options.archs.contains(&Arch::OWN);
    let mut own = Vec::new();
    for executable in discover::build(Arch::OWN, !has_own)? {
        let mut tests = discover::tests(&executable)?;
        tests.retain(|test| test.to_string().contains(&options.filter));
        own.push((executable, tests));
    }
    let (mut theirs, mut left) = (Vec::new(), Vec::new());
    if let Some(arch) = foreign {
        theirs = of_other(arch, &own)?;
        if has_own && !machinen_tests::soak() {
            for (_, tests) in &mut theirs {
                left.extend(tests.extract_if(.., |test| !elsewhere::is_chosen(test)));
            }
        }
    }
    if !has_own {
        own.clear();
    }
    for selected in [&mut own, &mut theirs] {
        selected.retain(|(_, tests)| !tests.is_empty());
    }
    if own.is_empty() && theirs.is_empty() && left.is_empty() {
        return Err(format!("no test has {:?} in its name; see machinen-test --list", options.filter));
    }
    if options.list {
        own.iter().flat_map(|(_, tests)| tests).for_each(|test| println!("{test}"));
        let prefix = foreign.filter(|_| has_own).map_or(String::new(), |arch| format!("{} ", arch.name()));
        theirs.iter().flat_map(|(_, tests)| tests).for_each(|test| println!("{prefix}{test}"));
        return Ok(true);
    }

    let needs_kvm = own.iter().any(|(executable, _)| executable.class != Class::Host);
    let place = match &options.place {
        Some(place) => Some(place.clone()),
        None if needs_kvm => Some(Place::probe(&bin_dir(Arch::OWN)?)?),
        None => None,
    };
    let count = own.iter().chain(&theirs).map(|(_, tests)| tests.len()).sum();
    let report = Mutex::new(Report::new(count));
    let in_lab = |executable: &Executable| place.as_ref().is_some_and(|place| place.is_lab(executable.class));
    let (lab, host): (Vec<_>, Vec<_>) = own.into_iter().partition(|(executable, _)| in_lab(executable));
    let labs = [(Arch::OWN, lab), (foreign.unwrap_or(Arch::OWN), theirs)];
    run_all(options, &labs, host, deadline, &report)?;

    let mut report = report.into_inner().map_err(|_| "a thread of the runner panicked")?;
    report.finish();
    if let Some(arch) = foreign {
        left.into_iter().for_each(|test| report.left_out(arch, test, "in make soak"));
    }
    if let Some(place) = place.filter(|_| needs_kvm) {
        println!("{}", place.sentence());
    }
    print!("{}", report.summary());
    Ok(report.is_success())
}

/// The same tests of another architecture. Only this host's executables can be asked for them here.
fn of_other(arch: Arch, own: &Selected) -> Result<Selected, String> {
    let theirs = discover::build(arch, true)?;
    let same = |own: &Executable| theirs.iter().find(|executable| executable.label == own.label).cloned();
    Ok(own.iter().filter_map(|(own, tests)| Some((same(own)?, tests.clone()))).collect())
}

/// Runs all: in the labs of this host's and of another architecture, and on the host.
fn run_all(
    options: &Options,
    labs: &[(Arch, Selected); 2],
    host: Selected,
    deadline: Instant,
    report: &Mutex<Report>,
) -> Result<(), String> {
    let dirs = [bin_dir(labs[0].0)?, bin_dir(labs[1].0)?];
    let assets = [labs[0].0.assets_dir(), labs[1].0.assets_dir()];
    let setting = |index: usize| {
        let foreign = labs[index].0 != Arch::OWN;
        Setting { bin_dir: &dirs[index], assets: &assets[index], limit: options.limit, foreign }
    };
    let tell = |arch: Arch, line| {
        if let Ok(mut report) = report.lock() {
            match line {
                Line::Started(test) => report.started(&test),
                Line::Ended(record) => report.ended(arch, known(arch, record)),
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
            tell(Arch::OWN, Line::Started(test.clone()));
            tell(Arch::OWN, Line::Ended(execute(&executable.path, &executable.dir, test, &setting(0))));
        }
    };
    let lab = |index: usize| {
        let (arch, tests) = &labs[index];
        if !tests.is_empty() {
            inside::run(*arch, tests, &setting(index), deadline, &mut |line| tell(*arch, line));
        }
    };
    // Two at a time: a lab has one processor, and so has a test, mostly.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            work();
            lab(1);
        });
        lab(0);
        work();
    });
    Ok(())
}

/// The record, with a reason for a test that is not there.
fn known(arch: Arch, record: Record) -> Record {
    match record.verdict {
        Verdict::Absent => Record { verdict: elsewhere::absent(arch, &record.test), ..record },
        _ => record,
    }
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

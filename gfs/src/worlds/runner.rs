//! Runs worlds, each in a process of its own, some at a time.

use super::points::Mutant;
use super::sys;
use super::world::World;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::backtrace::Backtrace;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::{PipeReader, Read, Write as _, pipe};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// The test that is the process without threads that worlds are copies of.
const ORIGIN: &str = "worlds::runner::origin";
/// What it is to run: `<from> <to> <mutant or ->`.
const TASK: &str = "GLU_WORLDS";
/// What begins a line of its answer.
const MARK: &str = "world ";
/// How long a world may take, in seconds: one that hangs is ended.
const SECONDS_MAX: u32 = 120;
/// Broken worlds that are reported in full.
const SHOWN_MAX: usize = 3;

/// What came of some worlds.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) traces: BTreeMap<u64, u64>,
    pub(super) broken: BTreeMap<u64, String>,
    pub(super) undecided: BTreeSet<u64>,
    /// How often a place was passed, and in how many worlds a node died there.
    pub(super) points: BTreeMap<String, (u32, u32)>,
}

impl Outcome {
    pub(super) fn report(&self) -> String {
        let mut text = format!("{} worlds broke\n", self.broken.len());
        for (seed, why) in self.broken.iter().take(SHOWN_MAX) {
            let again = "cargo test -p gfs --lib worlds_keep";
            writeln!(text, "SEED={seed} {again}\n{why}\n").expect("it fits into memory");
        }
        text
    }

    /// Says where nodes died.
    pub(super) fn summary(&self) -> String {
        let (worlds, undecided) = (self.traces.len(), self.undecided.len());
        let mut text = format!("{worlds} worlds, {undecided} too entangled to be judged\n");
        for (point, (passed, died)) in &self.points {
            writeln!(text, "{passed:>8} passed, {died:>4} died: {point}").expect("it fits");
        }
        text
    }

    fn read(&mut self, line: &str) {
        let mut words = line.splitn(4, ' ');
        let (seed, kind) = (words.next(), words.next());
        let seed: u64 = seed.and_then(|seed| seed.parse().ok()).expect("a seed");
        let (first, rest) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        match kind.expect("what is said of it") {
            "trace" => {
                self.traces
                    .insert(seed, first.parse().expect("the hash of a trace"));
            }
            "undecided" => {
                self.undecided.insert(seed);
            }
            "point" => {
                let (passed, died) = first.split_once('/').expect("two numbers");
                let point = self.points.entry(rest.to_owned()).or_default();
                point.0 += passed.parse::<u32>().expect("a number");
                point.1 += died.parse::<u32>().expect("a number");
            }
            "broken" => {
                let why = format!("{first} {rest}").replace('\u{1}', "\n");
                // A panic comes first, and explains the rest.
                self.broken.entry(seed).or_insert(why);
            }
            kind => unreachable!("no {kind} is said"),
        }
    }
}

/// Runs the worlds of some seeds.
pub(super) fn run(seeds: Range<u64>, mutant: Option<Mutant>) -> Outcome {
    let mutant = mutant.map_or_else(|| "-".to_owned(), |mutant| format!("{mutant:?}"));
    let program = std::env::current_exe().expect("this program has a name");
    let output = Command::new(program)
        .args([ORIGIN, "--exact", "--ignored", "--nocapture"])
        .arg("--test-threads=1")
        .env(TASK, format!("{} {} {mutant}", seeds.start, seeds.end))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("this program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut outcome = Outcome::default();
    for line in text.lines() {
        match line.strip_prefix(MARK) {
            Some(line) => outcome.read(line),
            None => println!("{line}"),
        }
    }
    let ran = outcome.traces.len() + outcome.broken.len();
    assert!(ran as u64 >= seeds.end - seeds.start, "worlds are missing");
    outcome
}

/// Not a test: see [`ORIGIN`].
#[test]
#[ignore = "the tests of worlds run it in a process of its own"]
fn origin() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let mut words = task.split(' ');
    let mut seed = || words.next().and_then(|word| word.parse::<u64>().ok());
    let (from, to) = (seed().expect("a seed"), seed().expect("a seed"));
    let mutant = words.next().and_then(Mutant::named);
    let told = to - from == 1 && mutant.is_none();
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let mut running: Vec<(u64, Pid, PipeReader)> = Vec::new();
    for seed in from..to {
        if running.len() == at_once {
            collect(running.remove(0));
        }
        let (reader, mut writer) = pipe().expect("a pipe");
        let child = sys::in_child(|| {
            nix::unistd::alarm::set(SECONDS_MAX);
            let text = tell(seed, mutant, told);
            // Who waits for it is told of the rest by its end.
            drop(writer.write_all(text.as_bytes()));
        });
        drop(writer);
        running.push((seed, child, reader));
    }
    running.into_iter().for_each(collect);
}

/// Waits for the end of a world and hands on what it says.
fn collect((seed, child, mut reader): (u64, Pid, PipeReader)) {
    let mut text = String::new();
    let read = reader.read_to_string(&mut text);
    let ended = waitpid(child, None);
    print!("{text}");
    if !text.ends_with('\n') || read.is_err() {
        println!("{MARK}{seed} broken its process ended: {ended:?}");
    }
}

/// Runs a world and returns what is said of it.
fn tell(seed: u64, mutant: Option<Mutant>, told: bool) -> String {
    let panicked: Arc<Mutex<Option<String>>> = Arc::default();
    let first = Arc::clone(&panicked);
    std::panic::set_hook(Box::new(move |panic| {
        if told {
            println!("{panic}\n{}", Backtrace::force_capture());
        }
        let mut first = first.lock().expect("no holder panics");
        first.get_or_insert_with(|| panic.to_string());
    }));
    // A thread of its own has the first random bits that it asks for from the seed.
    let world = std::thread::spawn(move || World::new(seed, mutant, told).run());
    let end = world.join();
    let panicked = panicked.lock().expect("no holder panics").take();
    let mut text = String::new();
    let mut line = |said: std::fmt::Arguments<'_>| {
        writeln!(text, "{MARK}{seed} {said}").expect("it fits into memory");
    };
    if let Some(why) = panicked {
        let why = why.replace('\n', "\u{1}");
        line(format_args!("broken a panic: {why}"));
    }
    if let Ok(end) = end {
        if let Some(why) = end.broken {
            let why = why.replace('\n', "\u{1}");
            line(format_args!("broken {why}"));
        }
        if end.undecided {
            line(format_args!("undecided"));
        }
        for (point, passed) in end.points {
            let died = u32::from(end.deaths.contains(point));
            line(format_args!("point {passed}/{died} {point}"));
        }
        line(format_args!("trace {}", end.trace));
    }
    text
}

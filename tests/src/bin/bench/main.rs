//! `make bench`: what `/cluster` costs, as ratios against the local file system in the same run.
//!
//! Each row is measured several times, in turns with its control, and shown by its median. Nothing here asserts a time;
//! the goals stand beside the figures. Arguments: names of groups, which are measured alone then, and words that select
//! rows by name. `BENCH_DIVISOR` makes the sizes of the larger ones smaller, to see that they work.

mod build;
mod data;
mod devices;
mod hand_off;
mod jobs;
mod metadata;
mod moves;
mod processes;
mod trees;
mod writers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::Cluster;

/// How a row reads: what it took here and in the control.
struct Row {
    name: &'static str,
    goal: &'static str,
    here: Vec<Duration>,
    control: Vec<Duration>,
    /// Operations in one measurement.
    ops: u32,
}

struct Bench {
    cluster: Cluster,
    local: PathBuf,
    /// Words that the name of a row must have.
    only: Vec<String>,
    divisor: u32,
    rows: Vec<Row>,
}

const MIB: usize = 1 << 20;

type Group = fn(&mut Bench);

const GROUPS: &[(&str, Group)] = &[
    ("metadata", Bench::metadata),
    ("trees", Bench::trees),
    ("data", Bench::data),
    ("copies", Bench::copies),
    ("build", Bench::build),
    ("leases", Bench::hand_off),
    ("locks", Bench::lock_hand_off),
    ("pages", Bench::page_hand_off),
    ("writers", Bench::writers),
    ("jobs", Bench::jobs),
    ("moves", Bench::moves),
    ("processes", Bench::processes),
    ("devices", Bench::devices),
];

fn main() {
    let words = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    let is_group = |word: &String| GROUPS.iter().any(|(name, _)| name == word);
    let (groups, only): (Vec<_>, Vec<_>) = words.partition(is_group);
    let divisor = std::env::var("BENCH_DIVISOR").map_or(1, |text| {
        text.parse().expect("BENCH_DIVISOR is a number above 0")
    });
    let cluster = Cluster::up(3);
    let local = tests::scratch_dir().join(format!("bench-{}", std::process::id()));
    fs::create_dir_all(&local).expect("mkdir");
    let mut bench = Bench {
        cluster,
        local,
        only,
        divisor,
        rows: Vec::new(),
    };
    for (name, measure) in GROUPS {
        if groups.is_empty() || groups.iter().any(|group| group == name) {
            measure(&mut bench);
        }
    }
    bench.print();
    fs::remove_dir_all(&bench.local).expect("clean up");
}

impl Bench {
    /// Measures `work` in the cluster and in the control, in turns.
    #[allow(clippy::too_many_arguments, reason = "a table row")]
    fn row(
        &mut self,
        name: &'static str,
        goal: &'static str,
        samples: usize,
        ops: u32,
        mut work: impl FnMut(&Path),
        here: &Path,
        control: &Path,
    ) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..samples {
            ours.push(time(|| work(here)));
            theirs.push(time(|| work(control)));
        }
        self.add(Row {
            name,
            goal,
            here: ours,
            control: theirs,
            ops,
        });
    }

    /// Measures once what can be done only once.
    fn row_pair(
        &mut self,
        name: &'static str,
        goal: &'static str,
        ops: u32,
        here: impl FnOnce(),
        control: impl FnOnce(),
    ) {
        let (here, control) = (vec![time(here)], vec![time(control)]);
        self.add(Row {
            name,
            goal,
            here,
            control,
            ops,
        });
    }

    /// Returns how many of `count` are measured.
    fn scaled(&self, count: u32) -> u32 {
        (count / self.divisor).max(1)
    }

    fn add(&mut self, row: Row) {
        if self
            .only
            .iter()
            .all(|word| row.name.contains(word.as_str()))
        {
            eprintln!("  {}: {}", row.name, ratio(&row));
            self.rows.push(row);
        }
    }

    fn print(&self) {
        println!(
            "| work | /cluster | control | time ratio | goal |\n| --- | --- | --- | --- | --- |"
        );
        for row in &self.rows {
            let (here, control) = (per_op(&row.here, row.ops), per_op(&row.control, row.ops));
            println!(
                "| {} | {} | {} | {} | {} |",
                row.name,
                shown(here),
                shown(control),
                ratio(row),
                row.goal
            );
        }
        println!(
            "\nMedians per operation; the control is the file system under the state directory (for jobs, if not said: a plain"
        );
        println!(
            "process; for moves: CRIU's dump, a copy in memory and its restore; for the exclusive hand-off: a write under a lease"
        );
        println!("already held; for writers: both on one node).");
        println!("A rate goal of 0.8 x is a time of 1.25 x.");
        if self.divisor != 1 {
            println!(
                "All but the smallest are {} times smaller than they say.",
                self.divisor
            );
        }
    }
}

/// Returns whether there is a program of this name.
fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn ratio(row: &Row) -> String {
    format!(
        "{:.2} x",
        per_op(&row.here, row.ops) / per_op(&row.control, row.ops)
    )
}

/// Returns the median in microseconds per operation.
fn per_op(samples: &[Duration], ops: u32) -> f64 {
    let mut sorted: Vec<Duration> = samples.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2].as_secs_f64() * 1e6 / f64::from(ops)
}

fn shown(us: f64) -> String {
    match us {
        us if us < 1.0 => format!("{:.0} ns", us * 1e3),
        us if us < 1e3 => format!("{us:.1} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

fn time(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn shell(command: &str) {
    let status = Command::new("sh")
        .args(["-c", command])
        .stdout(Stdio::null())
        .status()
        .expect("sh runs");
    assert!(status.success(), "{command}: {status}");
}

/// Has this machine's kernel forget what it has cached: `what` as in `/proc/sys/vm/drop_caches`.
fn drop_caches(what: &str) {
    fs::write("/proc/sys/vm/drop_caches", what).expect("root may");
}

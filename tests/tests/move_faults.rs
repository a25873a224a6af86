//! Nodes that die while a process moves: it runs on exactly one node, or, if that or its home has died, on none.
//!
//! `ROUNDS` says how many nodes die, `SEED` which, and when.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use tests::{Cluster, DEADLINE, Dice, moves, wait_until};

/// What a round may take: nodes that are silent are waited for.
const LONG: Duration = Duration::from_secs(30);
/// A move takes less than this on a machine that is not too busy.
const MOVE_MS: u64 = 400;

/// One move from `source` to `target`, of a job that `home` has started for its owner on node 1.
#[derive(Clone, Copy, Debug)]
struct Roles {
    home: u32,
    source: u32,
    target: u32,
}

/// How a round has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The job goes on where it was; who asked was told so.
    Stayed,
    /// The job goes on where it was sent.
    Moved,
    /// No node has it any more; its owner was told so.
    Lost,
}
use Outcome::{Lost, Moved, Stayed};

const ROUND: &str = r#"
def mark(name, text=''):
    with open(f'DIR/{name}.new', 'w') as file:
        file.write(text)
    os.rename(file.name, f'DIR/{name}')
def marked(name):
    while not os.path.exists(f'DIR/{name}'):
        time.sleep(0.005)
# A node that has just started knows for a while neither who may run processes where, nor the way there.
def warmed_up(node):
    job = Job(HOME, 'sh', '-c', 'echo $$; read x')
    said = job.owner.stdout.readline().split()
    if len(said) != 1:
        # glurun tells that it cannot.
        return False
    job.pid, = said
    why = job.refuses(node)
    job.end()
    assert why in (None, 'EAGAIN'), why
    return why is None
deadline = time.monotonic() + 30
for node in (SOURCE, TARGET):
    while not warmed_up(node):
        assert time.monotonic() < deadline, f'nothing moves from HOME to {node}'
job = Job(HOME, 'python3', '/cluster/counter.py', '/cluster/counted-ROUND', 'MIB')
job.pid, *_ = job.ask('1')
if SOURCE != HOME:
    job.go(SOURCE)
mark('ready')
marked('armed')
mark('moving')
why = job.refuses(TARGET, HOW)
mark('told', str(why))
marked('dead')
try:
    answer = job.ask('2')
except BrokenPipeError:
    answer = []
last = 1
if answer and answer[0] == job.pid:
    assert answer == [job.pid, '2', '2'], answer
    where, = job.file('where')
    # Who was told that it has moved may see it lost later, and the other way round only if it was not told.
    assert where == ('TARGET' if why is None else 'SOURCE') or why not in (None, 'EAGAIN'), (where, why)
    mark('said', where)
    marked('checked')
    assert job.ask('3') == [job.pid, '3', '3']
    assert job.end() == 42
    last = 3
else:
    status = job.owner.wait()
    assert status == 125, status
    mark('said', 'lost')
counted = open('/cluster/counted-ROUND').read().split()
# What a lost job has counted last may be lost with its node.
assert counted == [str(n + 1) for n in range(len(counted))], counted
assert len(counted) == last or last == 1 and len(counted) < 3, counted
print(why)
"#;

struct Rounds {
    cluster: Cluster,
    /// What is said of how to move: nothing, or that it may be by post-copy.
    how: &'static str,
    /// Of memory that the job has; pages of a larger one go ahead of it.
    mib: u32,
    done: u32,
}

impl Rounds {
    fn new() -> Self {
        Self {
            cluster: moves::cluster_that_moves(4),
            how: "",
            mib: 0,
            done: 0,
        }
    }

    /// Lets a job move, and `disturb` have a node die; returns also what who asked was told: an errno, or `None`.
    #[track_caller]
    fn round(
        &mut self,
        roles: Roles,
        victim: u32,
        disturb: impl FnOnce(&Self, &Path),
    ) -> (Outcome, String) {
        self.done += 1;
        let dir = self.cluster.state().join(format!("round-{}", self.done));
        fs::create_dir(&dir).expect("made");
        let script = ROUND
            .replace("DIR", &dir.display().to_string())
            .replace("ROUND", &self.done.to_string())
            .replace("HOME", &roles.home.to_string())
            .replace("SOURCE", &roles.source.to_string())
            .replace("TARGET", &roles.target.to_string())
            .replace("HOW", &format!("{:?}", self.how))
            .replace("MIB", &self.mib.to_string());
        let run = moves::driver(&self.cluster, &script);
        let running = self.cluster.spawn(1, &run);
        wait_until("the job", LONG, || dir.join("ready").exists());
        disturb(self, &dir);
        fs::write(dir.join("dead"), "").expect("written");
        let said_at = Instant::now() + LONG;
        while !dir.join("said").exists() {
            if Instant::now() > said_at {
                // It shows what the script says.
                running.wait(Duration::ZERO).ok();
                unreachable!("it did not end");
            }
            thread::sleep(Duration::from_millis(10));
        }
        let said = fs::read_to_string(dir.join("said")).expect("it is there");
        let outcome = match &*said {
            "lost" => Lost,
            at if at == roles.target.to_string() => Moved,
            _ => Stayed,
        };
        let copies = usize::from(outcome != Lost);
        let what = format!("{copies} running copies after {roles:?} and the death of {victim}");
        wait_until(&what, DEADLINE, || self.copies() == copies);
        fs::write(dir.join("checked"), "").expect("written");
        let why = running.wait(LONG).ok();
        wait_until("the end of all copies", DEADLINE, || self.copies() == 0);
        let (how, mib) = (self.how, self.mib);
        println!(
            "{roles:?}{how} of {mib} MiB, node {victim} died: {outcome:?}; who asked was told {why}"
        );
        (outcome, why)
    }

    /// Returns on how many nodes the job is.
    fn copies(&self) -> usize {
        let nodes = self.cluster.status().nodes.into_iter();
        let up = nodes.filter_map(|node| node.pid.map(|_| node.number));
        let count = "cd /; pgrep -f '^python3 /cluster/counter.py'; true";
        let found = up.map(|node| self.cluster.sh(node, count).ok().lines().count());
        found.sum()
    }

    /// A daemon dies at a named place.
    #[track_caller]
    fn place(&mut self, roles: Roles, victim: u32, place: &str) -> Outcome {
        println!("{place}");
        let (outcome, why) = self.round(roles, victim, |rounds, dir| {
            let word = rounds.of_node(victim, "dev/shm/glu-fail-at");
            fs::write(&word, place).expect("written");
            fs::write(dir.join("armed"), "").expect("written");
            let told = || fs::read_to_string(dir.join("told")).unwrap_or_default();
            wait_until(place, DEADLINE, || !word.exists() || !told().is_empty());
            // Of what comes last who asked may hear before.
            let what = format!("{place}; who asked was told {}", told());
            wait_until(&what, DEADLINE, || !word.exists());
        });
        // Only EAGAIN means that it goes on where it was.
        assert_eq!(why == "EAGAIN", outcome == Stayed, "{why} after {place:?}");
        // Its init would wait longer each time.
        self.cluster.kill(victim);
        self.cluster.start(victim);
        outcome
    }

    /// Returns where this process finds a file of a node.
    fn of_node(&self, number: u32, path: &str) -> PathBuf {
        let nodes = self.cluster.status().nodes;
        let node = nodes.into_iter().find(|node| node.number == number);
        let pid = node.and_then(|node| node.pid).expect("it runs");
        PathBuf::from(format!("/proc/{pid}/root")).join(path)
    }
}

/// Places, who is at them (home, source or target), and how the job may end.
const PLACES: [(&str, &[Outcome]); 17] = [
    ("home: before the freeze", &[Lost]),
    ("home: before the offer", &[Lost]),
    ("home: after the offer", &[Lost]),
    ("home: before the copy may run", &[Lost]),
    ("home: after the copy may run", &[Lost]),
    ("home: before the answer", &[Lost]),
    ("source: before the freeze", &[Lost]),
    ("source: after the freeze", &[Lost]),
    ("source: after the images", &[Lost]),
    // What it told may be lost with it.
    ("source: after it tells of the images", &[Lost, Moved]),
    ("source: before the end", &[Moved]),
    ("target: before the copy is made", &[Stayed]),
    ("target: before it tells of the copy", &[Stayed]),
    ("target: after it tells of the copy", &[Stayed, Lost]),
    ("target: before the copy runs", &[Lost]),
    ("target: after the copy runs", &[Lost]),
    ("target: after it tells that the copy runs", &[Lost]),
];

/// The same of a move by post-copy, where they are others, or it may end otherwise.
const PLACES_OF_PAGES: [(&str, &[Outcome]); 12] = [
    ("home: after the offer", &[Lost]),
    ("home: while pages come", &[Lost]),
    ("home: before the answer", &[Lost]),
    ("source: before the freeze", &[Lost]),
    ("source: after it tells of the images", &[Lost]),
    ("source: after it gives pages", &[Lost]),
    ("source: before the end", &[Moved]),
    ("target: before the copy is made", &[Stayed]),
    ("target: after it tells of the copy", &[Stayed, Lost]),
    ("target: after the copy runs", &[Lost]),
    ("target: before it tells of all pages", &[Lost]),
    ("target: after it tells of all pages", &[Lost]),
];

/// The same of a move with pages that go ahead.
const PLACES_AHEAD: [(&str, &[Outcome]); 9] = [
    ("home: before pages go ahead", &[Lost]),
    ("home: before the freeze", &[Lost]),
    ("home: before the answer", &[Lost]),
    ("source: before pages go ahead", &[Lost]),
    ("source: after it tells that pages have gone ahead", &[Lost]),
    ("source: before the freeze", &[Lost]),
    ("target: when pages come ahead", &[Stayed]),
    ("target: before the copy is made", &[Stayed]),
    ("target: after the copy runs", &[Lost]),
];

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

fn dice() -> Dice {
    let seed = variable("SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("SEED={seed}");
    Dice::new(seed)
}

#[test]
fn a_daemon_dies_at_each_step_of_a_move() {
    die_at("", 0, &PLACES);
}

#[test]
fn a_daemon_dies_at_each_step_of_a_move_by_post_copy() {
    die_at(" post-copy", 0, &PLACES_OF_PAGES);
}

#[test]
fn a_daemon_dies_at_each_step_of_a_move_with_pages_that_go_ahead() {
    die_at("", 24, &PLACES_AHEAD);
}

/// A few of the places; with `ROUNDS` more than there are, all.
#[track_caller]
fn die_at(how: &'static str, mib: u32, places: &[(&'static str, &'static [Outcome])]) {
    let (home, source, target) = (2, 3, 4);
    let mut dice = dice();
    let from_home = places.iter().filter(|(place, _)| place.starts_with("home"));
    let from_home = from_home.map(|(place, may)| (home, *place, *may));
    let from_guest = places.iter().map(|(place, may)| (source, *place, *may));
    let mut all: Vec<_> = from_home.chain(from_guest).collect();
    let rounds = variable("ROUNDS").unwrap_or(5);
    while u64::try_from(all.len()).expect("a few") > rounds {
        all.swap_remove(dice.below(all.len()));
    }
    let mut world = Rounds::new();
    (world.how, world.mib) = (how, mib);
    for (source, place, may) in all {
        let roles = Roles {
            home,
            source,
            target,
        };
        let victim = match place.split_once(':') {
            Some(("home", _)) => home,
            Some(("source", _)) => source,
            _ => target,
        };
        let outcome = world.place(roles, victim, place);
        assert!(may.contains(&outcome), "{outcome:?} at {place:?}");
    }
}

/// Source, target, home or the leader lose their power at any point of a move.
#[test]
fn a_node_dies_at_a_random_point_of_a_move() {
    let mut dice = dice();
    let rounds = variable("ROUNDS").unwrap_or(4).min(50);
    let mut world = Rounds::new();
    for _ in 0..rounds {
        let mut nodes = vec![2, 3, 4];
        let mut any = || nodes.swap_remove(dice.below(nodes.len()));
        let (home, target, other) = (any(), any(), any());
        let source = [home, other][dice.below(2_usize)];
        let roles = Roles {
            home,
            source,
            target,
        };
        world.how = ["", " post-copy"][dice.below(2_usize)];
        world.mib = [0, 24][dice.below(2_usize)];
        let leader = world.cluster.leader(None);
        let victims: Vec<u32> = [source, target, home, leader]
            .into_iter()
            .filter(|node| *node != 1)
            .collect();
        let victim = victims[dice.below(victims.len())];
        let wait = Duration::from_millis(dice.below(MOVE_MS));
        let (outcome, _) = world.round(roles, victim, |world, dir| {
            fs::write(dir.join("armed"), "").expect("written");
            wait_until("the move", DEADLINE, || dir.join("moving").exists());
            thread::sleep(wait);
            world.cluster.kill(victim);
        });
        world.cluster.start(victim);
        let may: &[Outcome] = match victim {
            _ if victim == home => &[Lost],
            _ if victim == source => &[Lost, Moved],
            _ if victim == target => &[Stayed, Lost],
            _ => &[Moved],
        };
        assert!(may.contains(&outcome), "{outcome:?} after {wait:?}");
        if leader == 1 {
            // The next leader is a node that may die.
            world.cluster.kill(1);
            world.cluster.start(1);
        }
    }
}

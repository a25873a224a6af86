//! Nodes die, are cut off and stand still, one at a time, while programs work on all of them: what was synced is there, no
//! update under a lock is lost, nothing old is seen, and who was not disturbed got no error.
//!
//! `CHAOS_SECONDS` (60) says how long, `SEED` which disturbances, `CHAOS_KINDS` of which kinds: a list of kill, cut, pause,
//! full, hang, slow and clock; all by default. Needs root and /dev/fuse.

mod programs;

use programs::{ACCOUNTS, MONEY, append, bank, build, encode, exercise, look, number, transfer};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempPath;
use tests::{Cluster, DEADLINE, Dice, Disk, Options, Stopped, binary, scratch_dir, wait_until};

const NODES: u32 = 3;
/// After a disturbance the node's programs may still be told what went with their session.
const AFTERMATH: Duration = Duration::from_secs(12);
/// Shorter than a term less the age of its renewal: a node that stands still longer can show what its kernel has cached.
const PAUSE_MS_MAX: u64 = 2_000;
/// A slow disk takes up to so long for a write.
const SLOW_MS_MAX: u64 = 300;
/// Room for ten minutes.
const DISK_MIB: u64 = 1_024;

/// What happens to a node.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    Kill,
    Cut,
    Pause,
    /// The disk has no room; there is some again when the node is booted again.
    Full,
    /// What is written to the disk waits.
    Hang,
    /// Each time for a while.
    Slow,
    /// The clock is set. No program of the node may notice.
    Clock,
}

const KINDS: [Disturbance; 7] = [
    Disturbance::Kill,
    Disturbance::Pause,
    Disturbance::Cut,
    Disturbance::Full,
    Disturbance::Hang,
    Disturbance::Slow,
    Disturbance::Clock,
];

/// One node and what its programs have done.
struct Node {
    tree: PathBuf,
    number: u32,
    /// Held for writing by who disturbs the node.
    calm: RwLock<Option<Instant>>,
    /// Numbers that were given out; none is used again, for its line may be there without an acknowledgement.
    numbers: AtomicU64,
    appended: Mutex<Vec<u64>>,
    pulse: AtomicU64,
    /// Transfers that were synced under the lock, and those of which nobody knows.
    transfers: AtomicU64,
    open_transfers: AtomicU64,
    built: AtomicU64,
    looks: AtomicU64,
    exercises: AtomicU64,
    excused: AtomicU64,
    disk: Disk,
}

struct World {
    nodes: Vec<Node>,
    stop: AtomicBool,
    faults: Mutex<Vec<String>>,
    kinds: Vec<Disturbance>,
}

#[test]
fn chaos() {
    let variable = |name: &str| std::env::var(name).map(|value| value.parse::<u64>());
    let seconds = variable("CHAOS_SECONDS").map_or(60, |value| value.expect("a number"));
    let seed = variable("SEED").map_or_else(
        |_| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            u64::from(now.expect("after 1970").subsec_nanos()) | 1
        },
        |value| value.expect("a number"),
    );
    println!("SEED={seed} CHAOS_SECONDS={seconds}");
    let glud = daemon_with_a_clock();
    let cluster = Cluster::with(&Options {
        nodes: Some(NODES),
        glud: Some(glud.to_path_buf()),
        ..Options::default()
    });
    let world = World::new(&cluster);
    let mut done = Vec::new();
    thread::scope(|scope| {
        for node in &world.nodes {
            scope.spawn(|| world.runs(node, append));
            scope.spawn(|| world.runs(node, transfer));
            scope.spawn(|| world.runs(node, build));
            scope.spawn(|| world.runs(node, look));
            scope.spawn(|| world.runs(node, exercise));
        }
        let mut dice = Dice::new(seed);
        let end = Instant::now() + Duration::from_secs(seconds);
        // The loops end also when a disturbance cannot be made.
        let disturbed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while Instant::now() < end && world.faults().is_empty() {
                thread::sleep(Duration::from_millis(dice.below(1_500)));
                done.push(world.disturb(&cluster, &mut dice));
            }
        }));
        world.stop.store(true, Ordering::SeqCst);
        if let Err(panic) = disturbed {
            std::panic::resume_unwind(panic);
        }
    });
    world.report(&done);
    assert_eq!(world.faults(), Vec::<String>::new(), "SEED={seed}");
    for number in 1..=NODES {
        world.judge(&cluster, number);
    }
}

impl World {
    fn new(cluster: &Cluster) -> Self {
        let node = |number| Node {
            tree: cluster.path(number),
            number,
            calm: RwLock::new(None),
            numbers: AtomicU64::new(0),
            appended: Mutex::default(),
            pulse: AtomicU64::new(0),
            transfers: AtomicU64::new(0),
            open_transfers: AtomicU64::new(0),
            built: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            exercises: AtomicU64::new(0),
            excused: AtomicU64::new(0),
            disk: Disk::new(DISK_MIB),
        };
        let nodes: Vec<Node> = (1..=NODES).map(node).collect();
        for node in &nodes {
            node.disk.take_over(cluster, node.number);
        }
        let tree = &nodes[0].tree;
        let bank = File::create_new(tree.join("bank")).expect("make the bank");
        bank.write_all_at(&encode(&[MONEY; ACCOUNTS], 0), 0)
            .expect("fill the bank");
        bank.sync_all().expect("sync the bank");
        fs::create_dir(tree.join("exercises")).expect("mkdir");
        for number in 1..=NODES {
            let pulse = File::create_new(tree.join(format!("pulse{number}"))).expect("make");
            pulse.write_all_at(&[0; 8], 0).expect("write");
            pulse.sync_all().expect("sync");
            File::create_new(tree.join(format!("log{number}"))).expect("make");
            fs::create_dir(tree.join(format!("build{number}"))).expect("mkdir");
        }
        Self {
            nodes,
            stop: AtomicBool::new(false),
            faults: Mutex::default(),
            kinds: kinds(),
        }
    }

    fn faults(&self) -> Vec<String> {
        self.faults.lock().expect("no holder panics").clone()
    }

    /// Does one thing on a node again and again. An error is a fault unless the node was disturbed.
    fn runs(&self, node: &Node, work: fn(&Self, &Node) -> io::Result<()>) {
        while !self.stop.load(Ordering::SeqCst) {
            let began = Instant::now();
            let Err(error) = work(self, node) else {
                continue;
            };
            // A write lock means that the node is being disturbed.
            let disturbed = node.calm.try_read().map_or(true, |last| {
                last.is_some_and(|last| began < last + AFTERMATH)
            });
            // S5: also a disturbed node shows nothing wrong.
            let wrong = error.kind() == io::ErrorKind::InvalidData;
            if disturbed && !wrong {
                node.excused.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(20));
            } else {
                let now = humantime::format_rfc3339_micros(SystemTime::now());
                let fault = format!("{now} node {} at peace: {error}", node.number);
                self.faults.lock().expect("no holder panics").push(fault);
                return;
            }
        }
    }

    /// Disturbs a node, mends it, and waits until it serves.
    fn disturb(&self, cluster: &Cluster, dice: &mut Dice) -> (Disturbance, u32, bool) {
        let node = &self.nodes[dice.below(self.nodes.len())];
        let number = node.number;
        let kind = self.kinds[dice.below(self.kinds.len())];
        let led = cluster.status().leader == Some(number);
        if let Disturbance::Clock = kind {
            let seconds = dice.below(14_400_i64) - 7_200;
            set_clock(&clock(cluster, number), seconds);
            // The library looks once a second.
            thread::sleep(Duration::from_secs(2));
        } else {
            let mut calm = node.calm.write().expect("no holder panics");
            match kind {
                Disturbance::Kill => {
                    cluster.kill(number);
                    thread::sleep(Duration::from_millis(dice.below(3_000)));
                    cluster.start(number);
                }
                Disturbance::Cut => {
                    cluster.cut(number);
                    thread::sleep(Duration::from_millis(dice.below(8_000)));
                    cluster.heal(number);
                }
                Disturbance::Pause => {
                    let daemon = Stopped::new(cluster, number);
                    thread::sleep(Duration::from_millis(dice.below(PAUSE_MS_MAX)));
                    drop(daemon);
                }
                Disturbance::Full => {
                    node.disk.fill();
                    thread::sleep(Duration::from_millis(dice.below(3_000)));
                    cluster.kill(number);
                    node.disk.make_room();
                    cluster.start(number);
                }
                Disturbance::Hang => {
                    node.disk.freeze();
                    thread::sleep(Duration::from_millis(dice.below(3_000)));
                    node.disk.thaw();
                }
                Disturbance::Slow => {
                    let end = Instant::now() + Duration::from_millis(dice.below(4_000));
                    while Instant::now() < end {
                        node.disk.freeze();
                        thread::sleep(Duration::from_millis(dice.below(SLOW_MS_MAX)));
                        node.disk.thaw();
                        thread::sleep(Duration::from_millis(20));
                    }
                }
                Disturbance::Clock => unreachable!("done above"),
            }
            // Looks may be served from its caches, while its session is over and it has not heard of that yet.
            let probe = node.tree.join(format!("serves{number}"));
            let serves = || {
                let file = File::create(&probe)?;
                file.write_all_at(b"x", 0)?;
                file.sync_all()
            };
            wait_until("the disturbed node to serve", DEADLINE, || serves().is_ok());
            *calm = Some(Instant::now());
        }
        (kind, number, led)
    }

    fn report(&self, done: &[(Disturbance, u32, bool)]) {
        println!(
            "{} disturbances (node, whether it led): {done:?}",
            done.len()
        );
        for node in &self.nodes {
            println!(
                "node {}: {} appends, {} transfers, {} builds, {} looks, {} exercises; \
                 {} errors while disturbed",
                node.number,
                node.appended.lock().expect("no holder panics").len(),
                node.transfers.load(Ordering::SeqCst),
                node.built.load(Ordering::SeqCst),
                node.looks.load(Ordering::SeqCst),
                node.exercises.load(Ordering::SeqCst),
                node.excused.load(Ordering::SeqCst),
            );
        }
    }

    /// Looks at what is left, from one node.
    fn judge(&self, cluster: &Cluster, from: u32) {
        let tree = cluster.path(from);
        let sum = |count: fn(&Node) -> &AtomicU64| -> u64 {
            let counts = self
                .nodes
                .iter()
                .map(|node| count(node).load(Ordering::SeqCst));
            counts.sum()
        };
        let (accounts, count) = bank(&tree.join("bank")).expect("read the bank");
        assert_eq!(
            accounts.iter().sum::<u64>(),
            MONEY * ACCOUNTS as u64,
            "money"
        );
        let made = sum(|node| &node.transfers);
        let open = sum(|node| &node.open_transfers);
        assert!(
            (made..=made + open).contains(&count),
            "{made} transfers were made, {open} are open, the bank has {count}"
        );
        assert!(made > 0, "no transfer at all");
        for node in &self.nodes {
            let log = fs::read_to_string(tree.join(format!("log{}", node.number)));
            let log = log.expect("read the log");
            let found: std::collections::BTreeSet<u64> =
                log.lines().filter_map(|line| line.parse().ok()).collect();
            let appended = node.appended.lock().expect("no holder panics");
            let lost: Vec<_> = appended.iter().filter(|n| !found.contains(n)).collect();
            assert!(
                lost.is_empty(),
                "synced by node {} and lost: {lost:?}",
                node.number
            );
            assert!(
                !appended.is_empty(),
                "no append at all on node {}",
                node.number
            );
            let pulse = number(&tree.join(format!("pulse{}", node.number))).expect("read");
            assert!(pulse >= node.pulse.load(Ordering::SeqCst), "an old pulse");
        }
    }
}

/// What `CHAOS_KINDS` asks for.
fn kinds() -> Vec<Disturbance> {
    let Ok(asked) = std::env::var("CHAOS_KINDS") else {
        return KINDS.to_vec();
    };
    let asked: Vec<&str> = asked.split(',').collect();
    let is_asked = |kind: &Disturbance| {
        let name = format!("{kind:?}").to_lowercase();
        asked.contains(&name.as_str())
    };
    let kinds: Vec<_> = KINDS.into_iter().filter(is_asked).collect();
    assert!(!kinds.is_empty(), "CHAOS_KINDS: {asked:?}");
    kinds
}

/// Where a node's clock is set.
fn clock(cluster: &Cluster, number: u32) -> PathBuf {
    cluster.state().join(format!("node{number}/clock"))
}

fn set_clock(file: &Path, seconds: i64) {
    let new = file.with_extension("new");
    fs::write(&new, format!("{seconds:+}")).expect("write");
    fs::rename(new, file).expect("rename");
}

/// Makes a daemon whose clock can be set. It goes with what is returned.
fn daemon_with_a_clock() -> TempPath {
    let file = tempfile::Builder::new()
        .prefix("glud-clock-")
        .tempfile_in(scratch_dir());
    let path = file.expect("make the script").into_temp_path();
    let glud = binary("glud");
    // What faketime does, but for the file. Its node is named by the path of its configuration.
    let script = format!(
        "#!/bin/sh\nclock=${{2%/*}}/clock\n[ -e $clock ] || echo +0 >$clock\n\
         LD_PRELOAD=$(faketime -m --exclude-monotonic -f +0 printenv LD_PRELOAD)\n\
         exec env LD_PRELOAD=$LD_PRELOAD NO_FAKE_STAT=1 DONT_FAKE_MONOTONIC=1 \
         FAKETIME_CACHE_DURATION=1 FAKETIME_TIMESTAMP_FILE=$clock {} \"$@\"\n",
        glud.display()
    );
    fs::write(&path, script).expect("write the script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("make it a program");
    path
}

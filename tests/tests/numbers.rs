//! Prints how long failures are felt: docs/results/numbers.md has the figures, scripts/numbers.sh makes them.
//!
//! Needs root and /dev/fuse.

use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tests::{Cluster, Options, binary, wait_until, with_deadline};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// A read that takes longer is not answered any more.
const PROMPT: Duration = Duration::from_millis(250);

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort();
    let load = fs::read_to_string("/proc/loadavg").expect("proc is mounted");
    let (best, median, worst) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{what}: best {best:?}, median {median:?}, worst {worst:?} of {}; load {}",
        times.len(),
        load.trim()
    );
}

/// A node that keeps no metadata.
fn client_of(cluster: &Cluster) -> (u32, u32) {
    let leader = cluster.leader(None);
    let mut others = (1..=3).filter(|node| *node != leader);
    (others.next().expect("two"), others.next().expect("two"))
}

/// From a node's loss of power until another node has the lock that a program there held.
#[test]
#[ignore = "a minute or more, and its figures need a quiet machine: docs/results/numbers.md"]
fn locks_of_a_dead_client() {
    let cluster = Cluster::up(3);
    let mut times = Vec::new();
    for round in 0..variable("ROUNDS", 10) {
        let (dies, waits) = client_of(&cluster);
        let name = format!("locked{round}");
        File::create_new(cluster.path(dies).join(&name)).expect("create");
        let script =
            format!("exec 9<>/cluster/{name} && flock 9 && touch /cluster/{name}.held && sleep 60");
        let program = cluster.spawn(dies, &script);
        let held = cluster.path(waits).join(format!("{name}.held"));
        wait_until("the program to have the lock", PATIENCE, || held.exists());
        let path = cluster.path(waits).join(&name);
        let began = Instant::now();
        cluster.kill(dies);
        times.push(with_deadline("the lock", PATIENCE, move || {
            let file = File::options().write(true).open(path).expect("open");
            file.lock().expect("lock");
            began.elapsed()
        }));
        drop(program);
        cluster.start(dies);
    }
    print("locks of a dead client are free after", &mut times);
}

/// From a cut on: until the node that is cut off answers nothing from its caches any more, and until the others can change
/// what it had cached, which must be later.
#[test]
#[ignore = "a minute or more, and its figures need a quiet machine: docs/results/numbers.md"]
fn a_node_that_is_cut_off() {
    let cluster = Cluster::up(3);
    let (mut stops, mut changes, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..variable("ROUNDS", 10) {
        let (cut, changer) = client_of(&cluster);
        let name = format!("cached{round}");
        let [far, near] = [cut, changer].map(|node| cluster.path(node).join(&name));
        fs::write(&near, "old").expect("write");
        assert_eq!(fs::read(&far).expect("read"), b"old");
        let stop = AtomicBool::new(false);
        let began = Instant::now();
        cluster.cut(cut);
        thread::scope(|scope| {
            let reads = scope.spawn(|| {
                // The last answer that came at once.
                let mut last = Duration::ZERO;
                while !stop.load(Ordering::SeqCst) {
                    let path = far.clone();
                    let asked = Instant::now();
                    let answer = thread::spawn(move || fs::read(path));
                    while !answer.is_finished() && asked.elapsed() < PROMPT {
                        thread::sleep(Duration::from_millis(1));
                    }
                    if !answer.is_finished() {
                        break;
                    }
                    let seen = answer.join().expect("no panic");
                    if seen.is_ok_and(|content| content == b"old") {
                        last = began.elapsed();
                    }
                }
                last
            });
            let path = near.clone();
            let changed = with_deadline("the change", PATIENCE, move || {
                let file = File::options().write(true).open(path).expect("open");
                file.write_all_at(b"new", 0).expect("write");
                file.sync_all().expect("sync");
                began.elapsed()
            });
            stop.store(true, Ordering::SeqCst);
            let stopped = reads.join().expect("the reads");
            assert!(stopped < changed, "stale: {stopped:?} after {changed:?}");
            stops.push(stopped);
            changes.push(changed);
            gaps.push(changed.saturating_sub(stopped));
        });
        cluster.heal(cut);
        wait_until("the node to be back", PATIENCE, || {
            fs::read(&far).is_ok_and(|content| content == b"new")
        });
    }
    print("a node that is cut off answers until", &mut stops);
    print(
        "the others can change what it had cached after",
        &mut changes,
    );
    print("between the two", &mut gaps);
}

/// From the time that a lost node is not waited for any longer until all its copies are made anew.
#[test]
#[ignore = "minutes, and its figures need a quiet machine: docs/results/numbers.md"]
fn copies_of_a_lost_node() {
    let cluster = Cluster::with(&Options {
        nodes: Some(3),
        voters: Some(1),
        ..Options::default()
    });
    let mib = variable("MIB", 1_024);
    let block: Vec<u8> = (0..1_u32 << 20)
        .map(|at| (at * 31 % 251).to_le_bytes()[0])
        .collect();
    let mut file = File::create_new(cluster.path(2).join("large")).expect("create");
    for _ in 0..mib {
        file.write_all(&block).expect("write");
    }
    file.sync_all().expect("sync");
    drop(file);
    // The writer's node has one copy of everything.
    let state = |cluster: &Cluster| -> (bool, u64, u64) {
        let text = cluster.sh(1, &format!("{} status --json", binary("glu").display()));
        let status: Value = serde_json::from_str(&text.ok()).expect("JSON");
        let nodes = status["nodes"].as_array().expect("nodes").iter();
        let down = nodes.filter(|node| node["up"] == false).count() == 1;
        let count = |what: &str| status["repair"][what].as_u64().expect("a number");
        let complete = status["repair"]["complete"] == true;
        let (copying, lacking) = (count("copying"), count("lacking") + count("unreachable"));
        (down && complete, copying, copying + lacking)
    };
    let killed = Instant::now();
    cluster.kill(2);
    let mut began = None;
    let deadline = Duration::from_secs(600);
    wait_until("all copies to be made anew", deadline, || {
        let (known, copying, lacking) = state(&cluster);
        if known && copying > 0 {
            began.get_or_insert_with(Instant::now);
        }
        known && lacking == 0 && began.is_some()
    });
    let began = began.expect("it was seen").elapsed();
    println!(
        "{mib} MiB lost with a node: copied in {began:?}, {:?} after the loss; {:?} per GiB",
        killed.elapsed(),
        began * 1_024 / u32::try_from(mib).expect("small")
    );
}

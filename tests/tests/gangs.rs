//! Gangs take turns (J10, J11): of two commands that share nodes one runs at a time, on all of its nodes.
//!
//! Needs root, /dev/fuse, python3 and a kernel with `cpu.idle` (5.15).

use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tests::{Cluster, DEADLINE, wait_until};

/// Works, and writes for each five milliseconds of a processor when it had had them, in milliseconds.
const WORK: &str = r#"
import os, sys, time
out = open(sys.argv[1] + os.environ["GLU_NODE"], "w", buffering=1)
while True:
    before = time.process_time()
    while time.process_time() < before + 0.005:
        pass
    out.write("%d\n" % (time.time() * 1000))
"#;

/// Turns that are looked at.
const TURNS: u64 = 12;

/// The part of a second, in milliseconds, in which a turn has begun also where processors are short: a daemon that waits for one
/// changes turns late.
const WITHIN: std::ops::Range<u64> = 450..950;

/// How often each gang worked on each node in that part of each second.
fn seconds(cluster: &Cluster, names: &[&str]) -> BTreeMap<u64, BTreeMap<(String, u32), u32>> {
    let mut seconds = BTreeMap::<u64, BTreeMap<_, u32>>::new();
    for name in names {
        for node in [2, 3] {
            let path = cluster.state().join(format!("{name}{node}"));
            let text = std::fs::read_to_string(path).expect("it has worked");
            for line in text.lines() {
                let at: u64 = line.parse().expect("milliseconds");
                if WITHIN.contains(&(at % 1000)) {
                    let of = seconds.entry(at / 1000).or_default();
                    *of.entry(((*name).to_owned(), node)).or_default() += 1;
                }
            }
        }
    }
    seconds
}

#[test]
fn gangs_take_turns_on_shared_nodes() {
    let cluster = Cluster::up(3);
    let work = cluster.state().join("work.py");
    std::fs::write(&work, WORK).expect("written");
    let start = |name: &str, options: &str| {
        let out = cluster.state().join(name);
        let command = format!(
            "cd /; exec glurun {options} -N 2 -w 2,3 python3 {} {}",
            work.display(),
            out.display()
        );
        cluster.spawn(1, &command)
    };
    let now = || {
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
        now.as_secs()
    };
    let gangs = ["a", "b"];
    let running = gangs.map(|name| start(name, "--gang"));
    wait_until("two gangs on record", DEADLINE, || {
        cluster
            .sh(1, "cat /cluster/.glu/jobs/node1.json")
            .stdout
            .matches("\"gang\":")
            .count()
            == 2
    });
    // They take part some seconds later.
    let first = now() + 6;
    wait_until("some turns", DEADLINE, || now() > first + TURNS);
    let seen = seconds(&cluster, &gangs);
    let mut alone = BTreeMap::<&str, u64>::new();
    for second in first..first + TURNS {
        let of = seen.get(&second).cloned().unwrap_or_default();
        let worked = |name: &str, node| of.get(&(name.to_owned(), node)).copied().unwrap_or(0);
        // Nearly all that was done, and the same gang's on both nodes: what else runs on the machine does not count.
        let leads = |name: &str, other: &str| {
            [2, 3]
                .iter()
                .all(|node| worked(name, *node) > 6 * worked(other, *node))
        };
        for (name, other) in [("a", "b"), ("b", "a")] {
            if leads(name, other) {
                *alone.entry(name).or_default() += 1;
            }
        }
        println!("{second}: {of:?}");
    }
    // A machine that stands still for a moment costs a turn or two.
    for name in gangs {
        let turns = alone.get(name).copied().unwrap_or(0);
        assert!(
            turns >= TURNS / 2 - 2,
            "{name}: {turns} of {TURNS} turns: {seen:?}"
        );
    }

    // One that is killed ends at once, whoever's turn it is, and with it the turns of the other.
    let killed = Instant::now();
    let [a, b] = running;
    drop(a);
    wait_until("the end of a gang", DEADLINE, || {
        cluster.sh(2, "pgrep -f 'work.py.*/a$'").code() == Some(1)
    });
    println!("ended within {:?}", killed.elapsed());
    let first = now() + 4;
    wait_until("some seconds more", Duration::from_secs(30), || {
        now() > first + 4
    });
    let seen = seconds(&cluster, &["b"]);
    for second in first..first + 4 {
        let of = seen.get(&second).cloned().unwrap_or_default();
        assert_eq!(of.len(), 2, "it is alone and works all the time: {seen:?}");
    }
    drop(b);

    let tied = start("c", "--gang");
    wait_until("a process of a gang", DEADLINE, || {
        let script = "cat /cluster/proc/$(pgrep -f 'work.py.*/c$')/cantmove";
        cluster.sh(2, script).stdout.contains("wire")
    });
    drop(tied);

    let submit = "cd /cluster && glurun --detach --gang -n 2 sleep 60";
    let job = cluster.sh(1, submit).ok();
    wait_until("a batch job that takes turns", DEADLINE, || {
        let records = cluster.sh(1, "cat /cluster/.glu/jobs/node*.json").stdout;
        let records = serde_json::Deserializer::from_str(&records).into_iter::<Value>();
        let jobs = records.flat_map(|record| record.expect("a record")["jobs"].as_array().cloned());
        let takes_turns = |job: &Value| job["command"][0] == "sleep" && job["gang"].is_u64();
        jobs.flatten().any(|job| takes_turns(&job))
    });
    cluster.sh(1, &format!("glubatch cancel {job}")).ok();
}

//! The record of the jobs that run: the same on all nodes, over the loss of the home of some and of the leader.

use serde::Deserialize;
use std::collections::BTreeSet;
use std::time::Duration;
use tests::{Cluster, DEADLINE, Output, wait_until};

/// What is lost is noticed, and then shown for half a minute.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(120);

const USER: &str = "setpriv --reuid 1234 --regid 1234 --clear-groups";

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Job {
    npid: u32,
    home: u32,
    uid: u32,
    state: String,
    count: u32,
    command: Vec<String>,
    processes: Vec<Process>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct Process {
    vnn: u32,
    node: u32,
    pid: u32,
}

fn jobs(cluster: &Cluster, node: u32, options: &str) -> Vec<Job> {
    let text = cluster.sh(node, &format!("glu jobs --json {options}")).ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Waits for the only job whose home is `home`, with all of its processes.
fn job_of(cluster: &Cluster, asked_on: u32, home: u32) -> Job {
    let mut found = None;
    wait_until("a job on record", DEADLINE, || {
        let mut of_home = jobs(cluster, asked_on, "").into_iter();
        found = of_home.find(|job| job.home == home && job.processes.len() == job.count as usize);
        found.is_some()
    });
    found.expect("it was found")
}

/// Tries to change the record as somebody else.
fn forge(cluster: &Cluster, script: &str) -> Output {
    cluster.sh(
        2,
        &format!("{USER} sh -c 'cd /cluster/.glu/jobs; {script}'"),
    )
}

#[test]
fn each_node_sees_each_job_and_can_signal_it() {
    let cluster = Cluster::up(3);
    let run = "cd /; exec glurun -N 3 -n 6 sh -c 'echo $$; exec sleep 1000'";
    let running = cluster.spawn(1, run);
    let job = job_of(&cluster, 1, 1);
    assert_eq!((job.count, job.uid, &*job.state), (6, 0, "running"));
    assert_eq!(job.command[..2], ["sh", "-c"]);
    let places: Vec<_> = job.processes.iter().map(|of| (of.vnn, of.node)).collect();
    assert_eq!(places, [(0, 1), (1, 2), (2, 3), (3, 1), (4, 2), (5, 3)]);
    for process in &job.processes {
        let own = format!("grep -z ^GLU_VNN= /proc/{}/environ", process.pid);
        let own = cluster.sh(process.node, &own).ok();
        assert_eq!(own, format!("GLU_VNN={}\0", process.vnn));
    }
    let owner = format!("tr '\\0' ' ' < /proc/{}/cmdline", job.npid);
    assert!(cluster.sh(1, &owner).ok().starts_with("glurun -N 3 "));
    for node in [2, 3] {
        assert_eq!(jobs(&cluster, node, ""), std::slice::from_ref(&job));
        assert_eq!(jobs(&cluster, node, "-w 2"), std::slice::from_ref(&job));
    }
    let shown = cluster.sh(3, "glu jobs").ok();
    let line = format!(
        "{} +root +running +6 +node\\[1-3\\] +[0-9:]+ +sh -c ",
        job.npid
    );
    assert_eq!(
        cluster.sh(3, &format!("glu jobs | grep -cE '{line}'")).ok(),
        "1",
        "{shown}"
    );

    // A user's job beside it, which is nobody else's to end, and is not where it does not run.
    let of_user = format!("cd /; {USER} glurun -w 3 sleep 1001; exit $?");
    let of_user = cluster.spawn(2, &of_user);
    let theirs = job_of(&cluster, 1, 2);
    assert_eq!(
        (theirs.uid, &theirs.command[..]),
        (1234, &["sleep".into(), "1001".into()][..])
    );
    assert_eq!(jobs(&cluster, 1, "-w 1"), std::slice::from_ref(&job));
    let stranger = "setpriv --reuid 4321 --regid 4321 --clear-groups";
    for target in [format!("{}", theirs.npid), format!("{}.0", theirs.npid)] {
        let refused = cluster.sh(1, &format!("{stranger} glukill {target}"));
        assert_eq!(refused.code(), Some(1), "{refused}");
    }
    for script in [
        "echo x > node2.json",
        "rm node2.json",
        "mv node2.json x",
        "touch node9.json",
        "echo x >> node1.json",
    ] {
        let refused = forge(&cluster, script);
        assert_ne!(refused.code(), Some(0), "{script}: {refused}");
    }
    let own = cluster.sh(1, &format!("{USER} glukill {}.0", theirs.npid));
    assert_eq!(own.code(), Some(0), "{own}");
    assert_eq!(of_user.wait(DEADLINE).code(), Some(128 + 15));

    // One process, from a node that has neither it nor the command; then all of them.
    cluster.sh(3, &format!("glukill {}.4", job.npid)).ok();
    wait_until("the end of one process", DEADLINE, || {
        let jobs = jobs(&cluster, 3, "");
        let left = jobs.iter().flat_map(|job| &job.processes);
        let left: BTreeSet<u32> = left.map(|process| process.vnn).collect();
        left == BTreeSet::from([0, 1, 2, 3, 5])
    });
    cluster.sh(2, &format!("glukill {}", job.npid)).ok();
    assert_eq!(running.wait(DEADLINE).code(), Some(128 + 15));
    wait_until("the end of the record", DEADLINE, || {
        jobs(&cluster, 2, "").is_empty()
    });
}

#[test]
fn the_record_outlives_nodes_and_the_leader() {
    let cluster = Cluster::up(3);
    let leader = cluster.leader(None);
    let [home, other] = [leader % 3 + 1, (leader + 1) % 3 + 1];
    let running = cluster.spawn(home, &format!("cd /; exec glurun -w {other} sleep 1000"));
    let job = job_of(&cluster, other, home);
    let lost = cluster.spawn(leader, &format!("cd /; exec glurun -w {home} sleep 1001"));
    let gone = job_of(&cluster, other, leader);

    // The leader is the home of one of them.
    cluster.kill(leader);
    drop(lost);
    cluster.leader(Some(leader));
    let state = |npid| {
        let jobs = jobs(&cluster, other, "").into_iter();
        let mut jobs = jobs.filter(|job| job.npid == npid).map(|job| job.state);
        jobs.next()
    };
    wait_until("a job that is lost", FORGOTTEN_WITHIN, || {
        state(gone.npid).as_deref() == Some("lost")
    });
    assert_eq!(state(job.npid).as_deref(), Some("running"));
    wait_until("the end of the record of it", FORGOTTEN_WITHIN, || {
        state(gone.npid).is_none()
    });
    assert_eq!(jobs(&cluster, other, ""), std::slice::from_ref(&job));

    // A home that comes back writes a record of its own.
    cluster.start(leader);
    let again = cluster.spawn(leader, "cd /; exec glurun sleep 1002");
    let new = job_of(&cluster, other, leader);
    assert_eq!(jobs(&cluster, home, "").len(), 2);
    for npid in [job.npid, new.npid] {
        cluster.sh(other, &format!("glukill -KILL {npid}")).ok();
    }
    running.wait(DEADLINE);
    again.wait(DEADLINE);
    wait_until("the end of the record", DEADLINE, || {
        jobs(&cluster, other, "").is_empty()
    });
}

#[test]
fn a_home_that_was_only_cut_off_takes_its_word_back() {
    let cluster = Cluster::up(3);
    let home = cluster.leader(None) % 3 + 1;
    let other = home % 3 + 1;
    // Nothing of it is elsewhere: it goes on.
    let running = cluster.spawn(home, &format!("cd /; glurun -w {home} sleep 1000; exit $?"));
    let job = job_of(&cluster, other, home);
    let state = || {
        jobs(&cluster, other, "")
            .into_iter()
            .map(|job| job.state)
            .next()
    };
    cluster.cut(home);
    wait_until("a job that is taken for lost", FORGOTTEN_WITHIN, || {
        state().as_deref() == Some("lost")
    });
    cluster.heal(home);
    wait_until("its home's word", FORGOTTEN_WITHIN, || {
        state().as_deref() == Some("running")
    });
    assert_eq!(job_of(&cluster, other, home), job);
    // The leader heard of the home before this node has.
    wait_until("the home to be reached", DEADLINE, || {
        let kill = cluster.sh(other, &format!("glukill {}.0", job.npid));
        kill.status.success()
    });
    assert_eq!(running.wait(DEADLINE).code(), Some(128 + 15));
}

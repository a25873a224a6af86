//! Barriers of many processes on three nodes, by a program in C, and commands beside others.

use std::time::Instant;
use tests::{Cluster, DEADLINE, program_in_c, wait_until};

#[test]
fn sixty_four_processes_go_through_a_hundred_barriers() {
    let cluster = Cluster::up(3);
    let program = program_in_c(&cluster, "barrier");
    let program = program.display();
    let run = |script: &str| {
        cluster
            .node(1)
            .sh_within(3 * DEADLINE, &format!("cd /; {script}"))
    };
    // Each looks behind every barrier whether all others have been in front of it.
    run(&format!("glurun -N 3 -n 64 {program} checked 10")).ok();
    let start = Instant::now();
    let told = run(&format!("glurun -N 3 -n 64 {program} timed 100")).ok();
    println!(
        "100 barriers of 64 processes: {told} us each, {:?} in all",
        start.elapsed()
    );

    // Who waits for one that is gone is ended.
    let lost = run(&format!("glurun -N 3 -n 12 {program} gone 5"));
    assert_eq!(lost.code(), Some(128 + 15), "{lost}");
    assert!(
        lost.stderr.contains("has ended, and others wait for it"),
        "{lost}"
    );

    // So are all when a node is lost.
    let left = cluster.spawn(
        1,
        &format!("cd /; glurun -N 3 -n 12 {program} checked 100000; exit $?"),
    );
    wait_until("all processes", DEADLINE, || {
        let jobs = cluster.sh(1, "glu jobs --json").ok();
        jobs.matches("\"vnn\"").count() == 12
    });
    cluster.kill(3);
    let ended = left.wait(DEADLINE);
    assert!(matches!(ended.code(), Some(125 | 143)), "{ended}");
}

#[test]
fn a_command_beside_another_is_on_its_nodes() {
    let cluster = Cluster::up(3);
    let program = program_in_c(&cluster, "barrier");
    let run = |node, script: &str| cluster.sh(node, &format!("cd /; {script}"));
    // The command is on two of the nodes, one of them twice; who starts the other one is a process of it.
    let both = run(
        1,
        &format!("glurun -w 2-3 -N 2 -n 3 {} beside 1", program.display()),
    )
    .ok();
    let of = |who: &str| {
        let mut lines: Vec<&str> = both
            .lines()
            .filter_map(|line| line.strip_prefix(who))
            .collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(of("own "), ["0 2 3", "1 3 3", "2 2 3"]);
    assert_eq!(of("beside "), of("own "));
    // From elsewhere, and what is no job.
    let running = cluster.spawn(2, "cd /; exec glurun -w 3,1 -N 2 sleep 1000");
    let mut npid = String::new();
    wait_until("a job on record", DEADLINE, || {
        npid = run(1, "glu jobs | awk '/sleep 1000/ { print $1 }'").ok();
        !npid.is_empty()
    });
    let beside = run(
        1,
        &format!("glurun -l --beside {npid} sh -c 'echo $GLU_NODE' | sort"),
    );
    assert_eq!(beside.ok(), "0: 1\n1: 3");
    run(3, &format!("glukill {npid}")).ok();
    running.wait(DEADLINE);
    let none = run(1, &format!("glurun --beside {npid} true"));
    assert_eq!(none.code(), Some(125), "{none}");
    assert!(none.stderr.contains("is no job that runs"), "{none}");
}

//! Barriers of many processes on three nodes, by a program in C, and commands beside others.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tests::{Cluster, DEADLINE, library, wait_until};

/// Compiles the program as `make install` would have it find the library.
fn program(cluster: &Cluster) -> PathBuf {
    let dir = cluster.state().join("c");
    std::fs::create_dir(&dir).expect("made");
    std::fs::copy(library(), dir.join("libglu.so.0")).expect("copied");
    std::os::unix::fs::symlink("libglu.so.0", dir.join("libglu.so")).expect("linked");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = dir.join("barrier");
    let compiled = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg(here.join("tests/barrier.c"))
        .arg("-I")
        .arg(here.join("../mount-tools/libglu"))
        .arg("-L")
        .arg(&dir)
        .args(["-lglu", "-Wl,-rpath,$ORIGIN"])
        .output()
        .expect("there is a C compiler");
    assert!(compiled.status.success(), "{compiled:?}");
    program
}

#[test]
fn sixty_four_processes_go_through_a_hundred_barriers() {
    let cluster = Cluster::up(3);
    let program = program(&cluster);
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
    assert!(start.elapsed() < Duration::from_secs(120));

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

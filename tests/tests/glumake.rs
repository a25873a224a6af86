//! glumake builds what make builds: C projects out of the registry, on three nodes and on one, byte for byte.

use std::path::Path;
use std::time::Duration;
use tests::{Cluster, DEADLINE, sources, wait_until};

/// A build on a busy machine.
const LONG: Duration = Duration::from_secs(300);

/// Copies a project into the tree, builds it twice, and compares all files that are there then.
fn check(project: &Path, configure: &str, target: &str) {
    let cluster = Cluster::up(3);
    let run = |script: &str| {
        let script = format!("cd /cluster/project && {{ {script}; }} 2>&1");
        cluster.node(1).sh_within(LONG, &script).ok()
    };
    // Compilers that tell where they run.
    let compilers = "for name in cc c++; do
        printf '#!/bin/sh\\necho $GLU_NODE >> /cluster/where\\nexec %s \"$@\"\\n' $name > /cluster/$name
        chmod 755 /cluster/$name; done";
    cluster.sh(1, compilers).ok();
    let copy = format!("cp -r '{}' /cluster/project", project.display());
    cluster.sh(1, &copy).ok();
    run(configure);
    let build = |make: &str| {
        run("make clean; rm -f /cluster/where");
        run(&format!("{make} CC=/cluster/cc CXX=/cluster/c++ {target}"));
        (
            run("find . -type f | sort | xargs sha256sum"),
            cluster.sh(1, "sort /cluster/where | uniq -c").ok(),
        )
    };
    let (local, _) = build("make -j4");
    let (spread, nodes) = build("glumake -j6");
    println!(
        "{} files; compilers per node:\n{nodes}",
        spread.lines().count()
    );
    let differ: Vec<&str> = spread
        .lines()
        .filter(|line| !local.contains(line))
        .collect();
    assert!(
        local.lines().count() == spread.lines().count() && differ.is_empty(),
        "differ: {differ:?}"
    );
    for node in 1..=3 {
        let ran = nodes
            .lines()
            .any(|line| line.trim().ends_with(&format!(" {node}")));
        assert!(ran, "nothing ran on node {node}: {nodes}");
    }
}

/// 77 files of C, of which some make sources for others; a make in a directory of its own.
#[test]
fn luajit_is_the_same() {
    let root = sources("tests/sources/Cargo.toml", "luajit-src");
    check(
        &root.join("luajit2"),
        "true",
        "CCOPT=-O0 HOST_CC=/cluster/cc",
    );
}

/// 91 files of C, and 12 of C++: makes in two directories, after a configure.
#[test]
fn librdkafka_is_the_same() {
    let root = sources("tests/sources/Cargo.toml", "rdkafka-sys");
    let configure = "./configure --disable-ssl --disable-gssapi --disable-curl --disable-zlib --disable-zstd \
        --disable-lz4-ext --disable-debug-symbols --disable-optimization";
    check(&root.join("librdkafka"), configure, "libs");
}

/// Which recipes stay where make was started: `GLUMAKE_LOCAL` of the makefile, of one target, of the user, and what has make's
/// jobserver.
#[test]
fn some_recipes_stay() {
    let cluster = Cluster::up(2);
    let makefile = "
all: away star one by_user jobserver submake
away: ; @echo $@ $${GLU_VNN-stayed}
star: private export GLUMAKE_LOCAL = *
star: ; @echo $@ $${GLU_VNN-stayed}
one: private export GLUMAKE_LOCAL = true
one: ; @true; echo $@ $${GLU_VNN-stayed}
by_user: ; @test x; echo $@ $${GLU_VNN-stayed}
jobserver: ; +@echo $@ $${GLU_VNN-stayed}
submake: ; @$(MAKE) --no-print-directory below
below: ; @echo $@ $${GLU_VNN-stayed}
";
    std::fs::write(cluster.path(1).join("Makefile"), makefile).expect("write");
    let built = cluster
        .sh(
            1,
            "cd /cluster && GLUMAKE_LOCAL='test x' glumake -j2 | sort",
        )
        .ok();
    let expected = "away 0\nbelow 0\nby_user stayed\njobserver stayed\none stayed\nstar stayed";
    assert_eq!(built, expected);
}

/// What runs on a node that dies runs again here, when nothing of it can be left there; the others go on.
#[test]
fn a_node_that_dies_costs_a_build_no_target() {
    let cluster = Cluster::up(3);
    let makefile = "
OBJ = $(shell seq 12)
all: $(OBJ:%=%.o) ; cat $^ > $@
%.o: ; echo $$GLU_NODE >> ran; sleep 2; echo $@ > $@
";
    std::fs::write(cluster.path(1).join("Makefile"), makefile).expect("write");
    let build = cluster.spawn(1, "cd /cluster && glumake -s -j6");
    wait_until("a recipe on node 3", DEADLINE, || {
        cluster.sh(1, "grep -q 3 /cluster/ran").code() == Some(0)
    });
    cluster.kill(3);
    let built = build.wait(LONG);
    assert_eq!(built.code(), Some(0), "{built}");
    let here = "ran here, for faults of the cluster";
    assert!(built.stderr.contains(here), "it is told: {built}");
    let all = cluster.sh(2, "sort -n /cluster/all").ok();
    let expected: Vec<String> = (1..=12).map(|n| format!("{n}.o")).collect();
    assert_eq!(all, expected.join("\n"));
}

/// At a terminal the last row tells how far the build is, and is given back.
#[test]
fn a_terminal_shows_how_far_a_build_is() {
    let cluster = Cluster::up(2);
    let makefile = "all: 1 2 3 4\n1 2 3 4: ; @sleep 0.3; echo built $@\n";
    std::fs::write(cluster.path(1).join("Makefile"), makefile).expect("write");
    let script = "cd /cluster; TERM=xterm glumake -j2; echo status $?";
    let mut terminal = cluster.node(1).terminal(&["bash", "-c", script]);
    let shown = terminal.expect("status 0");
    // Not each state is shown.
    let told = (1..=3).any(|done| shown.contains(&format!("glumake: {done} done, ")));
    assert!(told, "{shown:?}");
    assert!(shown.contains("built 4"), "{shown:?}");
    let (set_apart, given_back) = (shown.find("\u{1b}[1;"), shown.rfind("\u{1b}[r"));
    assert!(set_apart.is_some() && set_apart < given_back, "{shown:?}");
}

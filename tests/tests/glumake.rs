//! glumake builds what make builds: C projects out of the registry, on three nodes and on one, byte for byte.

use std::path::Path;
use std::time::Duration;
use tests::{Cluster, sources};

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

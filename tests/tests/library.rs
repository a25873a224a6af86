//! `libglu.so` and `glu.h` under a program in C.

use std::path::Path;
use std::process::Command;
use tests::{Cluster, DEADLINE, library, wait_until};

const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

#[test]
fn a_program_in_c_calls_each_function() {
    let cluster = Cluster::up(2);
    let dir = cluster.state().join("c");
    std::fs::create_dir(&dir).expect("made");
    // As `make install` lays it out.
    std::fs::copy(library(), dir.join("libglu.so.0")).expect("copied");
    std::os::unix::fs::symlink("libglu.so.0", dir.join("libglu.so")).expect("linked");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = dir.join("library");
    let compiled = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg(here.join("tests/library.c"))
        .arg("-I")
        .arg(here.join("../mount-tools/libglu"))
        .arg("-L")
        .arg(&dir)
        .args(["-lglu", "-Wl,-rpath,$ORIGIN"])
        .output()
        .expect("there is a C compiler");
    assert!(compiled.status.success(), "{compiled:?}");

    let start = |program: &str| {
        let script = format!("setsid {program} > /dev/null 2>&1 & echo $!");
        cluster.sh(2, &script).ok()
    };
    let pid = start("sleep 1000");
    let group = start("sh -c 'sleep 1001 & sleep 1002 & wait'");
    let members = format!("glups -e -w 2 -o pgid,args | grep -c '^ *{group} sleep 100[12]$'");
    wait_until("a group", DEADLINE, || {
        cluster.sh(1, &members).stdout == "2"
    });
    let program = program.display();
    let call = |pid: &str| format!("{program} 1 2 {pid} {group} 196000");
    let absent = format!("GLU_PROC=/nowhere {}", call(&pid));
    cluster.sh(1, &absent).ok();
    let stranger = cluster.sh(1, &format!("{NOBODY} {}", call(&pid)));
    assert!(
        stranger.stderr.ends_with("Operation not permitted"),
        "{stranger}"
    );
    cluster.sh(1, &call(&pid)).ok();
    wait_until("the end of all of them", DEADLINE, || {
        let left = "glups -e -w 2 -o args | grep -c '^sleep 100[012]$'";
        cluster.sh(1, left).stdout == "0"
    });
}

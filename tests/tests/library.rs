//! `libglu.so` and `glu.h` under a program in C.

use tests::{Cluster, DEADLINE, moves, program_in_c, wait_until};

const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

#[test]
fn a_program_in_c_calls_each_function() {
    let cluster = Cluster::up(2);
    let program = program_in_c(&cluster, "library");
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

#[test]
fn a_program_in_c_moves_and_becomes_another() {
    let cluster = moves::cluster_that_moves(2);
    let program = program_in_c(&cluster, "library");
    let program = program.display();
    let became = cluster.sh(1, &format!("{program} rexec"));
    assert_eq!((became.code(), &*became.stdout), (Some(7), "2"), "{became}");
    let moves = format!(
        "import subprocess
job = Job(1, 'sh', '-c', 'echo $$; read x; echo $x; exit 5')
job.pid = job.owner.stdout.readline().strip()
subprocess.run(['{program}', 'move', job.pid], check=True)
assert job.ask('well') == ['well'] and job.end() == 5"
    );
    moves::drive(&cluster, DEADLINE, &moves);
    let on_node_1 = "mount -t tmpfs none /mnt && touch /mnt/here";
    cluster.sh(1, on_node_1).ok();
    // Its output is a pipe: what the tests write to is a file of this machine's.
    let alone = |job: &str| {
        let script = format!("{{ glurun -w 1 {job} </dev/null 2>&1; echo status $?; }} | cat");
        cluster.sh(1, &script).ok()
    };
    // It asks for the next move before anybody else knows of the one before.
    for _ in 0..5 {
        let moved = alone(&format!("{program} move-itself"));
        assert_eq!(moved, "status 9");
    }
    // A shell as well.
    let script = "cd /cluster/proc/$$ && echo 2 >goto && cat where && echo 0 >goto && cat where";
    let moved = alone(&format!("sh -c '{script}'"));
    assert_eq!(moved, "2\n1\nstatus 0");
}

#[test]
fn a_program_in_c_has_a_child_on_another_node() {
    let cluster = moves::cluster_that_moves(2);
    let program = program_in_c(&cluster, "library");
    let program = program.display();
    let run = |words: &str| {
        let script = format!("{{ {words} </dev/null 2>&1; echo status $?; }} | sort | cat");
        cluster.sh(1, &script).ok()
    };
    let expected = "err\nout\nstatus 6";
    assert_eq!(run(&format!("{program} rfork")), expected);
    assert_eq!(run(&format!("glurun -w 1 {program} rfork")), expected);

    for alone in ["glush -c", "glurun -w 1 --private net sh -c"] {
        let left = cluster.sh(1, &format!("{alone} '{program} leave' </dev/null"));
        let refused = "glu_rfork(2) >= 0: Operation not supported";
        assert!(left.stderr.ends_with(refused), "{left}");
    }

    // What stands for a child is it: also for the kill that nobody sees.
    let children = format!("glups -e -w 2 -o args | grep -c '^{program} leave$'");
    let are = |count: &str| {
        wait_until("children on node 2", DEADLINE, || {
            cluster.sh(1, &children).stdout == count
        });
    };
    let leave = format!("setsid {program} leave > /dev/null 2>&1 </dev/null & echo $!");
    let pid = cluster.sh(1, &leave).ok();
    are("1");
    cluster.sh(1, &format!("pkill -KILL -P {pid}")).ok();
    are("0");
    cluster.sh(1, &format!("kill -KILL {pid}")).ok();
    // A job's end is that of all that it has forked.
    let leave = format!("glurun -w 1 {program} leave > /dev/null 2>&1 </dev/null & echo $!");
    let pid = cluster.sh(1, &leave).ok();
    are("1");
    cluster.sh(1, &format!("kill {pid}")).ok();
    are("0");
}

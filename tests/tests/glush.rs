//! The shell that sees and signals the processes of all nodes, on real mounts.

use tests::{Cluster, DEADLINE, Output, wait_until};

const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

/// Starts a program in a session of its own and returns its number.
#[track_caller]
fn start(cluster: &Cluster, node: u32, program: &str) -> String {
    let script = format!("setsid {program} > /dev/null 2>&1 & echo $!");
    cluster.sh(node, &script).ok()
}

/// Waits until a process is in one of these states, seen from another node; `-` is none.
#[track_caller]
fn wait_for_state(cluster: &Cluster, pid: &str, states: &str) {
    let script = format!("sed 's/.*) \\(.\\).*/\\1/' /cluster/proc/{pid}/stat || echo -");
    wait_until(&format!("state {states} of a process"), DEADLINE, || {
        let state = cluster.sh(1, &script).stdout;
        states.contains(state.lines().last().unwrap_or("?"))
    });
}

/// Runs a command in a shell of node 1.
#[track_caller]
fn glush(cluster: &Cluster, user: &str, command: &str) -> Output {
    cluster
        .node(1)
        .spawn_command(&["sh", "-c", &format!("{user} glush -c \"$0\""), command])
        .wait(DEADLINE)
}

#[test]
fn signals_reach_other_nodes() {
    let cluster = Cluster::up(2);
    let root = |command: &str| glush(&cluster, "", command);
    let pid = start(&cluster, 2, "sleep 1000");

    root(&format!("kill -0 {pid}")).ok();
    root(&format!("/bin/kill -STOP {pid}")).ok();
    wait_for_state(&cluster, &pid, "T");
    root(&format!("python3 -c 'import os; os.kill({pid}, 18)'")).ok();
    wait_for_state(&cluster, &pid, "S");
    root(&format!("kill -KILL {pid}")).ok();
    wait_for_state(&cluster, &pid, "Z-");

    // What has ended is no process, wherever it was.
    wait_for_state(&cluster, &pid, "-");
    let ended = root(&format!("kill -0 {pid}"));
    assert_eq!(ended.code(), Some(1), "{ended}");
    assert!(ended.stderr.contains("No such process"), "{ended}");
    let never = root("kill -0 3000000");
    assert!(never.stderr.contains("No such process"), "{never}");
    let bad = root("python3 -c 'import os; os.kill(os.getppid(), 65)'");
    assert!(bad.stderr.contains("[Errno 22]"), "{bad}");
}

#[test]
fn groups_get_signals() {
    let cluster = Cluster::up(2);
    let leader = start(&cluster, 2, "sh -c 'sleep 1000 & sleep 1001 & wait'");
    let members =
        |leader: &str| format!("glups -e -o pgid,args | grep -c '^ *{leader} sleep 100[01]$'");
    let script = members(&leader);
    wait_until("all members of the group", DEADLINE, || {
        cluster.sh(1, &script).stdout == "2"
    });
    glush(&cluster, "", &format!("kill -TERM -- -{leader}")).ok();
    wait_for_state(&cluster, &leader, "Z-");
    wait_until("the end of its members", DEADLINE, || {
        cluster.sh(1, &script).stdout == "0"
    });

    // A group outlives its leader.
    let leader = start(&cluster, 2, "sh -c 'sleep 1000 & sleep 1001 &'");
    let script = members(&leader);
    wait_until("all members of the group", DEADLINE, || {
        cluster.sh(1, &script).stdout == "2"
    });
    wait_for_state(&cluster, &leader, "-");
    let stranger = glush(&cluster, NOBODY, &format!("kill -TERM -- -{leader}"));
    assert!(stranger.stderr.contains("not permitted"), "{stranger}");
    glush(&cluster, "", &format!("kill -TERM -- -{leader}")).ok();
    wait_until("the end of its members", DEADLINE, || {
        cluster.sh(1, &script).stdout == "0"
    });
}

#[test]
fn the_other_node_asks_whose_process_it_is() {
    let cluster = Cluster::up(2);
    let roots = start(&cluster, 2, "sleep 1000");
    let nobodys = start(&cluster, 2, &format!("{NOBODY} sleep 1001"));
    let here = start(&cluster, 1, "sleep 1002");
    wait_until("a process of nobody", DEADLINE, || {
        cluster
            .sh(1, &format!("cat /cluster/proc/{nobodys}/cmdline"))
            .stdout
            .contains("sleep\0")
    });
    // In a shell of its own, in root's, and in one within another: always as who it is.
    let inner = format!("{NOBODY} sh");
    for (user, before) in [(NOBODY, "sh"), ("", &*inner), (NOBODY, "glush")] {
        for target in [&roots, &here] {
            let stranger = glush(&cluster, user, &format!("{before} -c 'kill -0 {target}'"));
            assert_ne!(stranger.code(), Some(0), "{user} {before}: {stranger}");
            assert!(stranger.stderr.contains("not permitted"), "{stranger}");
        }
        glush(&cluster, user, &format!("{before} -c 'kill -0 {nobodys}'")).ok();
    }
    glush(&cluster, NOBODY, &format!("kill {nobodys}")).ok();
    wait_for_state(&cluster, &nobodys, "Z-");
}

#[test]
fn local_processes_are_as_ever() {
    let cluster = Cluster::up(2);
    for user in ["", NOBODY] {
        let run = |command: &str| glush(&cluster, user, command).ok();
        // The kernel answers these itself; children, jobs and groups work.
        assert_eq!(run("sleep 1000 & kill $!; wait $!; echo $?"), "143");
        assert_eq!(
            run("set -m; sleep 1000 & kill -9 -$!; wait $!; echo $?"),
            "137"
        );
        assert_eq!(run("trap 'echo caught' USR1; kill -USR1 $$"), "caught");
        // Descriptors as files.
        assert_eq!(run("cat <(echo one) /dev/stdin <<< two"), "one\ntwo");
        assert_eq!(run("(echo three > /dev/stdout) | cat"), "three");
    }
    // Nothing of it is seen outside.
    assert_eq!(cluster.sh(1, "stat -f -c %T /proc").ok(), "proc");
    assert_eq!(cluster.sh(1, "ls /run/glu/view").ok(), "");
}

#[test]
fn unmodified_programs_see_all_nodes() {
    let cluster = Cluster::up(2);
    let other = start(&cluster, 2, "sleep 3003");
    let here = start(&cluster, 1, "sleep 3004");
    for user in ["", NOBODY] {
        let run = |command: &str| glush(&cluster, user, command).ok();
        let found = run("pgrep -f '^sleep 300[34]$'");
        assert_eq!(found.lines().count(), 2, "{found}");
        let ps = run("ps -eo pid,args");
        for pid in [&other, &here] {
            let lines = ps.lines().filter(|line| line.trim().starts_with(&**pid));
            assert_eq!(lines.count(), 1, "{pid} in {ps}");
        }
        let top = run("top -b -n1 -w 200");
        assert!(top.contains(&*other) && top.contains(&*here), "{top}");
    }
    glush(&cluster, "", "pkill -f '^sleep 300[34]$'").ok();
    wait_for_state(&cluster, &other, "Z-");
    wait_for_state(&cluster, &here, "Z-");
}

#[test]
fn what_works_on_one_node_only_says_so() {
    let cluster = Cluster::up(2);
    let pid = start(&cluster, 2, "sleep 1000");
    let python = |code: &str| glush(&cluster, "", &format!("python3 -c '{code}'"));
    let debugger = "import ctypes, os; c = ctypes.CDLL(None, use_errno=True)
assert c.ptrace(16, PID, None, None) == -1; print(ctypes.get_errno())";
    let refused = python(&debugger.replace("PID", &pid));
    assert_eq!(refused.ok(), "95");
    assert_eq!(python(&debugger.replace("PID", "3000000")).ok(), "3");

    let calls = "import ctypes, os, resource, signal
c = ctypes.CDLL(None, use_errno=True)
def failed(call):
    try: call()
    except OSError as error: return error.errno
def queue(pid):
    if c.sigqueue(pid, 15, None): raise OSError(ctypes.get_errno(), str())
def thread(pid):
    if c.tgkill(pid, pid, 15): raise OSError(ctypes.get_errno(), str())
for pid, errno in [(PID, 95), (3000000, 3)]:
    for call in [queue, thread, os.sched_getaffinity, lambda pid: os.sched_setaffinity(pid, [0]),
            lambda pid: os.getpriority(os.PRIO_PROCESS, pid), lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 5),
            lambda pid: resource.prlimit(pid, resource.RLIMIT_CORE)]:
        assert failed(lambda: call(pid)) == errno, (call, pid, failed(lambda: call(pid)))
# A user is no process, whatever his number.
assert failed(lambda: os.setpriority(os.PRIO_USER, PID, 0)) == 3
print(os.getpriority(os.PRIO_PROCESS, os.getpid()))";
    assert_eq!(python(&calls.replace("PID", &pid)).ok(), "0");
    glush(&cluster, "", &format!("kill -0 {pid}")).ok();
}

#[test]
fn descriptors_of_processes_of_other_nodes() {
    const WATCH: &str = "import os, select, signal, sys
pid = int(sys.argv[1])
fd = os.pidfd_open(pid)
poll = select.poll()
poll.register(fd, select.POLLIN)
assert poll.poll(100) == []
signal.pidfd_send_signal(fd, 0)
assert not os.get_inheritable(fd)
# It is nobody's child here, as the kernel says of a stranger's.
def waited(fd, options):
    try: os.waitid(os.P_PIDFD, fd, options)
    except OSError as error: return error.errno
assert waited(fd, os.WEXITED) == waited(fd, os.WEXITED | os.WNOHANG) == 10
assert waited(os.pidfd_open(os.getppid()), os.WEXITED) == 10
assert waited(fd, os.WNOHANG) == 22 and waited(0, os.WEXITED) == 9
# A directory of a process is one, too.
where = os.open('/proc/%d' % pid, os.O_RDONLY)
signal.pidfd_send_signal(where, 15)
assert poll.poll(50000) == [(fd, select.POLLIN)], poll.poll(0)
assert os.read(fd, 100).strip() == b'signal 15'
# A pidfd of this node is the kernel's.
child = os.fork()
if child == 0: signal.pause()
own = os.pidfd_open(child)
signal.pidfd_send_signal(own, 9)
assert os.waitid(os.P_PIDFD, own, os.WEXITED).si_status == 9
print('seen')";
    let cluster = Cluster::up(2);
    std::fs::write(cluster.path(1).join("watch.py"), WATCH).expect("written");
    for user in ["", NOBODY] {
        let pid = start(&cluster, 2, &format!("{user} sleep 1000"));
        wait_until("a process of that user", DEADLINE, || {
            cluster
                .sh(1, &format!("cat /cluster/proc/{pid}/cmdline"))
                .stdout
                .starts_with("sleep\0")
        });
        let seen = glush(&cluster, user, &format!("python3 /cluster/watch.py {pid}"));
        assert_eq!(seen.ok(), "seen");
    }
    let pid = start(&cluster, 2, "sleep 1000");
    let stranger = format!(
        "python3 -c 'import os, signal
signal.pidfd_send_signal(os.pidfd_open({pid}), 9)'"
    );
    let stranger = glush(&cluster, NOBODY, &stranger);
    assert!(stranger.stderr.contains("[Errno 1]"), "{stranger}");
    glush(&cluster, "", "killall -9 sleep").ok();
    wait_for_state(&cluster, &pid, "Z-");
}

#[test]
fn what_a_shell_left_running_still_reaches_other_nodes() {
    let cluster = Cluster::up(2);
    let pid = start(&cluster, 2, "sleep 1000");
    let left = format!(
        "setsid sh -c 'while [ ! -e /cluster/go ]; do sleep 0.1; done; kill {pid}' > /dev/null 2>&1 &"
    );
    glush(&cluster, "", &left).ok();
    cluster
        .sh(2, &format!("kill -0 {pid} && touch /cluster/go"))
        .ok();
    wait_for_state(&cluster, &pid, "Z-");
    // With the last process ends what answered for it.
    wait_until("the end of the supervisor", DEADLINE, || {
        cluster
            .sh(1, "glups -e -w 1 -o comm | grep -c '^glush$'")
            .stdout
            == "0"
    });
}

#[test]
fn scripts_name_it_as_their_interpreter() {
    let cluster = Cluster::up(2);
    let pid = start(&cluster, 2, "sleep 1000");
    let script = "cd /cluster && printf '#!%s\\nkill -0 \"$1\" && echo \"$0 $1\"\\nexit 7\\n' \
         \"$(command -v glush)\" > s && chmod +x s";
    cluster.sh(1, script).ok();
    for user in ["", NOBODY] {
        let ran = cluster.sh(1, &format!("cd /; {user} /cluster/s x"));
        assert_eq!(ran.code(), Some(7), "{ran}");
    }
    let ran = cluster.sh(1, &format!("/cluster/s {pid}"));
    assert_eq!(
        (ran.code(), &*ran.stdout),
        (Some(7), &*format!("/cluster/s {pid}"))
    );
    let without = cluster.sh(1, "GLU_PROC=/nowhere glush -c true");
    assert_eq!(without.code(), Some(125), "{without}");
    assert!(
        without
            .stderr
            .starts_with("glush: cannot read /nowhere/self"),
        "{without}"
    );
}

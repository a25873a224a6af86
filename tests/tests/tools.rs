//! The tools of the process table, on real mounts.

use tests::{Cluster, DEADLINE, wait_until};

const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

/// Starts a program in a session of its own and returns its number.
#[track_caller]
fn start(cluster: &Cluster, node: u32, program: &str) -> String {
    let script = format!("setsid {program} > /dev/null 2>&1 & echo $!");
    cluster.sh(node, &script).ok()
}

#[track_caller]
fn wait_for_the_end(cluster: &Cluster, pid: &str) {
    wait_until("the end of a process", DEADLINE, || {
        let seen = cluster.sh(1, &format!("cat /cluster/proc/{pid}/stat"));
        seen.code() != Some(0) || seen.stdout.contains(") Z ")
    });
}

#[test]
fn glukill_reaches_other_nodes() {
    let cluster = Cluster::up(2);
    let run = |script: &str| cluster.sh(1, script);
    let [a, b, c] = [1000, 1001, 1002].map(|time| start(&cluster, 2, &format!("sleep {time}")));
    run(&format!("glukill -0 {a} {b} {c}")).ok();
    run(&format!("glukill {a}")).ok();
    wait_for_the_end(&cluster, &a);
    let ended = run(&format!("glukill {a}"));
    assert_eq!(ended.code(), Some(1), "{ended}");
    assert_eq!(ended.stderr, format!("glukill: {a}: No such process"));

    let stranger = run(&format!("{NOBODY} glukill -KILL {b}"));
    assert_eq!(stranger.code(), Some(1), "{stranger}");
    let told = format!("glukill: {b}: Operation not permitted");
    assert_eq!(stranger.stderr, told);

    // Where it is not, it is not signalled; by name all are found.
    let elsewhere = run(&format!("glukill -w 1 {b}"));
    assert!(elsewhere.stderr.contains("is on node 2"), "{elsewhere}");
    assert_eq!(run("glukill -w 1 --name '^sleep$'").code(), Some(1));
    run(&format!("glukill -STOP -- -{b}")).ok();
    wait_until("a process that is stopped", DEADLINE, || {
        run(&format!("glups -p {b} -o stat")).stdout == "STAT\nT"
    });
    run("glukill -9 -w node2 --full --name '^sleep 100[12]$'").ok();
    for pid in [&b, &c] {
        wait_for_the_end(&cluster, pid);
    }
    assert_eq!(run("glukill --name '^sleep$'").code(), Some(1));
    assert_eq!(run("glukill -s nonsense 1").code(), Some(2));
}

#[test]
fn glukill_finds_one_process_of_a_job() {
    let cluster = Cluster::up(2);
    let job = cluster.spawn(1, "echo $$; exec glurun -w 2 -n 2 sleep 1000");
    let script = "glups -e -w 2 -o args | grep -c '^sleep 1000$'";
    wait_until("both processes of the job", DEADLINE, || {
        cluster.sh(1, script).stdout == "2"
    });
    let npid = job.stdout().trim().to_owned();
    assert_eq!(cluster.sh(1, &format!("glukill {npid}.2")).code(), Some(1));
    cluster.sh(1, &format!("glukill -KILL {npid}.1")).ok();
    wait_until("the end of one process", DEADLINE, || {
        cluster.sh(1, script).stdout == "1"
    });
    cluster.sh(1, &format!("glukill -KILL {npid}.0")).ok();
    assert_eq!(job.wait(DEADLINE).code(), Some(128 + 9));
}

#[test]
fn glups_shows_every_process_once() {
    let cluster = Cluster::up(2);
    let own = start(&cluster, 1, "sleep 2001");
    let other = start(&cluster, 2, "sleep 2002");
    let nobodys = start(&cluster, 2, &format!("{NOBODY} sleep 2003"));
    // A node that does not answer at once is left out, and said to be.
    let mut shown = String::new();
    wait_until("all nodes to answer glups", DEADLINE, || {
        let listed = cluster.sh(1, "glups -ef");
        let all = listed.stderr.is_empty();
        shown = listed.ok();
        all
    });
    let line = |pid: &str| {
        let lines = shown.lines();
        let lines: Vec<Vec<&str>> = lines
            .map(|line| line.split_whitespace().collect())
            .filter(|words: &Vec<&str>| words.get(1) == Some(&pid))
            .collect();
        assert_eq!(lines.len(), 1, "{pid} in {shown}");
        lines[0].join(" ")
    };
    assert!(line(&own).contains(" 1 0 - 00:00:00 sleep 2001"), "{shown}");
    assert!(
        line(&other).contains(" 2 0 - 00:00:00 sleep 2002"),
        "{shown}"
    );
    assert!(line(&nobodys).starts_with("nobody "), "{shown}");

    let json = cluster.sh(1, "glups -e -w 2 --json").ok();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&json).expect("is JSON");
    assert!(rows.iter().all(|row| row["node"] == 2), "{json}");
    let pids: Vec<String> = rows.iter().map(|row| row["pid"].to_string()).collect();
    assert!(pids.contains(&other) && !pids.contains(&own), "{json}");
    let mut once = pids.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), pids.len());

    let mine = cluster.sh(1, &format!("{NOBODY} glups -o pid,args")).ok();
    assert!(mine.contains(&nobodys) && !mine.contains(&own), "{mine}");
    assert_eq!(cluster.sh(1, "GLU_PROC=/nowhere glups").code(), Some(1));
}

#[test]
fn glustat_tells_the_state_of_nodes_and_why() {
    let cluster = Cluster::up(3);
    let state = |node: &str| {
        let json = cluster.sh(1, &format!("glustat --json -w {node}")).ok();
        let nodes: Vec<serde_json::Value> = serde_json::from_str(&json).expect("is JSON");
        assert_eq!(nodes.len(), 1, "{json}");
        let text = |key: &str| nodes[0][key].as_str().expect("a text").to_owned();
        (text("state"), text("reason"), nodes[0]["users"].as_u64())
    };
    let shown = cluster.sh(1, "glustat").ok();
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(shown.starts_with("NODE  STATE"), "{shown}");

    let user = "setpriv --reuid 1234 --regid 1234 --clear-groups";
    start(&cluster, 2, &format!("{user} sleep 1000"));
    wait_until("a user", DEADLINE, || state("node2").2 == Some(1));
    for _ in 0..3 {
        start(&cluster, 2, "sh -c 'while :; do :; done'");
    }
    wait_until("a busy node", DEADLINE, || state("2").0 == "busy");
    assert!(state("2").1.contains("load"), "{:?}", state("2"));
    cluster
        .sh(1, "glukill -KILL -w 2 -f --name 'while :; do'")
        .ok();

    cluster.sh(1, "glu drain --no-wait 3").ok();
    wait_until("a node that drains", DEADLINE, || state("3").0 == "drain");
    let nobodys = format!("{NOBODY} glustat -w 3");
    wait_until("everybody to be told", DEADLINE, || {
        cluster.sh(1, &nobodys).ok().contains("drain")
    });
    cluster.sh(1, "glu undrain 3").ok();
    wait_until("a node that does not drain", DEADLINE, || {
        state("3").0 != "drain"
    });
    cluster.cut(3);
    wait_until("a node that is gone", DEADLINE, || {
        let (state, reason, users) = state("3");
        assert!(!reason.is_empty());
        ["down", "unreachable"].contains(&&*state) && users.is_none()
    });
    wait_until("a node that is down", DEADLINE, || state("3").0 == "down");
    // Who may not ask the daemon is told the rest.
    let nobodys = cluster.sh(1, &format!("{NOBODY} glustat -w 1,3")).ok();
    assert!(nobodys.contains("down"), "{nobodys}");
    let unknown = cluster.sh(1, "glustat -w 4");
    assert_eq!(unknown.stderr, "glustat: there is no node 4");
}

/// Drives `glu top` in a terminal: sees a process of another node, leaves the others out, kills it, quits.
const TOP: &str = r#"
import fcntl, os, pty, select, struct, sys, termios, time
target = sys.argv[1]
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 100, 200, 0, 0))
    os.environ["TERM"] = "xterm"
    os.execvp("glu", ["glu", "top", "-d", "0.2", "-o", "pid"])
end = time.time() + 50
seen = b""
def until(text):
    global seen
    while text not in seen:
        if not select.select([fd], [], [], end - time.time())[0]:
            sys.exit("no %r in %r" % (text, seen[-2000:]))
        seen += os.read(fd, 65536)
    seen = seen[seen.index(text) + len(text):]
# What does not change on the screen is not sent again: neither blanks nor equal letters. In two parts here, for this
# program's own arguments are on the screen as well.
until(b"REASON")
os.write(fd, b"/sleep 45" b"67\r")
until(b"67]")
os.write(fd, b"k")
until(target.encode() + b",")
os.write(fd, b"KILL\r")
until(b"sent")
os.write(fd, b"q")
# The other screen is left, and nothing failed.
until(b"\x1b[?1049l")
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

#[test]
fn glu_top_in_a_terminal() {
    let cluster = Cluster::up(2);
    let target = start(&cluster, 2, "sleep 4567");
    let python = ["python3", "-c", TOP, &target];
    let ended = cluster.node(1).spawn_command(&python).wait(DEADLINE).ok();
    assert_eq!(ended, "0");
    wait_for_the_end(&cluster, &target);
}

#[test]
fn glu_top_for_programs() {
    let cluster = Cluster::up(2);
    let other = start(&cluster, 2, &format!("{NOBODY} sleep 4568"));
    let here = start(&cluster, 1, "sleep 4569");
    let once = |options: &str| cluster.sh(1, &format!("glu top --once {options}")).ok();
    let mut shown = String::new();
    wait_until("both processes", DEADLINE, || {
        shown = once("");
        shown.contains(" sleep 4568") && shown.contains(" sleep 4569")
    });
    for pid in [&other, &here] {
        let lines = shown
            .lines()
            .filter(|line| line.trim_start().starts_with(&**pid));
        assert_eq!(lines.count(), 1, "{pid} in {shown}");
    }
    let nodes = shown.lines().skip_while(|line| !line.starts_with("NODE"));
    let nodes: Vec<Vec<&str>> = nodes
        .skip(1)
        .take(2)
        .map(|line| line.split_whitespace().collect())
        .collect();
    // Each holds leases and has talked to the other meanwhile.
    for (node, number) in nodes.iter().zip(["1", "2"]) {
        assert_eq!(node[0], number, "{shown}");
        assert_ne!((node[6], node[7]), ("-", "-"), "{shown}");
    }
    let nobodys = once("-u nobody -w 2 -o mem");
    assert!(
        nobodys.contains(&*other) && !nobodys.contains(&*here),
        "{nobodys}"
    );
    let metrics = cluster
        .sh(1, "cat /cluster/proc/cluster/node2/metrics")
        .ok();
    assert!(metrics.contains("\nglu_leases "), "{metrics}");
    assert!(
        metrics.contains("\nglu_sent_bytes_total{peer=\"1\"} "),
        "{metrics}"
    );
    let pipe = cluster.sh(1, "glu top");
    assert_eq!(pipe.code(), Some(2), "{pipe}");
    assert_eq!(pipe.stderr, "glu: this is no terminal: use --once");
}

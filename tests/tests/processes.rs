//! `/cluster/proc` under the programs that people use, unmodified: each process of each node once, and what is done
//! to one is done to that one.
//!
//! Needs root, /dev/fuse, and procps and psmisc.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tests::{Cluster, binary, wait_until};

const LONG: Duration = Duration::from_secs(60);
/// Kernel pids per node.
const RANGE: u32 = 65_536;

/// Runs `command` in a mount namespace of node 1 where `/proc` is that of the cluster.
fn seen(cluster: &Cluster, command: &str) -> tests::Output {
    let script = format!("mount --bind /cluster/proc /proc; {command}");
    let unshare = ["unshare", "-m", "sh", "-c", &script];
    cluster.node(1).spawn_command(&unshare).wait(LONG)
}

/// Starts `command` in the background of a node, in a session of its own, and returns its pid.
fn start(cluster: &Cluster, node: u32, command: &str) -> u32 {
    let script = format!("setsid {command} >/dev/null 2>&1 </dev/null & echo $!");
    let started = cluster.sh(node, &script).ok();
    started
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("a pid: {started}"))
}

/// Returns what `ps` of a node says of its own processes, as the cluster numbers them: pid to parent and name. The
/// asking ones, which have no parent on the node, are left out.
fn own_table(cluster: &Cluster, node: u32) -> BTreeMap<u32, (u32, String)> {
    let text = cluster.sh(node, "exec ps -e -o pid=,ppid=,comm=").ok();
    let number = |kernel: u32| match kernel / RANGE == node {
        true => kernel,
        false if kernel == 0 => 0,
        false => node * 4_194_304 + kernel,
    };
    let rows = rows(&text).into_iter();
    let rows = rows.map(|(pid, (ppid, name))| (number(pid), (number(ppid), name)));
    rows.filter(|(_, (ppid, name))| *ppid != 0 || name == "glu")
        .collect()
}

fn rows(text: &str) -> BTreeMap<u32, (u32, String)> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse().ok());
        let (pid, ppid) = (number().expect("a pid"), number().expect("a parent"));
        let name = words.collect::<Vec<_>>().join(" ");
        (pid, (ppid, name))
    };
    let count = text.lines().count();
    let rows: BTreeMap<_, _> = text.lines().map(row).collect();
    assert_eq!(rows.len(), count, "each process once: {text}");
    rows
}

#[test]
fn tools_show_each_process_of_each_node_once() {
    let cluster = Cluster::up(3);
    let mut sleepers = BTreeSet::new();
    for node in 1..=3 {
        for _ in 0..3 {
            sleepers.insert(start(&cluster, node, "sleep 6543"));
        }
    }
    let own = (1..=3).flat_map(|node| own_table(&cluster, node));
    let own: BTreeMap<_, _> = own.collect();
    assert!(own.len() >= 9 + 3 * 3, "{own:?}");
    for pid in &sleepers {
        assert_eq!(own[pid].1, "sleep");
    }
    for options in ["-e", "ax"] {
        let text = seen(&cluster, &format!("ps {options} -o pid=,ppid=,comm=")).ok();
        let mut shown = rows(&text);
        // Those of `seen` itself.
        shown.retain(|pid, (ppid, name)| own.contains_key(pid) || !(*ppid == 0 || name == "ps"));
        assert_eq!(shown, own);
    }
    let pids = |text: &str| -> BTreeSet<u32> {
        text.split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    let found = seen(&cluster, "pgrep -f '^sleep 6543'").ok();
    assert_eq!(pids(&found), sleepers);
    let found = seen(&cluster, "pgrep -x sleep").ok();
    assert_eq!(pids(&found), sleepers);
    assert_eq!(pids(&seen(&cluster, "pidof sleep").ok()), sleepers);
    for command in ["ps -ef", "ps aux", "top -b -n1 -w 200", "pstree -p 0"] {
        let output = seen(&cluster, command);
        assert_eq!(output.stderr, "", "{command}");
        let text = output.ok();
        for pid in &sleepers {
            let found = text.split(|it: char| !it.is_ascii_digit());
            let found = found.filter(|word| *word == pid.to_string()).count();
            assert_eq!(found, 1, "{pid} in {command}: {text}");
        }
    }
    for command in [
        "free",
        "uptime",
        "vmstat",
        "w",
        "vmstat -s",
        "ps -L -p 65536",
        "cat /proc/self/stat /proc/thread-self/comm",
    ] {
        let output = seen(&cluster, command);
        assert_eq!(output.stderr, "", "{command}");
        assert_ne!(output.ok(), "", "{command}");
    }
    let nodes = cluster.sh(1, "grep -c ^processor /proc/cpuinfo").ok();
    let all = cluster
        .sh(1, "grep -c ^processor /cluster/proc/cpuinfo")
        .ok();
    let number = |text: &str| text.trim().parse::<u64>().expect("a number");
    assert_eq!(number(&all), 3 * number(&nodes));
    let total = |path| {
        let line = cluster
            .sh(1, &format!("grep ^MemTotal {path}/meminfo"))
            .ok();
        number(line.split_whitespace().nth(1).expect("a size"))
    };
    assert_eq!(total("/cluster/proc"), 3 * total("/proc"));
    // A node's own view is what its own procfs says.
    let theirs = cluster.sh(2, "exec ps -e -o pid=,ppid=,comm=").ok();
    let view = "mount --bind /cluster/node2/proc /proc; exec ps -e -o pid=,ppid=,comm=";
    let view = cluster
        .node(2)
        .spawn_command(&["unshare", "-m", "sh", "-c", view]);
    let lasting = |text: &str| {
        let mut rows = rows(text);
        rows.retain(|_, (ppid, name)| *ppid != 0 || name == "glu");
        rows
    };
    assert_eq!(lasting(&view.wait(LONG).ok()), lasting(&theirs));
}

/// Writes an order on node 1 as a user, with one write(2), and returns the errno, 0 for none.
fn order(cluster: &Cluster, user: u32, path: &str, text: &str) -> i32 {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let script = format!(
        "import os,sys
os.setgroups([]); os.setgid({user}); os.setuid({user})
try:
    fd = os.open('/cluster/proc/{path}', os.O_WRONLY)
    os.write(fd, bytes.fromhex('{hex}'))
    print(0)
except OSError as e:
    print(e.errno)"
    );
    let output = cluster
        .node(1)
        .spawn_command(&["python3", "-c", &script])
        .wait(LONG);
    output.ok().trim().parse().expect("an errno")
}

#[test]
fn signals_reach_processes_of_other_nodes() {
    const OWNER: u32 = 54_321;
    const STRANGER: u32 = 54_322;
    let cluster = Cluster::up(2);
    let sleep = format!("setpriv --reuid {OWNER} --regid {OWNER} --clear-groups sleep 6543");
    let state = |pid: u32| {
        let stat = cluster.sh(1, &format!("cat /cluster/proc/{pid}/stat"));
        let stat = stat
            .stdout
            .rsplit_once(") ")
            .map(|(_, rest)| rest.to_owned());
        stat.and_then(|rest| rest.chars().next())
    };
    let check_state = |pid, expected: Option<char>| {
        wait_until(&format!("{pid} is {expected:?}"), LONG, || {
            state(pid) == expected
        });
    };
    let pid = start(&cluster, 2, &sleep);
    let uid = format!("stat -c %u /cluster/proc/{pid}");
    wait_until("its user", LONG, || {
        cluster.sh(1, &uid).stdout.trim() == OWNER.to_string()
    });
    let note = format!("{pid}/note");
    let send = |user, text: &str| order(&cluster, user, &note, text);
    for (user, text, expected) in [
        (0, "0", 0),
        (OWNER, "0\n", 0),
        (STRANGER, "0", libc::EPERM),
        (STRANGER, "KILL", libc::EPERM),
        (0, "NONE", libc::EINVAL),
        (0, "65", libc::EINVAL),
        (0, "", 0),
    ] {
        assert_eq!(send(user, text), expected, "{user} {text:?}");
    }
    assert_eq!(send(OWNER, "STOP"), 0);
    check_state(pid, Some('T'));
    assert_eq!(send(0, "SIGCONT\n"), 0);
    check_state(pid, Some('S'));
    // Who waits for it hears how it ended.
    let wait = cluster.spawn(1, &format!("cat /cluster/proc/{pid}/wait"));
    let glu = binary("glu").display().to_string();
    let waits = format!("{glu} debug waits --json");
    wait_until("the read to wait", LONG, || {
        cluster.sh(1, &waits).ok().contains("\"READ\"")
    });
    assert_eq!(send(OWNER, "TERM"), 0);
    assert_eq!(wait.wait(LONG).ok(), "signal 15");
    check_state(pid, None);
    assert_eq!(send(0, "0"), libc::ENOENT, "it has no name any more");

    // A group, with its leader and without.
    let group = "sh -c 'sleep 6543 & sleep 6543 & wait'";
    let leader = start(&cluster, 2, group);
    let members = format!("ps -e -o pgid= | grep -cw {leader} || true");
    let members = || cluster.sh(2, &members).ok().trim().to_owned();
    wait_until("three members", LONG, || members() == "3");
    assert_eq!(
        order(&cluster, STRANGER, &format!("{leader}/notepg"), "TERM"),
        libc::EPERM
    );
    assert_eq!(order(&cluster, 0, &format!("{leader}/ctl"), "kill"), 0);
    wait_until("no leader", LONG, || members() == "2");
    let of_group = |user, text: &str| {
        order(
            &cluster,
            user,
            "cluster/notepg",
            &format!("{leader} {text}"),
        )
    };
    assert_eq!(of_group(STRANGER, "KILL"), libc::EPERM);
    assert_eq!(of_group(0, "TERM"), 0);
    wait_until("no member", LONG, || members() == "0");
    assert_eq!(of_group(0, "0"), libc::ESRCH);
}

#[test]
fn control_files_refuse_what_makes_no_sense() {
    let cluster = Cluster::up(2);
    let pid = start(&cluster, 2, "sleep 6543");
    let huge = "9".repeat(10_000);
    let nonsense = [
        "x",
        "-7",
        "1 1",
        "\u{0}\u{1}\u{ff}",
        " ",
        "0x1",
        huge.as_str(),
    ];
    for file in ["note", "notepg", "ctl", "lock", "loadlevel", "goto"] {
        for text in nonsense {
            let said = order(&cluster, 0, &format!("{pid}/{file}"), text);
            assert_eq!(said, libc::EINVAL, "{file} {text:?}");
        }
    }
    for (file, text, expected) in [
        ("goto", "9", libc::ENXIO),
        ("goto", "1", libc::EOPNOTSUPP),
        ("goto", "-1", libc::EOPNOTSUPP),
        ("goto", "2", 0),
        ("ctl", "close 1", libc::EOPNOTSUPP),
        ("lock", "1", 0),
    ] {
        let said = order(&cluster, 0, &format!("{pid}/{file}"), text);
        assert_eq!(said, expected, "{file} {text:?}");
    }
    for (text, expected) in [
        ("70000", libc::EINVAL),
        ("70000 x", libc::EINVAL),
        ("70000 -9", libc::EINVAL),
        ("-7 9", libc::EINVAL),
        ("0 9", libc::EINVAL),
        (" 9", libc::EINVAL),
        ("\u{0} 9", libc::EINVAL),
        ("99999999999 9", libc::EINVAL),
        (huge.as_str(), libc::EINVAL),
        // Numbers of no node, and of nobody.
        ("2000000000 9", libc::ESRCH),
        ("1 9", libc::ESRCH),
        ("196000 9", libc::ESRCH),
    ] {
        let said = order(&cluster, 0, "cluster/notepg", text);
        assert_eq!(said, expected, "{text:?}");
    }
    // What only tells takes nothing.
    for file in ["stat", "where", "from", "wait", "nmigs", "cantmove", "why"] {
        let said = order(&cluster, 0, &format!("{pid}/{file}"), "1");
        assert_eq!(said, libc::EACCES, "{file}");
    }
    for file in ["nodes", "events", "node2/metrics", "node2/load"] {
        let said = order(&cluster, 0, &format!("cluster/{file}"), "1");
        assert_eq!(said, libc::EACCES, "{file}");
    }
    for file in ["loadlevel", "block", "stay", "bring", "expel"] {
        let missing = order(&cluster, 0, &format!("cluster/node9/{file}"), "1");
        assert_eq!(missing, libc::ENOENT, "{file}");
    }
    for file in ["goto", "lock", "loadlevel"] {
        let said = order(&cluster, 54_321, &format!("{pid}/{file}"), "1");
        assert_eq!(said, libc::EPERM, "{file}");
    }
    for (file, on) in [
        ("loadlevel", 0),
        ("block", 0),
        ("stay", 0),
        ("bring", 0),
        ("expel", 0),
    ] {
        let path = format!("cluster/node2/{file}");
        for text in nonsense {
            assert_eq!(order(&cluster, 0, &path, text), libc::EINVAL, "{file}");
        }
        for (user, text, expected) in [
            (0, "yes", libc::EINVAL),
            (0, "1", on),
            (0, "0", 0),
            (54_321, "0", libc::EACCES),
        ] {
            assert_eq!(
                order(&cluster, user, &path, text),
                expected,
                "{file} {text:?}"
            );
        }
    }
    // Nothing but the lock that was asked for has changed.
    let read = format!("cd /cluster/proc/{pid}; cat lock loadlevel nmigs from where");
    assert_eq!(cluster.sh(1, &read).ok(), "1\n0\n0\n2\n2");
    // A list is text, of names and whole paths.
    for text in ["a/b", "\u{0}", "name\u{1}", &"x".repeat(5_000)] {
        let said = order(&cluster, 0, "cluster/loadlevellist", text);
        assert_eq!(said, libc::EINVAL, "{text:?}");
    }
    let stranger = order(&cluster, 54_321, "cluster/loadlevellist", "make");
    assert_eq!(stranger, libc::EACCES);
    assert_eq!(
        cluster
            .sh(1, "cat /cluster/proc/cluster/loadlevellist")
            .ok(),
        ""
    );
    let read = "cd /cluster/proc/cluster/node2; cat loadlevel block stay bring expel state";
    assert_eq!(cluster.sh(1, read).ok(), "0\n0\n0\n0\n0\nup");
    let stat = cluster.sh(2, &format!("ps -o stat=,args= -p {pid}")).ok();
    assert!(
        stat.starts_with('S') && stat.ends_with("sleep 6543"),
        "{stat}"
    );
}

/// Nothing that a process can be called or do makes a tool fail, and strangers see no more than on its own node.
#[test]
fn hostile_processes() {
    let cluster = Cluster::up(2);
    let hostile = "import os,sys,threading,time,ctypes
name = b'a) R 1 1\\n(b '
ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
if os.fork() == 0: os._exit(3)
for _ in range(3): threading.Thread(target=lambda: time.sleep(600), daemon=True).start()
time.sleep(600)";
    let path = cluster.state().join("hostile.py");
    std::fs::write(&path, hostile).expect("written");
    let pid = start(&cluster, 2, &format!("python3 {}", path.display()));
    let task = format!("ls /cluster/proc/{pid}/task | wc -l");
    wait_until("four threads", LONG, || {
        cluster.sh(1, &task).stdout.trim() == "4"
    });
    let own = own_table(&cluster, 2);
    let zombie = own
        .iter()
        .find(|(_, (ppid, _))| *ppid == pid)
        .map(|(pid, _)| *pid);
    let zombie = zombie.expect("a child that ended");
    for command in ["ps -ef", "ps aux", "ps -eLf", "top -b -n1", "pstree -p 0"] {
        let output = seen(&cluster, command);
        assert_eq!(output.stderr, "", "{command}");
        output.ok();
    }
    let stat = seen(&cluster, &format!("ps -o ppid=,stat=,comm= -p {zombie}")).ok();
    let words: Vec<_> = stat.split_whitespace().collect();
    assert_eq!(words[0], pid.to_string(), "{stat}");
    assert!(words[1].starts_with('Z'), "{stat}");
    // An ended one that nobody has waited for tells its end.
    assert_eq!(
        cluster
            .sh(1, &format!("cat /cluster/proc/{zombie}/wait"))
            .ok(),
        "exit 3"
    );
    // The same files answer the same on both nodes, for root and for a stranger.
    for user in [0, 54_321] {
        for file in [
            "environ", "maps", "io", "exe", "fd", "ns/uts", "wchan", "limits", "cgroup", "statm",
            "cwd",
        ] {
            let look = |dir: &str| {
                format!(
                    "setpriv --reuid {user} --regid {user} --clear-groups sh -c '
                     if test -h {dir}/{file}; then readlink {dir}/{file}; else ls {dir}/{file} >/dev/null && cat {dir}/{file} >/dev/null 2>&1 || test -d {dir}/{file}; fi' >/dev/null 2>&1; echo $?"
                )
            };
            let there = cluster.sh(2, &look(&format!("/proc/{pid}"))).ok();
            let here = cluster.sh(1, &look(&format!("/cluster/proc/{pid}"))).ok();
            assert_eq!(here, there, "{file} for {user}");
        }
    }
}

/// A shower of short processes on all nodes: no number twice, none on the wrong node. `FORKS` on each; at most 20,000,
/// so that the cursor comes back before the guard of the range.
#[test]
fn a_fork_storm_leaves_no_number_twice() {
    let forks = std::env::var("FORKS").ok();
    let forks: u32 = forks.map_or(3_000, |text| text.parse().expect("a number"));
    let cluster = Cluster::up(3);
    // The middle of the range, where the cursor goes back, lies on the way.
    let storm = format!(
        "import os
seen = set()
cursor = '/proc/sys/kernel/ns_last_pid'
start = int(open(cursor).read()) // 65536 * 65536
open(cursor, 'w').write(str(start + 32768 - {forks} // 2))
for _ in range({forks}):
    pid = os.fork()
    if pid == 0: os._exit(0)
    seen.add(pid)
    os.waitpid(pid, 0)
print(start, min(seen), max(seen), int(open(cursor).read()))"
    );
    let path = cluster.state().join("storm.py");
    std::fs::write(&path, storm).expect("written");
    let run = format!("exec python3 {}", path.display());
    let storms: Vec<_> = (1..=3).map(|node| cluster.spawn(node, &run)).collect();
    // Meanwhile each listing has each number once, and where it belongs.
    let where_is = "for i in 1 2 3 4 5; do ls /cluster/proc | grep '^[0-9]' | sort | uniq -d; done";
    assert_eq!(cluster.node(1).sh_within(LONG, where_is).ok(), "");
    for (node, storm) in (1..=3_u32).zip(storms) {
        let text = storm.wait(Duration::from_secs(300)).ok();
        let numbers: Vec<u32> = text
            .split_whitespace()
            .map(|it| it.parse().expect("a number"))
            .collect();
        assert!(
            numbers.iter().all(|number| number / RANGE == node),
            "node {node}: {text}"
        );
        let [start, lowest, highest, last] = numbers[..] else {
            panic!("four numbers: {text}");
        };
        let middle = start + RANGE / 2;
        assert!(lowest < middle - forks, "the cursor has gone back: {text}");
        assert!(
            highest >= middle && highest < start + RANGE / 4 * 3,
            "{text}"
        );
        assert!(last < middle, "{text}");
    }
    for node in 1..=3 {
        let pid = start(&cluster, node, "sleep 6543");
        let told = cluster
            .sh(1, &format!("cat /cluster/proc/{pid}/where"))
            .ok();
        assert_eq!(told.trim(), node.to_string());
    }
}

/// A node whose pids run out says so in time, and what leaves the range has another number, never one twice.
#[test]
fn pids_that_run_out() {
    let cluster = Cluster::up(2);
    let glu = binary("glu").display().to_string();
    let status = || cluster.sh(2, &format!("{glu} status")).ok();
    assert!(!status().contains("pids"), "{}", status());
    let jump = |to: u32, command: &str| {
        let cursor = "/proc/sys/kernel/ns_last_pid";
        let script = format!("echo {to} > {cursor}; {command}");
        cluster.sh(2, &script).ok()
    };
    wait_until("a warning", LONG, || {
        jump(3 * RANGE - RANGE / 8, "true");
        status().contains("its pids run out")
    });
    // The first number behind the range is one of node 3's.
    let mut shown = String::new();
    wait_until("a process with a pid of another range", LONG, || {
        let pid = jump(3 * RANGE - 1, "setsid sleep 6543 >/dev/null 2>&1 & echo $!");
        shown = pid;
        shown.parse::<u32>().is_ok_and(|pid| pid >= 3 * RANGE)
    });
    let pid: u32 = shown.parse().expect("a pid");
    let number = 2 * 4_194_304 + pid;
    assert_eq!(
        cluster
            .sh(1, &format!("cat /cluster/proc/{number}/where"))
            .ok(),
        "2"
    );
    assert!(
        !cluster
            .sh(1, &format!("test -e /cluster/proc/{pid}"))
            .status
            .success()
    );
    wait_until("glu status to tell", LONG, || {
        status().contains("its pids have left")
    });
    assert_eq!(order(&cluster, 0, &format!("{number}/note"), "KILL"), 0);
    wait_until("the end", LONG, || {
        !cluster.sh(2, &format!("kill -0 {pid}")).status.success()
    });
}

/// A node that dies while `ps` runs is shown as such; nothing hangs, and its processes do not seem to have ended.
#[test]
fn a_node_that_dies_while_ps_runs() {
    let cluster = Cluster::up(3);
    let pid = start(&cluster, 3, "sleep 6543");
    let stats = format!(
        "mount --bind /cluster/proc /proc; for i in 1 2 3 4; do ps -o stat= -p {pid} || echo gone; ps -ef >/dev/null || echo failed; done"
    );
    let wanted = "timeout 60 grep -m 1 'node 3 down' /cluster/proc/cluster/events";
    let events = cluster.spawn(1, wanted);
    let glu = binary("glu").display().to_string();
    wait_until("a reader of events", LONG, || {
        let waits = cluster.sh(1, &format!("{glu} debug waits --json"));
        waits.ok().contains("\"READ\"")
    });
    // It has been seen.
    seen(&cluster, "ps -e").ok();
    let showing = cluster
        .node(1)
        .spawn_command(&["unshare", "-m", "sh", "-c", &stats]);
    cluster.kill(3);
    let text = showing.wait(LONG).ok();
    assert!(!text.contains("failed") && !text.contains("gone"), "{text}");
    let down = cluster.sh(1, "cat /cluster/proc/cluster/node3/state").ok();
    let begun = Instant::now();
    cluster.sh(1, "ls /cluster/proc >/dev/null").ok();
    let ls = begun.elapsed();
    assert_eq!(down, "down");
    assert!(ls < Duration::from_secs(1), "{ls:?}");
    let told = events.wait(LONG).ok();
    assert!(told.ends_with(" node 3 down"), "{told}");
}

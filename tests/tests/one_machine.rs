//! What programs in `glush` show of three nodes, each against what the nodes' own `/proc` say.
//!
//! Needs root, /dev/fuse, procps and psmisc.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tests::{Cluster, Output, wait_until};

const LONG: Duration = Duration::from_secs(60);
const NODES: u32 = 3;
/// Kernel pids per node, and of all kernels.
const RANGE: u32 = 65_536;
const KERNEL: u32 = 4_194_304;
const SLEEP: &str = "sleep 6543";

/// A process as a program shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    pid: u32,
    ppid: Option<u32>,
    /// In KiB.
    rss: Option<u32>,
    state: Option<char>,
    args: String,
}

/// Where a program shows what: positions of columns.
struct Columns {
    command: &'static str,
    pid: usize,
    ppid: Option<usize>,
    rss: Option<usize>,
    state: Option<usize>,
    args: usize,
}

const PS: [Columns; 4] = [
    Columns {
        command: "ps -ef",
        pid: 1,
        ppid: Some(2),
        rss: None,
        state: None,
        args: 7,
    },
    Columns {
        command: "ps aux",
        pid: 1,
        ppid: None,
        rss: Some(5),
        state: Some(7),
        args: 10,
    },
    Columns {
        command: "ps -e -o pid,ppid,stat,pcpu,rss,args",
        pid: 0,
        ppid: Some(1),
        rss: Some(4),
        state: Some(2),
        args: 5,
    },
    Columns {
        command: "top -b -n1 -c -w 512",
        pid: 0,
        ppid: None,
        rss: None,
        state: Some(7),
        args: 11,
    },
];

impl Columns {
    /// Reads what is below the line of titles.
    fn read(&self, text: &str) -> Vec<Row> {
        let titles = |line: &&str| !line.split_whitespace().any(|word| word == "PID");
        let lines = text.lines().skip_while(titles).skip(1);
        let row = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| {
                let number = words.get(at).and_then(|word| word.parse().ok());
                number.unwrap_or_else(|| panic!("{}: a number: {line}", self.command))
            };
            Row {
                pid: number(self.pid),
                ppid: self.ppid.map(number),
                rss: self.rss.map(number),
                state: self.state.and_then(|at| words[at].chars().next()),
                args: words[self.args..].join(" "),
            }
        };
        lines.map(row).collect()
    }
}

fn home(pid: u32) -> u32 {
    if pid < KERNEL {
        pid / RANGE
    } else {
        pid / KERNEL
    }
}

/// Runs a command in a shell of node 1.
#[track_caller]
fn glush(cluster: &Cluster, command: &str) -> Output {
    let shell = ["glush", "-c", command];
    cluster.node(1).spawn_command(&shell).wait(LONG)
}

/// Runs one that has nothing to complain of.
#[track_caller]
fn shown(cluster: &Cluster, command: &str) -> String {
    let output = glush(cluster, command);
    assert_eq!(output.stderr, "", "{command}");
    output.ok()
}

/// Returns the processes of all nodes as their own kernels tell them, with the numbers of the cluster.
fn own(cluster: &Cluster) -> BTreeMap<u32, Row> {
    let columns = &PS[2];
    let of_node = |node: u32| {
        let number = move |pid: u32| match pid {
            0 => 0,
            pid if pid / RANGE == node => pid,
            pid => node * KERNEL + pid,
        };
        let text = cluster.sh(node, &format!("exec {}", columns.command)).ok();
        columns.read(&text).into_iter().map(move |row| {
            let pid = number(row.pid);
            let ppid = row.ppid.map(number);
            (pid, Row { pid, ppid, ..row })
        })
    };
    (1..=NODES).flat_map(of_node).collect()
}

/// Starts two sleeping processes and their parent, which leads a session, and returns their numbers.
fn start(cluster: &Cluster, node: u32) -> (u32, [u32; 2]) {
    let child = format!("{SLEEP} >&- 2>&- & echo $!");
    let tree = format!("setsid sh -c 'echo $$; {child}; {child}; exec >&- 2>&-; wait' </dev/null");
    // It is read until nobody has it open any more.
    let numbers = cluster
        .sh(node, &format!("said=$({tree} &); echo \"$said\""))
        .ok();
    let numbers: Vec<u32> = numbers
        .lines()
        .map(|line| {
            line.parse()
                .unwrap_or_else(|_| panic!("a number: {numbers}"))
        })
        .collect();
    let [parent, first, second] = numbers[..] else {
        panic!("three numbers: {numbers:?}");
    };
    (parent, [first, second])
}

fn numbers(text: &str) -> BTreeSet<u32> {
    let words = text.split_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn programs_show_what_the_nodes_say() {
    let cluster = Cluster::up(NODES);
    let trees: Vec<_> = (1..=NODES).map(|node| start(&cluster, node)).collect();
    let sleepers: BTreeSet<u32> = trees.iter().flat_map(|(_, children)| *children).collect();
    let before = own(&cluster);
    let texts: Vec<_> = PS
        .iter()
        .map(|columns| (columns, shown(&cluster, columns.command)))
        .collect();
    let pstree = shown(&cluster, "pstree -p 0");
    let after = own(&cluster);
    let mut lasting = before;
    lasting.retain(|pid, row| after.get(pid).is_some_and(|after| after.ppid == row.ppid));
    for (parent, children) in &trees {
        for child in children {
            assert_eq!(lasting[child].ppid, Some(*parent));
            assert_eq!(
                (lasting[child].state, &*lasting[child].args),
                (Some('S'), SLEEP)
            );
        }
    }
    assert!(lasting.len() >= 4 * 3, "the daemons, too: {lasting:?}");

    for (columns, text) in texts {
        let command = columns.command;
        let rows = columns.read(&text);
        let once: BTreeMap<u32, &Row> = rows.iter().map(|row| (row.pid, row)).collect();
        assert_eq!(once.len(), rows.len(), "{command}: each once: {text}");
        for (pid, own) in &lasting {
            let row = once.get(pid);
            let row = row.unwrap_or_else(|| panic!("{command}: {pid} is missing: {text}"));
            assert_eq!(row.args, own.args, "{command}");
            if columns.ppid.is_some() {
                assert_eq!(row.ppid, own.ppid, "{command}: {pid}");
            }
            // What sleeps stays as it is.
            if sleepers.contains(pid) {
                assert!(
                    row.rss.is_none_or(|rss| Some(rss) == own.rss),
                    "{command}: {row:?} {own:?}"
                );
                assert!(
                    row.state.is_none_or(|state| Some(state) == own.state),
                    "{command}: {row:?}"
                );
            }
        }
        // What else there is began in between: the shell, and what asks.
        for row in once.values().filter(|row| !lasting.contains_key(&row.pid)) {
            assert_eq!(home(row.pid), 1, "{command}: {row:?}");
        }
        if let Some(tasks) = text.lines().find_map(|line| line.strip_prefix("Tasks:")) {
            let total = tasks.split_whitespace().next();
            assert_eq!(total, Some(&*rows.len().to_string()), "{command}: {text}");
        }
    }
    for (parent, children) in &trees {
        let parent_of_both = format!("sh({parent})");
        let mut parts = pstree.split(&parent_of_both);
        let (_, below) = (parts.next(), parts.next().expect("its parent"));
        assert_eq!(parts.next(), None, "once: {pstree}");
        // As far as the next process that has children.
        let below = below.split("sh(").next().unwrap_or(below);
        for child in children {
            let sleep = format!("sleep({child})");
            assert!(below.contains(&sleep), "{sleep} below {parent}: {pstree}");
            assert_eq!(pstree.matches(&sleep).count(), 1, "{pstree}");
        }
    }

    let pattern = format!("'^{SLEEP}$'");
    assert_eq!(
        numbers(&shown(&cluster, &format!("pgrep -f {pattern}"))),
        sleepers
    );
    assert_eq!(shown(&cluster, &format!("pgrep -c -f {pattern}")), "6");
    let sleeping = || {
        own(&cluster)
            .values()
            .filter(|row| row.args == SLEEP)
            .count()
    };
    assert_eq!(sleeping(), 6);
    shown(&cluster, &format!("pkill -f {pattern}"));
    wait_until("the end of all that was meant, on its node", LONG, || {
        sleeping() == 0
    });
}

#[test]
fn programs_add_the_nodes_up() {
    let cluster = Cluster::up(NODES);
    let own = |script: &str| -> Vec<f64> {
        let of = |node| {
            let text = cluster.sh(node, script).ok();
            text.parse::<f64>()
                .unwrap_or_else(|_| panic!("a number: {text}"))
        };
        (1..=NODES).map(of).collect()
    };
    let sum = |script: &str| own(script).iter().sum::<f64>();
    #[track_caller]
    fn close(shown: f64, own: f64, what: &str) {
        assert!(
            (shown - own).abs() <= own * 0.1 + 0.1,
            "{what}: {shown}, of the nodes {own}"
        );
    }
    let number = |command: &str| -> f64 {
        let text = shown(&cluster, command);
        text.trim()
            .parse()
            .unwrap_or_else(|_| panic!("{command}: {text}"))
    };
    let memory = sum("awk '/^MemTotal:/ { print $2 }' /proc/meminfo");
    let processors = sum("grep -c ^processor /proc/cpuinfo");
    for (command, expected) in [
        ("free -k | awk '/^Mem:/ { print $2 }'", memory),
        ("grep -c ^processor /proc/cpuinfo", processors),
        ("grep -c '^cpu[0-9]' /proc/stat", processors),
        ("nproc --all", processors),
        ("getconf _NPROCESSORS_ONLN", processors),
        (
            "ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l",
            processors,
        ),
        // Where this process may run.
        ("nproc", processors / f64::from(NODES)),
    ] {
        assert_eq!(number(command), expected, "{command}");
    }
    // It calculates with single precision.
    let total = number("vmstat -s | awk '/total memory/ { print $1 }'");
    assert!((total - memory).abs() < 64.0, "{total} {memory}");
    // The longest of the three averages: it moves least.
    let load = "cut -d ' ' -f 3 /proc/loadavg";
    let expected = sum(load);
    for command in ["uptime", "w -h; w | head -1", "top -b -n1 | head -1"] {
        let text = shown(&cluster, command);
        let load = text
            .lines()
            .next()
            .and_then(|line| line.rsplit(", ").next());
        let load = load.and_then(|load| load.trim().parse().ok());
        close(
            load.unwrap_or_else(|| panic!("{command}: {text}")),
            expected,
            command,
        );
        assert!(text.contains(" up "), "{command}: {text}");
    }
    let up = own("cut -d ' ' -f 1 /proc/uptime");
    let up = up.iter().copied().fold(0.0, f64::max);
    close(number("cut -d ' ' -f 1 /proc/uptime"), up + 1.0, "uptime");
    let vmstat = shown(&cluster, "vmstat");
    let row = vmstat.lines().last().unwrap_or_default();
    assert!(
        row.split_whitespace()
            .all(|word| word.parse::<u64>().is_ok()),
        "{vmstat}"
    );
    let titles = vmstat
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .count();
    assert_eq!(row.split_whitespace().count(), titles, "{vmstat}");
}

/// Of a node that falls silent before anything was heard of its processes nothing seems to have ended.
#[test]
fn a_node_that_was_never_heard_is_shown_as_such() {
    let cluster = Cluster::up(NODES);
    let (pid, _) = start(&cluster, NODES);
    let daemon = |signal: &str| {
        let script = format!("kill -{signal} \"$(pgrep -o -x glud)\"");
        cluster.sh(NODES, &script).ok();
    };
    daemon("STOP");
    let ps = shown(&cluster, "ps -e -o pid,stat,args");
    let silent = |text: &str| text.matches(" D    [node3-silent]").count();
    assert_eq!(silent(&ps), 1, "{ps}");
    let ps = shown(&cluster, "ps aux");
    assert_eq!(ps.matches(" [node3-silent]").count(), 1, "{ps}");
    let kill = glush(&cluster, &format!("kill -0 {pid}"));
    assert!(kill.stderr.contains("Host is down"), "{kill}");
    let glups = cluster.sh(1, "glups -e -o pid,args");
    assert!(glups.stderr.contains("node 3 did not answer"), "{glups}");
    assert!(!glups.ok().contains("node3-silent"));
    daemon("CONT");
    let mut ps = String::new();
    wait_until("its processes", LONG, || {
        ps = shown(&cluster, "ps -e -o pid,stat,args");
        numbers(&ps).contains(&pid)
    });
    assert_eq!(silent(&ps), 0, "{ps}");
    shown(&cluster, &format!("kill {pid}"));
}

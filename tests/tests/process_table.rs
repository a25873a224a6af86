//! `/cluster/proc` with processes that end while they are looked at, under poll(2), and over a restart of a daemon.
//!
//! Needs root, /dev/fuse, procps and python3.

use std::collections::BTreeSet;
use std::time::Duration;
use tests::{Cluster, DEADLINE, wait_until};

const LONG: Duration = Duration::from_secs(120);
/// Kernel pids per node.
const RANGE: u32 = 65_536;

fn numbers(text: &str) -> Vec<u32> {
    let words = text.split_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Runs a program in python on node 1.
fn python(cluster: &Cluster, program: &str) -> tests::Running {
    cluster.node(1).spawn_command(&["python3", "-c", program])
}

#[test]
fn readers_of_processes_that_end() {
    let cluster = Cluster::up(2);
    let storm = "i=0; while [ $i -lt 3000 ]; do /bin/true; i=$((i + 1)); done";
    let storm = cluster.spawn(2, storm);
    let readers = python(
        &cluster,
        "import os, errno
said, read = set(), 0
for _ in range(30):
    for pid in filter(str.isdigit, os.listdir('/cluster/proc')):
        for name in ['stat', 'status', 'cmdline', 'environ', 'statm', 'where', 'fd', 'task', 'exe']:
            path = f'/cluster/proc/{pid}/{name}'
            try:
                if name == 'exe': os.readlink(path)
                elif name in ['fd', 'task']: os.listdir(path)
                else: open(path, 'rb').read()
                read += 1
            except OSError as error:
                said.add(errno.errorcode[error.errno])
# Kernel threads and zombies have no exe: ENOENT, as in procfs.
assert read > 1000 and said <= {'ENOENT', 'ESRCH'}, (read, said)",
    );
    readers.wait(LONG).ok();
    storm.wait(LONG).ok();

    // A file that is open when its process ends.
    let pid = cluster
        .sh(2, "setsid sleep 1000 > /dev/null 2>&1 & echo $!")
        .ok();
    let late = format!(
        "import os, errno
dir = '/cluster/proc/{pid}'
files = [os.open(f'{{dir}}/{{name}}', os.O_RDONLY) for name in ['stat', 'status', 'cmdline', 'where', 'limits']]
for file in files: assert os.pread(file, 4096, 0)
note = os.open(f'{{dir}}/note', os.O_WRONLY)
os.write(note, b'KILL')
while os.path.exists(dir): pass
for file in files:
    try: os.pread(file, 4096, 0)
    except OSError as error: assert error.errno == errno.ESRCH, error
    else: assert False, file
try: os.write(note, b'KILL')
except OSError as error: assert error.errno == errno.ESRCH, error
else: assert False"
    );
    python(&cluster, &late).wait(LONG).ok();
}

#[test]
fn numbers_after_a_restart_of_the_daemon() {
    let cluster = Cluster::up(2);
    let start = || {
        let script = "for i in 1 2 3 4 5; do setsid sleep 7654 > /dev/null 2>&1 & echo $!; done";
        numbers(&cluster.sh(2, script).ok())
    };
    let mut all = start();
    for signal in ["TERM", "KILL"] {
        cluster
            .sh(
                2,
                &format!("pid=$(pgrep -o -x glud) && kill -{signal} $pid && while [ -e /proc/$pid ]; do sleep 0.02; done"),
            )
            .ok();
        wait_until("a new daemon", LONG, || cluster.status().nodes[1].ready);
        all.extend(start());
        let once: BTreeSet<u32> = all.iter().copied().collect();
        assert_eq!(once.len(), all.len(), "no number twice: {all:?}");
        assert!(all.iter().all(|pid| pid / RANGE == 2), "{all:?}");
        // Those from before the restart as well, under the numbers that they had.
        let mut seen = String::new();
        wait_until("all of them", LONG, || {
            seen = cluster.sh(1, "glups -e -w 2 -o pid,args").ok();
            let lines = seen.lines().filter(|line| line.ends_with(" sleep 7654"));
            let shown: Vec<u32> = lines.flat_map(numbers).filter(|it| *it != 7654).collect();
            shown.len() == all.len() && shown.iter().all(|pid| once.contains(pid))
        });
    }
}

#[test]
fn events_and_ends_can_be_polled() {
    let cluster = Cluster::up(2);
    let pid = cluster
        .sh(2, "setsid sleep 1000 > /dev/null 2>&1 & echo $!")
        .ok();
    cluster.sh(1, "echo x > /cluster/f").ok();
    let poller = python(
        &cluster,
        &format!(
            "import os, select, sys
POLL = select.POLLIN
def poll(fd, ms):
    poll = select.poll()
    poll.register(fd, POLL | select.POLLOUT)
    return [events for _, events in poll.poll(ms)]
events = os.open('/cluster/proc/cluster/events', os.O_RDONLY | os.O_NONBLOCK)
end = os.open('/cluster/proc/{pid}/wait', os.O_RDONLY)
# What never makes anybody wait is always ready.
assert poll(os.open('/cluster/f', os.O_RDWR), 0) == [POLL | select.POLLOUT]
assert poll(os.open('/cluster/proc/{pid}/stat', os.O_RDONLY), 0) != []
assert poll(events, 0) == [] and poll(end, 100) == []
try: os.read(events, 100)
except BlockingIOError: pass
else: assert False
print('waiting', flush=True)
assert poll(end, 60000) == [POLL]
print(os.read(end, 100).decode().strip(), flush=True)
# Level-triggered, several at a time, as select(2) and epoll(7) have it.
epoll = select.epoll()
epoll.register(events, POLL)
assert epoll.poll(60) == [(events, POLL)]
assert select.select([events], [], [], 0)[0] == [events]
text = os.read(events, 1000).decode()
assert poll(events, 0) == [], text
print(text, flush=True)"
        ),
    );
    let waits_for = |text: &str| {
        wait_until(text, DEADLINE, || {
            poller.stdout().lines().last() == Some(text)
        });
    };
    waits_for("waiting");
    cluster
        .sh(1, &format!("echo KILL > /cluster/proc/{pid}/note"))
        .ok();
    waits_for("signal 9");
    cluster.kill(2);
    let said = poller.wait(DEADLINE).ok();
    assert!(said.ends_with(" node 2 down"), "{said}");
}

/// As many as on a large machine, and more than a reader gets through in a second: each is shown once.
#[test]
fn thousands_of_processes_on_each_node() {
    let children = std::env::var("PROCESSES").ok();
    let children: usize = children.map_or(2_000, |text| text.parse().expect("a number"));
    let cluster = Cluster::up(3);
    let parent = format!(
        "import os, signal
for _ in range({children}):
    if os.fork() == 0: signal.pause()
print(os.getpid(), flush=True)
signal.pause()"
    );
    let start = |node: tests::Node<'_>| node.spawn_command(&["python3", "-c", &parent]);
    let parents: Vec<_> = cluster.nodes().map(start).collect();
    for parent in &parents {
        wait_until("all its children", LONG, || !parent.stdout().is_empty());
    }
    let pids: Vec<u32> = parents
        .iter()
        .flat_map(|it| numbers(&it.stdout()))
        .collect();
    // A node that is too busy to answer is absent until its processes have been seen once.
    wait_until("the processes of all nodes", LONG, || {
        let listed = numbers(&cluster.sh(1, "ls /cluster/proc").ok());
        listed.len() > children * pids.len()
    });
    for options in ["-e", "ax"] {
        let script = format!("mount --bind /cluster/proc /proc; exec ps {options} -o pid=,ppid=");
        let command = ["unshare", "-m", "sh", "-c", &script];
        let shown = cluster.node(1).spawn_command(&command).wait(LONG);
        assert_eq!(shown.stderr, "", "{options}");
        let shown = shown.ok();
        let rows = shown.lines().map(numbers);
        let rows: Vec<_> = rows.filter(|row| pids.contains(&row[1])).collect();
        let once: BTreeSet<u32> = rows.iter().map(|row| row[0]).collect();
        assert_eq!(rows.len(), children * pids.len(), "{options}");
        assert_eq!(once.len(), rows.len(), "{options}: each once");
    }
}

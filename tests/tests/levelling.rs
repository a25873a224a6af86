//! Jobs that move by themselves between real nodes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;
use tests::{Cluster, moves};

/// What the script may take.
const LONG: Duration = Duration::from_secs(300);

/// Wants all of a processor.
const BURN: &str = "#!/bin/sh\necho $$\nwhile :; do :; done\n";

#[test]
fn twelve_jobs_of_one_node_are_spread_and_stay_put() {
    let cluster = moves::cluster_that_moves(3);
    for name in ["burn", "other"] {
        let path = cluster.path(1).join(name);
        fs::write(&path, BURN).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
    }
    let said = moves::drive(
        &cluster,
        LONG,
        r#"
import json
NODES, NODE = (1, 2, 3), '/cluster/proc/cluster/node%d/%s'
LIST = '/cluster/proc/cluster/loadlevellist'
def read(path):
    return open(path).read()
def write(path, text):
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)
def refused(path, text):
    try:
        write(path, text)
    except OSError as error:
        return errno.errorcode[error.errno]
def counted(node, name):
    lines = read(NODE % (node, 'metrics')).splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f'glu_levelling_{name} '))
def until(what, condition):
    deadline = time.monotonic() + 120
    while not (result := condition()):
        assert time.monotonic() < deadline, (what, [(job.pid, job.file('where'), read(f'/cluster/proc/{job.pid}/why')) for job in jobs])
        time.sleep(.2)
    return result
def run(*words):
    ran = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return ran.returncode, ran.stdout.strip()
def start(program):
    job = Job(1, program)
    job.pid = job.owner.stdout.readline().strip()
    return job

# Nothing is levelled unless somebody asks for it; every node takes part.
assert read(LIST) == ''
assert [read(NODE % (node, 'loadlevel')) for node in NODES] == ['1\n'] * 3
for text in ('bin/burn', 'a\0b', 'x' * 5000):
    assert refused(LIST, text) == 'EINVAL', text
for text in ('2', '\n', 'on'):
    assert refused(NODE % (2, 'loadlevel'), text) == 'EINVAL', text
write(LIST, '# these\n\nburn\n')
assert read(LIST) == 'burn\n'

events = os.open('/cluster/proc/cluster/events', os.O_RDONLY | os.O_NONBLOCK)
began = time.monotonic()
jobs = [start('/cluster/burn') for _ in range(12)]
locked, other = jobs[0], start('/cluster/other')
assert run('loadlevel', '-p', locked.pid, 'off') == (0, '')
jobs.append(other)

speed = {node: int(read(NODE % (node, 'speed'))) for node in NODES}
def spread():
    where = [int(job.file('where')[0]) for job in jobs]
    count = {node: where.count(node) for node in NODES}
    crowd = {node: count[node] / speed[node] for node in NODES}
    better = lambda a, b: (count[b] + 1) / speed[b] < .8 * crowd[a]
    return not any(better(a, b) for a in NODES for b in NODES if a != b) and count
count = until('they are spread', spread)
took = time.monotonic() - began

def moves():
    return [job.file('nmigs') for job in jobs]
def rounds():
    return [counted(node, 'rounds_total') for node in NODES]
# What is on its way may arrive still.
def settled():
    before, began = moves(), rounds()
    until('ten rounds', lambda: all(now - then >= 10 for now, then in zip(rounds(), began)))
    return moves() == before
until('nothing moves', settled)
assert settled()
assert spread()
assert locked.file('nmigs') == other.file('nmigs') == ['0']
made = sum(counted(node, 'moves_total') for node in NODES)
assert made == sum(int(job.file('nmigs')[0]) for job in jobs)

# Each answer is explained.
def why(job):
    code, said = run('glu', 'why', '--json', job.pid)
    assert code == 0, said
    return json.loads(said)
assert (why(locked)['reason'], why(other)['reason']) == ('locked', 'not_listed'), (why(locked), why(other))
for job in jobs[1:-1]:
    said = why(job)
    assert said['to'] is None and said['node'] == int(job.file('where')[0]), said
    assert said['reason'] in ('no_gain', 'well_off', 'came', 'no_node'), said
assert 'stays on node 1: it is locked' in run('glu', 'why', locked.pid)[1]
assert why(type('', (), {'pid': str(os.getpid())}))['reason'] == 'no_job'
told = os.read(events, 1 << 20).decode().splitlines()
told = [line.split()[1:] for line in told if ' levelling ' in line]
assert told and all(line[0] == 'process' and line[2:4] == ['moved', '1'] and line[6] == 'crowded' for line in told), told

# A node that is switched off takes no more, and sends no more.
for node in NODES[1:]:
    write(NODE % (node, 'loadlevel'), '0')
write(LIST, 'burn\nother\n')
began = rounds()
until('the list counts', lambda: why(other)['reason'] != 'not_listed')
until('three rounds', lambda: rounds()[0] - began[0] >= 3)
assert other.file('nmigs') == ['0'], why(other)
assert why(next(job for job in jobs if job.file('where') == ['2']))['reason'] == 'off'

# What is asked for by name counts as the list does.
write(LIST, '\n')
until('the list counts', lambda: why(other)['reason'] == 'not_listed')
assert run('loadlevel', '-p', other.pid, 'on') == (0, '')
until('it is asked for', lambda: why(other)['reason'] != 'not_listed')
asked = subprocess.Popen(['loadlevel', '/cluster/other'], stdout=subprocess.PIPE, text=True)
pid = asked.stdout.readline().strip()
until('it is asked for', lambda: why(type('', (), {'pid': pid}))['reason'] not in ('not_listed', 'unknown'))
asked.terminate()
for job in jobs:
    job.owner.terminate()
print(f'spread {count} in {took:.1f} s by {made} moves, speeds {speed}')
"#,
    );
    println!("{said}");
}

/// How much of a processor each node has, in thousandths of a second for each tenth.
const QUOTA_MS: u64 = 50;

/// The control groups (cpu, version 1 or 2) by which nodes of one machine have their own share of it each.
struct Shares(Vec<PathBuf>);

impl Shares {
    fn of(cluster: &Cluster) -> Self {
        let cpu = PathBuf::from("/sys/fs/cgroup/cpu");
        let version_1 = cpu.is_dir();
        let root = if version_1 {
            cpu
        } else {
            "/sys/fs/cgroup".into()
        };
        let text = fs::read(cluster.state().join("cluster.json")).expect("its description");
        let described: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let mut shares = Self(Vec::new());
        for node in described["nodes"].as_array().expect("nodes") {
            let group = root.join(format!("glu-{}-{}", std::process::id(), node["number"]));
            fs::create_dir(&group).expect("a control group");
            shares.0.push(group.clone());
            if version_1 {
                fs::write(group.join("cpu.cfs_period_us"), "100000").expect("a period");
                fs::write(
                    group.join("cpu.cfs_quota_us"),
                    (QUOTA_MS * 1000).to_string(),
                )
                .expect("a quota");
            } else {
                fs::write(group.join("cpu.max"), format!("{} 100000", QUOTA_MS * 1000))
                    .expect("a quota");
            }
            let mut pids = vec![node["init"]["pid"].to_string()];
            while let Some(pid) = pids.pop() {
                fs::write(group.join("cgroup.procs"), &pid).expect("it joins");
                let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
                pids.extend(
                    children
                        .expect("its children")
                        .split_whitespace()
                        .map(str::to_owned),
                );
            }
        }
        shares
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        for group in &self.0 {
            let up = group.parent().expect("it is below").join("cgroup.procs");
            let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            for pid in processes.lines() {
                // One that has ended needs no place.
                fs::write(&up, pid).ok();
            }
            fs::remove_dir(group).ok();
        }
    }
}

/// Prints how long twelve jobs of one node take, levelled and not; each node has half a processor.
#[test]
#[ignore = "takes minutes, and measures"]
fn what_levelling_saves() {
    let cluster = moves::cluster_that_moves(3);
    let _shares = Shares::of(&cluster);
    let work =
        "#!/usr/bin/python3\nimport time\nwhile time.process_time() < 5: sum(range(10000))\n";
    let path = cluster.path(1).join("work");
    fs::write(&path, work).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
    let said = moves::drive(
        &cluster,
        Duration::from_secs(600),
        r#"
def run(names):
    list = os.open('/cluster/proc/cluster/loadlevellist', os.O_WRONLY)
    os.write(list, names.encode())
    os.close(list)
    began = time.monotonic()
    jobs = [Job(1, '/cluster/work') for _ in range(12)]
    ends = [job.end() for job in jobs]
    assert ends == [0] * 12, ends
    return time.monotonic() - began
alone = run('\n')
spread = run('work\n')
print(f'12 jobs of 5 s: {alone:.1f} s on one node, {spread:.1f} s levelled on three')
"#,
    );
    println!("{said}");
}

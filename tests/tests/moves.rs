//! Processes that move very often. `ROUNDS` says how often.

use std::fs;
use std::time::Duration;
use tests::{Cluster, moves};

/// What one script may take, and each of its moves.
const LONG: Duration = Duration::from_secs(240);
const A_MOVE: Duration = Duration::from_secs(5);

/// Returns how often it is done; `ROUNDS` asks for more.
fn rounds(default: u32, most: u32) -> u32 {
    let rounds = std::env::var("ROUNDS").ok();
    rounds.map_or(default, |rounds| {
        rounds.parse::<u32>().expect("a number").min(most)
    })
}

/// Asserts that nothing of jobs is left on any node: images, frozen copies, processes that nobody has waited for.
#[track_caller]
fn nothing_is_left(cluster: &Cluster) {
    for node in cluster.nodes() {
        let left = "ls -d /dev/shm/glu-*; pgrep -f '^python3 /cluster/counter.py'; ps -eo stat=,comm= | grep ^Z; true";
        let number = node.number();
        assert_eq!(node.sh(left).ok(), "", "left on node {number}");
        let log = cluster.state().join(format!("node{number}/glud.log"));
        let log = fs::read_to_string(log).expect("the log");
        let odd = log
            .lines()
            .filter(|line| line.contains("a job that has left"));
        assert_eq!(odd.collect::<Vec<_>>(), [""; 0], "said on node {number}");
    }
}

/// Two jobs move at once: one at home on its owner's node, where it has the owner's own pipes, and one at home on another.
#[test]
fn a_process_moves_while_it_counts() {
    let cluster = moves::cluster_that_moves(3);
    let script = r#"
import threading
failed = []
def tour(home):
    job = Job(home, 'python3', '/cluster/counter.py', f'/cluster/counted-{home}')
    job.pid, count, _ = job.ask('first')
    count = int(count)
    assert job.file('cantmove') == [], job.file('cantmove')
    assert (job.file('where'), job.file('nmigs')) == ([str(home)], ['0'])
    at, moves = home, 0
    for round in range(MOVES):
        at = at % 3 + 1
        job.go(at)
        moves += 1
        assert job.file('where') == [str(at)], job.file('where')
        assert job.file('nmigs') == [str(moves)]
        count += 1
        answer = job.ask(f'round {round}')
        assert answer == [job.pid, str(count), 'round', str(round)], answer
    job.go(0)
    assert job.file('where') == job.file('from') == [str(home)]
    assert job.end() == 42
    counted = open(f'/cluster/counted-{home}').read().split()
    assert counted == [str(n + 1) for n in range(count)], counted
    assert not os.path.exists(f'/cluster/proc/{job.pid}')
def try_tour(home):
    try:
        tour(home)
    except BaseException:
        failed.append(home)
        raise
tours = [threading.Thread(target=try_tour, args=(home,)) for home in (1, 2)]
for thread in tours:
    thread.start()
for thread in tours:
    thread.join()
sys.exit(bool(failed))
"#;
    let rounds = rounds(20, 1_000);
    let script = script.replace("MOVES", &rounds.to_string());
    moves::drive(&cluster, LONG + A_MOVE * rounds, &script);
    nothing_is_left(&cluster);
}

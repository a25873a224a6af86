//! Nothing outlives its owner (J2): whatever takes the owner of a job away, no process of it is left on any node, those that
//! have left its session and their parent among them.
//!
//! `ROUNDS=20 cargo test -p tests --test ends -- --nocapture` prints how long it took. Needs root, /dev/fuse; one test also
//! sshd of OpenSSH.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tests::{Cluster, DEADLINE, Running, Sshd, Stopped, wait_until};

/// The nodes on which a job runs; its owner is on node 1.
const HOSTS: [u32; 2] = [2, 3];

/// A job with a process on each of them, which becomes four.
const JOB: &str = "glurun -N 2 -w 2,3 bash -c 'setsid sh -c \"(sleep 4242 &) & sleep 4242\" & sleep 4242 & sleep 4242'";

/// How many processes of it there are on a node.
const PROCESSES: u32 = 4;

/// In this time all have ended, whatever has happened: silence of ten seconds, and time to see it on a busy machine.
const ENDED_WITHIN: Duration = Duration::from_secs(45);

/// Rounds of each test; `ROUNDS` asks for more.
fn rounds() -> u32 {
    let rounds = std::env::var("ROUNDS").ok();
    rounds.map_or(1, |rounds| rounds.parse::<u32>().expect("a number").min(20))
}

/// How long it took until all had ended, for each way.
#[derive(Default)]
struct Times(BTreeMap<&'static str, Vec<Duration>>);

impl Times {
    fn note(&mut self, way: &'static str, time: Duration) {
        assert!(time < ENDED_WITHIN, "{way}: {time:?}");
        println!("{way}: all ended within {time:?}");
        self.0.entry(way).or_default().push(time);
    }
}

impl Drop for Times {
    fn drop(&mut self) {
        for (way, times) in &mut self.0 {
            times.sort();
            let (best, worst) = (times[0], times[times.len() - 1]);
            let median = times[times.len() / 2];
            println!(
                "{way}: {} times, best {best:.2?}, median {median:.2?}, worst {worst:.2?}",
                times.len()
            );
        }
    }
}

fn left(cluster: &Cluster, node: u32) -> u32 {
    let count = cluster.sh(node, "pgrep -c -x sleep").stdout;
    count.parse().expect("pgrep counts")
}

fn all_run(cluster: &Cluster) {
    wait_until("all processes of the job", DEADLINE, || {
        HOSTS.iter().all(|host| left(cluster, *host) == PROCESSES)
    });
}

/// Takes the owner of a job away, and returns how long it took until no node had a process of it.
fn end(cluster: &Cluster, take_away: impl FnOnce()) -> Duration {
    all_run(cluster);
    let start = Instant::now();
    take_away();
    for host in HOSTS {
        wait_until("the end of all processes of the job", DEADLINE, || {
            left(cluster, host) == 0
        });
    }
    start.elapsed()
}

/// Runs what kills on a node.
fn kill_on(cluster: &Cluster, node: u32, script: &str) {
    cluster.sh(node, script).ok();
}

fn started(cluster: &Cluster) -> Running {
    cluster.spawn(1, &format!("cd /; {JOB}"))
}

fn wait_for_jobs(cluster: &Cluster) {
    wait_until("nodes that serve jobs again", DEADLINE, || {
        let all = cluster.sh(1, "cd /; glurun -N 3 -w 1-3 true");
        all.code() == Some(0)
    });
}

#[test]
fn nothing_outlives_its_owner() {
    let cluster = Cluster::up(3);
    let mut times = Times::default();
    for _ in 0..rounds() {
        let running = started(&cluster);
        let kill = || kill_on(&cluster, 1, "pkill -KILL -x glurun");
        times.note("kill -9 of glurun", end(&cluster, kill));
        drop(running);

        // The shell of a terminal, and with it the terminal.
        let shell = ["bash", "--norc", "--noprofile", "-i"];
        let mut terminal = cluster.node(1).terminal(&shell);
        terminal.send(&format!("cd /; {JOB}\n"));
        let shell = format!("pkill -KILL -f '^{}'", shell.join(" "));
        let kill = || kill_on(&cluster, 1, &shell);
        times.note("kill -9 of the shell of its terminal", end(&cluster, kill));
        drop(terminal);
    }
}

#[test]
fn nothing_outlives_the_node_of_its_owner() {
    let cluster = Cluster::up(3);
    let mut times = Times::default();
    for _ in 0..rounds() {
        for (way, mend) in [("cable cut", "heal"), ("power cut", "start")] {
            let running = started(&cluster);
            let cut = || match mend {
                "heal" => cluster.cut(1),
                _ => cluster.kill(1),
            };
            times.note(way, end(&cluster, cut));
            cluster.dev(&[mend, "1"]).ok();
            drop(running);
            wait_for_jobs(&cluster);
        }
    }
}

#[test]
fn nothing_outlives_the_daemon_of_its_owner_or_its_own() {
    let cluster = Cluster::up(3);
    let mut times = Times::default();
    let kill = "pid=$(pgrep -o -x glud) && kill -KILL $pid";
    for _ in 0..rounds() {
        let running = started(&cluster);
        let way = "kill -9 of the daemon of glurun's node";
        times.note(way, end(&cluster, || kill_on(&cluster, 1, kill)));
        assert_eq!(running.wait(DEADLINE).code(), Some(125));
        wait_for_jobs(&cluster);

        // One of the two is lost: those of the other node end as glurun wants it.
        let running = cluster.spawn(1, &format!("cd /; {}", JOB.replace("-N 2", "-K -N 2")));
        let way = "kill -9 of the daemon of one of the job's nodes";
        times.note(way, end(&cluster, || kill_on(&cluster, 2, kill)));
        assert_eq!(running.wait(DEADLINE).code(), Some(143));
        wait_for_jobs(&cluster);

        // It says nothing and is still there.
        let running = started(&cluster);
        let mut stopped = None;
        let stop = || stopped = Some(Stopped::new(&cluster, 1));
        times.note("glurun's daemon stands still", end(&cluster, stop));
        drop(stopped);
        assert_eq!(running.wait(DEADLINE).code(), Some(125));
        wait_for_jobs(&cluster);
    }
}

#[test]
fn nothing_outlives_the_ssh_above_it() {
    let cluster = Cluster::up(3);
    let mut times = Times::default();
    let server = Sshd::up(&cluster, 1);
    let ssh = server.command();
    let job = JOB.replace('"', "\\\"");
    for _ in 0..rounds() {
        // With a terminal, as somebody at work has it: its end is a hang-up.
        for (way, what) in [
            ("kill -9 of ssh above it", "-x ssh"),
            ("kill -9 of sshd above it", "-f '^sshd: root@pts'"),
        ] {
            let running = cluster.spawn(1, &format!("{ssh} -tt \"cd /; {job}\""));
            let kill = || kill_on(&cluster, 1, &format!("pkill -KILL {what}"));
            times.note(way, end(&cluster, kill));
            drop(running);
        }
        // Without one there is none: a program goes on until it writes, here and on another node.
        let writes = job.replace("sleep 4242'", "while sleep 0.2; do echo x; done'");
        let running = cluster.spawn(1, &format!("{ssh} \"cd /; {writes}\""));
        let kill = || kill_on(&cluster, 1, "pkill -KILL -x ssh");
        let way = "kill -9 of ssh without a terminal above what writes";
        times.note(way, end(&cluster, kill));
        drop(running);
    }
}

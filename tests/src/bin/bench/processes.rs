//! The processes of the cluster against those of one machine.

use super::{Bench, Row, time};
use std::time::Duration;

/// Processes started on each node.
const SLEEPERS: usize = 150;

impl Bench {
    pub(super) fn processes(&mut self) {
        let cluster = &self.cluster;
        let start = format!(
            "i=0; while [ $i -lt {SLEEPERS} ]; do sleep 3600 >/dev/null 2>&1 </dev/null & i=$((i+1)); done"
        );
        let nodes = cluster.nodes().count();
        for node in cluster.nodes() {
            node.sh(&start).ok();
        }
        // As many on one machine as there are on all nodes: a pid namespace of their own, beside the nodes. Its first
        // process takes the others with it.
        let alone = |command: &str| {
            let count = nodes * (SLEEPERS + 4);
            format!(
                "unshare --pid --fork --mount-proc sh -c 'i=0; while [ $i -lt {count} ]; do sleep 3600 >/dev/null 2>&1 </dev/null & i=$((i+1)); done; {command}; exit 0'"
            )
        };
        let many = |command: &str| {
            format!("i=0; while [ $i -lt 5 ]; do {command} >/dev/null; i=$((i+1)); done")
        };
        let over = |command: &str| {
            format!("unshare -m sh -c 'mount --bind /cluster/proc /proc; {command}'")
        };
        let mut rows = Vec::new();
        for (name, goal, command) in [
            (
                "ps aux of the cluster",
                "<= 2 x as many of one machine",
                "ps aux",
            ),
            ("one top refresh of the cluster", "", "top -b -n1"),
        ] {
            let (mut here, mut control) = (Vec::new(), Vec::new());
            let loops = many(command);
            let begin = cluster.sh(1, &alone("true"));
            assert!(begin.status.success(), "{begin:?}");
            for _ in 0..5 {
                here.push(time(|| drop(cluster.sh(1, &over(&loops)).ok())));
                // What it takes to start and to end them is not part of it.
                let whole = time(|| drop(cluster.sh(1, &alone(&loops))));
                let rest = time(|| drop(cluster.sh(1, &alone("true"))));
                control.push(whole.saturating_sub(rest));
            }
            rows.push(Row {
                name,
                goal,
                here,
                control,
                ops: 5,
            });
        }
        let pid = |node: u32| {
            let started = "sleep 3600 >/dev/null 2>&1 </dev/null & echo $!";
            cluster.sh(node, started).ok().trim().to_owned()
        };
        let (far, near) = (pid(2), pid(1));
        let signal =
            |command: &str| format!("i=0; while [ $i -lt 500 ]; do {command}; i=$((i+1)); done");
        let (mut here, mut control) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let note = signal(&format!("echo 0 > /cluster/proc/{far}/note"));
            here.push(time(|| drop(cluster.sh(1, &note).ok())));
            let kill = signal(&format!("kill -0 {near}"));
            control.push(time(|| drop(cluster.sh(1, &kill).ok())));
        }
        rows.push(Row {
            name: "a signal to another node",
            goal: "kill(2) and one round trip",
            here,
            control,
            ops: 500,
        });
        // The program measures itself: shells take far longer to start than a call takes.
        let calls = |pid: &str, count: u32| {
            format!(
                "python3 -c 'import os, time; begun = time.perf_counter_ns()
for _ in range({count}): os.kill({pid}, 0)
print(time.perf_counter_ns() - begun)'"
            )
        };
        let took = |script: &str| {
            let nanos = cluster.sh(1, script).ok();
            Duration::from_nanos(nanos.trim().parse().expect("a number"))
        };
        let inside = |calls: &str| format!("exec glush -c \"$(cat <<'END'\n{calls}\nEND\n)\"");
        for (name, goal, theirs, ops) in [
            (
                "kill(2) of a process of the node, in glush",
                "1 x",
                &near,
                200_000,
            ),
            (
                "kill(2) of a process of another node, in glush",
                "",
                &far,
                500,
            ),
        ] {
            let (mut here, mut control) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                here.push(took(&inside(&calls(theirs, ops))));
                control.push(took(&calls(&near, ops)));
            }
            rows.push(Row {
                name,
                goal,
                here,
                control,
                ops,
            });
        }
        self.rows.extend(rows.into_iter().filter(|row| {
            self.only
                .iter()
                .all(|word| row.name.contains(word.as_str()))
        }));
    }
}

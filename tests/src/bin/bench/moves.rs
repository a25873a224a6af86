//! Processes that move: for how long they stand still, and how long it takes in all, against CRIU's dump, a copy of the images
//! in memory and its restore. The program says by itself for how long it stood still.

use super::{Bench, Row};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;
use tests::{criu, moves};

/// What all of them may take.
const WITHIN: Duration = Duration::from_secs(600);

/// Names by size and kind: of the pause and the whole time of a move, of the same by post-copy, and goals of the pauses.
const NAMES: [(&str, [&str; 4], &str); 4] = [
    (
        "10 idle",
        [
            "pause of a move, 10 MiB",
            "move, 10 MiB",
            "pause of a move by post-copy, 10 MiB",
            "move by post-copy, 10 MiB",
        ],
        "",
    ),
    (
        "10 busy",
        [
            "pause of a move, 10 MiB busily written",
            "move, 10 MiB busily written",
            "pause of a move by post-copy, 10 MiB busily written",
            "move by post-copy, 10 MiB busily written",
        ],
        "",
    ),
    (
        "256 idle",
        [
            "pause of a move, 256 MiB",
            "move, 256 MiB",
            "pause of a move by post-copy, 256 MiB",
            "move by post-copy, 256 MiB",
        ],
        "< 100 ms",
    ),
    (
        "256 busy",
        [
            "pause of a move, 256 MiB busily written",
            "move, 256 MiB busily written",
            "pause of a move by post-copy, 256 MiB busily written",
            "move by post-copy, 256 MiB busily written",
        ],
        "< 100 ms",
    ),
];

impl Bench {
    pub(super) fn moves(&mut self) {
        let cluster = moves::cluster_that_moves(2);
        let program = cluster.path(1).join("mover.c");
        fs::write(program, include_str!("mover.c")).expect("written");
        let compile = "cc -O2 -o /cluster/mover /cluster/mover.c";
        cluster.sh(1, compile).ok();
        let script = format!(
            "import os; os.environ['BENCH_CRIU'] = {:?}\n{}",
            criu(),
            include_str!("moves.py")
        );
        let said = moves::drive(&cluster, WITHIN, &script);
        let mut samples = BTreeMap::<String, [Vec<Duration>; 6]>::new();
        for line in said.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let times = samples.entry(words[..2].join(" ")).or_default();
            for (times, micros) in times.iter_mut().zip(&words[2..]) {
                let micros = micros.parse().expect("a number");
                times.push(Duration::from_micros(micros));
            }
        }
        for (which, names, goal) in NAMES {
            let [ours @ .., pause_of_criu, whole_of_criu] =
                samples.remove(which).expect("it was measured");
            let ours: [_; 4] = ours;
            let controls = [pause_of_criu, whole_of_criu];
            for (place, (name, here)) in names.into_iter().zip(ours).enumerate() {
                self.add(Row {
                    name,
                    goal: if place % 2 == 0 { goal } else { "" },
                    here,
                    control: controls[place % 2].clone(),
                    ops: 1,
                });
            }
        }
    }
}

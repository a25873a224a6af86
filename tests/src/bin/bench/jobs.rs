//! Jobs started elsewhere.

use super::{Bench, Row, shell, time};
use std::process::Command;
use tests::Sshd;

impl Bench {
    pub(super) fn jobs(&mut self) {
        let loops =
            |command: &str| format!("i=0; while [ $i -lt 50 ]; do {command}; i=$((i+1)); done");
        let cluster = &self.cluster;
        let run = |command: &str| {
            let output = cluster.sh(1, command);
            assert!(output.status.success(), "{command}: {output:?}");
        };
        let mut rows = Vec::new();
        for (name, goal, command) in [
            (
                "null glurun job, any node",
                "<= 3 x the time",
                "glurun /bin/true",
            ),
            ("null glurun job, other node", "", "glurun -w 2 /bin/true"),
        ] {
            let (mut here, mut control) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                here.push(time(|| run(&loops(command))));
                control.push(time(|| run(&loops("/bin/true"))));
            }
            rows.push(Row {
                name,
                goal,
                here,
                control,
                ops: 50,
            });
        }
        // What users have without it: the control is the other program.
        let server = Sshd::up(cluster, 1);
        let ssh = loops(&format!("{} /bin/true", server.command()));
        let ssh = || run(&ssh);
        // Slurm's configuration is the machine's own, and so is its network.
        let srun = || shell(&loops("srun -N 1 /bin/true"));
        let mut others: Vec<(_, &dyn Fn())> = vec![(
            "null glurun job, other node; control: ssh to the same machine",
            &ssh,
        )];
        let once = Command::new("srun").args(["-N", "1", "/bin/true"]).status();
        if once.is_ok_and(|status| status.success()) {
            others.push(("null glurun job, other node; control: srun", &srun));
        }
        for (name, other) in others {
            let (mut here, mut control) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                here.push(time(|| run(&loops("glurun -w 2 /bin/true"))));
                control.push(time(other));
            }
            rows.push(Row {
                name,
                goal: "",
                here,
                control,
                ops: 50,
            });
        }
        let together = "for i in 1 2 3 4 5 6 7 8 9 10; do (glurun /bin/true; glurun /bin/true; glurun /bin/true) & done; wait";
        let here = (0..5).map(|_| time(|| run(together))).collect();
        let alone = together.replace("glurun ", "");
        let control = (0..5).map(|_| time(|| run(&alone))).collect();
        rows.push(Row {
            name: "glurun jobs, ten at a time",
            goal: "2,000 jobs/s",
            here,
            control,
            ops: 30,
        });
        let terminal = |command: &str| format!("script -qec '{command}' /dev/null </dev/null");
        for (name, goal, command, control, ops) in [
            (
                "null glurun job with a terminal",
                "",
                terminal("glurun -w 2 --pty /bin/true"),
                terminal("/bin/true"),
                1,
            ),
            (
                "glurun -n 100",
                "< 1.5 ms each",
                "glurun -n 100 /bin/true".to_owned(),
                "for i in $(seq 100); do /bin/true & done; wait".to_owned(),
                100,
            ),
            (
                "glurun -n 1000",
                "< 1 ms each",
                "glurun -n 1000 /bin/true".to_owned(),
                "for i in $(seq 1000); do /bin/true & done; wait".to_owned(),
                1000,
            ),
            (
                "256 MiB of a glurun job's output, in MiB",
                "",
                "glurun -w 2 head -c 256M /dev/zero | cat > /dev/null".to_owned(),
                "head -c 256M /dev/zero | cat > /dev/null".to_owned(),
                256,
            ),
        ] {
            let (mut here, mut alone) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                here.push(time(|| run(&command)));
                alone.push(time(|| run(&control)));
            }
            rows.push(Row {
                name,
                goal,
                here,
                control: alone,
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

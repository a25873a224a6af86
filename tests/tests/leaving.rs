//! Levelled jobs leave a node that is short of memory, and one that is emptied (LV4, LV5), and come home from one at which
//! somebody works (`rights.rs`).

use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tests::{Cluster, moves, wait_until};

const LONG: Duration = Duration::from_secs(120);

/// Keeps so many MiB in use, and otherwise does nothing.
const HOG: &str = "#!/usr/bin/python3\nimport os, sys, time\nkept = bytearray(int(sys.argv[1]) << 20)\n\
    for at in range(0, len(kept), 4096): kept[at] = 1\nprint(os.getpid(), flush=True)\ntime.sleep(3600)\n";

/// What node 2 believes of its memory.
struct Meminfo(PathBuf);

impl Meminfo {
    fn of(cluster: &Cluster) -> Self {
        let meminfo = Self(cluster.state().join("meminfo"));
        meminfo.available(900);
        let over = format!("mount --bind {} /proc/meminfo", meminfo.0.display());
        cluster.sh(2, &over).ok();
        meminfo
    }

    /// So many of 1,000 MiB are left.
    fn available(&self, mib: u32) {
        let text = format!(
            "MemTotal: {} kB\nMemFree: 0 kB\nMemAvailable: {} kB\n",
            1000 << 10,
            mib << 10
        );
        // In place: it is mounted.
        fs::write(&self.0, text).expect("written");
    }
}

#[test]
fn jobs_leave_a_node_without_memory_and_one_that_is_emptied() {
    let cluster = moves::cluster_that_moves(3);
    let run = |script: &str| cluster.sh(1, script);
    let hog = cluster.path(1).join("hog");
    fs::write(&hog, HOG).expect("written");
    run("chmod 755 /cluster/hog; echo hog > /cluster/proc/cluster/loadlevellist").ok();
    let meminfo = Meminfo::of(&cluster);
    let jobs = ["200", "2"].map(|mib| {
        let job = cluster.spawn(1, &format!("cd /; exec glurun -w 2 /cluster/hog {mib}"));
        wait_until("a job", LONG, || !job.stdout().is_empty());
        let pid = job.stdout().trim().to_owned();
        (job, pid)
    });
    let file = |pid: &str, name: &str| {
        run(&format!("cat /cluster/proc/{pid}/{name}"))
            .stdout
            .trim()
            .to_owned()
    };
    let [large, small] = [&jobs[0].1, &jobs[1].1].map(String::as_str);
    assert_eq!([file(large, "where"), file(small, "where")], ["2", "2"]);

    // What is left is less than a tenth: the one that holds much of it goes, before anything is swapped.
    let events = cluster.spawn(1, "exec cat /cluster/proc/cluster/events");
    meminfo.available(50);
    wait_until("the large job to leave", LONG, || {
        file(large, "where") != "2"
    });
    wait_until("its move to be told", LONG, || {
        let told = events.stdout();
        let line = told.lines().find(|line| line.contains(large));
        line.is_some_and(|line| line.contains("moved 2 ") && line.contains("levelling memory"))
    });
    assert_eq!(file(small, "where"), "2", "{}", file(small, "why"));
    assert_eq!(file(large, "nmigs"), "1");

    // A node that is emptied keeps none.
    meminfo.available(900);
    run("glu drain --no-wait 2").ok();
    wait_until("the small job to leave", LONG, || {
        file(small, "where") != "2"
    });
    wait_until("its move to be told", LONG, || {
        let told = events.stdout();
        let line = told.lines().find(|line| line.contains(small));
        line.is_some_and(|line| line.contains("levelling drain"))
    });
}

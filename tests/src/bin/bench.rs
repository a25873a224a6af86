//! `make bench`: what `/cluster` costs, as ratios against the local file system in the same run.
//!
//! Each row is measured several times, in turns with its control, and shown by its median. Nothing here asserts a time;
//! the goals stand beside the figures. Arguments: words that select rows by name.

use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use tests::Cluster;

/// How a row reads: what it took here and in the control.
struct Row {
    name: &'static str,
    goal: &'static str,
    here: Vec<Duration>,
    control: Vec<Duration>,
    /// Operations in one measurement.
    ops: u32,
}

struct Bench {
    cluster: Cluster,
    local: PathBuf,
    sources: PathBuf,
    only: Vec<String>,
    rows: Vec<Row>,
}

const MIB: usize = 1 << 20;

fn main() {
    let only = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let sources = sources();
    let cluster = Cluster::up(3);
    let local = tests::scratch_dir().join(format!("bench-{}", std::process::id()));
    fs::create_dir_all(&local).expect("mkdir");
    let mut bench = Bench {
        cluster,
        local,
        sources,
        only,
        rows: Vec::new(),
    };
    bench.metadata();
    bench.data();
    bench.build();
    bench.hand_off();
    bench.lock_hand_off();
    bench.jobs();
    bench.print();
    fs::remove_dir_all(&bench.local).expect("clean up");
}

impl Bench {
    fn metadata(&mut self) {
        let (one, two, local) = (
            self.cluster.path(1),
            self.cluster.path(2),
            self.local.clone(),
        );
        for dir in [&one, &local] {
            fs::create_dir_all(dir.join("meta")).expect("mkdir");
            fs::write(dir.join("meta/f"), vec![7_u8; 4096]).expect("write");
        }
        self.row(
            "cached stat",
            ">= 0.8 x ext4",
            9,
            100_000,
            |dir| {
                std::env::set_current_dir(dir.join("meta")).expect("chdir");
                for _ in 0..100_000 {
                    black_box(fs::metadata("f").expect("stat"));
                }
            },
            &one,
            &local,
        );
        self.row(
            "cached stat by the whole path",
            "",
            5,
            100_000,
            |dir| {
                let path = dir.join("meta/f");
                for _ in 0..100_000 {
                    black_box(fs::metadata(&path).expect("stat"));
                }
            },
            &one,
            &local,
        );
        self.row(
            "cached open+read+close, 4 KiB",
            ">= 0.9 x ext4",
            7,
            10_000,
            |dir| {
                std::env::set_current_dir(dir.join("meta")).expect("chdir");
                let mut bytes = [0_u8; 4096];
                for _ in 0..10_000 {
                    File::open("f")
                        .and_then(|mut file| file.read_exact(&mut bytes))
                        .expect("read");
                }
            },
            &one,
            &local,
        );
        std::env::set_current_dir("/").expect("chdir");
        let mut round = 0;
        self.row(
            "create+close 10,000 small files",
            "<= 2 x the time",
            1,
            10_000,
            |dir| {
                round += 1;
                let dir = dir.join(format!("meta/create{round}"));
                fs::create_dir(&dir).expect("mkdir");
                for i in 0..10_000 {
                    fs::write(dir.join(i.to_string()), "small").expect("create");
                }
            },
            &one,
            &local,
        );
        // The files just made by node 1 were never looked up by node 2.
        let made = two.join("meta/create1");
        let control = local.join("meta/create2");
        self.row_pair(
            "uncached lookup+stat, other node",
            "",
            10_000,
            || stat_all(&made),
            || stat_all(&control),
        );
    }

    fn data(&mut self) {
        let (one, two, local) = (
            self.cluster.path(1),
            self.cluster.path(2),
            self.local.clone(),
        );
        let mib = vec![0x5A_u8; MIB];
        self.row(
            "1 MiB sequential write, 128 MiB + fsync",
            ">= 0.7 x",
            3,
            128,
            |dir| {
                let mut file = File::create(dir.join("seq")).expect("create");
                for _ in 0..128 {
                    file.write_all(&mib).expect("write");
                }
                file.sync_all().expect("fsync");
            },
            &one,
            &local,
        );
        self.row(
            "1 MiB sequential read, cached",
            ">= 0.7 x",
            5,
            128,
            |dir| read_all(&dir.join("seq")),
            &one,
            &local,
        );
        self.row_pair(
            "1 MiB sequential read, other node, first",
            "",
            128,
            || read_all(&two.join("seq")),
            || read_all(&local.join("seq")),
        );
        self.row(
            "4 KiB random read, cached",
            "",
            5,
            20_000,
            |dir| {
                let file = File::open(dir.join("seq")).expect("open");
                let mut bytes = [0_u8; 4096];
                let mut at = 1_u64;
                for _ in 0..20_000 {
                    at = at
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    file.read_exact_at(&mut bytes, (at >> 33) % (128 * 256 - 1) * 4096)
                        .expect("read");
                }
            },
            &one,
            &local,
        );
        let sources = self.sources.clone();
        let mut round = 0;
        self.row(
            "untar of the demo's sources",
            "<= 2 x the time",
            5,
            1,
            |dir| {
                round += 1;
                let to = dir.join(format!("src{round}"));
                fs::create_dir(&to).expect("mkdir");
                shell(&format!(
                    "tar -C '{}' -cf - . | tar -C '{}' -xf -",
                    sources.display(),
                    to.display()
                ));
            },
            &one,
            &local,
        );
    }

    fn build(&mut self) {
        let (one, two, local) = (
            self.cluster.path(1),
            self.cluster.path(2),
            self.local.clone(),
        );
        for dir in [&one, &local] {
            let tree = dir.join("lua");
            fs::create_dir_all(tree.join("obj")).expect("mkdir");
            fs::create_dir_all(tree.join("src")).expect("mkdir");
            shell(&format!(
                "cp '{}'/*.[ch] '{}/src/'",
                self.sources.display(),
                tree.display()
            ));
            let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/demo");
            fs::copy(format!("{demo}/main.c"), tree.join("src/main.c")).expect("copy");
            fs::copy(format!("{demo}/lua.mk"), tree.join("Makefile")).expect("copy");
        }
        self.row(
            "cold build, make -j2 on one node",
            "<= 1.12 x the time",
            3,
            1,
            |dir| {
                shell(&format!(
                    "cd '{}/lua' && rm -f lua obj/* && make -s -j2 lua",
                    dir.display()
                ));
            },
            &one,
            &local,
        );
        self.row(
            "no-op make, node that built",
            "<= 1.5 x the time",
            15,
            1,
            |dir| {
                shell(&format!("cd '{}/lua' && make -q lua", dir.display()));
            },
            &one,
            &local,
        );
        self.row(
            "no-op make, other node",
            "<= 1.5 x the time",
            15,
            1,
            |dir| {
                shell(&format!("cd '{}/lua' && make -q lua", dir.display()));
            },
            &two,
            &local,
        );
    }

    /// One exclusive hand-off: each node in turn changes the same byte. The control is a change of a byte that the node
    /// holds already.
    fn hand_off(&mut self) {
        let paths = [
            self.cluster.path(1).join("handoff"),
            self.cluster.path(2).join("handoff"),
        ];
        fs::write(&paths[0], "x").expect("write");
        let open = |path: &PathBuf| OpenOptions::new().write(true).open(path).expect("open");
        let files = [open(&paths[0]), open(&paths[1])];
        let change = |file: &File| file.write_all_at(b"y", 0).expect("write");
        let in_turns = || (0..200).for_each(|i| change(&files[i % 2]));
        let alone = || (0..200).for_each(|_| change(&files[0]));
        self.row_pair(
            "exclusive hand-off between two nodes",
            "<= 2 round trips",
            200,
            in_turns,
            alone,
        );
    }

    /// From the unlock on one node to the return of the wait on another, which was there before. The control is the same
    /// on one local file.
    fn lock_hand_off(&mut self) {
        const ROUNDS: usize = 100;
        let hand_offs = |holder: &Path, waiter: &Path| {
            let files = [holder, waiter].map(|dir| dir.join("lock-handoff"));
            fs::write(&files[0], "x").expect("write");
            let [holder, waiter] = files.map(|path| {
                let file = OpenOptions::new().read(true).write(true).open(path);
                file.expect("open")
            });
            lock(&holder, libc::F_WRLCK);
            (0..ROUNDS)
                .map(|_| hand_over(&holder, &waiter))
                .collect::<Vec<_>>()
        };
        let (one, two) = (self.cluster.path(1), self.cluster.path(2));
        self.add(Row {
            name: "fcntl lock hand-off between two nodes",
            goal: "",
            here: hand_offs(&one, &two),
            control: hand_offs(&self.local, &self.local),
            ops: 1,
        });
    }

    fn jobs(&mut self) {
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
        self.rows.extend(rows.into_iter().filter(|row| {
            self.only
                .iter()
                .all(|word| row.name.contains(word.as_str()))
        }));
    }

    /// Measures `work` in the cluster and in the control, in turns.
    #[allow(clippy::too_many_arguments, reason = "a table row")]
    fn row(
        &mut self,
        name: &'static str,
        goal: &'static str,
        samples: usize,
        ops: u32,
        mut work: impl FnMut(&Path),
        here: &Path,
        control: &Path,
    ) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..samples {
            ours.push(time(|| work(here)));
            theirs.push(time(|| work(control)));
        }
        self.add(Row {
            name,
            goal,
            here: ours,
            control: theirs,
            ops,
        });
    }

    /// Measures once what can be done only once.
    fn row_pair(
        &mut self,
        name: &'static str,
        goal: &'static str,
        ops: u32,
        here: impl FnOnce(),
        control: impl FnOnce(),
    ) {
        let (here, control) = (vec![time(here)], vec![time(control)]);
        self.add(Row {
            name,
            goal,
            here,
            control,
            ops,
        });
    }

    fn add(&mut self, row: Row) {
        if self
            .only
            .iter()
            .all(|word| row.name.contains(word.as_str()))
        {
            eprintln!("  {}: {}", row.name, ratio(&row));
            self.rows.push(row);
        }
    }

    fn print(&self) {
        println!(
            "| work | /cluster | control | time ratio | goal |\n| --- | --- | --- | --- | --- |"
        );
        for row in &self.rows {
            let (here, control) = (per_op(&row.here, row.ops), per_op(&row.control, row.ops));
            println!(
                "| {} | {} | {} | {} | {} |",
                row.name,
                shown(here),
                shown(control),
                ratio(row),
                row.goal
            );
        }
        println!(
            "\nMedians per operation; the control is the file system under the state directory (for jobs: a plain"
        );
        println!(
            "process; for the exclusive hand-off: a write under a lease already held). A rate goal of 0.8 x is a time of 1.25 x."
        );
    }
}

/// Locks all of a file for its open file (OFD), or unlocks it; waits for the lock.
fn lock(file: &File, kind: i32) {
    let range = libc::flock {
        l_type: i16::try_from(kind).expect("a lock type"),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLKW(&range)).expect("lock");
}

/// Unlocks what `holder` has when another thread waits for it, and locks it again; returns how long the lock took.
fn hand_over(holder: &File, waiter: &File) -> Duration {
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            sender
                .send(nix::unistd::gettid())
                .expect("somebody listens");
            lock(waiter, libc::F_WRLCK);
            let locked = Instant::now();
            lock(waiter, libc::F_UNLCK);
            locked
        });
        let tid = receiver.recv().expect("the thread runs");
        let call = format!("/proc/self/task/{tid}/syscall");
        let in_fcntl = format!("{} ", libc::SYS_fcntl);
        tests::wait_until("the thread to wait in fcntl", tests::DEADLINE, || {
            fs::read_to_string(&call).is_ok_and(|call| call.starts_with(&in_fcntl))
        });
        let unlocked = Instant::now();
        lock(holder, libc::F_UNLCK);
        let locked = waiting.join().expect("it locks");
        lock(holder, libc::F_WRLCK);
        locked.duration_since(unlocked)
    })
}

fn ratio(row: &Row) -> String {
    format!(
        "{:.2} x",
        per_op(&row.here, row.ops) / per_op(&row.control, row.ops)
    )
}

/// Returns the median in microseconds per operation.
fn per_op(samples: &[Duration], ops: u32) -> f64 {
    let mut sorted: Vec<Duration> = samples.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2].as_secs_f64() * 1e6 / f64::from(ops)
}

fn shown(us: f64) -> String {
    match us {
        us if us < 1.0 => format!("{:.0} ns", us * 1e3),
        us if us < 1e3 => format!("{us:.1} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

fn time(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn shell(command: &str) {
    let status = Command::new("sh")
        .args(["-c", command])
        .stdout(Stdio::null())
        .status()
        .expect("sh runs");
    assert!(status.success(), "{command}: {status}");
}

fn stat_all(dir: &Path) {
    for i in 0..10_000 {
        black_box(fs::metadata(dir.join(i.to_string())).expect("stat"));
    }
}

fn read_all(path: &Path) {
    let mut file = File::open(path).expect("open");
    let mut bytes = vec![0_u8; MIB];
    while file.read(&mut bytes).expect("read") > 0 {}
}

/// Returns the directory of the demo's sources, out of the registry.
fn sources() -> PathBuf {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/demo/Cargo.toml");
    shell(&format!(
        "cargo fetch --quiet --locked --manifest-path '{manifest}'"
    ));
    let args = [
        "metadata",
        "--quiet",
        "--locked",
        "--format-version",
        "1",
        "--manifest-path",
        manifest,
    ];
    let output = Command::new("cargo")
        .args(args)
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let lua = packages
        .iter()
        .find(|package| package["name"] == "lua-src")
        .expect("lua-src");
    let root = Path::new(lua["manifest_path"].as_str().expect("a path"))
        .parent()
        .expect("a directory")
        .to_path_buf();
    let versions = fs::read_dir(&root)
        .expect("readdir")
        .map(|entry| entry.expect("entry").path());
    versions
        .into_iter()
        .find(|path| path.to_string_lossy().contains("lua-5.4."))
        .expect("Lua 5.4")
}

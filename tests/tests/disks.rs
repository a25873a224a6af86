//! A voter's disk is full, broken or hangs: it steps down and says so, and the others go on working.
//!
//! Needs root, /dev/fuse and loop devices.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tests::{Cluster, DEADLINE, Disk, wait_until, with_deadline};

/// An election, the term of a session that may be lost, and some slack for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster whose leader has all its state on a disk that can fail.
struct Case {
    cluster: Cluster,
    disk: Disk,
    node: u32,
}

impl Case {
    fn new() -> Self {
        let cluster = Cluster::up(3);
        let node = cluster.leader(None);
        let disk = Disk::new(256);
        disk.take_over(&cluster, node);
        let case = Self {
            cluster,
            disk,
            node,
        };
        let mut leader = case.cluster.leader(None);
        while leader != node {
            case.cluster.kill(leader);
            let next = case.cluster.leader(Some(leader));
            case.cluster.start(leader);
            leader = next;
        }
        case
    }

    /// Runs `break_it` while a node writes, syncs and another one reads; they go on under another leader.
    fn others_go_on(&self, break_it: impl FnOnce()) -> u64 {
        let others: Vec<u32> = (1..=3).filter(|node| *node != self.node).collect();
        let [writes, reads] = [others[0], others[1]].map(|node| self.cluster.path(node));
        fs::create_dir(writes.join("dir")).expect("mkdir");
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = done.load(Ordering::SeqCst);
                    write(&writes.join(format!("dir/{number}")), &number.to_string())?;
                    done.store(number + 1, Ordering::SeqCst);
                }
                std::io::Result::Ok(())
            });
            let more = |what: &str, count: u64| {
                let before = done.load(Ordering::SeqCst);
                wait_until(what, PATIENCE, || {
                    done.load(Ordering::SeqCst) >= before + count
                });
                let last = done.load(Ordering::SeqCst) - 1;
                let path = reads.join(format!("dir/{last}"));
                let content = fs::read_to_string(path).expect("what was synced is there");
                assert_eq!(content, last.to_string());
            };
            more("the writer to begin", 3);
            let began = Instant::now();
            break_it();
            let new = self.cluster.leader(Some(self.node));
            println!("node {new} leads after {:?}", began.elapsed());
            more("the writer to go on under the new leader", 10);
            stop.store(true, Ordering::Relaxed);
            writer.join().expect("writer").expect("no write fails");
        });
        done.into_inner()
    }

    /// What was acknowledged is there, also for the node whose disk has failed: it is still a client.
    fn all_is_there(&self, files: u64) {
        for node in 1..=3 {
            let dir = self.cluster.path(node).join("dir");
            let read = move || {
                (0..files).try_for_each(|number| {
                    let content = fs::read_to_string(dir.join(number.to_string()))?;
                    assert_eq!(content, number.to_string());
                    std::io::Result::Ok(())
                })
            };
            with_deadline("all files to be read", DEADLINE, read).expect("read");
        }
    }

    fn status(&self) -> String {
        self.cluster.sh(self.node, "glu status").ok()
    }

    fn says(&self, words: &str) {
        let mut said = String::new();
        wait_until("glu status to tell of the fault", PATIENCE, || {
            said = self.status();
            said.contains("neither leads nor votes") && said.contains(words)
        });
        println!("{}", said.lines().nth(1).unwrap_or_default());
    }

    fn end(self) {
        self.cluster.kill(self.node);
        drop(self.disk);
    }
}

fn write(path: &Path, content: &str) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

#[test]
fn a_leader_whose_disk_is_full_steps_down_and_comes_back() {
    let case = Case::new();
    let files = case.others_go_on(|| case.disk.fill());
    case.says("make room, then restart this node");
    case.all_is_there(files);
    case.cluster.kill(case.node);
    case.disk.make_room();
    case.cluster.start(case.node);
    case.all_is_there(files);
    let status = case.status();
    assert!(!status.contains("neither"), "{status}");
    // It counts again: with it and one other there is a majority.
    let leader = case.cluster.leader(None);
    let away = (1..=3).find(|node| ![leader, case.node].contains(node));
    case.cluster.kill(away.expect("a third"));
    let path = case.cluster.path(case.node).join("after");
    let written = with_deadline("a write with two of three", DEADLINE, move || {
        write(&path, "x")
    });
    written.expect("write");
    case.end();
}

#[test]
fn a_leader_whose_disk_breaks_steps_down() {
    let case = Case::new();
    let files = case.others_go_on(|| case.disk.fail());
    case.says("then restart this node");
    case.all_is_there(files);
    case.end();
}

#[test]
fn a_leader_whose_disk_hangs_is_replaced_and_comes_back() {
    let case = Case::new();
    let files = case.others_go_on(|| case.disk.freeze());
    case.disk.thaw();
    case.all_is_there(files);
    let status = case.status();
    assert!(!status.contains("neither"), "{status}");
    case.end();
}

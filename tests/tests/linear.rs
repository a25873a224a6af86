//! S1 in its strong form, on real mounts: threads on several nodes do random things to the same few files, and one
//! order of all of it must explain what each of them saw. `LINEAR_OPS` sets the operations of each workload,
//! `LINEAR_ONLY` names the only one to run, `SEED` sets the dice.
//!
//! Needs root and /dev/fuse.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
use tests::linear::models::{
    AppendLog, AppendOp, AppendRet, Attributes, AttributesOp, AttributesRet, Names, NamesOp,
    NamesRet, Records, Register, RegisterOp, Stat,
};
use tests::linear::{Clock, History, Log, Model, Verdict, check, check_each};
use tests::{Cluster, Dice, with_deadline};

const NODES: u32 = 3;
const THREADS_PER_NODE: u32 = 2;
/// Few, so that they are fought over.
const FILES: u32 = 3;
const NAMES: u8 = 5;

/// A thread of a workload.
struct Actor {
    /// The workload's directory, on this actor's node.
    dir: PathBuf,
    /// Counts from 0 over all nodes.
    number: u32,
    /// How many values it has made up.
    values: u32,
    dice: Dice,
}

impl Actor {
    /// Returns a number that no other call of any actor returns.
    fn value(&mut self) -> u32 {
        self.values += 1;
        self.number * 1_000_000 + self.values
    }

    fn file(&self, file: u32) -> PathBuf {
        self.dir.join(format!("f{file}"))
    }
}

/// One step of an actor with what it keeps open: rolls an operation, carries it out, writes it down.
type Step<M, Kept> = fn(&mut Actor, &mut Kept, &mut LogOf<M>);

type LogOf<M> = Log<<M as Model>::Op, <M as Model>::Ret>;

/// Nothing is broken here, so nothing may fail, and every outcome is known.
#[track_caller]
fn sure<T>(op: impl Debug, ret: io::Result<T>) -> Option<T> {
    Some(ret.unwrap_or_else(|e| panic!("{op:?}: {e}")))
}

struct Run {
    cluster: Cluster,
    seed: u64,
    ops: u32,
}

impl Run {
    fn start() -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(
                text.parse()
                    .unwrap_or_else(|e| panic!("{name}={text}: {e}")),
            )
        };
        let time = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self {
            cluster: Cluster::up(NODES),
            seed: number("SEED").unwrap_or_else(|| u64::from(time.subsec_nanos())),
            ops: number("LINEAR_OPS").map_or(400, |ops| u32::try_from(ops).expect("fits")),
        }
    }

    /// Lets every actor take its steps in a directory of its own node, which `set_up` prepared; returns what happened.
    fn history<M, Kept: 'static>(
        &self,
        name: &'static str,
        set_up: fn(&Path),
        keep: fn(&Path) -> Kept,
        step: Step<M, Kept>,
    ) -> History<M>
    where
        M: Model + 'static,
        M::Op: Send + 'static,
        M::Ret: Send + 'static,
    {
        let home = self.cluster.path(1).join(name);
        fs::create_dir(&home).expect("mkdir");
        set_up(&home);
        let clock = Clock::default();
        let actors = NODES * THREADS_PER_NODE;
        let together = Arc::new(Barrier::new(actors as usize));
        let threads: Vec<_> = (0..actors)
            .map(|number| {
                let node = number % NODES + 1;
                let mut actor = Actor {
                    dir: self.cluster.path(node).join(name),
                    number,
                    values: 0,
                    dice: Dice::new(self.seed ^ (u64::from(number) << 32)),
                };
                let mut log = clock.log(format!("node{node}.{}", number / NODES));
                let (together, steps) = (Arc::clone(&together), self.ops / actors);
                thread::spawn(move || {
                    let mut kept = keep(&actor.dir);
                    together.wait();
                    for _ in 0..steps {
                        step(&mut actor, &mut kept, &mut log);
                    }
                    log.into_operations()
                })
            })
            .collect();
        let limit = Duration::from_secs(30) + Duration::from_millis(20) * self.ops;
        let began = Instant::now();
        let history = with_deadline(name, limit, move || {
            let done = threads
                .into_iter()
                .map(|thread| thread.join().expect("every operation succeeds"));
            done.flatten().collect::<History<M>>()
        });
        println!(
            "{name}: {} operations in {:?}",
            history.len(),
            began.elapsed()
        );
        history
    }

    /// Says how to see a failure again, and what it was.
    fn judge<M: Model>(&self, name: &str, verdict: Verdict<M>) -> Result<(), String> {
        let again = format!("SEED={} LINEAR_OPS={} ({name})", self.seed, self.ops);
        match verdict {
            Verdict::Linearizable => Ok(()),
            Verdict::Violation(why) => Err(format!("{again}: {why}")),
            Verdict::Undecided => Err(format!("{again}: too much at once to be decided")),
        }
    }
}

type Workload = fn(&Run) -> Result<(), String>;

const WORKLOADS: &[(&str, Workload)] = &[
    ("renamed", rewritten_by_rename),
    ("in place", rewritten_in_place),
    ("appended", appended),
    ("names", names),
    ("attributes", attributes),
];

#[test]
fn everything_is_linearizable() {
    let only = std::env::var("LINEAR_ONLY").ok();
    let run = Run::start();
    let found: Vec<String> = WORKLOADS
        .iter()
        .filter(|(name, _)| only.as_ref().is_none_or(|only| only == name))
        .filter_map(|(_, workload)| workload(&run).err())
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n\n"));
}

/// Opens the files of a workload.
fn open_all(dir: &Path, options: &OpenOptions) -> Vec<File> {
    let open = |file| options.open(dir.join(format!("f{file}"))).expect("open");
    (0..FILES).map(open).collect()
}

fn register(actor: &mut Actor) -> RegisterOp {
    let file = actor.dice.below(FILES);
    match actor.dice.below(3) {
        0 => RegisterOp::Write(file, actor.value().into()),
        _ => RegisterOp::Read(file),
    }
}

/// Files that are replaced by new ones (rename over), as editors and compilers do.
fn rewritten_by_rename(run: &Run) -> Result<(), String> {
    let set_up = |dir: &Path| {
        for file in 0..FILES {
            fs::write(dir.join(format!("f{file}")), "0").expect("write");
        }
    };
    let step = |actor: &mut Actor, (): &mut (), log: &mut LogOf<Register>| {
        let op = register(actor);
        let file = actor.file(op.file());
        match op {
            RegisterOp::Read(_) => log.run(op, || {
                let text = fs::read_to_string(file);
                sure(
                    op,
                    text.and_then(|text| text.parse().map_err(io::Error::other)),
                )
            }),
            RegisterOp::Write(_, value) => {
                let new = actor.dir.join(format!("new{}", actor.number));
                fs::write(&new, value.to_string()).expect("write a file that nobody else knows");
                log.run(op, || sure(op, fs::rename(&new, file).map(|()| value)));
            }
        }
    };
    let history = run.history::<Register, _>("renamed", set_up, |_| (), step);
    run.judge("renamed", check_each(&Register, history, RegisterOp::file))
}

/// Files that are open everywhere, with one number that is written and read in place.
fn rewritten_in_place(run: &Run) -> Result<(), String> {
    let set_up = |dir: &Path| {
        for file in 0..FILES {
            fs::write(dir.join(format!("f{file}")), 0_u64.to_le_bytes()).expect("write");
        }
    };
    let keep = |dir: &Path| open_all(dir, OpenOptions::new().read(true).write(true));
    let step = |actor: &mut Actor, files: &mut Vec<File>, log: &mut LogOf<Register>| {
        let op = register(actor);
        let file = &files[op.file() as usize];
        log.run(op, || match op {
            RegisterOp::Read(_) => {
                let mut bytes = [0; 8];
                let read = file.read_exact_at(&mut bytes, 0);
                sure(op, read.map(|()| u64::from_le_bytes(bytes)))
            }
            RegisterOp::Write(_, value) => {
                let written = file.write_all_at(&value.to_le_bytes(), 0);
                sure(op, written.map(|()| value))
            }
        });
    };
    let history = run.history::<Register, _>("in place", set_up, keep, step);
    run.judge("in place", check_each(&Register, history, RegisterOp::file))
}

/// Files that records are appended to.
fn appended(run: &Run) -> Result<(), String> {
    const RECORD_BYTES: usize = 4;
    let set_up = |dir: &Path| {
        for file in 0..FILES {
            drop(File::create(dir.join(format!("f{file}"))).expect("create"));
        }
    };
    let keep = |dir: &Path| open_all(dir, OpenOptions::new().append(true));
    let step = |actor: &mut Actor, files: &mut Vec<File>, log: &mut LogOf<AppendLog>| {
        let file = actor.dice.below(FILES);
        let op = match actor.dice.below(4) {
            0 => AppendOp::Append(file, actor.value()),
            1 => AppendOp::Size(file),
            _ => AppendOp::Read(file),
        };
        log.run(op, || match op {
            AppendOp::Append(_, record) => {
                let appended = (&files[file as usize]).write_all(&record.to_le_bytes());
                sure(op, appended.map(|()| AppendRet::Done))
            }
            AppendOp::Size(_) => {
                let size = sure(op, fs::metadata(actor.file(file)))?.len();
                let size = usize::try_from(size).expect("a short file");
                assert_eq!(size % RECORD_BYTES, 0, "a torn record");
                Some(AppendRet::Size(size / RECORD_BYTES))
            }
            AppendOp::Read(_) => {
                let bytes = sure(op, fs::read(actor.file(file)))?;
                let (records, rest) = bytes.as_chunks::<RECORD_BYTES>();
                assert!(rest.is_empty(), "a torn record");
                let records = records.iter().map(|bytes| u32::from_le_bytes(*bytes));
                Some(AppendRet::Records(Records(records.collect())))
            }
        });
    };
    let history = run.history::<AppendLog, _>("appended", set_up, keep, step);
    run.judge("appended", check_each(&AppendLog, history, AppendOp::file))
}

/// Names that come, go and move; each is looked at by itself and in listings.
fn names(run: &Run) -> Result<(), String> {
    let step = |actor: &mut Actor, (): &mut (), log: &mut LogOf<Names>| {
        let roll = actor.dice.below(9);
        let name = actor.dice.below(NAMES);
        let op = match roll {
            0 | 1 => NamesOp::Create(name),
            2 => NamesOp::Unlink(name),
            3 | 4 => NamesOp::Rename(name, (name + 1) % NAMES),
            5 | 6 => NamesOp::Lookup(name),
            _ => {
                let dir = &actor.dir;
                log.run_all(|| list(dir));
                return;
            }
        };
        let path = |name: u8| actor.dir.join(name.to_string());
        log.run(op, || {
            let ret = match op {
                NamesOp::Create(name) => OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(path(name))
                    .and_then(|file| Ok(NamesRet::Inode(file.metadata()?.ino()))),
                NamesOp::Unlink(name) => fs::remove_file(path(name)).map(|()| NamesRet::Done),
                NamesOp::Rename(from, to) => {
                    fs::rename(path(from), path(to)).map(|()| NamesRet::Done)
                }
                NamesOp::Lookup(name) | NamesOp::Listed(name) => {
                    fs::symlink_metadata(path(name)).map(|found| NamesRet::Inode(found.ino()))
                }
            };
            match ret {
                Err(e) if e.kind() == ErrorKind::NotFound => Some(NamesRet::NotFound),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => Some(NamesRet::Exists),
                ret => sure(op, ret),
            }
        });
    };
    let history = run.history::<Names, _>("names", |_| (), |_| (), step);
    run.judge("names", check(&Names, &history))
}

/// Lists a directory: says of each name whether it is there. A name that was removed and made anew while the listing
/// was read may be in it twice.
fn list(dir: &Path) -> Vec<(NamesOp, NamesRet)> {
    let entries = fs::read_dir(dir).expect("open a directory");
    let listed: BTreeSet<_> = entries
        .map(|entry| entry.expect("read a directory").file_name())
        .collect();
    let there = |name: u8| listed.contains(OsStr::new(&name.to_string()));
    let look = |name| (NamesOp::Listed(name), NamesRet::Listed(there(name)));
    (0..NAMES).map(look).collect()
}

/// Attributes that are set one by one and seen together.
fn attributes(run: &Run) -> Result<(), String> {
    let set_up = |dir: &Path| {
        let path = dir.join("f0");
        drop(File::create(&path).expect("create"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).expect("chmod");
    };
    let step = |actor: &mut Actor, (): &mut (), log: &mut LogOf<Attributes>| {
        let op = match actor.dice.below(8) {
            0 => AttributesOp::Mode(actor.dice.below(0o1000)),
            1 => AttributesOp::Owner(actor.value()),
            2 => AttributesOp::Size(actor.value().into()),
            _ => AttributesOp::Stat,
        };
        let path = actor.file(0);
        log.run(op, || {
            let done = match op {
                AttributesOp::Mode(mode) => {
                    fs::set_permissions(path, fs::Permissions::from_mode(mode))
                }
                AttributesOp::Owner(uid) => chown(path, Some(uid), None),
                AttributesOp::Size(size) => {
                    let size = i64::try_from(size).expect("small");
                    nix::unistd::truncate(&path, size).map_err(io::Error::from)
                }
                AttributesOp::Stat => {
                    let found = sure(op, fs::metadata(path))?;
                    return Some(AttributesRet::Stat(Stat {
                        mode: found.mode() & 0o7777,
                        uid: found.uid(),
                        size: found.size(),
                    }));
                }
            };
            sure(op, done.map(|()| AttributesRet::Done))
        });
    };
    let history = run.history::<Attributes, _>("attributes", set_up, |_| (), step);
    run.judge("attributes", check(&Attributes, &history))
}

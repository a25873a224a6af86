//! S1 in its strong form, on real mounts: threads on several nodes do random things to the same few files, and one
//! order of all of it must explain what each of them saw. `LINEAR_OPS` sets the operations of each workload, `SEED`
//! the dice.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};
use tests::linear::models::{
    AppendLog, AppendOp, AppendRet, Attributes, AttributesOp, AttributesRet, Names, NamesOp,
    NamesRet, Register, RegisterOp, Stat,
};
use tests::linear::{Clock, History, Model, Verdict, check, check_each};
use tests::{Cluster, with_deadline};

const NODES: u32 = 3;
const THREADS_PER_NODE: u32 = 2;
/// Few, so that they are fought over.
const FILES: u32 = 3;
const NAMES: u32 = 5;

/// Random numbers that a seed repeats (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.roll() % u64::from(end)).expect("below a u32")
    }
}

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
            ops: number("LINEAR_OPS").map_or(2_000, |ops| u32::try_from(ops).expect("fits")),
        }
    }

    /// Lets every actor roll `op` and carry it out, again and again; returns what happened.
    ///
    /// `set_up` prepares the directory, and makes what an actor keeps open.
    fn history<M, Kept: 'static>(
        &self,
        name: &'static str,
        set_up: fn(&Path),
        keep: fn(&Path) -> Kept,
        op: fn(&mut Actor) -> M::Op,
        carry_out: fn(&mut Actor, &mut Kept, &M::Op) -> io::Result<M::Ret>,
    ) -> History<M>
    where
        M: Model,
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
                    dice: Dice(self.seed ^ (u64::from(number) << 32)),
                };
                let mut log = clock.log(format!("node{node}.{}", number / NODES));
                let (together, ops) = (Arc::clone(&together), self.ops / actors);
                thread::spawn(move || {
                    let mut kept = keep(&actor.dir);
                    together.wait();
                    for _ in 0..ops {
                        let op = op(&mut actor);
                        log.run(op.clone(), || {
                            let ret = carry_out(&mut actor, &mut kept, &op);
                            // Nothing is broken here, so nothing may fail.
                            Some(ret.unwrap_or_else(|e| panic!("{op:?}: {e}")))
                        });
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

#[test]
fn everything_is_linearizable() {
    let run = Run::start();
    let found: Vec<String> = [
        rewritten_by_rename(&run),
        rewritten_in_place(&run),
        appended(&run),
        names(&run),
        attributes(&run),
    ]
    .into_iter()
    .filter_map(Result::err)
    .collect();
    assert!(found.is_empty(), "{}", found.join("\n\n"));
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
    let history = run.history::<Register, ()>(
        "renamed",
        |dir| {
            for file in 0..FILES {
                fs::write(dir.join(format!("f{file}")), "0").expect("write");
            }
        },
        |_| (),
        register,
        |actor, (), op| match op {
            RegisterOp::Read(file) => {
                let text = fs::read_to_string(actor.file(*file))?;
                text.parse().map_err(io::Error::other)
            }
            RegisterOp::Write(file, value) => {
                let new = actor.dir.join(format!("new{}", actor.number));
                fs::write(&new, value.to_string())?;
                fs::rename(&new, actor.file(*file))?;
                Ok(*value)
            }
        },
    );
    run.judge("renamed", check_each(&Register, history, RegisterOp::file))
}

/// Files that are open everywhere, with one number that is written and read in place.
fn rewritten_in_place(run: &Run) -> Result<(), String> {
    let history = run.history::<Register, Vec<File>>(
        "in place",
        |dir| {
            for file in 0..FILES {
                fs::write(dir.join(format!("f{file}")), 0_u64.to_le_bytes()).expect("write");
            }
        },
        |dir| {
            let open = |file| {
                let path = dir.join(format!("f{file}"));
                OpenOptions::new().read(true).write(true).open(path)
            };
            (0..FILES).map(|file| open(file).expect("open")).collect()
        },
        register,
        |_, files, op| match op {
            RegisterOp::Read(file) => {
                let mut bytes = [0; 8];
                files[*file as usize].read_exact_at(&mut bytes, 0)?;
                Ok(u64::from_le_bytes(bytes))
            }
            RegisterOp::Write(file, value) => {
                files[*file as usize].write_all_at(&value.to_le_bytes(), 0)?;
                Ok(*value)
            }
        },
    );
    run.judge("in place", check_each(&Register, history, RegisterOp::file))
}

/// One file that records are appended to.
fn appended(run: &Run) -> Result<(), String> {
    const RECORD_BYTES: usize = 4;
    let history = run.history::<AppendLog, File>(
        "appended",
        |dir| drop(File::create(dir.join("log")).expect("create")),
        |dir| {
            let mut options = OpenOptions::new();
            options.append(true).open(dir.join("log")).expect("open")
        },
        |actor| match actor.dice.below(4) {
            0 => AppendOp::Append(actor.value()),
            1 => AppendOp::Size,
            _ => AppendOp::Read,
        },
        |actor, file, op| match op {
            AppendOp::Append(record) => {
                file.write_all(&record.to_le_bytes())?;
                Ok(AppendRet::Done)
            }
            AppendOp::Size => {
                let size = fs::metadata(actor.dir.join("log"))?.len();
                let size = usize::try_from(size).expect("a short file");
                assert_eq!(size % RECORD_BYTES, 0, "a torn record");
                Ok(AppendRet::Size(size / RECORD_BYTES))
            }
            AppendOp::Read => {
                let bytes = fs::read(actor.dir.join("log"))?;
                let (records, rest) = bytes.as_chunks::<RECORD_BYTES>();
                assert!(rest.is_empty(), "a torn record");
                let records = records.iter().map(|bytes| u32::from_le_bytes(*bytes));
                Ok(AppendRet::Records(records.collect()))
            }
        },
    );
    run.judge("appended", check(&AppendLog, &history))
}

/// Names that come, go and move; each is looked at by itself and in listings.
fn names(run: &Run) -> Result<(), String> {
    let history = run.history::<Names, ()>(
        "names",
        |_| (),
        |_| (),
        |actor| {
            let roll = actor.dice.below(9);
            let mut name = || u8::try_from(actor.dice.below(NAMES)).expect("few names");
            match roll {
                0 | 1 => NamesOp::Create(name()),
                2 => NamesOp::Unlink(name()),
                3 | 4 => {
                    let from = name();
                    let to = (from + 1) % u8::try_from(NAMES).expect("few names");
                    NamesOp::Rename(from, to)
                }
                5 | 6 => NamesOp::Lookup(name()),
                _ => NamesOp::List,
            }
        },
        |actor, (), op| {
            let path = |name: &u8| actor.dir.join(name.to_string());
            let done = |done: io::Result<NamesRet>| match done {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(NamesRet::NotFound),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(NamesRet::Exists),
                done => done,
            };
            done(match op {
                NamesOp::Create(name) => OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(path(name))
                    .and_then(|file| Ok(NamesRet::Inode(file.metadata()?.ino()))),
                NamesOp::Unlink(name) => fs::remove_file(path(name)).map(|()| NamesRet::Done),
                NamesOp::Rename(from, to) => {
                    fs::rename(path(from), path(to)).map(|()| NamesRet::Done)
                }
                NamesOp::Lookup(name) => {
                    fs::symlink_metadata(path(name)).map(|found| NamesRet::Inode(found.ino()))
                }
                NamesOp::List => list(&actor.dir),
            })
        },
    );
    run.judge("names", check(&Names, &history))
}

fn list(dir: &Path) -> io::Result<NamesRet> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|name| name.parse().ok());
        names.push(name.ok_or_else(|| io::Error::other("a name that nobody made"))?);
    }
    names.sort_unstable();
    Ok(NamesRet::Listing(names))
}

/// Attributes that are set one by one and seen together.
fn attributes(run: &Run) -> Result<(), String> {
    let history = run.history::<Attributes, ()>(
        "attributes",
        |dir| {
            let path = dir.join("f0");
            drop(File::create(&path).expect("create"));
            fs::set_permissions(&path, fs::Permissions::from_mode(0)).expect("chmod");
        },
        |_| (),
        |actor| match actor.dice.below(8) {
            0 => AttributesOp::Mode(actor.dice.below(0o1000)),
            1 => AttributesOp::Owner(actor.value()),
            2 => AttributesOp::Size(actor.value().into()),
            _ => AttributesOp::Stat,
        },
        |actor, (), op| {
            let path = actor.file(0);
            match op {
                AttributesOp::Mode(mode) => {
                    fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
                }
                AttributesOp::Owner(uid) => chown(path, Some(*uid), None)?,
                AttributesOp::Size(size) => {
                    nix::unistd::truncate(&path, i64::try_from(*size).expect("small"))?;
                }
                AttributesOp::Stat => {
                    let found = fs::metadata(path)?;
                    return Ok(AttributesRet::Stat(Stat {
                        mode: found.mode() & 0o7777,
                        uid: found.uid(),
                        size: found.size(),
                    }));
                }
            }
            Ok(AttributesRet::Done)
        },
    );
    run.judge("attributes", check(&Attributes, &history))
}

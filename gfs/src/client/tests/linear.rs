//! Histories of several clients are linearizable: S1 in its strong form, without real kernels. `LINEAR_OPS` sets the
//! operations of each history, `SEED` the dice.
//!
//! One process on each node: what two processes of one node see during a change of their own is said in
//! `docs/semantics.md`, S1. The tests named `caught` take the kernels' ears away, and must fail to find an order.

use super::cluster::Cluster;
use super::mount::{Deaf, Mount};
use super::within;
use crate::error::Errno;
use crate::tree::SetAttrRequest;
use futures::future::{BoxFuture, join_all};
use std::sync::Arc;
use tests::Dice;
use tests::linear::models::{
    Attributes, AttributesOp, AttributesRet, Names, NamesOp, NamesRet, Register, RegisterOp, Stat,
};
use tests::linear::{Clock, History, Log, Model, Verdict, check, check_each};
use tokio::sync::Barrier;

const NODES: u16 = 3;
const FILES: u32 = 3;
const NAMES: u8 = 4;
/// Histories until a fault must have shown.
const HISTORIES_MAX: u64 = 60;

/// The process of a node.
struct Actor {
    mount: Mount,
    dice: Dice,
    /// Makes values that nobody else makes.
    values: u32,
}

impl Actor {
    fn value(&mut self) -> u32 {
        self.values += u32::from(NODES);
        self.values
    }
}

type Op<M> = <M as Model>::Op;
type Ret<M> = <M as Model>::Ret;

/// What a process does: rolls an operation, carries it out, and says what came of it.
struct Workload<M: Model> {
    set_up: fn(&Mount) -> BoxFuture<'_, ()>,
    roll: fn(&mut Actor) -> Op<M>,
    carry_out: fn(Mount, Op<M>) -> BoxFuture<'static, Ret<M>>,
}

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect(name))
}

fn seed() -> u64 {
    let time = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    number("SEED", u64::from(time.subsec_nanos()))
}

/// Lets the processes of all nodes work at the same time; `deaf` kernels do not hear a part of what they are told.
async fn history<M>(workload: Workload<M>, seed: u64, deaf: Option<Deaf>) -> History<M>
where
    M: Model + 'static,
    Op<M>: Copy + Send + 'static,
    Ret<M>: Send + 'static,
{
    let cluster = Cluster::start().await;
    let clock = Clock::default();
    let nodes = join_all((0..NODES).map(|node| cluster.node(node + 2))).await;
    (workload.set_up)(&nodes[0]).await;
    let steps = number("LINEAR_OPS", 300) / u64::from(NODES);
    let (roll, carry_out) = (workload.roll, workload.carry_out);
    let together = Arc::new(Barrier::new(nodes.len()));
    // The mounts live until all are done: a node that is gone has lost what it alone knew (S4).
    let actors = nodes.iter().zip(0_u32..).map(|(mount, number)| {
        let (mount, together) = (mount.clone(), Arc::clone(&together));
        mount.kernel.be_deaf(deaf);
        let mut log: Log<Op<M>, Ret<M>> = clock.log(format!("node{}", number + 2));
        let mut actor = Actor {
            mount,
            dice: Dice::new(seed ^ (u64::from(number) << 32)),
            values: number,
        };
        tokio::spawn(async move {
            together.wait().await;
            for _ in 0..steps {
                let op = roll(&mut actor);
                let done = carry_out(actor.mount.clone(), op);
                log.record(op, async { Some(done.await) }).await;
                tokio::task::yield_now().await;
            }
            log.into_operations()
        })
    });
    let all = join_all(actors.collect::<Vec<_>>());
    let done = within("all processes are done", all).await;
    done.into_iter()
        .flat_map(|log| log.expect("every operation succeeds"))
        .collect()
}

#[track_caller]
fn must_hold<M: Model>(seed: u64, verdict: Verdict<M>) {
    match verdict {
        Verdict::Linearizable => {}
        Verdict::Violation(why) => panic!("SEED={seed}: {why}"),
        Verdict::Undecided => panic!("SEED={seed}: too much at once to be decided"),
    }
}

/// A fault shows in some histories only: what many at the same time fight for is hardly cached.
async fn must_break<M>(
    workload: fn() -> Workload<M>,
    deaf: Deaf,
    judge: fn(History<M>) -> Verdict<M>,
) where
    M: Model + 'static,
    Op<M>: Copy + Send + 'static,
    Ret<M>: Send + 'static,
{
    for seed in 0..HISTORIES_MAX {
        let history = history(workload(), seed, Some(deaf)).await;
        if let Verdict::Violation(_) = judge(history) {
            return;
        }
    }
    panic!("nobody noticed in {HISTORIES_MAX} histories");
}

/// Files whose content is replaced as a whole.
fn registers() -> Workload<Register> {
    fn path(file: u32) -> String {
        format!("f{file}")
    }
    Workload {
        set_up: |mount| {
            Box::pin(async move {
                for file in 0..FILES {
                    mount.create(&path(file)).await.expect("created");
                    let zero = 0_u64.to_le_bytes();
                    mount.write(&path(file), 0, &zero).await.expect("written");
                }
            })
        },
        roll: |actor| {
            let file = actor.dice.below(FILES);
            match actor.dice.below(3) {
                0 => RegisterOp::Write(file, actor.value().into()),
                _ => RegisterOp::Read(file),
            }
        },
        carry_out: |mount, op| {
            Box::pin(async move {
                match op {
                    RegisterOp::Read(file) => {
                        let bytes = mount.read(&path(file)).await.expect("read");
                        u64::from_le_bytes(bytes[..].try_into().expect("8 bytes"))
                    }
                    RegisterOp::Write(file, value) => {
                        let (path, bytes) = (path(file), value.to_le_bytes());
                        let written = mount.write(&path, 0, &bytes).await;
                        written.expect("written");
                        value
                    }
                }
            })
        },
    }
}

/// Names that come, go and move.
fn names() -> Workload<Names> {
    Workload {
        set_up: |_| Box::pin(async {}),
        roll: |actor| {
            let name = actor.dice.below(NAMES);
            match actor.dice.below(7) {
                0 | 1 => NamesOp::Create(name),
                2 => NamesOp::Unlink(name),
                3 => NamesOp::Rename(name, (name + 1) % NAMES),
                _ => NamesOp::Lookup(name),
            }
        },
        carry_out: |mount, op| {
            Box::pin(async move {
                let path = |name: u8| format!("n{name}");
                let done = match op {
                    NamesOp::Create(name) => {
                        let made = mount.create(&path(name)).await;
                        made.map(|ino| NamesRet::Inode(ino.0))
                    }
                    NamesOp::Unlink(name) => {
                        let gone = mount.unlink(&path(name)).await;
                        gone.map(|()| NamesRet::Done)
                    }
                    NamesOp::Rename(from, to) => {
                        let moved = mount.rename(&path(from), &path(to)).await;
                        moved.map(|()| NamesRet::Done)
                    }
                    NamesOp::Lookup(name) | NamesOp::Listed(name) => {
                        let found = mount.walk(&path(name)).await;
                        found.map(|ino| NamesRet::Inode(ino.0))
                    }
                };
                match done {
                    Err(Errno::ENOENT) => NamesRet::NotFound,
                    Err(Errno(libc::EEXIST)) => NamesRet::Exists,
                    done => done.unwrap_or_else(|errno| panic!("{op:?}: {errno}")),
                }
            })
        },
    }
}

/// Attributes that are set one by one and seen together.
fn attributes() -> Workload<Attributes> {
    Workload {
        set_up: |mount| {
            Box::pin(async move {
                mount.create("f").await.expect("created");
                let set = SetAttrRequest {
                    mode: Some(0),
                    ..SetAttrRequest::default()
                };
                mount.setattr("f", set).await.expect("changed");
            })
        },
        roll: |actor| match actor.dice.below(6) {
            0 => AttributesOp::Mode(actor.dice.below(0o1000)),
            1 => AttributesOp::Owner(actor.value()),
            2 => AttributesOp::Size(actor.value().into()),
            _ => AttributesOp::Stat,
        },
        carry_out: |mount, op| {
            Box::pin(async move {
                let mut set = SetAttrRequest::default();
                match op {
                    AttributesOp::Mode(mode) => set.mode = Some(mode),
                    AttributesOp::Owner(uid) => set.uid = Some(uid),
                    AttributesOp::Size(size) => set.size = Some(size),
                    AttributesOp::Stat => {
                        let attr = mount.stat("f").await.expect("there");
                        let (mode, uid, size) = (attr.mode, attr.uid, attr.size);
                        return AttributesRet::Stat(Stat { mode, uid, size });
                    }
                }
                mount.setattr("f", set).await.expect("changed");
                AttributesRet::Done
            })
        },
    }
}

fn judge_registers(history: History<Register>) -> Verdict<Register> {
    check_each(&Register, history, RegisterOp::file)
}

fn judge_names(history: History<Names>) -> Verdict<Names> {
    check(&Names, &history)
}

fn judge_attributes(history: History<Attributes>) -> Verdict<Attributes> {
    check(&Attributes, &history)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_are_linearizable() {
    let seed = seed();
    must_hold(
        seed,
        judge_registers(history(registers(), seed, None).await),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_linearizable() {
    let seed = seed();
    must_hold(seed, judge_names(history(names(), seed, None).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_are_linearizable() {
    let seed = seed();
    must_hold(
        seed,
        judge_attributes(history(attributes(), seed, None).await),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_are_not_forgotten_are_caught() {
    must_break(registers, Deaf::Data, judge_registers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_not_forgotten_are_caught() {
    must_break(names, Deaf::Names, judge_names).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_that_are_not_forgotten_are_caught() {
    must_break(attributes, Deaf::Attributes, judge_attributes).await;
}

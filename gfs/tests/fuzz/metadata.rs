//! The metadata state machine.

use crate::dice::{Dice, cases};
use bytes::Bytes;
use consistency::wire::lease::Mode;
use consistency::wire::meta::{
    Extent, FileKind, FlushContent, FlushFile, Made, Name, NameChange, NewNode, Op, OpReply,
    QUOTA_BYTES, QUOTA_INODES, REPLICAS, Removed, RenameMode, SetAttr, SetTime, XattrMode,
    is_quota,
};
use consistency::wire::request::MetaRequest;
use consistency::wire::{decode, encode};
use consistency::{ChunkId, Epoch, InodeNo, NodeId, OpSeq, SessionId, Timestamp};
use gfs::server::machine::StateMachine;
use gfs::server::state::{Body, Command, MetaState, Reply, Step};

/// Requests to one state, so that it stays small and its check fast.
const REQUESTS_PER_STATE: u64 = 400;
const REQUESTS_PER_CHECK: u64 = 40;

/// A state, and what its clients have heard of it.
struct World {
    state: MetaState,
    inodes: Vec<InodeNo>,
    files: Vec<InodeNo>,
    chunks: Vec<ChunkId>,
    /// What files were given: other files may share it, if it is still there (M8).
    extents: Vec<Extent>,
    /// Extents taken that share a chunk.
    shared: u64,
    sessions: Vec<SessionId>,
    seq: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            state: MetaState::default(),
            inodes: vec![InodeNo::ROOT],
            files: Vec::new(),
            chunks: vec![ChunkId(0)],
            extents: Vec::new(),
            shared: 0,
            sessions: vec![SessionId(0)],
            seq: 0,
        };
        for node in 1..=2 {
            world.apply(Body::OpenSession {
                node: NodeId(node),
                attempt: 1,
            });
        }
        world
    }

    fn apply(&mut self, body: Body) {
        let now = Timestamp::from_nanos(1_000_000_000);
        let files = match &body {
            Body::Change {
                op: Op::Flush(files),
                ..
            } => files.clone(),
            _ => Vec::new(),
        };
        match self.state.apply(&Command { now, body }) {
            Reply::Session { session, .. } => self.sessions.push(session),
            Reply::Op {
                result: Ok(OpReply::Flushed(results)),
                again: false,
                ..
            } => {
                let taken = files
                    .iter()
                    .zip(results)
                    .filter(|(_, result)| result.is_ok());
                for (file, _) in taken {
                    self.flushed(&file.content);
                }
            }
            Reply::Op { result, .. } => match result {
                Ok(OpReply::Created { entry, .. }) => {
                    self.inodes.push(entry.attr.ino);
                    if entry.attr.kind == FileKind::File {
                        self.files.push(entry.attr.ino);
                    }
                }
                Ok(OpReply::ChunkIds(first)) => self.chunks.push(first),
                Ok(OpReply::Made { made, .. }) => {
                    let made = made.into_iter().flatten();
                    self.inodes.extend(made.map(|fact| fact.attr.ino));
                }
                Ok(_) | Err(_) => {}
            },
            Reply::Reign(_)
            | Reply::SessionEnded
            | Reply::Dead(_)
            | Reply::Repaired(_)
            | Reply::Done => {}
        }
    }

    fn flushed(&mut self, content: &FlushContent) {
        if let FlushContent::Extents { add, chunks, .. } = content {
            let brought = |extent: &&Extent| chunks.iter().any(|(id, _)| *id == extent.chunk);
            self.shared += add.iter().filter(|extent| !brought(extent)).count() as u64;
            self.extents.extend_from_slice(add);
        }
    }

    /// Does what a leader does with a request: reads or plans first, then applies.
    fn handle(&mut self, request: MetaRequest) {
        let MetaRequest::Op {
            session,
            seq,
            done_below,
            op,
        } = request
        else {
            return;
        };
        let planned = self.state.plan(&op).is_ok();
        let read = self.state.read(&op).is_ok();
        assert!(!(read && op.is_change()), "{op:?} was read");
        assert!(planned || op.is_change(), "{op:?} has a plan that fails");
        self.apply(Body::Change {
            session,
            seq,
            done_below,
            op,
        });
    }

    #[track_caller]
    fn check(&self) {
        assert_eq!(self.state.check(), Ok(()));
    }
}

fn inode(dice: &mut Dice, world: &World) -> InodeNo {
    if dice.one_in(10) {
        InodeNo(dice.u64())
    } else {
        dice.pick(&world.inodes)
    }
}

fn name(dice: &mut Dice) -> Name {
    let text = dice.pick(&["a", "b", "c", "d", "proc", "node1"]);
    if dice.one_in(20) {
        Name::new(vec![b'x'; 255]).expect("valid")
    } else {
        Name::new(text).expect("valid")
    }
}

fn xattr_name(dice: &mut Dice) -> Name {
    let names = [
        "user.a",
        "user.b",
        "trusted.t",
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
        QUOTA_BYTES,
        QUOTA_INODES,
        REPLICAS,
        "none",
    ];
    Name::new(dice.pick(&names)).expect("valid")
}

fn time(dice: &mut Dice) -> Timestamp {
    let secs = dice.pick(&[0, -1, 1, 2, 1_000_000_000, i64::MIN, i64::MAX - 1, i64::MAX]);
    let nanos = dice.pick(&[0, 1, 999_999_999, 1_000_000_000, u32::MAX]);
    let sound = dice.one_in(2);
    Timestamp {
        secs: if sound { 1 } else { secs },
        nanos: if sound { 5 } else { nanos },
    }
}

fn chunk(dice: &mut Dice, world: &World) -> ChunkId {
    match dice.below(10) {
        0 => ChunkId(dice.u64()),
        _ => ChunkId(dice.pick(&world.chunks).0.wrapping_add(dice.below(4))),
    }
}

fn extent(dice: &mut Dice, world: &World) -> Extent {
    let offset = if dice.one_in(4) {
        dice.u64()
    } else {
        dice.below(8) * 4096
    };
    if !world.extents.is_empty() && dice.one_in(3) {
        let known = &world.extents[dice.len(world.extents.len() as u64)];
        return Extent {
            offset,
            len: if dice.one_in(8) {
                dice.u32()
            } else {
                known.len
            },
            ..known.clone()
        };
    }
    let len = if dice.one_in(4) { dice.u32() } else { 4096 };
    Extent {
        offset,
        len,
        chunk: chunk(dice, world),
        chunk_offset: if dice.one_in(4) { dice.u32() } else { 0 },
        replicas: (0..dice.below(6))
            .map(|_| NodeId(dice.pick(&[0, 1, 2, 3, u16::MAX])))
            .collect(),
    }
}

fn flush(dice: &mut Dice, world: &World) -> FlushFile {
    let content = match dice.below(4) {
        0 => FlushContent::Same,
        1 => {
            let len = dice.pick(&[0, 1, 100, 16 << 10, (16 << 10) + 1]);
            FlushContent::Inline(vec![7; len].into())
        }
        _ => {
            let chunks: Vec<_> = (0..dice.below(4))
                .map(|_| {
                    let len = if dice.one_in(4) { dice.u32() } else { 4 << 20 };
                    (chunk(dice, world), len)
                })
                .collect();
            let mut add: Vec<_> = (0..dice.below(4)).map(|_| extent(dice, world)).collect();
            for extent in &mut add {
                // Mostly of the chunks that came with it.
                if let Some(at) = (!chunks.is_empty()).then(|| dice.len(chunks.len() as u64))
                    && !dice.one_in(6)
                {
                    extent.chunk = chunks[at].0;
                }
            }
            if dice.one_in(2) {
                add.sort_by_key(|extent| extent.offset);
            }
            FlushContent::Extents {
                cut: dice.one_in(2).then(|| dice.u64()),
                add,
                chunks,
            }
        }
    };
    FlushFile {
        ino: inode(dice, world),
        mode: if dice.one_in(8) { dice.u32() } else { 0o644 },
        uid: if dice.one_in(8) { dice.u32() } else { 1 },
        gid: if dice.one_in(8) { dice.u32() } else { 1 },
        size: if dice.one_in(2) { dice.u64() } else { 1 << 20 },
        atime: time(dice),
        mtime: time(dice),
        ctime: time(dice),
        content,
        written: dice.one_in(2),
    }
}

/// What a client would send: new bytes in chunks of its own, and what it shares with other files (M8).
fn sound_flush(dice: &mut Dice, world: &World) -> FlushFile {
    let (mut add, mut chunks) = (Vec::new(), Vec::new());
    for _ in 0..1 + dice.below(3) {
        let offset = dice.below(8) * 4096;
        let known = (!world.extents.is_empty()).then(|| dice.len(world.extents.len() as u64));
        let known = known.map(|at| &world.extents[at]);
        let extent = match known.filter(|_| !dice.one_in(3)) {
            Some(known) => Extent {
                offset,
                ..known.clone()
            },
            None => {
                let chunk = chunk(dice, world);
                chunks.push((chunk, 4 << 20));
                Extent {
                    offset,
                    len: dice.pick(&[1, 512, 4096, 20_000]),
                    chunk,
                    chunk_offset: dice.pick(&[0, 4096]),
                    replicas: vec![NodeId(1), NodeId(2)],
                }
            }
        };
        add.push(extent);
    }
    chunks.sort_unstable();
    chunks.dedup();
    let stamp = Timestamp { secs: 1, nanos: 5 };
    let ino = if world.files.is_empty() || dice.one_in(8) {
        inode(dice, world)
    } else {
        dice.pick(&world.files)
    };
    FlushFile {
        ino,
        mode: 0o644,
        uid: 1,
        gid: 1,
        size: 1 << 20,
        atime: stamp,
        mtime: stamp,
        ctime: stamp,
        content: FlushContent::Extents {
            cut: dice.one_in(4).then(|| dice.below(8) * 4096),
            add,
            chunks,
        },
        written: dice.one_in(2),
    }
}

fn node(dice: &mut Dice) -> NewNode {
    let kinds = [
        FileKind::File,
        FileKind::Dir,
        FileKind::Symlink,
        FileKind::Fifo,
        FileKind::Char,
    ];
    match dice.below(6) {
        0 => NewNode::Symlink(vec![b't'; dice.pick(&[0, 1, 4095, 4096])].into()),
        1 => NewNode::Special {
            kind: dice.pick(&kinds),
            rdev: dice.u32(),
        },
        2 | 3 => NewNode::Dir,
        _ => NewNode::File,
    }
}

fn op(dice: &mut Dice, world: &World) -> Op {
    let (ino, parent) = (inode(dice, world), inode(dice, world));
    match dice.below(22) {
        0 => Op::Lookup {
            parent,
            name: name(dice),
        },
        1 => Op::ReadDir {
            ino,
            after: dice.u64(),
            limit: dice.u32(),
        },
        2 => Op::GetXattrs { ino },
        3 => Op::Load {
            ino,
            mode: dice.pick(&[Mode::Known, Mode::Shared, Mode::Exclusive]),
        },
        4..=7 => Op::Create {
            parent,
            name: (!dice.one_in(8)).then(|| name(dice)),
            node: node(dice),
            mode: if dice.one_in(8) { dice.u32() } else { 0o755 },
            umask: if dice.one_in(8) { dice.u32() } else { 0o022 },
            uid: if dice.one_in(8) { dice.u32() } else { 1 },
            gid: if dice.one_in(8) { dice.u32() } else { 1 },
            exclusive: dice.one_in(2),
        },
        8 => Op::Link {
            ino,
            parent,
            name: name(dice),
        },
        9 | 10 => Op::Unlink {
            parent,
            name: name(dice),
            dir: dice.one_in(2),
        },
        11..=13 => Op::Rename {
            parent,
            name: name(dice),
            new_parent: ino,
            new_name: name(dice),
            mode: dice.pick(&[
                RenameMode::Replace,
                RenameMode::NoReplace,
                RenameMode::Exchange,
            ]),
        },
        14 => {
            let set_time = |dice: &mut Dice| match dice.below(3) {
                0 => None,
                1 => Some(SetTime::Now),
                _ => Some(SetTime::At(time(dice))),
            };
            let set = SetAttr {
                mode: dice.one_in(2).then(|| dice.u32()),
                uid: dice.one_in(2).then(|| dice.u32()),
                gid: dice.one_in(2).then(|| dice.u32()),
                atime: set_time(dice),
                mtime: set_time(dice),
            };
            Op::SetAttr { ino, set }
        }
        15 => {
            let name = xattr_name(dice);
            let value = match dice.below(4) {
                // A limit around what there is.
                1.. if is_quota(&name) => dice
                    .pick(&[0, 3, 10, 20_000, 60_000, 1 << 20, u64::MAX])
                    .to_string()
                    .into(),
                1.. if name.as_bytes() == REPLICAS.as_bytes() => {
                    dice.pick(&["0", "1", "3", "4", "5"]).into()
                }
                0 => vec![0; dice.pick(&[0, 1, 64 << 10, (64 << 10) + 1])],
                // An ACL, perhaps.
                1 => [&2_u32.to_le_bytes()[..], &dice.bytes(60)].concat(),
                _ => dice.bytes(60),
            };
            Op::SetXattr {
                ino,
                name,
                value: value.into(),
                mode: dice.pick(&[XattrMode::Any, XattrMode::Create, XattrMode::Replace]),
                kill_sgid: dice.one_in(2),
            }
        }
        16 => Op::RemoveXattr {
            ino,
            name: xattr_name(dice),
        },
        17 => Op::Accessed({
            let times = (0..dice.below(5)).map(|_| (inode(dice, world), time(dice)));
            times.collect()
        }),
        18 => {
            let sound = dice.one_in(2);
            let one = if sound { sound_flush } else { flush };
            Op::Flush((0..dice.below(4)).map(|_| one(dice, world)).collect())
        }
        19 => Op::Make((0..dice.below(5)).map(|_| made(dice, world)).collect()),
        20 => Op::Names((0..dice.below(5)).map(|_| changed(dice, world)).collect()),
        _ => Op::AllocateChunks {
            count: if dice.one_in(3) { dice.u32() } else { 3 },
        },
    }
}

/// Something that a session says to have made by itself, under a number of its own, perhaps.
fn made(dice: &mut Dice, world: &World) -> Made {
    let number = match world.chunks.len() {
        0 => ChunkId(dice.u64()),
        _ => ChunkId(dice.pick(&world.chunks).0 + dice.below(4)),
    };
    let own = InodeNo::by_session(number);
    Made {
        parent: inode(dice, world),
        name: name(dice),
        ino: own
            .filter(|_| !dice.one_in(8))
            .unwrap_or_else(|| inode(dice, world)),
        node: node(dice),
        mode: if dice.one_in(8) { dice.u32() } else { 0o755 },
        umask: if dice.one_in(8) { dice.u32() } else { 0o022 },
        uid: if dice.one_in(8) { dice.u32() } else { 1 },
        gid: if dice.one_in(8) { dice.u32() } else { 1 },
        time: time(dice),
    }
}

/// The same, or something that it says to have removed.
fn changed(dice: &mut Dice, world: &World) -> NameChange {
    if dice.one_in(2) {
        return NameChange::Made(made(dice, world));
    }
    let (parent, name) = (inode(dice, world), name(dice));
    let there = world.state.lookup(parent, &name).ok().flatten();
    let there = there.filter(|_| !dice.one_in(8));
    NameChange::Removed(Removed {
        parent,
        name,
        ino: there
            .as_ref()
            .map_or_else(|| inode(dice, world), |attr| attr.ino),
        kind: there.map_or(FileKind::Dir, |attr| attr.kind),
        time: time(dice),
    })
}

fn request(dice: &mut Dice, world: &mut World) -> MetaRequest {
    world.seq += 1;
    let old = dice.one_in(10);
    let seq = OpSeq(if old { dice.u64() } else { world.seq });
    let session = if dice.one_in(10) {
        SessionId(dice.u64())
    } else {
        dice.pick(&world.sessions)
    };
    MetaRequest::Op {
        session,
        seq,
        // Far ahead would make all that follows a late copy.
        done_below: OpSeq(dice.below(world.seq)),
        op: op(dice, world),
    }
}

/// Steps that mostly fit.
fn repair(dice: &mut Dice, world: &World) -> Body {
    let mut node = || NodeId(dice.pick(&[0, 1, 2, 3, 4, 5]));
    let nodes = [node(), node(), node()];
    let steps = world.chunks.iter().map(|&chunk| {
        if dice.one_in(2) {
            let node = nodes[0];
            return Step::Drop { chunk, node };
        }
        Step::Copied {
            chunk,
            source: nodes[0],
            to: nodes[1],
            instead: dice.one_in(2).then_some(nodes[2]),
        }
    });
    Body::Repair {
        steps: steps.collect(),
        reign: Epoch(dice.below(2)),
    }
}

/// Returns how many extents were taken that share a chunk.
fn run(test: &str, cases: u64, mut case: impl FnMut(&mut Dice, &mut World)) -> u64 {
    let mut dice = Dice::new(test);
    let (mut left, mut shared) = (cases, 0);
    while left > 0 {
        let mut world = World::new();
        for number in 0..REQUESTS_PER_STATE.min(left) {
            match dice.below(200) {
                0 => world.apply(Body::EndSession(dice.pick(&world.sessions.clone()))),
                1 => world.apply(Body::OpenSession {
                    node: NodeId(dice.pick(&[1, 2])),
                    attempt: dice.below(5),
                }),
                2 => world.apply(Body::Reap(world.inodes.clone())),
                3 => world.apply(Body::ForgetDead(world.chunks.clone())),
                4 => world.apply(repair(&mut dice, &world)),
                5 => world.apply(Body::ForgetDeadOn(NodeId(dice.pick(&[1, 2])))),
                6 => world.apply(Body::Drain {
                    node: NodeId(dice.pick(&[1, 2])),
                    drain: dice.one_in(2),
                }),
                _ => case(&mut dice, &mut world),
            }
            if number % REQUESTS_PER_CHECK == 0 {
                world.check();
            }
        }
        world.check();
        let restored = MetaState::restore(&world.state.snapshot());
        assert_eq!(restored.as_ref(), Ok(&world.state), "after a snapshot");
        left = left.saturating_sub(REQUESTS_PER_STATE);
        shared += world.shared;
    }
    shared
}

#[test]
fn hostile_values() {
    let cases = cases(60_000);
    let shared = run("hostile_values", cases, |dice, world| {
        let request = request(dice, world);
        world.handle(request);
    });
    println!("{shared} extents share a chunk");
    assert!(
        shared >= cases / 1_000,
        "{shared} of {cases} requests share a chunk: too few to show anything"
    );
}

/// Messages that were changed on their way, or by who sent them.
#[test]
fn spoilt_messages() {
    run("spoilt_messages", cases(60_000), |dice, world| {
        let mut bytes = encode(&request(dice, world));
        dice.spoil(&mut bytes);
        if let Ok(request) = decode::<MetaRequest>(&bytes) {
            world.handle(request);
        }
    });
}

#[test]
fn random_messages() {
    let mut dice = Dice::new("random_messages");
    for _ in 0..cases(100_000) {
        let bytes = Bytes::from(dice.bytes(80));
        if let Ok(request) = decode::<MetaRequest>(&bytes) {
            assert!(
                decode::<MetaRequest>(&encode(&request)).is_ok(),
                "{request:?}"
            );
        }
    }
}

/// What claims to be longer than it is costs no memory.
#[test]
fn lengths_are_bounded() {
    for long in [u64::MAX, 1 << 40, 1 << 32] {
        // Op::Flush with so many files.
        let mut bytes = vec![4, 1, 1, 1, 14, 253];
        bytes.extend_from_slice(&long.to_le_bytes());
        assert!(decode::<MetaRequest>(&bytes).is_err(), "{long} files");
    }
}

//! Every kind of damage that the checker is there for, done by hand.

use super::*;
use crate::server::machine::StateMachine;
use crate::server::ops::testing::World;
use crate::server::state::{Body, Extents, Limits, Piece, RefChange, Replicas, Step};
use consistency::wire::meta::{Name, Op};
use consistency::{NodeId, OpSeq, SessionId};

const CHUNK: ChunkId = ChunkId(1);

/// A tree with something of everything; `d/h` has a chunk.
fn world() -> World {
    let mut world = World::new(
        "mkdir d; mkdir d/e; touch d/f; ln d/f d/g; symlink x l; touch o; rm o; tmpfile t; touch d/h",
    );
    world.run(&Op::AllocateChunks { count: 7 }).expect("given");
    world.give_chunk("d/h", CHUNK, &[NodeId(1), NodeId(2)]);
    world
}

#[track_caller]
fn check(rule: &str, expected: &str, damage: impl FnOnce(&mut World)) {
    let mut world = world();
    assert_eq!(world.state.faults(), []);
    damage(&mut world);
    // Also as it comes back from a disk, where the checksum was made of the damage.
    let restored = MetaState::restore(&world.state.snapshot()).expect("it can be read");
    for state in [restored, world.state] {
        let faults = state.faults();
        let named = |fault: &Fault| fault.rule == rule && fault.what.contains(expected);
        assert!(faults.iter().any(named), "{rule} {expected}: {faults:?}");
        let first = state.check().expect_err("the damage is not seen");
        assert_eq!(first, faults[0].to_string());
    }
}

fn inode<'a>(world: &'a mut World, path: &str) -> &'a mut Inode {
    let ino = world.ino(path);
    world.state.inode_mut(ino)
}

fn name(name: &'static str) -> Name {
    Name::new(name).expect("valid")
}

#[test]
fn t1_inodes() {
    check("T1", "is no Symlink", |w| inode(w, "l").attr.size = 9);
    check("T1", "is no Fifo", |w| {
        inode(w, "d/f").attr.kind = FileKind::Fifo;
    });
    check("T1", "does not fit", |w| inode(w, "d/f").attr.blocks = 9);
    check("T1", "does not fit", |w| inode(w, "d/h").attr.size = 599);
    check("T1", "has the number 99", |w| {
        inode(w, "d/f").attr.ino = InodeNo(99);
    });
    check("T1", "has the number", |w| w.state.next_ino = InodeNo(2));
    check("T1", "has 2 copies, not Some(3)", |w| {
        w.setup("chattr user.glu.replicas=3 d");
        inode(w, "d").copies = 2;
    });
    check("T1", "bytes are inline", |w| {
        let many = INLINE_BYTES_MAX + 1;
        let file = inode(w, "d/f");
        file.payload = Payload::File(FileContent::Inline(vec![1; many].into()));
    });
    check("T1", "overlaps or is empty", |w| {
        let piece = |offset| Piece {
            offset,
            len: 0,
            chunk_offset: 0,
            chunk: CHUNK,
        };
        let mut extents = Extents::default();
        extents.insert(piece(u64::MAX), &mut RefChange::default());
        inode(w, "d/f").payload = Payload::File(FileContent::Extents(extents));
    });
}

#[test]
fn s6_clock() {
    check("S6", "after", |w| {
        inode(w, "d/f").attr.ctime.secs = 1 << 40;
    });
}

#[test]
fn t2_names() {
    check("T2", "stands for", |w| {
        inode(w, "l").attr.kind = FileKind::File;
    });
    check("T2", "stands for None", |w| {
        let d = w.ino("d");
        w.state
            .dir_mut(d)
            .set(&name("f"), InodeNo(99), FileKind::File);
    });
    check("T2", "as its parent", |w| {
        let e = w.ino("d/e");
        w.state.dir_mut(e).parent = InodeNo::ROOT;
    });
    check("T2", "impossible cookie", |w| {
        let d = w.ino("d");
        w.state.dir_mut(d).forget_cookies();
    });
}

#[test]
fn t3_links() {
    check("T3", "counts 3 links of 2", |w| {
        inode(w, "d/f").attr.nlink = 3;
    });
    check("T3", "counts 2 links of 3", |w| {
        inode(w, "d").attr.nlink = 2;
    });
    check("T3", "counts 2 links of 1", |w| {
        let d = w.ino("d");
        w.state.dir_mut(d).remove(&name("f"));
    });
    check("T3", "wrongly (no) orphan", |w| w.state.orphans.clear());
    check("T3", "orphan 99 does not exist", |w| {
        w.state.orphans.insert(InodeNo(99));
    });
    check("T3", "counts as never named", |w| {
        let f = w.ino("d/f");
        w.state.unnamed.insert(f);
    });
}

#[test]
fn t4_one_tree() {
    check("T4", "is not reached from the root", |w| {
        // A cycle beside the tree: d is in e, e is in d.
        let (d, e) = (w.ino("d"), w.ino("d/e"));
        w.state.dir_mut(InodeNo::ROOT).remove(&name("d"));
        w.state.inode_mut(InodeNo::ROOT).attr.nlink -= 1;
        w.state.dir_mut(e).set(&name("d"), d, FileKind::Dir);
        w.state.dir_mut(d).parent = e;
        w.state.inode_mut(e).attr.nlink += 1;
    });
    check("T4", "no root", |w| {
        w.state.inodes.remove(&InodeNo::ROOT);
    });
    // A cycle in the tree is come out of; what leads back is no parent's name.
    check("T2", "as its parent", |w| {
        let (d, e) = (w.ino("d"), w.ino("d/e"));
        w.state.dir_mut(e).set(&name("d"), d, FileKind::Dir);
    });
}

#[test]
fn m8_chunks() {
    check("M8", "refers to chunk 9, which is not live", |w| {
        let mut extents = Extents::default();
        let piece = Piece {
            offset: 0,
            len: 512,
            chunk_offset: 0,
            chunk: ChunkId(9),
        };
        extents.insert(piece, &mut RefChange::default());
        inode(w, "d/f").payload = Payload::File(FileContent::Extents(extents));
    });
    check("M8", "counts 0 references of 0", |w| {
        let (id, _) = w.state.chunks.allocate(1);
        let replicas = Replicas::new(&[NodeId(1)]).expect("valid");
        w.state.chunks.enter(id, 5, 0, replicas);
    });
    check("M8", "counts 1 references of 0", |w| {
        inode(w, "d/h").payload = Payload::File(FileContent::default());
    });
    check("M8", "of 600 bytes is used up to 700", |w| {
        let Payload::File(FileContent::Extents(extents)) = &mut inode(w, "d/h").payload else {
            unreachable!("it has a chunk");
        };
        let piece = Piece {
            offset: 0,
            len: 600,
            chunk_offset: 100,
            chunk: CHUNK,
        };
        extents.insert(piece, &mut RefChange::default());
    });
    check("M8", "is live and dead", |w| {
        w.state.chunks.kill_twice(CHUNK);
    });
    check("M8", "was never given out", |w| {
        w.state.chunks.set_next(CHUNK);
    });
    check("M8", "owns odd chunks", |w| {
        let session = w.session;
        let record = w.state.sessions.record_mut(session).expect("it lives");
        record.own(ChunkId(5), ChunkId(99));
    });
}

#[test]
fn d2_copies() {
    check("D2", "has no list of copies", |w| {
        w.state.chunks.lose_copies(CHUNK);
    });
    check("D2", "nodes hold", |w| {
        let step = Step::Drop {
            chunk: CHUNK,
            node: NodeId(2),
        };
        assert!(w.state.chunks.step_uncounted(step));
    });
}

#[test]
fn q_quotas() {
    let limited = |w: &mut World| {
        w.setup("chattr user.glu.quota.bytes=99999 d");
        w.ino("d")
    };
    check("Q1", "quotas count", |w| {
        let d = limited(w);
        w.state.quotas.resize(d, 0, 1);
    });
    check("Q1", "is gone and counts for quota", |w| {
        let d = limited(w);
        w.state.quotas.enter(d, InodeNo(99), 0);
    });
    check("Q3", "has a quota that is not", |w| {
        let d = limited(w);
        w.state.set_limits(d, Limits::default(), None);
    });
    check("Q2", "leads from a quota to another", |w| {
        let d = limited(w);
        let o = w.ino("o");
        w.state.quotas.enter(d, o, 0);
        w.state
            .dir_mut(InodeNo::ROOT)
            .set(&name("f"), o, FileKind::File);
    });
    check("Q2", "does not count for its own quota", |w| {
        let d = limited(w);
        w.state.quotas.leave(d, 8);
    });
}

#[test]
fn m4_m5_sessions() {
    check("M4", "keeps result 1, which was received", |w| {
        let session = w.session;
        let record = w.state.sessions.record_mut(session).expect("it lives");
        record.forget_below(OpSeq(9));
        let result = Ok(consistency::wire::meta::OpReply::Changed(Vec::new()));
        record.keep(OpSeq(1), w.state.now, result);
    });
    check("M5", "is beyond the next number", |w| {
        w.state.sessions.set_next(SessionId(1));
    });
    check("M5", "is not the only one of node 1", |w| {
        w.apply(Body::OpenSession {
            node: NodeId(2),
            attempt: 1,
        });
        w.state.sessions.take_for(NodeId(1));
    });
}

#[test]
fn what_is_wrong_everywhere_is_told_a_thousand_times() {
    let state = MetaState {
        orphans: (2..9_999).map(InodeNo).collect(),
        ..MetaState::default()
    };
    assert_eq!(state.faults().len(), FAULTS_MAX);
}

//! Random histories, snapshots, sessions.

use super::*;
use crate::server::ops::testing::{World, check_against_plan};
use consistency::wire::meta::{
    Extent, FlushContent, FlushFile, Name, NewNode, Op, RenameMode, SetAttr, XattrMode,
};

/// A small random number generator (splitmix64), so that a seed replays on every machine.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Returns a number from 0 to `end - 1`.
    pub(crate) const fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = usize::try_from(self.below(from.len() as u64)).expect("an index");
        &from[at]
    }
}

/// Makes up commands from what is in the state, so that most of them can succeed.
struct Author {
    dice: Dice,
    session: SessionId,
    seq: u64,
    /// Numbers that no flush has used yet.
    chunks: Vec<ChunkId>,
}

impl Author {
    fn body(&mut self, state: &MetaState) -> Body {
        match self.dice.below(200) {
            0 => Body::OpenSession {
                node: NodeId(2),
                attempt: self.dice.below(1_000),
            },
            1 => Body::EndSession(SessionId(self.dice.below(9))),
            2..12 => Body::Reap(state.orphans().take(3).collect()),
            12..15 => Body::ForgetDead(state.dead_chunks().map(|(id, _)| id).take(5).collect()),
            _ => {
                self.seq += 1;
                Body::Change {
                    session: self.session,
                    seq: OpSeq(self.seq),
                    done_below: OpSeq(self.seq.saturating_sub(5)),
                    op: self.op(state),
                }
            }
        }
    }

    fn op(&mut self, state: &MetaState) -> Op {
        let ino = self.inode(state);
        let ((parent, name), (new_parent, new_name)) = (self.place(state), self.place(state));
        // Fewer births than deaths keep the tree small.
        match self.dice.below(20) {
            0 => Op::Create {
                parent,
                name: None,
                node: NewNode::File,
                mode: 0o600,
                umask: 0,
                uid: 1,
                gid: 1,
                exclusive: true,
            },
            1..5 => Op::Create {
                parent,
                name: Some(name),
                node: self
                    .dice
                    .pick(&[
                        NewNode::File,
                        NewNode::File,
                        NewNode::Dir,
                        NewNode::Symlink("x".into()),
                    ])
                    .clone(),
                mode: *self.dice.pick(&[0o644, 0o2755]),
                umask: 0o002,
                uid: 1,
                gid: 1,
                exclusive: self.dice.below(2) == 0,
            },
            5 => Op::Link { ino, parent, name },
            6..9 => Op::Unlink {
                parent,
                name,
                dir: self.dice.below(2) == 0,
            },
            9..12 => Op::Rename {
                parent,
                name,
                new_parent,
                new_name,
                mode: *self.dice.pick(&[
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                ]),
            },
            12 => Op::SetAttr {
                ino,
                set: SetAttr {
                    mode: Some(0o700),
                    ..SetAttr::default()
                },
            },
            13 => Op::SetXattr {
                ino,
                name: Name::new("user.x").expect("valid"),
                value: "value".into(),
                mode: *self
                    .dice
                    .pick(&[XattrMode::Any, XattrMode::Create, XattrMode::Replace]),
                kill_sgid: false,
            },
            14 => Op::RemoveXattr {
                ino,
                name: Name::new("user.x").expect("valid"),
            },
            15 => Op::AllocateChunks { count: 7 },
            _ => Op::Flush(
                (0..1 + self.dice.below(3))
                    .map(|_| self.flush(state))
                    .collect(),
            ),
        }
    }

    fn flush(&mut self, state: &MetaState) -> FlushFile {
        let ino = self.inode(state);
        let size = self.dice.below(50_000);
        let content = match self.dice.below(4) {
            0 => FlushContent::Same,
            1 => FlushContent::Inline(vec![1; self.dice.below(20_000) as usize].into()),
            _ => {
                let chunk = self.chunks.pop().unwrap_or(ChunkId(1));
                let mut extent = || {
                    let len = 1 + self.dice.below(5_000) as u32;
                    Extent {
                        offset: self.dice.below(size + 1),
                        len,
                        chunk,
                        chunk_offset: self.dice.below(2_000) as u32,
                        replicas: vec![NodeId(1)],
                    }
                };
                let add: Vec<Extent> = (0..3).map(|_| extent()).collect();
                FlushContent::Extents {
                    cut: (self.dice.below(3) == 0).then(|| self.dice.below(50_000)),
                    add: add
                        .into_iter()
                        .filter(|e| e.offset + u64::from(e.len) <= size)
                        .collect(),
                    chunks: vec![(chunk, 7_000)],
                }
            }
        };
        FlushFile {
            ino,
            mode: 0o644,
            uid: 1,
            gid: 1,
            size,
            atime: state.now,
            mtime: state.now,
            ctime: state
                .now
                .plus(consistency::Duration(self.dice.below(2_000_000))),
            content,
            written: false,
        }
    }

    fn inode(&mut self, state: &MetaState) -> InodeNo {
        let all: Vec<InodeNo> = state.inodes.keys().copied().collect();
        match self.dice.below(50) {
            0 => InodeNo(1_000_000),
            _ => *self.dice.pick(&all),
        }
    }

    fn place(&mut self, state: &MetaState) -> (InodeNo, Name) {
        let dirs = state
            .inodes
            .iter()
            .filter(|(_, inode)| inode.dir().is_some());
        let dirs: Vec<InodeNo> = dirs.map(|(ino, _)| *ino).collect();
        let dir = match self.dice.below(20) {
            0 => self.inode(state),
            _ => *self.dice.pick(&dirs),
        };
        let name = *self.dice.pick(&["a", "b", "c", "d", "proc"]);
        (dir, Name::new(name).expect("valid"))
    }
}

/// Runs a random history on two instances; the second one gets the commands through the codec, every command
/// now and then twice, and is itself read back from a snapshot on the way.
fn history(seed: u64, steps: u64) -> MetaState {
    let (mut state, mut other) = (MetaState::default(), MetaState::default());
    let mut author = Author {
        dice: Dice::new(seed),
        session: SessionId(0),
        seq: 0,
        chunks: Vec::new(),
    };
    let mut done = 0;
    for step in 0..steps {
        let body = match step {
            0 => Body::OpenSession {
                node: NodeId(1),
                attempt: 0,
            },
            _ => author.body(&state),
        };
        let now = Timestamp::from_nanos((1_000_000 + step).cast_signed() * 1_000);
        let command = Command { now, body };
        let before = state.clone();
        let reply = state.apply(&command);
        match (&reply, &command.body) {
            (
                Reply::Session { session, .. },
                Body::OpenSession {
                    node: NodeId(1), ..
                },
            ) => {
                author.session = *session;
            }
            (Reply::SessionEnded, _) => {
                let open = Command {
                    now,
                    body: Body::OpenSession {
                        node: NodeId(1),
                        attempt: step,
                    },
                };
                let Reply::Session { session, .. } = state.apply(&open) else {
                    panic!("no session");
                };
                assert_eq!(other.apply(&command), Reply::SessionEnded);
                other.apply(&open);
                (author.session, author.seq) = (session, 0);
                author.chunks.clear();
                continue;
            }
            (Reply::Op { result, .. }, Body::Change { op, .. }) => {
                if let Ok(OpReply::ChunkIds(first)) = result {
                    author.chunks.extend((first.0..first.0 + 7).map(ChunkId));
                }
                done += u64::from(result.is_ok());
                check_against_plan(op, &before.plan(op), &before, &state, result);
            }
            _ => {}
        }
        if let Err(why) = state.check() {
            panic!("SEED={seed} cargo test -p gfs history: step {step}: {command:?}: {why}");
        }
        let bytes = consistency::wire::encode(&command);
        let command: Command = consistency::wire::decode(&bytes).expect("decodes");
        assert_eq!(other.apply(&command), reply, "SEED={seed}, step {step}");
        if step % 1_000 == 0 {
            other = MetaState::restore(&other.snapshot()).expect("restores");
            assert_eq!(other, state, "SEED={seed}, step {step}");
        }
    }
    assert_eq!(other.snapshot(), state.snapshot(), "SEED={seed}");
    assert!(
        done > steps / 4,
        "only {done} of {steps} commands succeeded"
    );
    state
}

#[test]
fn history_keeps_the_invariants_and_replays() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("a number"));
    history(seed, 20_000);
}

mod sessions {
    use super::*;

    fn change(session: SessionId, seq: u64, done_below: u64, name: &'static str) -> Body {
        Body::Change {
            session,
            seq: OpSeq(seq),
            done_below: OpSeq(done_below),
            op: Op::Create {
                parent: InodeNo::ROOT,
                name: Some(Name::new(name).expect("valid")),
                node: NewNode::File,
                mode: 0,
                umask: 0,
                uid: 0,
                gid: 0,
                exclusive: true,
            },
        }
    }

    /// Opens a session beside that of the world's own shell.
    fn open(world: &mut World, node: u16) -> SessionId {
        // Each call is an attempt of its own.
        let attempt = world.state.sessions.next_number();
        match world.apply(Body::OpenSession {
            node: NodeId(node),
            attempt,
        }) {
            Reply::Session { session, .. } => session,
            other => panic!("no session but {other:?}"),
        }
    }

    fn is_ok(reply: &Reply) -> bool {
        matches!(reply, Reply::Op { result: Ok(_), .. })
    }

    #[test]
    fn a_late_copy_of_an_attempt_ends_no_session() {
        let mut state = MetaState::default();
        let mut open = |attempt| {
            let body = Body::OpenSession {
                node: NodeId(7),
                attempt,
            };
            state.apply(&Command {
                now: Timestamp::default(),
                body,
            })
        };
        let session = |id, new| Reply::Session {
            session: SessionId(id),
            new,
        };
        assert_eq!(open(4), session(1, true));
        assert_eq!(
            open(4),
            session(1, false),
            "a repeated attempt gets its session"
        );
        assert_eq!(open(5), session(2, true));
        assert_eq!(open(4), Reply::SessionEnded, "a late one changes nothing");
        assert_eq!(open(5), session(2, false));
    }

    /// Returns the reply to a change when it is asked for again.
    fn again(mut reply: Reply) -> Reply {
        let Reply::Op { again, .. } = &mut reply else {
            panic!("{reply:?} answers no change");
        };
        assert!(!std::mem::replace(again, true));
        reply
    }

    #[test]
    fn a_repeated_change_happens_once() {
        let mut world = World::new("");
        let s = open(&mut world, 2);
        let first = world.apply(change(s, 1, 1, "f"));
        assert!(is_ok(&first));
        let inodes = world.state.inodes.clone();
        let record = again(first);
        assert_eq!(world.apply(change(s, 1, 1, "f")), record);
        assert_eq!(world.state.recorded(s, OpSeq(1)), Some(record));
        assert_eq!(world.state.recorded(s, OpSeq(2)), None);
        assert_eq!(world.state.inodes, inodes);
        // A failure is remembered as well: it stays one, though the name is free by then.
        let failed = world.apply(change(s, 2, 1, "f"));
        assert!(!is_ok(&failed));
        world.setup("rm f");
        assert_eq!(world.apply(change(s, 2, 1, "f")), again(failed));
        // Out of order is fine.
        assert!(is_ok(&world.apply(change(s, 9, 1, "g"))));
        assert!(is_ok(&world.apply(change(s, 8, 1, "h"))));
    }

    #[test]
    fn received_results_are_dropped_but_never_run_again() {
        let mut world = World::new("");
        let s = open(&mut world, 2);
        assert!(is_ok(&world.apply(change(s, 1, 1, "f"))));
        assert!(is_ok(&world.apply(change(s, 2, 2, "g"))));
        world.setup("rm f");
        assert!(!is_ok(&world.apply(change(s, 1, 1, "f"))));
        assert_eq!(world.tree(), "g !1");
    }

    #[test]
    fn a_new_session_ends_the_old_one() {
        let mut world = World::new("");
        let old = world.session;
        let (other_node, new) = (open(&mut world, 2), open(&mut world, 1));
        assert_eq!(world.apply(change(old, 1, 1, "f")), Reply::SessionEnded);
        assert!(is_ok(&world.apply(change(new, 1, 1, "f"))));
        assert!(is_ok(&world.apply(change(other_node, 1, 1, "g"))));
        let sessions: Vec<_> = world.state.sessions().collect();
        assert_eq!(sessions, [(other_node, NodeId(2)), (new, NodeId(1))]);
        assert_eq!(world.apply(Body::EndSession(new)), Reply::Done);
        assert_eq!(world.apply(Body::EndSession(new)), Reply::Done);
        assert_eq!(world.apply(change(new, 2, 1, "h")), Reply::SessionEnded);
    }

    #[test]
    fn results_have_a_limit() {
        let mut state = MetaState::default();
        let now = Timestamp::default();
        let body = Body::OpenSession {
            node: NodeId(1),
            attempt: 1,
        };
        let Reply::Session { session: s, .. } = state.apply(&Command { now, body }) else {
            panic!("no session");
        };
        // The same failure over and over, none of them ever received.
        let mut send = |seq, done_below| {
            let body = Body::Change {
                session: s,
                seq: OpSeq(seq),
                done_below: OpSeq(done_below),
                op: Op::AllocateChunks { count: 0 },
            };
            match state.apply(&Command { now, body }) {
                Reply::Op {
                    result: Err(error), ..
                } => error,
                other => panic!("{other:?}"),
            }
        };
        for seq in 1..=RESULTS_MAX as u64 {
            assert_eq!(send(seq, 1), FsError::Invalid);
        }
        assert_eq!(send(1 << 20, 1), FsError::Busy);
        assert_eq!(send(1, 1), FsError::Invalid);
        assert_eq!(send(1 << 20, 2), FsError::Invalid);
    }

    #[test]
    fn reads_do_not_belong_into_the_log() {
        let mut world = World::new("");
        let body = Body::Change {
            session: world.session,
            seq: OpSeq(1),
            done_below: OpSeq(1),
            op: Op::StatFs { ino: InodeNo::ROOT },
        };
        let reply = world.apply(body);
        assert!(
            matches!(
                reply,
                Reply::Op {
                    result: Err(FsError::Invalid),
                    ..
                }
            ),
            "{reply:?}"
        );
    }

    #[test]
    fn time_never_stands_still() {
        let mut world = World::new("");
        let start = Timestamp::from_nanos(5_000_000_000);
        let mut tick = |now| {
            let body = Body::ForgetDead(Vec::new());
            world.state.apply(&Command { now, body });
            world.state.now()
        };
        assert_eq!(tick(start), start);
        assert_eq!(tick(start), start.next());
        assert_eq!(tick(Timestamp::default()), start.next().next());
        let later = Timestamp::from_nanos(6_000_000_000);
        assert_eq!(tick(later), later);
    }
}

mod snapshots {
    use super::*;

    #[test]
    fn round_trip() {
        let state = history(3, 500);
        assert_eq!(MetaState::restore(&state.snapshot()), Ok(state));
        let empty = MetaState::default();
        assert_eq!(MetaState::restore(&empty.snapshot()), Ok(empty));
    }

    #[test]
    fn damage_is_an_error_never_a_panic() {
        let good = World::new("mkdir d; touch d/f; symlink x l; chattr user.a=x l")
            .state
            .snapshot();
        for at in 0..good.len() {
            assert!(MetaState::restore(&good[..at]).is_err(), "cut at {at}");
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(
                MetaState::restore(&bad).is_err(),
                "bit of byte {at} flipped"
            );
        }
        let longer = [&good[..], b"x"].concat();
        assert!(MetaState::restore(&longer).is_err());
    }

    #[test]
    fn errors_say_what_is_wrong() {
        #[track_caller]
        fn check(bytes: &[u8], expected: &str) {
            let why = MetaState::restore(bytes).expect_err("damaged").to_string();
            assert!(why.contains(expected) && !why.contains('\n'), "{why}");
        }
        let good = MetaState::default().snapshot();
        let with = |at: usize, byte| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        check(b"", "truncated");
        check(&good[..good.len() - 1], "truncated");
        check(&with(0, b'X'), "no such file");
        check(&with(8, 9), "has format 9, this program reads up to 5");
        check(
            &with(8, 2),
            "has format 2, which this program does not read",
        );
        let newer = MetaState::restore(&with(8, 9));
        assert!(matches!(newer, Err(Unreadable::Newer(_))), "{newer:?}");
        check(&with(30, 0xff), "damaged");
    }

    /// Fails when the layout of a record changes: then the format needs a new version, and old snapshots a
    /// way in.
    #[test]
    fn the_format_is_fixed() {
        let state = World::new("mkdir d; touch d/f; symlink x l; chattr user.a=x l").state;
        let bytes = state.snapshot();
        assert_eq!((bytes.len(), crc32fast::hash(&bytes)), (207, 3_648_776_827));
    }

    /// While a voter of the version before may have to read it, the format is that of the version before.
    #[test]
    fn a_cluster_that_was_not_raised_writes_the_older_format() {
        let mut world = World::new("mkdir d");
        let older = world.state.snapshot();
        assert_eq!(older[8], 3);
        assert_eq!(MetaState::restore(&older).expect("read").version(), 6);
        world.apply(Body::RaiseVersion(7));
        // A late command takes nothing back.
        world.apply(Body::RaiseVersion(6));
        let newer = world.state.snapshot();
        assert_eq!((newer[8], newer.len()), (4, older.len() + 1));
        let restored = MetaState::restore(&newer).expect("read");
        assert_eq!((restored.version(), &restored), (7, &world.state));
        world.apply(Body::RaiseVersion(10));
        world.apply(Body::Revoke(NodeId(3)));
        let newest = world.state.snapshot();
        assert_eq!(newest[8], 5);
        assert_eq!(MetaState::restore(&newest).as_ref(), Ok(&world.state));
    }
}

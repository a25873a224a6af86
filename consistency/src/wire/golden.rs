//! The bytes of every variant of every message of the metadata service (V1), in `golden.txt`.
//!
//! A new variant does not compile until it stands in its list here, and the test fails until there is a sample of it and
//! a line of `golden.txt`, which the failure shows. A line never changes: an older program has sent it.

use super::lease::{Grant, Mode};
use super::lock::{Held, LocalOwner, LockKind, LockMode, LockOp, LockRange, LockReply};
use super::meta::{
    Attr, Content, DirEntry, Extent, Fact, FileKind, FlushContent, FlushFile, FsError, Made, Name,
    NameChange, NewNode, Op, OpReply, Removed, RenameMode, SetAttr, SetTime, StatFs, XattrMode,
};
use super::notes::{Note, Noted, NotesReply, NotesRequest, Part, Tell, Told};
use super::request::{MetaReply, MetaRequest, NodeReport, NodeStatus, RepairStatus};
use super::watch::{Event, Happened, Place};
use super::{decode, encode};
use crate::{
    ChunkId, Duration, Epoch, InodeNo, LeaseId, NodeId, OpSeq, SessionId, Timestamp, Version,
};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// A message with variants, in the order of their numbers.
trait Variants: Serialize + DeserializeOwned + PartialEq + Debug {
    const TYPE: &'static str;
    const NAMES: &'static [&'static str];

    fn name(&self) -> &'static str;
}

macro_rules! variants {
    ($type:ident: $($name:ident)*) => {
        impl Variants for $type {
            const TYPE: &'static str = stringify!($type);
            const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            fn name(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => stringify!($name),)*
                }
            }
        }
    };
}

variants!(MetaRequest: OpenSession Renew Reclaim Release Op Cancel Nodes Lock ReclaimLocks Watch Closed Locate BadCopies
    Inventory Drain Repair Voters
    WatchSince Revoked Clock);
variants!(MetaReply: Opened Renewed Reclaimed Done Op Nodes NotLeader SessionEnded Lock Events Located Inventory Repair
    Voters EventsUpTo Revoked Clock);
variants!(Op: Lookup GetAttr Load ReadDir ReadLink GetXattrs StatFs Create Link Unlink Rename SetAttr SetXattr RemoveXattr
    Flush AllocateChunks Accessed Make Names);
variants!(NameChange: Made Removed);
variants!(OpReply: Found Attr Loaded Listing Target Xattrs StatFs Created Changed Flushed ChunkIds Made);
variants!(FlushContent: Same Inline Extents);
variants!(Content: Inline Extents);
variants!(NewNode: File Dir Symlink Special);
variants!(RenameMode: Replace NoReplace Exchange);
variants!(XattrMode: Any Create Replace);
variants!(SetTime: Now At);
variants!(FileKind: File Dir Symlink Fifo Socket Char Block);
variants!(FsError: NotFound Exists NotDir IsDir NotEmpty Invalid NameTooLong TooManyLinks TooLarge NotPermitted Access NoData
    AttrTooLarge NoSpace Quota ReadOnly Busy CrossDevice NotSupported Stale Interrupted Io Locked Deadlock TooManyLocks);
variants!(LockOp: Test Acquire Clear);
variants!(LockReply: InTheWay Done Waiting);
variants!(Note: Session Holds);
variants!(NotesRequest: Tell Close Page);
variants!(NotesReply: Told Closed Page);
variants!(Part: Next Whole);
variants!(Told: At Page Lost Closed);
variants!(Happened: Created Deleted Moved Attributes Content Closed);

fn name() -> Name {
    Name::new("a").expect("valid")
}

const INO: InodeNo = InodeNo(5);
const DIR: InodeNo = InodeNo(300);
const SESSION: SessionId = SessionId(7);
const SEQ: OpSeq = OpSeq(8);
const EPOCH: Epoch = Epoch(70_000);
const CHUNK: ChunkId = ChunkId(9);
const NODE: NodeId = NodeId(3);
const PLACE: Place = Place { at: at(1), nth: 2 };
const LEASE: LeaseId = LeaseId(11);
const OWNER: LocalOwner = LocalOwner {
    kind: LockKind::Posix,
    id: 12,
};
const HELD: Held = Held {
    range: LockRange { start: 2, end: 5 },
    mode: LockMode::Write,
    pid: 77,
};

const fn at(secs: i64) -> Timestamp {
    Timestamp { secs, nanos: 1 }
}

fn grant() -> Option<Grant> {
    Some(Grant {
        lease: LEASE,
        mode: Mode::Shared,
    })
}

fn attr() -> Attr {
    Attr {
        ino: INO,
        kind: FileKind::File,
        mode: 0o644,
        nlink: 1,
        uid: 13,
        gid: 14,
        rdev: 0,
        size: 15,
        blocks: 16,
        atime: at(17),
        mtime: at(18),
        ctime: at(19),
        btime: at(-20),
        version: Version(21),
    }
}

fn fact() -> Fact {
    Fact {
        attr: attr(),
        grant: grant(),
    }
}

fn extent() -> Extent {
    Extent {
        offset: 22,
        len: 23,
        chunk: CHUNK,
        chunk_offset: 24,
        replicas: vec![NODE, NodeId::BUCKET],
    }
}

fn report() -> NodeReport {
    NodeReport {
        disk_total: 25,
        disk_free: 26,
        domain: "r".to_owned(),
        ..NodeReport::default()
    }
}

fn requests() -> Vec<MetaRequest> {
    vec![
        MetaRequest::OpenSession { attempt: 7 },
        MetaRequest::Renew {
            session: SESSION,
            report: report(),
        },
        MetaRequest::Reclaim {
            session: SESSION,
            epoch: EPOCH,
            leases: vec![(INO, Mode::Exclusive)],
            last: true,
        },
        MetaRequest::Release {
            session: SESSION,
            leases: vec![(INO, LEASE)],
        },
        MetaRequest::Op {
            session: SESSION,
            seq: SEQ,
            done_below: OpSeq(2),
            op: Op::GetAttr { ino: INO },
        },
        MetaRequest::Cancel {
            session: SESSION,
            seq: SEQ,
        },
        MetaRequest::Nodes,
        MetaRequest::Lock {
            session: SESSION,
            seq: SEQ,
            attempt: 1,
            epoch: EPOCH,
            ino: INO,
            owner: OWNER,
            op: LockOp::Test(HELD),
        },
        MetaRequest::ReclaimLocks {
            session: SESSION,
            epoch: EPOCH,
            locks: vec![(INO, OWNER, HELD)],
        },
        MetaRequest::Watch {
            session: SESSION,
            set: 1,
            inodes: Some(vec![INO]),
            after: 2,
        },
        MetaRequest::Closed {
            session: SESSION,
            files: vec![INO],
        },
        MetaRequest::Locate(CHUNK),
        MetaRequest::BadCopies(vec![CHUNK]),
        MetaRequest::Inventory {
            from: CHUNK,
            to: ChunkId(10),
            chunks: vec![CHUNK],
        },
        MetaRequest::Drain {
            node: NODE,
            drain: true,
        },
        MetaRequest::Repair,
        MetaRequest::Voters,
        MetaRequest::WatchSince {
            session: SESSION,
            set: 1,
            inodes: Some(vec![INO]),
            after: 2,
            since: Some(PLACE),
        },
        MetaRequest::Revoked,
        MetaRequest::Clock,
    ]
}

fn replies() -> Vec<MetaReply> {
    let event = Event {
        place: Some((DIR, name())),
        ino: INO,
        kind: FileKind::File,
        what: Happened::Created,
    };
    vec![
        MetaReply::Opened {
            session: SESSION,
            term: Duration(4),
            epoch: EPOCH,
            now: at(1),
        },
        MetaReply::Renewed {
            term: Duration(4),
            epoch: EPOCH,
            now: at(1),
            reclaim: true,
        },
        MetaReply::Reclaimed(vec![Some(LEASE), None]),
        MetaReply::Done,
        MetaReply::Op {
            now: at(1),
            result: Err(FsError::Stale),
            watched: true,
        },
        MetaReply::Nodes(vec![NodeStatus::new(NODE, true, report())]),
        MetaReply::NotLeader(Some(NODE)),
        MetaReply::SessionEnded,
        MetaReply::Lock(Ok(LockReply::Waiting)),
        MetaReply::Events {
            known: true,
            events: vec![(1, event.clone())],
        },
        MetaReply::Located(vec![NODE]),
        MetaReply::Inventory {
            orphans: vec![CHUNK],
            upto: ChunkId(10),
        },
        MetaReply::Repair(RepairStatus {
            complete: true,
            lacking: 1,
            unreachable: 2,
            copying: 3,
        }),
        MetaReply::Voters(vec![NODE]),
        MetaReply::EventsUpTo {
            known: true,
            events: vec![(1, event)],
            upto: PLACE,
            lost: true,
        },
        MetaReply::Revoked(vec![(NODE, at(1))]),
        MetaReply::Clock {
            epoch: EPOCH,
            since: Duration(5),
        },
    ]
}

fn ops() -> Vec<Op> {
    let (ino, parent, name) = (INO, DIR, name);
    vec![
        Op::Lookup {
            parent,
            name: name(),
        },
        Op::GetAttr { ino },
        Op::Load {
            ino,
            mode: Mode::Exclusive,
        },
        Op::ReadDir {
            ino,
            after: 1,
            limit: 2,
        },
        Op::ReadLink { ino },
        Op::GetXattrs { ino },
        Op::StatFs { ino },
        Op::Create {
            parent,
            name: Some(name()),
            node: NewNode::File,
            mode: 0o644,
            umask: 0o22,
            uid: 13,
            gid: 14,
            exclusive: true,
        },
        Op::Link {
            ino,
            parent,
            name: name(),
        },
        Op::Unlink {
            parent,
            name: name(),
            dir: true,
        },
        Op::Rename {
            parent,
            name: name(),
            new_parent: INO,
            new_name: name(),
            mode: RenameMode::Exchange,
        },
        Op::SetAttr {
            ino,
            set: SetAttr {
                mode: Some(0o600),
                uid: None,
                gid: Some(14),
                atime: Some(SetTime::Now),
                mtime: Some(SetTime::At(at(2))),
            },
        },
        Op::SetXattr {
            ino,
            name: name(),
            value: Bytes::from_static(b"v"),
            mode: XattrMode::Create,
            kill_sgid: true,
        },
        Op::RemoveXattr { ino, name: name() },
        Op::Flush(vec![FlushFile {
            ino,
            mode: 0o644,
            uid: 13,
            gid: 14,
            size: 15,
            atime: at(17),
            mtime: at(18),
            ctime: at(19),
            content: FlushContent::Same,
            written: true,
        }]),
        Op::AllocateChunks { count: 2 },
        Op::Accessed(vec![(ino, at(3))]),
        Op::Make(vec![made()]),
        Op::Names(name_changes()),
    ]
}

fn made() -> Made {
    Made {
        parent: INO,
        name: name(),
        ino: InodeNo::by_session(CHUNK).expect("small"),
        node: NewNode::Dir,
        mode: 0o755,
        umask: 0o22,
        uid: 1,
        gid: 2,
        time: at(4),
    }
}

fn name_changes() -> Vec<NameChange> {
    vec![
        NameChange::Made(made()),
        NameChange::Removed(Removed {
            parent: INO,
            name: name(),
            ino: DIR,
            kind: FileKind::File,
            time: at(5),
        }),
    ]
}

fn op_replies() -> Vec<OpReply> {
    let entry = DirEntry {
        cookie: 16,
        name: name(),
        ino: INO,
        kind: FileKind::File,
        fact: None,
    };
    vec![
        OpReply::Found {
            dir: grant(),
            entry: Some(fact()),
        },
        OpReply::Attr(fact()),
        OpReply::Loaded {
            file: fact(),
            content: Content::Inline(Bytes::from_static(b"c")),
            room: Some(1),
            copies: 2,
        },
        OpReply::Listing {
            dir: grant(),
            parent: DIR,
            entries: vec![entry],
            end: true,
        },
        OpReply::Target(Bytes::from_static(b"t")),
        OpReply::Xattrs {
            grant: None,
            xattrs: BTreeMap::from([(name(), Bytes::from_static(b"v"))]),
        },
        OpReply::StatFs(StatFs {
            bytes_total: 1,
            bytes_free: 2,
            inodes: 3,
            inodes_free: Some(4),
        }),
        OpReply::Created {
            dir: fact(),
            entry: fact(),
            room: None,
            copies: 0,
            new: true,
        },
        OpReply::Changed(vec![fact()]),
        OpReply::Flushed(vec![Ok(attr()), Err(FsError::Quota)]),
        OpReply::ChunkIds(CHUNK),
        OpReply::Made {
            made: vec![Ok(fact()), Err(FsError::Stale)],
            dirs: vec![fact()],
        },
    ]
}

fn errors() -> Vec<FsError> {
    let decoded = (0..).map(|number: u8| decode(&[number]));
    decoded.map_while(Result::ok).collect()
}

fn kinds() -> Vec<FileKind> {
    let decoded = (0..).map(|number: u8| decode(&[number]));
    decoded.map_while(Result::ok).collect()
}

/// Adds a line for each sample; each variant has one, and its number is its place in the list.
fn write<T: Variants>(lines: &mut Vec<String>, samples: &[T]) {
    for (number, name) in T::NAMES.iter().enumerate() {
        let sample = samples.iter().find(|sample| sample.name() == *name);
        let sample = sample.unwrap_or_else(|| panic!("no sample of {}::{name}", T::TYPE));
        let bytes = encode(sample);
        assert_eq!(usize::from(bytes[0]), number, "{}::{name}", T::TYPE);
        assert_eq!(&decode::<T>(&bytes).expect("decodes"), sample);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push(format!("{}::{name} {hex}", T::TYPE));
    }
}

#[test]
fn golden_bytes_of_every_variant() {
    let mut lines = Vec::new();
    let some = &mut lines;
    write(some, &requests());
    write(some, &replies());
    write(some, &ops());
    write(some, &op_replies());
    let bytes = Bytes::from_static(b"b");
    let extents = FlushContent::Extents {
        cut: Some(1),
        add: vec![extent()],
        chunks: vec![(CHUNK, 2)],
    };
    let inline = FlushContent::Inline(bytes.clone());
    write(some, &[FlushContent::Same, inline, extents]);
    let contents = [
        Content::Inline(bytes.clone()),
        Content::Extents(vec![extent()]),
    ];
    write(some, &contents);
    let special = NewNode::Special {
        kind: FileKind::Char,
        rdev: 1,
    };
    let nodes = [
        NewNode::File,
        NewNode::Dir,
        NewNode::Symlink(bytes),
        special,
    ];
    write(some, &nodes);
    write(
        some,
        &[
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ],
    );
    write(
        some,
        &[XattrMode::Any, XattrMode::Create, XattrMode::Replace],
    );
    write(some, &[SetTime::Now, SetTime::At(at(-1))]);
    write(some, &name_changes());
    write(some, &kinds());
    write(some, &errors());
    let acquire = LockOp::Acquire {
        lock: HELD,
        wait: true,
    };
    write(
        some,
        &[LockOp::Test(HELD), acquire, LockOp::Clear(HELD.range)],
    );
    let done = LockReply::Done {
        version: 1,
        held: vec![HELD],
    };
    write(some, &[LockReply::InTheWay(None), done, LockReply::Waiting]);
    let notes = [
        Note::Session {
            session: SESSION,
            complete: true,
        },
        Note::Holds {
            ino: INO,
            mode: Some(Mode::Shared),
        },
    ];
    write(some, &notes);
    let parts = [
        Part::Next { from: 1 },
        Part::Whole {
            life: 2,
            voters: vec![NODE],
            base: 3,
            page: 4,
            last: true,
        },
    ];
    write(some, &parts);
    let tell = Tell {
        reign: EPOCH,
        part: Part::Next { from: 1 },
        notes: notes.to_vec(),
    };
    let asked = [
        NotesRequest::Tell(tell),
        NotesRequest::Close {
            by: EPOCH,
            of: Epoch(1),
        },
        NotesRequest::Page {
            of: EPOCH,
            after: Some(INO),
        },
    ];
    write(some, &asked);
    let told = [
        Told::At(1),
        Told::Page { base: 2, next: 3 },
        Told::Lost { life: 4 },
        Told::Closed,
    ];
    write(some, &told);
    let noted = Noted {
        leader: NODE,
        voters: vec![NODE],
        number: 1,
        session: Some(SESSION),
    };
    let answered = [
        NotesReply::Told(Told::Closed),
        NotesReply::Closed(Some(noted)),
        NotesReply::Page(vec![(INO, Mode::Known)]),
    ];
    write(some, &answered);
    let moved = Happened::Moved {
        dir: DIR,
        name: name(),
        replaced: Some((INO, FileKind::File)),
    };
    let happened = [
        Happened::Created,
        Happened::Deleted,
        moved,
        Happened::Attributes,
        Happened::Content,
        Happened::Closed,
    ];
    write(some, &happened);

    let golden: Vec<&str> = include_str!("golden.txt").lines().collect();
    let missing = lines.iter().filter(|line| !golden.contains(&line.as_str()));
    let missing: Vec<&str> = missing.map(String::as_str).collect();
    assert_eq!(missing, [""; 0], "not in golden.txt");
    assert_eq!(lines.len(), golden.len(), "golden.txt has lines of nothing");
}

//! Committing what an exclusive holder changed: attributes and content of many files at once.
//!
//! That the sender holds the files exclusively is the driver's to check; here each file is taken or refused by
//! itself. A refused file is as it was.

use super::{check_mode, check_owner, check_time};
use crate::server::state::{
    ChunkState, Extents, FileContent, MetaState, Payload, Piece, RefChange, Replicas,
};
use consistency::wire::chunk::CHUNK_BYTES_MAX;
use consistency::wire::meta::{
    Attr, EXTENTS_MAX, Extent, FILE_BYTES_MAX, FlushContent, FlushFile, FsError, INLINE_BYTES_MAX,
    OpReply,
};
use consistency::{ChunkId, Duration, SessionId, Timestamp};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// How far a holder's clock may be ahead of the leader's and still be followed: it runs on its own between
/// two messages of the leader. What it has shown under its lease must not be taken back (S6), so the
/// cluster's clock goes along; a clock that is further off is broken and must not carry the cluster with it.
pub(super) const AHEAD_MAX: Duration = Duration::from_millis(1_000);

pub(super) fn apply(
    state: &mut MetaState,
    now: Timestamp,
    session: SessionId,
    files: &[FlushFile],
) -> OpReply {
    let latest = now.plus(AHEAD_MAX);
    let mut refused = Vec::new();
    let flush = |file| flush_file(state, session, latest, file, &mut refused);
    let results = files.iter().map(flush).collect();
    // Their numbers belong to the session: nobody would delete them while it lives.
    state.chunks.bury(refused);
    OpReply::Flushed(results)
}

fn flush_file(
    state: &mut MetaState,
    session: SessionId,
    latest: Timestamp,
    file: &FlushFile,
    refused: &mut Vec<(ChunkId, Replicas)>,
) -> Result<Attr, FsError> {
    let new_chunks = resolve(state, session, file)?;
    if let Err(error) = check_quota(state, file) {
        refused.extend(new_chunks.into_iter().map(|(id, _, nodes)| (id, nodes)));
        return Err(error);
    }
    let copies = state.inode(file.ino)?.copies;
    for (id, len, replicas) in new_chunks {
        state.chunks.enter(id, len, copies, replicas);
    }
    let inode = &mut **state.inodes.get_mut(&file.ino).expect("resolved before");
    let Payload::File(content) = &mut inode.payload else {
        unreachable!("resolved to a regular file before");
    };
    let mut refs = RefChange::default();
    replace(content, file, &mut refs);
    let blocks = content.blocks();
    state.chunks.change_refs(refs);
    state.quotas.resize(file.ino, inode.attr.blocks, blocks);

    if file.content != FlushContent::Same {
        inode.drop_capabilities();
    }
    if file.mode != inode.attr.mode {
        inode.set_mode(file.mode);
    }
    let differs = |new, old| (new != old).then_some(new);
    inode.set_owner(
        differs(file.uid, inode.attr.uid),
        differs(file.gid, inode.attr.gid),
    );
    let attr = &mut inode.attr;
    attr.size = file.size;
    attr.blocks = blocks;
    attr.atime = file.atime;
    attr.mtime = file.mtime;
    attr.ctime = attr.ctime.max(file.ctime.min(latest));
    attr.version = attr.version.next();
    state.now = state.now.max(attr.ctime);
    Ok(attr.clone())
}

/// Refuses content that there is no room for (Q3).
fn check_quota(state: &MetaState, file: &FlushFile) -> Result<(), FsError> {
    let added = match &file.content {
        FlushContent::Same => return Ok(()),
        FlushContent::Inline(bytes) => bytes.len() as u64,
        FlushContent::Extents { add, .. } => add.iter().map(|extent| u64::from(extent.len)).sum(),
    };
    let inode = state.inode(file.ino)?;
    let old = inode.attr.blocks;
    let Payload::File(content) = &inode.payload else {
        return Err(FsError::Invalid);
    };
    let most = old + added.div_ceil(512);
    if state.quotas.check_growth(file.ino, old, most).is_ok() {
        return Ok(());
    }
    // What it replaces makes room as well.
    let mut content = content.clone();
    replace(&mut content, file, &mut RefChange::default());
    state.quotas.check_growth(file.ino, old, content.blocks())
}

/// Brings the content to what the flush says.
fn replace(content: &mut FileContent, file: &FlushFile, refs: &mut RefChange) {
    match &file.content {
        FlushContent::Same => {}
        FlushContent::Inline(bytes) => {
            content.cut(0, refs);
            *content = FileContent::Inline(bytes.clone());
        }
        FlushContent::Extents { cut, add, .. } => {
            if let FileContent::Inline(_) = content {
                *content = FileContent::Extents(Extents::default());
            }
            if let FileContent::Extents(extents) = content {
                if let Some(cut) = cut {
                    extents.cut(*cut, refs);
                }
                for extent in add {
                    extents.insert(piece(extent), refs);
                }
            }
        }
    }
    // Bytes past the end would come back when the file grows again.
    content.cut(file.size, refs);
}

const fn piece(extent: &Extent) -> Piece {
    Piece {
        offset: extent.offset,
        len: extent.len,
        chunk_offset: extent.chunk_offset,
        chunk: extent.chunk,
    }
}

/// Checks a file's flush; returns the chunks that it brings.
fn resolve(
    state: &MetaState,
    session: SessionId,
    file: &FlushFile,
) -> Result<Vec<(ChunkId, u32, Replicas)>, FsError> {
    let Payload::File(content) = &state.inode(file.ino)?.payload else {
        return Err(FsError::Invalid);
    };
    check_mode(file.mode)?;
    check_owner(file.uid, file.gid)?;
    for time in [file.atime, file.mtime, file.ctime] {
        check_time(time)?;
    }
    if file.size > FILE_BYTES_MAX {
        return Err(FsError::TooLarge);
    }
    match &file.content {
        FlushContent::Same => Ok(Vec::new()),
        FlushContent::Inline(bytes) => {
            let limit = file.size.min(INLINE_BYTES_MAX as u64);
            if bytes.len() as u64 > limit {
                return Err(FsError::Invalid);
            }
            Ok(Vec::new())
        }
        FlushContent::Extents { add, chunks, .. } => {
            let before = match content {
                FileContent::Inline(_) => 0,
                FileContent::Extents(extents) => extents.len(),
            };
            // An extent put into another leaves two pieces of that one: at most two more each.
            if before + 2 * add.len() > EXTENTS_MAX {
                return Err(FsError::TooLarge);
            }
            resolve_chunks(state, session, file.size, add, chunks)
        }
    }
}

/// A chunk that a flush names.
struct Named {
    len: u32,
    lies: Lies,
}

/// Where it lies.
enum Lies {
    /// Where the first extent that names it says.
    Unknown,
    /// There, and the other extents must agree.
    Told(Replicas),
    /// Where the table says: its copies may have moved since the sender heard of them.
    Listed,
}

fn resolve_chunks(
    state: &MetaState,
    session: SessionId,
    size: u64,
    add: &[Extent],
    chunks: &[(ChunkId, u32)],
) -> Result<Vec<(ChunkId, u32, Replicas)>, FsError> {
    let mut known: BTreeMap<ChunkId, Named> = BTreeMap::new();
    for &(id, len) in chunks {
        let named = brought(state, session, id, len)?;
        if known.insert(id, named).is_some() {
            return Err(FsError::Invalid);
        }
    }
    let mut new = Vec::new();
    for extent in add {
        let told = Replicas::new(&extent.replicas).ok_or(FsError::Invalid)?;
        let named = match known.entry(extent.chunk) {
            Entry::Occupied(named) => named.into_mut(),
            Entry::Vacant(slot) => slot.insert(shared(state, extent.chunk)?),
        };
        let end = extent.offset.checked_add(u64::from(extent.len));
        let chunk_end = extent.chunk_offset.checked_add(extent.len);
        if extent.len == 0
            || end.is_none_or(|end| end > size)
            || chunk_end.is_none_or(|end| end > named.len)
        {
            return Err(FsError::Invalid);
        }
        match named.lies {
            Lies::Listed => {}
            Lies::Told(replicas) if replicas == told => {}
            Lies::Told(_) => return Err(FsError::Invalid),
            Lies::Unknown => {
                named.lies = Lies::Told(told);
                new.push((extent.chunk, named.len, told));
            }
        }
    }
    // A chunk that no extent names is not entered: it is garbage once the session ends.
    Ok(new)
}

/// Checks a chunk that a flush brings.
fn brought(state: &MetaState, session: SessionId, id: ChunkId, len: u32) -> Result<Named, FsError> {
    if !(1..=CHUNK_BYTES_MAX).contains(&len) {
        return Err(FsError::Invalid);
    }
    if !state.sessions.owns_in(session, id) {
        // The number was given to a session that has ended: the chunk may be collected already.
        return Err(FsError::Stale);
    }
    let lies = match state.chunks.state(id) {
        ChunkState::New => Lies::Unknown,
        // Small files of one flush may share a chunk.
        ChunkState::Live(live_len) if live_len == len => Lies::Listed,
        ChunkState::Live(_) => return Err(FsError::Invalid),
        ChunkState::Dead => return Err(FsError::Stale),
    };
    Ok(Named { len, lies })
}

/// Finds a chunk that a flush shares with other files. M8: it must be live now, whatever its writer knew when it
/// read the other file's map; what is dead may be deleted at any moment.
fn shared(state: &MetaState, id: ChunkId) -> Result<Named, FsError> {
    match state.chunks.state(id) {
        ChunkState::Live(len) => Ok(Named {
            len,
            lies: Lies::Listed,
        }),
        ChunkState::New | ChunkState::Dead => Err(FsError::Stale),
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;
    use crate::server::ops::testing::World;
    use crate::server::state::{Body, REPLICAS_MAX, Reply};
    use bytes::Bytes;
    use consistency::wire::meta::{Content, Op};
    use consistency::{InodeNo, NodeId};

    /// A file `f` under flushes; chunks 1 to 100 are its session's.
    fn world() -> World {
        let mut world = World::new("touch f");
        world
            .run(&Op::AllocateChunks { count: 100 })
            .expect("allocates");
        world
    }

    /// A flush that changes nothing but content and size.
    fn flush_of(world: &World, size: u64, content: FlushContent) -> FlushFile {
        flush_to(world, "f", size, content)
    }

    fn flush_to(world: &World, path: &str, size: u64, content: FlushContent) -> FlushFile {
        let attr = world.attr(path);
        FlushFile {
            ino: attr.ino,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            size,
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            content,
            written: false,
        }
    }

    fn flush(world: &mut World, file: FlushFile) -> Result<Attr, FsError> {
        match world.run(&Op::Flush(vec![file])) {
            Ok(OpReply::Flushed(results)) if results.len() == 1 => results[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    fn put(world: &mut World, size: u64, content: FlushContent) -> Result<Attr, FsError> {
        let file = flush_of(world, size, content);
        flush(world, file)
    }

    fn extent(offset: u64, len: u32, chunk: u64, chunk_offset: u32) -> Extent {
        Extent {
            offset,
            len,
            chunk: ChunkId(chunk),
            chunk_offset,
            replicas: vec![NodeId(1), NodeId(2)],
        }
    }

    /// Extents (file offset, length, chunk, offset in the chunk), in chunks of 1,000 bytes.
    fn extents(cut: Option<u64>, add: &[(u64, u32, u64, u32)]) -> FlushContent {
        let add: Vec<Extent> = add.iter().map(|&(a, b, c, d)| extent(a, b, c, d)).collect();
        let mut chunks: Vec<_> = add.iter().map(|extent| (extent.chunk, 1000)).collect();
        chunks.sort_unstable();
        chunks.dedup();
        FlushContent::Extents { cut, add, chunks }
    }

    fn content(world: &World) -> Content {
        world.state.load(world.ino("f")).expect("loads").1
    }

    fn dead(world: &World) -> Vec<u64> {
        world.state.dead_chunks().map(|(id, _)| id.0).collect()
    }

    #[test]
    fn inline_content_and_its_end() {
        let mut world = world();
        let text = || FlushContent::Inline("hello".into());
        let attr = put(&mut world, 5, text()).expect("taken");
        assert_eq!((attr.size, attr.blocks), (5, 1));
        assert_eq!(content(&world), Content::Inline("hello".into()));
        // Growing stores nothing; shrinking drops what is past the end.
        let attr = put(&mut world, 1 << 40, FlushContent::Same).expect("taken");
        assert_eq!((attr.size, attr.blocks), (1 << 40, 1));
        put(&mut world, 2, FlushContent::Same).expect("taken");
        assert_eq!(content(&world), Content::Inline("he".into()));
        let attr = put(&mut world, 0, FlushContent::Same).expect("taken");
        assert_eq!((attr.size, attr.blocks), (0, 0));
        assert_eq!(put(&mut world, 4, text()), Err(FsError::Invalid));
    }

    #[test]
    fn extents_and_their_chunks() {
        let mut world = world();
        put(&mut world, 5, FlushContent::Inline("hello".into())).expect("taken");
        let attr = put(&mut world, 2000, extents(None, &[(1000, 1000, 1, 0)])).expect("taken");
        assert_eq!((attr.size, attr.blocks), (2000, 2));
        assert_eq!(
            content(&world),
            Content::Extents(vec![extent(1000, 1000, 1, 0)])
        );
        // Into the middle: chunk 1 is cut in two and lives.
        put(&mut world, 2000, extents(None, &[(1100, 50, 2, 7)])).expect("taken");
        let expected = vec![
            extent(1000, 100, 1, 0),
            extent(1100, 50, 2, 7),
            extent(1150, 850, 1, 150),
        ];
        assert_eq!(content(&world), Content::Extents(expected));
        assert_eq!(dead(&world), [0_u64; 0]);
        // A cut, then growth: what was cut stays away.
        let attr = put(&mut world, 3000, extents(Some(1050), &[])).expect("taken");
        assert_eq!((attr.size, attr.blocks), (3000, 1));
        assert_eq!(
            content(&world),
            Content::Extents(vec![extent(1000, 50, 1, 0)])
        );
        assert_eq!(dead(&world), [2]);
        // Small again: all chunks die.
        put(&mut world, 1, FlushContent::Inline("x".into())).expect("taken");
        assert_eq!(dead(&world), [1, 2]);
        assert_eq!(
            world.apply(Body::ForgetDead(vec![ChunkId(1), ChunkId(9)])),
            Reply::Done
        );
        assert_eq!(dead(&world), [2]);
    }

    #[test]
    fn chunks_that_die_at_once() {
        let mut world = world();
        put(
            &mut world,
            1000,
            extents(None, &[(0, 500, 1, 0), (0, 500, 2, 0)]),
        )
        .expect("taken");
        assert_eq!(dead(&world), [1]);
        // The number is used up.
        let again = put(&mut world, 1000, extents(None, &[(0, 500, 1, 0)]));
        assert_eq!(again, Err(FsError::Stale));
    }

    #[test]
    fn the_last_name_and_the_reap_free_the_chunks() {
        let mut world = world();
        put(
            &mut world,
            1000,
            extents(None, &[(0, 500, 1, 0), (500, 500, 1, 500)]),
        )
        .expect("taken");
        world.setup("rm f");
        put(&mut world, 1000, extents(None, &[(0, 10, 2, 0)])).expect("open and unlinked is fine");
        assert_eq!(dead(&world), [0_u64; 0]);
        let f = world.ino("f");
        let reply = world.apply(Body::Reap(vec![f]));
        assert_eq!(reply, Reply::Dead(vec![ChunkId(1), ChunkId(2)]));
        assert_eq!(dead(&world), [1, 2]);
        assert_eq!(world.state.counts().chunks_live, 0);
    }

    #[test]
    fn one_chunk_for_two_files() {
        let mut world = world();
        world.setup("touch g");
        let content = |offset| extents(None, &[(0, 100, 1, offset)]);
        let f = flush_of(&world, 100, content(0));
        let g = FlushFile {
            ino: world.ino("g"),
            ..flush_of(&world, 100, content(100))
        };
        let reply = world.run(&Op::Flush(vec![f, g])).expect("taken");
        assert!(
            matches!(&reply, OpReply::Flushed(r) if r.iter().all(Result::is_ok)),
            "{reply:?}"
        );
        world.setup("rm f; reap f");
        assert_eq!(dead(&world), [0_u64; 0]);
        world.setup("rm g; reap g");
        assert_eq!(dead(&world), [1]);
    }

    #[test]
    fn each_file_by_itself() {
        let mut world = world();
        let good = flush_of(&world, 1, FlushContent::Inline("x".into()));
        let gone = FlushFile {
            ino: InodeNo(99),
            ..good.clone()
        };
        let reply = world.run(&Op::Flush(vec![gone, good]));
        let Ok(OpReply::Flushed(results)) = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(results[0], Err(FsError::Stale));
        assert_eq!(results[1], Ok(world.attr("f")));
    }

    #[test]
    fn q3_content_within_a_quota() {
        let mut world = world();
        // The root itself has 4,096; one block of 512 is left, not two.
        world.setup("chattr user.glu.quota.bytes=5096 /");
        put(&mut world, 1000, extents(None, &[(0, 500, 1, 0)])).expect("fits");
        let before = world.attr("f");
        let more = put(&mut world, 1000, extents(None, &[(500, 500, 2, 0)]));
        assert_eq!((more, world.attr("f")), (Err(FsError::Quota), before));
        // What was refused is deleted.
        assert_eq!(dead(&world), [2]);
        put(&mut world, 1000, extents(None, &[(0, 500, 3, 0)])).expect("replaces");
        assert_eq!(dead(&world), [1, 2]);
        let inline = |len| FlushContent::Inline(vec![1; len].into());
        assert_eq!(put(&mut world, 513, inline(513)), Err(FsError::Quota));
        put(&mut world, 512, inline(512)).expect("as large as before");
        // Above the limit, smaller and other attributes still go.
        world.setup("chattr user.glu.quota.bytes=1 /");
        put(&mut world, 1 << 40, FlushContent::Same).expect("a hole costs nothing");
        put(&mut world, 100, inline(100)).expect("no larger");
        put(&mut world, 0, FlushContent::Same).expect("truncates");
        assert_eq!(put(&mut world, 1, inline(1)), Err(FsError::Quota));
    }

    #[test]
    fn a_chunk_that_another_file_takes_is_not_deleted() {
        let mut world = world();
        world.setup("mkdir d; touch d/g; chattr user.glu.quota.bytes=1 d");
        let content = |offset| extents(None, &[(0, 100, 1, offset)]);
        let f = flush_of(&world, 100, content(0));
        let g = FlushFile {
            ino: world.ino("d/g"),
            ..flush_of(&world, 100, content(100))
        };
        let reply = world.run(&Op::Flush(vec![g, f])).expect("answered");
        assert!(
            matches!(&reply, OpReply::Flushed(r) if r[0] == Err(FsError::Quota) && r[1].is_ok()),
            "{reply:?}"
        );
        assert_eq!(dead(&world), [0_u64; 0]);
    }

    #[test]
    fn times() {
        let mut world = world();
        let mut stamp = |nanos| {
            let mut file = flush_of(&world, 0, FlushContent::Same);
            let before = world.attr("f").ctime;
            file.ctime = Timestamp::from_nanos(
                before.secs * 1_000_000_000 + i64::from(before.nanos) + nanos,
            );
            let given = file.ctime;
            let now = world.state.now();
            (
                before,
                given,
                now,
                flush(&mut world, file).expect("taken").ctime,
                world.state.now(),
            )
        };
        // Older than what is known: kept.
        let (before, _, _, ctime, _) = stamp(-5);
        assert_eq!(ctime, before);
        // A little ahead of the leader: followed, and the clock goes along.
        let (_, given, old, ctime, now) = stamp(500_000_000);
        assert!(given > old);
        assert_eq!((ctime, now), (given, given));
        // Far ahead: a broken clock does not take the cluster along.
        let (_, given, old, ctime, now) = stamp(1_000_000_000_000);
        assert!(ctime < given && ctime > old, "{ctime:?}");
        assert_eq!(now, ctime);
        let mut file = flush_of(&world, 0, FlushContent::Same);
        file.mtime.nanos = 1_000_000_000;
        assert_eq!(flush(&mut world, file), Err(FsError::Invalid));
    }

    #[test]
    fn writing_takes_capabilities_and_chmod_follows_the_acl() {
        let mut world = World::new("touch f; chattr security.capability=x f");
        let xattrs = |world: &World| world.state.xattrs(world.ino("f")).expect("there").len();
        put(&mut world, 0, FlushContent::Same).expect("taken");
        assert_eq!(xattrs(&world), 1);
        put(&mut world, 1, FlushContent::Inline("x".into())).expect("taken");
        assert_eq!(xattrs(&world), 0);
        let mut file = flush_of(&world, 1, FlushContent::Same);
        (file.mode, file.uid) = (0o600, 77);
        let attr = flush(&mut world, file).expect("taken");
        assert_eq!((attr.mode, attr.uid), (0o600, 77));
    }

    #[test]
    fn nonsense_is_refused() {
        #[track_caller]
        fn refused(spoil: impl FnOnce(&mut FlushFile), expected: FsError) {
            let mut world = world();
            put(&mut world, 1000, extents(None, &[(0, 1000, 1, 0)])).expect("taken");
            let mut file = flush_of(&world, 2000, extents(None, &[(0, 1000, 2, 0)]));
            spoil(&mut file);
            let before = world.attr("f");
            assert_eq!(flush(&mut world, file), Err(expected));
            assert_eq!(world.attr("f"), before);
        }
        fn spoil_extent(file: &mut FlushFile, spoil: impl FnOnce(&mut Extent)) {
            if let FlushContent::Extents { add, .. } = &mut file.content {
                spoil(&mut add[0]);
            }
        }
        let in_extent = |spoil: fn(&mut Extent), expected| {
            refused(|file| spoil_extent(file, spoil), expected);
        };
        let in_chunks = |chunks: &[(u64, u32)], expected| {
            let list = chunks
                .iter()
                .map(|(id, len)| (ChunkId(*id), *len))
                .collect();
            refused(
                |file| {
                    if let FlushContent::Extents { chunks, .. } = &mut file.content {
                        *chunks = list;
                    }
                },
                expected,
            );
        };
        let invalid = FsError::Invalid;
        in_extent(|extent| extent.len = 0, invalid);
        in_extent(|extent| extent.len = 1001, invalid);
        in_extent(|extent| extent.chunk_offset = 1, invalid);
        in_extent(|extent| extent.chunk_offset = u32::MAX, invalid);
        in_extent(|extent| extent.offset = 1001, invalid);
        in_extent(|extent| extent.offset = u64::MAX, invalid);
        in_extent(|extent| extent.chunk = ChunkId(3), FsError::Stale);
        in_extent(|extent| extent.replicas.clear(), invalid);
        in_extent(|extent| extent.replicas = vec![NodeId(0)], invalid);
        in_extent(|extent| extent.replicas = vec![NodeId(1); 2], invalid);
        in_extent(
            |extent| extent.replicas = (1..=REPLICAS_MAX as u16 + 1).map(NodeId).collect(),
            invalid,
        );
        in_chunks(&[], FsError::Stale);
        in_chunks(&[(2, 0)], invalid);
        in_chunks(&[(2, CHUNK_BYTES_MAX + 1)], invalid);
        in_chunks(&[(2, 1000), (2, 1000)], invalid);
        in_chunks(&[(2, 1000), (101, 1000)], FsError::Stale);
        // Chunk 1 is in use with another length.
        in_chunks(&[(2, 1000), (1, 999)], invalid);
        refused(|file| file.size = FILE_BYTES_MAX + 1, FsError::TooLarge);
        refused(|file| file.mode = 0o10_000, invalid);
        refused(|file| file.gid = u32::MAX, invalid);
        refused(|file| file.ino = InodeNo::ROOT, invalid);
        let large = Bytes::from(vec![0; INLINE_BYTES_MAX + 1]);
        refused(
            |file| (file.size, file.content) = (1 << 20, FlushContent::Inline(large)),
            invalid,
        );
    }

    #[test]
    fn maps_have_a_limit() {
        let mut world = world();
        let size = 2 * EXTENTS_MAX as u64;
        let add: Vec<_> = (0..EXTENTS_MAX as u64 / 2)
            .map(|at| (2 * at, 1, 1, 0))
            .collect();
        put(&mut world, size, extents(None, &add)).expect("taken");
        let more = put(
            &mut world,
            size,
            extents(None, &[(size - 1, 1, 1, 0); 30_001]),
        );
        assert_eq!(more, Err(FsError::TooLarge));
    }

    /// Extents of chunks that the flush does not bring.
    fn references(add: &[Extent]) -> FlushContent {
        FlushContent::Extents {
            cut: None,
            add: add.to_vec(),
            chunks: Vec::new(),
        }
    }

    /// A file `f` of the chunks 1 and 2, and an empty file `g` that another session changes.
    fn shared_world() -> World {
        let mut world = world();
        let content = extents(None, &[(0, 1000, 1, 0), (1000, 1000, 2, 0)]);
        put(&mut world, 2000, content).expect("taken");
        world.setup("touch g");
        match world.apply(Body::OpenSession {
            node: NodeId(2),
            attempt: 1,
        }) {
            Reply::Session { session, .. } => world.session = session,
            other => panic!("{other:?}"),
        }
        world
    }

    fn share(world: &mut World, size: u64, add: &[Extent]) -> Result<Attr, FsError> {
        let file = flush_to(world, "g", size, references(add));
        flush(world, file)
    }

    #[test]
    fn m8_a_chunk_of_another_file_is_shared() {
        let mut world = shared_world();
        let add = [extent(500, 1000, 1, 0), extent(1500, 300, 2, 700)];
        let attr = share(&mut world, 4000, &add).expect("both are live");
        assert_eq!((attr.size, attr.blocks), (4000, 3));
        let content = world.state.load(world.ino("g")).expect("loads").1;
        assert_eq!(content, Content::Extents(add.to_vec()));
        assert_eq!(world.state.check(), Ok(()));
        // Each of the two keeps them.
        world.setup("rm f; reap f");
        assert_eq!(dead(&world), [0_u64; 0]);
        // A part that moves within its file does not let its chunk die in between.
        let moved = [extent(0, 1000, 1, 0), extent(1000, 800, 2, 200)];
        share(&mut world, 4000, &moved).expect("both are live");
        let one = [extent(0, 2000, 3, 0)];
        assert_eq!(share(&mut world, 4000, &one), Err(FsError::Stale));
        world.setup("rm g; reap g");
        assert_eq!(dead(&world), [1, 2]);
    }

    #[test]
    fn m8_what_is_not_live_is_not_shared() {
        let mut world = shared_world();
        let before = world.attr("g");
        let stale = Err(FsError::Stale);
        world.setup("rm f; reap f");
        assert_eq!(dead(&world), [1, 2]);
        assert_eq!(share(&mut world, 2000, &[extent(0, 1000, 1, 0)]), stale);
        // Deleted: as if it had never been.
        world.apply(Body::ForgetDead(vec![ChunkId(1)]));
        assert_eq!(share(&mut world, 2000, &[extent(0, 1000, 1, 0)]), stale);
        assert_eq!(share(&mut world, 2000, &[extent(0, 1000, 999, 0)]), stale);
        assert_eq!(world.attr("g"), before);
        assert_eq!(dead(&world), [2]);
    }

    #[test]
    fn m8_references_fit_their_chunk() {
        #[track_caller]
        fn refused(spoil: impl FnOnce(&mut Extent), expected: FsError) {
            let mut world = shared_world();
            let mut extent = extent(0, 1000, 1, 0);
            spoil(&mut extent);
            assert_eq!(share(&mut world, 2000, &[extent]), Err(expected));
        }
        let invalid = FsError::Invalid;
        refused(|extent| extent.len = 1001, invalid);
        refused(|extent| extent.len = 0, invalid);
        refused(|extent| extent.chunk_offset = 1, invalid);
        refused(|extent| extent.chunk_offset = u32::MAX, invalid);
        refused(|extent| extent.offset = 1001, invalid);
        refused(|extent| extent.replicas.clear(), invalid);
        // What a session brings it lists.
        refused(|extent| extent.chunk = ChunkId(3), FsError::Stale);
    }

    /// Its copies may have moved since the sender heard of them: the table knows where they are.
    #[test]
    fn m8_a_reference_may_name_older_places() {
        let mut world = shared_world();
        let listed = world.state.chunks.replicas(ChunkId(1));
        let mut extent = extent(0, 1000, 1, 0);
        extent.replicas = vec![NodeId(7)];
        share(&mut world, 2000, &[extent]).expect("taken");
        assert_eq!(world.state.chunks.replicas(ChunkId(1)), listed);
    }

    #[test]
    fn q3_shared_bytes_count_for_each_file() {
        let mut world = shared_world();
        world.setup("mkdir d; touch d/h; chattr user.glu.quota.bytes=5096 d");
        let put = |world: &mut World, add: &[Extent]| {
            let file = flush_to(world, "d/h", 2000, references(add));
            flush(world, file)
        };
        let full = Err(FsError::Quota);
        assert_eq!(put(&mut world, &[extent(0, 1000, 1, 0)]), full);
        // What others have is not given up.
        assert_eq!(dead(&world), [0_u64; 0]);
        put(&mut world, &[extent(0, 500, 1, 0)]).expect("fits");
        assert_eq!(world.state.check(), Ok(()));
    }

    #[test]
    fn numbers_of_an_ended_session_are_void() {
        let mut world = world();
        match world.apply(Body::OpenSession {
            node: NodeId(1),
            attempt: 2,
        }) {
            Reply::Session { session, .. } => world.session = session,
            other => panic!("{other:?}"),
        }
        let late = put(&mut world, 1000, extents(None, &[(0, 1000, 1, 0)]));
        assert_eq!(late, Err(FsError::Stale));
    }
}

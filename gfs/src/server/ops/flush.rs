//! Committing what an exclusive holder changed: attributes and content of many files at once.
//!
//! That the sender holds the files exclusively is the driver's to check; here each file is taken or refused by
//! itself. A refused file is as it was.

use super::{check_mode, check_owner, check_time};
use crate::server::state::{
    ChunkState, EXTENTS_MAX, Extents, FileContent, MetaState, Payload, Piece, RefChange, Replicas,
};
use consistency::wire::chunk::CHUNK_BYTES_MAX;
use consistency::wire::meta::{
    Attr, Extent, FILE_BYTES_MAX, FlushContent, FlushFile, FsError, INLINE_BYTES_MAX, OpReply,
};
use consistency::{ChunkId, Duration, SessionId, Timestamp};
use std::collections::BTreeMap;

/// How far a holder's clock may be ahead of the leader's and still be followed: it runs on its own between
/// two messages of the leader. What it has shown under its lease must not be taken back (S6), so the
/// cluster's clock goes along; a clock that is further off is broken and must not carry the cluster with it.
const AHEAD_MAX: Duration = Duration::from_millis(1_000);

pub(super) fn apply(
    state: &mut MetaState,
    now: Timestamp,
    session: SessionId,
    files: &[FlushFile],
) -> OpReply {
    let latest = now.plus(AHEAD_MAX);
    let flush = |file| flush_file(state, session, latest, file);
    OpReply::Flushed(files.iter().map(flush).collect())
}

fn flush_file(
    state: &mut MetaState,
    session: SessionId,
    latest: Timestamp,
    file: &FlushFile,
) -> Result<Attr, FsError> {
    let new_chunks = resolve(state, session, file)?;
    for (id, len, replicas) in new_chunks {
        state.chunks.enter(id, len, replicas);
    }
    let inode = state.inodes.get_mut(&file.ino).expect("resolved before");
    let Payload::File(content) = &mut inode.payload else {
        unreachable!("resolved to a regular file before");
    };
    let mut refs = RefChange::default();
    replace(content, file, &mut refs);
    let blocks = content.blocks();
    state.chunks.change_refs(refs);

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

fn resolve_chunks(
    state: &MetaState,
    session: SessionId,
    size: u64,
    add: &[Extent],
    chunks: &[(ChunkId, u32)],
) -> Result<Vec<(ChunkId, u32, Replicas)>, FsError> {
    let mut known: BTreeMap<ChunkId, (u32, Option<Replicas>)> = BTreeMap::new();
    for &(id, len) in chunks {
        if !(1..=CHUNK_BYTES_MAX).contains(&len) {
            return Err(FsError::Invalid);
        }
        if !state.sessions.owns_in(session, id) {
            // The number was given to a session that has ended: the chunk may be collected already.
            return Err(FsError::Stale);
        }
        let replicas = match state.chunks.state(id) {
            ChunkState::New => None,
            // Small files of one flush may share a chunk.
            ChunkState::Live(live_len, replicas) if live_len == len => Some(replicas),
            ChunkState::Live(..) => return Err(FsError::Invalid),
            ChunkState::Dead => return Err(FsError::Stale),
        };
        if known.insert(id, (len, replicas)).is_some() {
            return Err(FsError::Invalid);
        }
    }
    let mut new = Vec::new();
    for extent in add {
        let (chunk_len, replicas) = known.get_mut(&extent.chunk).ok_or(FsError::Invalid)?;
        let end = extent.offset.checked_add(u64::from(extent.len));
        let chunk_end = extent.chunk_offset.checked_add(extent.len);
        if extent.len == 0
            || end.is_none_or(|end| end > size)
            || chunk_end.is_none_or(|end| end > *chunk_len)
        {
            return Err(FsError::Invalid);
        }
        let told = Replicas::new(&extent.replicas).ok_or(FsError::Invalid)?;
        match replicas {
            Some(replicas) if *replicas == told => {}
            Some(_) => return Err(FsError::Invalid),
            None => {
                *replicas = Some(told);
                new.push((extent.chunk, *chunk_len, told));
            }
        }
    }
    // A chunk that no extent names is not entered: it is garbage once the session ends.
    Ok(new)
}

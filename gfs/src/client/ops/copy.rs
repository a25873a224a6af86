//! COPY_FILE_RANGE: the target gets the chunks of the source, not their bytes (W4).
//!
//! What lies in large pieces in committed chunks is shared; small pieces between them are copied, holes stay holes. If
//! nothing is worth sharing the kernel is told to read and write as it does where there is no such operation.

use super::setattr::{changed, without_suidgid};
use super::sync;
use crate::client::call::Patience;
use crate::client::content::{Base, Segment};
use crate::client::failure::NO_HANDLE;
use crate::client::node::{Delivery, State};
use crate::client::pack::{BYTES_PER_EXTENT, is_fragmented};
use crate::client::pages::clip;
use crate::client::{Core, Pin};
use crate::error::Errno;
use crate::tree::FileAt;
use consistency::wire::lease::Mode;
use consistency::wire::meta::{EXTENTS_MAX, FILE_BYTES_MAX};
use futures::{StreamExt, TryStreamExt};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant as Deadline, timeout};

/// Pieces from this size on are shared: with smaller ones the target's map would become too fine.
const SHARED_MIN: u64 = BYTES_PER_EXTENT;
/// Bytes that one call shares. They can be read and stored anew while dead chunks are still there.
const SHARED_MAX: u64 = 256 << 20;
/// Bytes that one call copies beside them, in memory.
const COPIED_MAX: u64 = 4 << 20;
/// Pieces that one call puts into the target.
const PIECES_MAX: usize = 4096;
/// Pieces read at a time.
const WIDTH: usize = 4;
/// How long a break of the source waits for the target's flush: so nobody changes the source between the two, unless
/// the chunk stores are slow.
const HOLD: Duration = Duration::from_secs(1);
/// How often it begins anew because other nodes took the target away; then the kernel reads and writes.
const ROUNDS: u32 = 8;

/// A copy of `len` bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub(super) from: FileAt,
    pub(super) to: FileAt,
    pub(super) len: u64,
}

/// Returns how many bytes were copied: fewer than wanted, as with read(2), but none only at the end of the source.
pub(super) async fn copy_file_range(core: &Arc<Core>, copy: Copy) -> Result<u64, Errno> {
    let end = copy.to.offset.checked_add(copy.len);
    if end.is_none_or(|end| end > FILE_BYTES_MAX) {
        return Err(Errno(libc::EFBIG));
    }
    if copy.len < SHARED_MIN {
        return Err(Errno::ENOTSUP);
    }
    // What refers to chunks must be flushed, whatever becomes of the caller.
    let task = run(Arc::clone(core), copy);
    core.detached(task).await
}

async fn run(core: Arc<Core>, copy: Copy) -> Result<u64, Errno> {
    let (source, target) = (core.pin(copy.from.ino), core.pin(copy.to.ino));
    for _ in 0..ROUNDS {
        core.wait_for_room().await?;
        own(&core, &target, copy).await?;
        // Nothing waits for a lease from here on: the source is held.
        let (segments, hold) = look(&core, &source, copy).await?;
        if segments.is_empty() {
            return Ok(0);
        }
        let pieces = plan(segments).ok_or(Errno::ENOTSUP)?;
        let mut transfer = pin!(transfer(&core, &target, copy, pieces));
        let copied = match timeout(HOLD, &mut transfer).await {
            Ok(copied) => copied,
            Err(_) => {
                drop(hold);
                transfer.await
            }
        };
        if let Some(copied) = copied? {
            return Ok(copied);
        }
    }
    Err(Errno::ENOTSUP)
}

/// Makes this node the owner of the target, with nothing unflushed: what fails later takes only the copy along.
async fn own(core: &Arc<Core>, target: &Pin, copy: Copy) -> Result<(), Errno> {
    core.change_owned(target, false, |_| core.locks.check(copy.to.handle))
        .await?;
    if target.state().is_dirty() {
        sync::fsync(core, target.ino, NO_HANDLE).await?;
    }
    Ok(())
}

/// Returns where the bytes of the source are, all of them at the leader, and holds its lease.
async fn look(
    core: &Arc<Core>,
    source: &Pin,
    copy: Copy,
) -> Result<(Vec<Segment>, Delivery), Errno> {
    let ino = source.ino;
    let until = Deadline::now() + core.config.request_deadline;
    while Deadline::now() < until {
        let dirty = {
            let mut state = source.state();
            let content = state.content.as_ref();
            let known = content.filter(|_| state.attr.is_some() && core.covered(&state, ino));
            let dirty = known.is_some() && state.is_dirty();
            if let Some(content) = known.filter(|_| !dirty) {
                let len = clip(state.size(), copy.from.offset, copy.len);
                let segments = content.segments(copy.from.offset, len);
                core.locks.check(copy.from.handle)?;
                let hold = Delivery::leased(source, &mut state);
                return Ok((segments, hold));
            }
            dirty
        };
        if dirty {
            core.flush_node(source).await?;
        } else {
            core.load(source, Mode::Shared, Patience::Session).await?;
        }
    }
    Err(Errno::EIO)
}

fn is_shared(segment: &Segment) -> bool {
    matches!(segment, Segment::Chunk(part) if u64::from(part.len) >= SHARED_MIN)
}

/// Returns what one call copies of the segments; `None` if that is not worth it.
fn plan(segments: Vec<Segment>) -> Option<Vec<Segment>> {
    let (mut shared, mut copied) = (0, 0);
    let fits = |segment: &Segment| {
        let len = segment.len();
        match segment {
            _ if is_shared(segment) => shared += len,
            Segment::Zero(_) => {}
            Segment::Bytes(_) | Segment::Chunk(_) => copied += len,
        }
        shared <= SHARED_MAX && copied <= COPIED_MAX
    };
    let segments = segments.into_iter().take(PIECES_MAX);
    let pieces: Vec<Segment> = segments.take_while(fits).collect();
    let hole = |segment: &Segment| matches!(segment, Segment::Zero(len) if *len >= SHARED_MIN);
    let worth_it = |segment: &Segment| is_shared(segment) || hole(segment);
    pieces.iter().any(worth_it).then_some(pieces)
}

/// Copies pieces and flushes the target. `None`: it belongs to another node by now.
async fn transfer(
    core: &Arc<Core>,
    target: &Pin,
    copy: Copy,
    pieces: Vec<Segment>,
) -> Result<Option<u64>, Errno> {
    let pieces: Vec<Segment> = futures::stream::iter(pieces)
        .map(|piece| async {
            match piece {
                Segment::Chunk(_) if !is_shared(&piece) => {
                    core.fetch(vec![piece]).await.map(Segment::Bytes)
                }
                ready => Ok(ready),
            }
        })
        .buffered(WIDTH)
        .try_collect()
        .await?;
    let changed = core.try_change(target, false, |state| apply(core, state, copy, pieces));
    let Some(copied) = changed else {
        return Ok(None);
    };
    let copied = copied?;
    // W4
    sync::fsync(core, target.ino, NO_HANDLE).await?;
    Ok(Some(copied))
}

/// Puts pieces into an owned file; returns their length.
fn apply(core: &Core, state: &mut State, copy: Copy, pieces: Vec<Segment>) -> Result<u64, Errno> {
    core.locks.check(copy.to.handle)?;
    let now = core.clock.stamp();
    let size = state.size();
    let content = state
        .content
        .as_mut()
        .expect("an owned file's content is known");
    if !has_room(content.base(), size, pieces.len()) {
        return Err(Errno::ENOTSUP);
    }
    let mut at = copy.to.offset;
    for piece in pieces {
        let len = piece.len();
        match piece {
            Segment::Bytes(bytes) => content.dirty.write(at, bytes),
            Segment::Zero(len) => content.dirty.zero(at, len),
            Segment::Chunk(part) => content.dirty.share(at, part),
        }
        at += len;
    }
    let attr = state
        .attr
        .as_mut()
        .expect("an owned file's attributes are known");
    attr.size = size.max(at);
    attr.mtime = now;
    attr.mode = without_suidgid(attr.mode);
    changed(state, now);
    Ok(at - copy.to.offset)
}

/// Tells whether a file may get so many more pieces. Writes join the pieces around them, and are never refused because
/// of those that copies have left: half of the bound is theirs.
fn has_room(base: &Base, size: u64, pieces: usize) -> bool {
    // Each may cut one that is there in two.
    let extents = base.extents() + 2 * pieces;
    !is_fragmented(base, size) && extents <= EXTENTS_MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::content::ChunkPart;
    use consistency::ChunkId;
    use consistency::wire::meta::{Content, Extent};

    const MIB: u64 = 1 << 20;

    fn chunk(len: u64) -> Segment {
        Segment::Chunk(ChunkPart {
            chunk: ChunkId(1),
            replicas: Vec::new(),
            offset: 0,
            len: u32::try_from(len).expect("at most 4 MiB"),
        })
    }

    #[track_caller]
    fn check(segments: &[Segment], expected: Option<usize>) {
        assert_eq!(plan(segments.to_vec()).map(|pieces| pieces.len()), expected);
    }

    #[test]
    fn large_pieces_and_holes_are_worth_it() {
        let bytes = || Segment::Bytes(vec![1; 1000].into());
        check(&[bytes()], None);
        check(
            &[chunk(SHARED_MIN - 1), Segment::Zero(SHARED_MIN - 1)],
            None,
        );
        check(&[chunk(SHARED_MIN)], Some(1));
        check(&[Segment::Zero(SHARED_MIN)], Some(1));
        check(
            &[bytes(), Segment::Zero(7), chunk(4 * MIB), bytes()],
            Some(4),
        );
    }

    #[test]
    fn a_map_is_not_made_too_fine() {
        #[track_caller]
        fn check(extents: u64, size: u64, pieces: usize, expected: bool) {
            let extent = |number| Extent {
                offset: number,
                len: 1,
                chunk: ChunkId(1),
                chunk_offset: 0,
                replicas: Vec::new(),
            };
            let base = Base::new(Content::Extents((0..extents).map(extent).collect()));
            assert_eq!(has_room(&base, size, pieces), expected);
        }
        check(16, 100, 1, true);
        check(17, 100, 1, false);
        check(17, SHARED_MIN, 1, true);
        let half = EXTENTS_MAX as u64 / 2;
        check(half - 200, 1 << 50, 100, true);
        check(half - 199, 1 << 50, 100, false);
    }

    #[test]
    fn one_call_has_bounds() {
        check(&vec![chunk(4 * MIB); 100], Some(64));
        check(&vec![Segment::Zero(1 << 40); 100], Some(100));
        // The small ones come first: what is worth sharing is too far away.
        let small = vec![chunk(SHARED_MIN / 2); 40];
        check(&[&small[..], &[chunk(4 * MIB)]].concat(), None);
        check(&[&[chunk(4 * MIB)], &small[..]].concat(), Some(33));
        let many = vec![[chunk(SHARED_MIN), Segment::Zero(1)]; PIECES_MAX].concat();
        check(&many, Some(2048));
        check(&vec![Segment::Zero(SHARED_MIN); 9000], Some(PIECES_MAX));
    }
}

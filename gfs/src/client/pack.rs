//! Which bytes a flush writes, and how they lie in chunks. Pure functions.
//!
//! Pieces in order of their offsets are packed one behind the other into chunks, so that many small changes cost
//! one chunk; what lies in chunks of other files stays there (W4). Where a file's map has become too fine, the neighbourhood of the change is written anew as well.

use super::content::{Base, ChunkPart, Segment, overlay};
use super::dirty::{Dirty, Span};
use bytes::Bytes;
use consistency::wire::chunk::CHUNK_BYTES_MAX;
use consistency::wire::meta::{Extent, FlushContent};
use consistency::{ChunkId, NodeId};
use std::collections::BTreeMap;
use std::ops::Range;

/// A map has this many extents plus one per [`BYTES_PER_EXTENT`] before its neighbourhood is rewritten.
const EXTENTS_FREE: u64 = 16;
/// See [`EXTENTS_FREE`].
pub(super) const BYTES_PER_EXTENT: u64 = 256 << 10;
/// What is rewritten around a change of a fragmented file.
const WINDOW: u64 = 1 << 20;
/// Windows rewritten by one flush at most.
const WINDOWS_MAX: usize = 32;

/// A chunk that is durable.
pub(super) struct Stored {
    pub(super) id: ChunkId,
    pub(super) len: u32,
    pub(super) replicas: Vec<NodeId>,
}

/// New bytes at an offset, and where they are to lie or lie already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Bytes(Bytes),
    Zero(u64),
    Chunk(ChunkPart),
}

impl Piece {
    /// Tells whether the byte at an offset in it lies in a chunk of another file.
    pub(super) fn shares(&self, at: u64) -> bool {
        matches!(self, Self::Chunk(part) if at < u64::from(part.len))
    }

    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zero(len) => *len,
            Self::Chunk(part) => u64::from(part.len),
        }
    }
}

/// Returns what the flush brings: changed bytes, zeros where the base has bytes, all old bytes if they are inline, and
/// parts of other files' chunks.
pub(super) fn new_pieces(base: &Base, dirty: &Dirty, size: u64) -> BTreeMap<u64, Piece> {
    let mut pieces = BTreeMap::new();
    if let Base::Inline(_) = base {
        let mut at = 0;
        for segment in overlay(&[dirty], base, 0, size) {
            let len = segment.len();
            match segment {
                Segment::Bytes(bytes) => drop(pieces.insert(at, Piece::Bytes(bytes))),
                Segment::Chunk(part) => drop(pieces.insert(at, Piece::Chunk(part))),
                Segment::Zero(_) => {}
            }
            at += len;
        }
        return pieces;
    }
    for (at, span) in dirty.pieces().filter(|(at, _)| *at < size) {
        match span {
            Span::Bytes(bytes) => {
                pieces.insert(at, Piece::Bytes(bytes));
            }
            Span::Chunk(part) => {
                let (at, part) = lengthened(base, dirty, size, at, part);
                pieces.insert(at, Piece::Chunk(part));
            }
            Span::Zero(len) | Span::Below(len) => {
                let end = (at + len).min(size).min(dirty.cut().unwrap_or(u64::MAX));
                zeros_over(base, at, end, &mut pieces);
            }
        }
    }
    pieces
}

/// Returns a part of a chunk together with what lies before and behind it in the file, if that is the same in the
/// chunk: a chunk that is shared in many small steps becomes one extent.
fn lengthened(
    base: &Base,
    dirty: &Dirty,
    size: u64,
    at: u64,
    mut part: ChunkPart,
) -> (u64, ChunkPart) {
    let reach = u64::from(CHUNK_BYTES_MAX);
    let end = at + u64::from(part.len);
    let behind = overlay(&[dirty], base, end, size.saturating_sub(end).min(reach));
    if let Some(Segment::Chunk(next)) = behind.first() {
        part = part.joined(next).unwrap_or(part);
    }
    let back = at.min(reach);
    let before = overlay(&[dirty], base, at - back, back);
    if let Some(Segment::Chunk(last)) = before.last()
        && let Some(joined) = last.joined(&part)
    {
        return (at - u64::from(last.len), joined);
    }
    (at, part)
}

/// Adds zeros where the base has bytes.
fn zeros_over(base: &Base, from: u64, to: u64, pieces: &mut BTreeMap<u64, Piece>) {
    if from >= to {
        // Behind the cut: zero already.
        return;
    }
    let mut below = Vec::new();
    base.segments(from, to - from, &mut below);
    let mut at = from;
    for segment in below {
        let len = segment.len();
        if let Segment::Chunk(_) = segment {
            pieces.insert(at, Piece::Zero(len));
        }
        at += len;
    }
}

/// Tells whether a file's map has become too fine.
pub(super) fn is_fragmented(base: &Base, size: u64) -> bool {
    base.extents() as u64 > EXTENTS_FREE + size / BYTES_PER_EXTENT
}

/// Returns the ranges to rewrite whole because the file's map has become too fine.
pub(super) fn fragmented_windows(
    base: &Base,
    pieces: &BTreeMap<u64, Piece>,
    size: u64,
) -> Vec<Range<u64>> {
    if !is_fragmented(base, size) {
        return Vec::new();
    }
    let mut windows: Vec<Range<u64>> = Vec::new();
    let written = |piece: &Piece| !matches!(piece, Piece::Chunk(_));
    for (&at, piece) in pieces.iter().filter(|(_, piece)| written(piece)) {
        let last = (at + piece.len() - 1) / WINDOW;
        for window in at / WINDOW..=last {
            let start = window * WINDOW;
            let known = windows.last().is_some_and(|last| last.start == start);
            if !known && windows.len() < WINDOWS_MAX {
                windows.push(start..(start + WINDOW).min(size));
            }
        }
    }
    windows
}

/// Pieces packed into chunks.
pub(super) struct Packed {
    pub(super) chunks: Vec<Vec<Bytes>>,
    /// Offset, length, number of the chunk, offset in it.
    extents: Vec<(u64, u32, usize, u32)>,
    /// What lies in chunks of other files.
    shared: Vec<(u64, ChunkPart)>,
}

impl Packed {
    pub(super) fn new(pieces: impl Iterator<Item = (u64, Piece)>) -> Self {
        let mut packed = Self {
            chunks: Vec::new(),
            extents: Vec::new(),
            shared: Vec::new(),
        };
        let mut zeros = Vec::new();
        let mut filled = CHUNK_BYTES_MAX;
        for (mut at, piece) in pieces {
            let mut bytes = match piece {
                Piece::Bytes(bytes) => bytes,
                Piece::Zero(len) => {
                    zeros.push((at, len));
                    continue;
                }
                Piece::Chunk(part) => {
                    packed.share(at, part);
                    continue;
                }
            };
            while !bytes.is_empty() {
                if filled == CHUNK_BYTES_MAX {
                    packed.chunks.push(Vec::new());
                    filled = 0;
                }
                let room = (CHUNK_BYTES_MAX - filled) as usize;
                let part = bytes.split_to(bytes.len().min(room));
                let len = u32::try_from(part.len()).expect("at most a chunk");
                packed.extent(at, len, filled);
                at += u64::from(len);
                filled += len;
                packed.chunks.last_mut().expect("pushed above").push(part);
            }
        }
        packed.add_zeros(&zeros);
        packed
    }

    /// Adds an extent in the last chunk, or lengthens the one before.
    fn extent(&mut self, at: u64, len: u32, chunk_offset: u32) {
        let chunk = self.chunks.len() - 1;
        if let Some(last) = self.extents.last_mut() {
            let behind = last.0 + u64::from(last.1) == at && last.3 + last.1 == chunk_offset;
            if behind && last.2 == chunk {
                last.1 += len;
                return;
            }
        }
        self.extents.push((at, len, chunk, chunk_offset));
    }

    /// Adds an extent of another file's chunk, or lengthens the one before.
    fn share(&mut self, at: u64, part: ChunkPart) {
        if let Some((start, last)) = self.shared.last_mut()
            && *start + u64::from(last.len) == at
            && let Some(joined) = last.joined(&part)
        {
            *last = joined;
            return;
        }
        self.shared.push((at, part));
    }

    /// One chunk of zeros stands for all of them.
    fn add_zeros(&mut self, zeros: &[(u64, u64)]) {
        let Some(longest) = zeros.iter().map(|&(_, len)| len).max() else {
            return;
        };
        let chunk_len = u32::try_from(longest)
            .unwrap_or(u32::MAX)
            .min(CHUNK_BYTES_MAX);
        self.chunks.push(vec![vec![0; chunk_len as usize].into()]);
        for &(start, len) in zeros {
            let mut at = start;
            while at < start + len {
                let part = (start + len - at).min(u64::from(chunk_len));
                let part = u32::try_from(part).expect("at most a chunk");
                self.extents.push((at, part, self.chunks.len() - 1, 0));
                at += u64::from(part);
            }
        }
    }

    pub(super) fn into_content(self, cut: Option<u64>, stored: &[Stored]) -> FlushContent {
        let extent = |(offset, len, chunk, chunk_offset): (u64, u32, usize, u32)| Extent {
            offset,
            len,
            chunk: stored[chunk].id,
            chunk_offset,
            replicas: stored[chunk].replicas.clone(),
        };
        let shared = |(offset, part): (u64, ChunkPart)| Extent {
            offset,
            len: part.len,
            chunk: part.chunk,
            chunk_offset: part.offset,
            replicas: part.replicas,
        };
        let mut add: Vec<Extent> = self.extents.into_iter().map(extent).collect();
        add.extend(self.shared.into_iter().map(shared));
        add.sort_by_key(|extent| extent.offset);
        FlushContent::Extents {
            cut,
            add,
            chunks: stored.iter().map(|chunk| (chunk.id, chunk.len)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::meta::Content;

    #[track_caller]
    fn check(pieces: &[(u64, Piece)], chunk_lens: &[usize], extents: &[(u64, u32, usize, u32)]) {
        let packed = Packed::new(pieces.iter().cloned());
        let lens = packed.chunks.iter().map(|c| c.iter().map(Bytes::len).sum());
        assert_eq!(lens.collect::<Vec<usize>>(), chunk_lens);
        assert_eq!(packed.extents, extents);
    }

    #[test]
    fn zeros_are_written_where_the_base_shows_through() {
        #[track_caller]
        fn check(change: impl FnOnce(&mut Dirty), expected: &[(u64, Piece)]) {
            let extent = Extent {
                offset: 0,
                len: 100,
                chunk: ChunkId(1),
                chunk_offset: 0,
                replicas: Vec::new(),
            };
            let base = Base::new(Content::Extents(vec![extent]));
            let mut dirty = Dirty::default();
            change(&mut dirty);
            let pieces = new_pieces(&base, &dirty, 200);
            assert_eq!(pieces.into_iter().collect::<Vec<_>>(), expected);
        }
        check(|dirty| dirty.zero(60, 10), &[(60, Piece::Zero(10))]);
        check(|dirty| dirty.zero(60, 80), &[(60, Piece::Zero(40))]);
        check(|dirty| dirty.zero(100, 80), &[]);
        let cut_then_zero = |from, len| {
            move |dirty: &mut Dirty| {
                dirty.truncate(65);
                dirty.zero(from, len);
            }
        };
        check(cut_then_zero(60, 10), &[(60, Piece::Zero(5))]);
        check(cut_then_zero(65, 5), &[]);
        check(cut_then_zero(70, 10), &[]);
    }

    fn part(chunk: u64, offset: u32, len: u32) -> ChunkPart {
        ChunkPart {
            chunk: ChunkId(chunk),
            replicas: vec![NodeId(1)],
            offset,
            len,
        }
    }

    /// Shares a part with a file of these extents (offset, chunk, offset in it, length), and shows what is sent.
    #[track_caller]
    fn check_shared(
        base: &[(u64, u64, u32, u32)],
        change: impl FnOnce(&mut Dirty),
        expected: &[(u64, u64, u32, u32)],
    ) {
        let extent = |&(offset, chunk, chunk_offset, len): &(u64, u64, u32, u32)| Extent {
            offset,
            len,
            chunk: ChunkId(chunk),
            chunk_offset,
            replicas: vec![NodeId(1)],
        };
        let base = Base::new(Content::Extents(base.iter().map(extent).collect()));
        let mut dirty = Dirty::default();
        change(&mut dirty);
        let packed = Packed::new(new_pieces(&base, &dirty, 1000).into_iter());
        assert!(packed.chunks.is_empty(), "nothing is written");
        match packed.into_content(dirty.cut(), &[]) {
            FlushContent::Extents { add, chunks, .. } => {
                assert_eq!(add, expected.iter().map(extent).collect::<Vec<_>>());
                assert!(chunks.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn w4_shared_parts_are_not_written() {
        let share = |at, part: ChunkPart| move |dirty: &mut Dirty| dirty.share(at, part);
        check_shared(&[], share(50, part(7, 3, 20)), &[(50, 7, 3, 20)]);
        // Together with what is there of the same chunk.
        let base = [(0, 7, 0, 50), (70, 7, 70, 30)];
        check_shared(&base, share(50, part(7, 50, 20)), &[(0, 7, 0, 100)]);
        check_shared(&base, share(50, part(7, 49, 20)), &[(50, 7, 49, 20)]);
        check_shared(&base, share(50, part(8, 50, 20)), &[(50, 8, 50, 20)]);
        // Not with what has been cut off.
        let after_cut = |dirty: &mut Dirty| {
            dirty.truncate(40);
            dirty.share(50, part(7, 50, 20));
        };
        check_shared(&base, after_cut, &[(50, 7, 50, 20)]);
        // One step after the other.
        let steps = |dirty: &mut Dirty| {
            dirty.share(0, part(7, 0, 10));
            dirty.share(10, part(7, 10, 10));
            dirty.share(20, part(9, 0, 10));
        };
        check_shared(&[], steps, &[(0, 7, 0, 20), (20, 9, 0, 10)]);
    }

    fn bytes(len: usize) -> Piece {
        Piece::Bytes(vec![1; len].into())
    }

    #[test]
    fn packing() {
        check(&[], &[], &[]);
        check(
            &[(0, bytes(10)), (10, bytes(5)), (100, bytes(5))],
            &[20],
            &[(0, 15, 0, 0), (100, 5, 0, 15)],
        );
        let max = CHUNK_BYTES_MAX as usize;
        check(
            &[(0, bytes(max + 3))],
            &[max, 3],
            &[(0, CHUNK_BYTES_MAX, 0, 0), (max as u64, 3, 1, 0)],
        );
        check(
            &[(0, Piece::Zero(7)), (50, Piece::Zero(10)), (70, bytes(1))],
            &[1, 10],
            &[(70, 1, 0, 0), (0, 7, 1, 0), (50, 10, 1, 0)],
        );
    }
}

//! Which bytes a flush writes, and how they lie in chunks. Pure functions.
//!
//! Pieces in order of their offsets are packed one behind the other into chunks, so that many small changes cost
//! one chunk. Where a file's map has become too fine, the neighbourhood of the change is written anew as well.

use super::content::{Base, Segment, overlay};
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
const BYTES_PER_EXTENT: u64 = 256 << 10;
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

/// New bytes at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Bytes(Bytes),
    Zero(u64),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zero(len) => *len,
        }
    }
}

/// Returns what must be written anew: changed bytes, zeros where the base has bytes, and all old bytes if they
/// are inline.
pub(super) fn new_pieces(base: &Base, dirty: &Dirty, size: u64) -> BTreeMap<u64, Piece> {
    let mut pieces = BTreeMap::new();
    if let Base::Inline(_) = base {
        let mut at = 0;
        for segment in overlay(&[dirty], base, 0, size) {
            let len = segment.len();
            if let Segment::Bytes(bytes) = segment {
                pieces.insert(at, Piece::Bytes(bytes));
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
            Span::Zero(len) | Span::Below(len) => {
                let end = (at + len).min(size).min(dirty.cut().unwrap_or(u64::MAX));
                zeros_over(base, at, end, &mut pieces);
            }
        }
    }
    pieces
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
        if let Segment::Chunk { .. } = segment {
            pieces.insert(at, Piece::Zero(len));
        }
        at += len;
    }
}

/// Returns the ranges to rewrite whole because the file's map has become too fine.
pub(super) fn fragmented_windows(
    base: &Base,
    pieces: &BTreeMap<u64, Piece>,
    size: u64,
) -> Vec<Range<u64>> {
    let Base::Extents(extents) = base else {
        return Vec::new();
    };
    if extents.len() as u64 <= EXTENTS_FREE + size / BYTES_PER_EXTENT {
        return Vec::new();
    }
    let mut windows: Vec<Range<u64>> = Vec::new();
    for (&at, piece) in pieces {
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
}

impl Packed {
    pub(super) fn new(pieces: impl Iterator<Item = (u64, Piece)>) -> Self {
        let mut packed = Self {
            chunks: Vec::new(),
            extents: Vec::new(),
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
        let mut extents = self.extents;
        extents.sort_unstable_by_key(|extent| extent.0);
        let extent = |(offset, len, chunk, chunk_offset): (u64, u32, usize, u32)| Extent {
            offset,
            len,
            chunk: stored[chunk].id,
            chunk_offset,
            replicas: stored[chunk].replicas.clone(),
        };
        FlushContent::Extents {
            cut,
            add: extents.into_iter().map(extent).collect(),
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

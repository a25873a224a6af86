//! What a file contains: its bytes, or a map of extents.

use bytes::Bytes;
use consistency::ChunkId;
use consistency::wire::MESSAGE_BYTES_MAX;
use consistency::wire::meta::EXTENTS_MAX;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, btree_map};

use super::chunks::REPLICAS_MAX;

/// An extent on the wire at its longest: two 64-bit and two 32-bit numbers, the replicas and their count.
const EXTENT_WIRE_BYTES_MAX: usize = 9 + 5 + 9 + 5 + 1 + 3 * REPLICAS_MAX;
const _: () = assert!(EXTENTS_MAX * EXTENT_WIRE_BYTES_MAX + 1024 <= MESSAGE_BYTES_MAX);

/// Content of a regular file. What it does not cover, up to the size, is zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FileContent {
    /// A small file: its bytes.
    Inline(Bytes),
    /// Where its bytes are.
    Extents(Extents),
}

/// Extents of a file, sorted and disjoint. A vector: most files have one extent, and a map's node would cost
/// each of them ten times its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extents {
    pieces: Vec<Piece>,
    bytes: u64,
}

/// A range of a file and where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// First byte in the file.
    pub(crate) offset: u64,
    /// Length in bytes, at least 1.
    pub(crate) len: u32,
    /// First byte in the chunk.
    pub(crate) chunk_offset: u32,
    /// Chunk that holds the bytes.
    pub(crate) chunk: ChunkId,
}

/// By how much references to chunks went up or down; collected first and applied in one go, so that a chunk
/// that is cut in two does not die in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RefChange(BTreeMap<ChunkId, i32>);

impl RefChange {
    fn add(&mut self, chunk: ChunkId, by: i32) {
        *self.0.entry(chunk).or_default() += by;
    }
}

impl IntoIterator for RefChange {
    type Item = (ChunkId, i32);
    type IntoIter = btree_map::IntoIter<ChunkId, i32>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Default for FileContent {
    fn default() -> Self {
        Self::Inline(Bytes::new())
    }
}

impl FileContent {
    /// Returns the allocated 512-byte units.
    pub(crate) const fn blocks(&self) -> u64 {
        match self {
            Self::Inline(bytes) => (bytes.len() as u64).div_ceil(512),
            Self::Extents(extents) => extents.bytes.div_ceil(512),
        }
    }

    /// Returns the first byte after the last one stored.
    pub(crate) fn end(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Extents(extents) => extents.pieces.last().map_or(0, Piece::end),
        }
    }

    /// Drops everything from `size` on.
    pub(crate) fn cut(&mut self, size: u64, refs: &mut RefChange) {
        match self {
            Self::Inline(bytes) => bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX)),
            Self::Extents(extents) => extents.cut(size, refs),
        }
    }
}

impl Piece {
    /// Returns the first byte after it.
    pub(crate) const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len as u64)
    }

    /// Returns the part of it before `at`, if there is one.
    fn before(self, at: u64) -> Option<Self> {
        let len = at.checked_sub(self.offset)?.min(u64::from(self.len));
        let len = u32::try_from(len).expect("a part is no longer than the whole");
        (len > 0).then_some(Self { len, ..self })
    }

    /// Returns the part of it from `at` on, if there is one.
    fn after(self, at: u64) -> Option<Self> {
        let skip = at.saturating_sub(self.offset).min(u64::from(self.len));
        let skip = u32::try_from(skip).expect("a part is no longer than the whole");
        (skip < self.len).then(|| Self {
            offset: self.offset + u64::from(skip),
            len: self.len - skip,
            chunk_offset: self.chunk_offset + skip,
            ..self
        })
    }
}

impl Extents {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter()
    }

    pub(crate) const fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Puts an extent in; it replaces what it covers.
    pub(crate) fn insert(&mut self, piece: Piece, refs: &mut RefChange) {
        self.replace(piece.offset, piece.end(), Some(piece), refs);
    }

    /// Drops everything from `size` on.
    pub(crate) fn cut(&mut self, size: u64, refs: &mut RefChange) {
        self.replace(size, u64::MAX, None, refs);
    }

    fn replace(&mut self, from: u64, to: u64, new: Option<Piece>, refs: &mut RefChange) {
        let first = self.pieces.partition_point(|piece| piece.end() <= from);
        let last = first + self.pieces[first..].partition_point(|piece| piece.offset < to);
        let old = &self.pieces[first..last];
        let left = old.first().and_then(|piece| piece.before(from));
        let right = old.last().and_then(|piece| piece.after(to));
        for piece in old {
            self.bytes -= u64::from(piece.len);
            refs.add(piece.chunk, -1);
        }
        let stay = left.into_iter().chain(new).chain(right);
        for piece in stay.clone() {
            self.bytes += u64::from(piece.len);
            refs.add(piece.chunk, 1);
        }
        self.pieces.splice(first..last, stay);
    }

    /// Says what is wrong with the map, see [`super::MetaState::check`].
    pub(super) fn check(&self) -> Result<(), String> {
        let mut end = 0;
        for piece in &self.pieces {
            if piece.len == 0 || piece.offset < end {
                return Err(format!("extent {piece:?} overlaps or is empty"));
            }
            end = piece.end();
        }
        let bytes: u64 = self.pieces.iter().map(|piece| u64::from(piece.len)).sum();
        if bytes != self.bytes {
            return Err(format!("{bytes} bytes of extents count as {}", self.bytes));
        }
        if self.pieces.len() > EXTENTS_MAX {
            return Err(format!("{} extents", self.pieces.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;
    use crate::server::state::tests::Dice;

    const SPACE: usize = 64;

    /// Each byte of the file as (chunk, offset in the chunk).
    type Model = [Option<(ChunkId, u32)>; SPACE];

    fn bytes_of(extents: &Extents) -> Model {
        let mut model = [None; SPACE];
        for piece in extents.iter() {
            for at in 0..piece.len {
                model[(piece.offset + u64::from(at)) as usize] =
                    Some((piece.chunk, piece.chunk_offset + at));
            }
        }
        model
    }

    #[test]
    fn behaves_like_an_array_of_bytes() {
        let mut dice = Dice::new(7);
        let (mut extents, mut model) = (Extents::default(), [None; SPACE]);
        let mut counts: BTreeMap<ChunkId, i32> = BTreeMap::new();
        for step in 0..20_000_u64 {
            let mut refs = RefChange::default();
            let from = dice.below(SPACE as u64);
            if dice.below(20) == 0 {
                extents.cut(from, &mut refs);
                model[from as usize..].fill(None);
            } else {
                let len = 1 + dice.below((SPACE as u64 - from).min(20)) as u32;
                let piece = Piece {
                    offset: from,
                    len,
                    chunk: ChunkId(step),
                    chunk_offset: dice.below(5) as u32,
                };
                extents.insert(piece, &mut refs);
                for at in 0..len {
                    model[from as usize + at as usize] =
                        Some((piece.chunk, piece.chunk_offset + at));
                }
            }
            for (chunk, by) in refs {
                *counts.entry(chunk).or_default() += by;
            }
            counts.retain(|_, count| *count != 0);
            let mut expected: BTreeMap<ChunkId, i32> = BTreeMap::new();
            for piece in extents.iter() {
                *expected.entry(piece.chunk).or_default() += 1;
            }
            assert_eq!(bytes_of(&extents), model, "step {step}");
            assert_eq!(counts, expected, "step {step}");
            assert_eq!(extents.check(), Ok(()), "step {step}");
        }
    }
}

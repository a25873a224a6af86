//! Where the bytes of a file are: a map from ranges of the file to ranges of chunks.
//!
//! An *extent* says that `len` bytes of the file from `offset` on are those of `chunk` from `chunk_offset` on;
//! what no extent covers is a *hole* and reads as zero. Chunks are immutable, so a change of the file puts a new
//! extent over old ones; the parts that are covered come back as *freed* extents. A chunk whose bytes have all
//! been freed is dead: whoever counts `len` per chunk knows when, as long as no chunk byte is in the map twice.
//!
//! Rules:
//! - E1: extents are sorted by offset, do not overlap and are not empty.
//! - E2: an extent lies inside the largest chunk and inside the largest file, so that its ends never overflow.
//!
//! The map is a sorted `Vec`: most files have one extent, which then costs 24 bytes; moving the tail of 100,000
//! extents takes some 50 us, far below the flush that an insertion belongs to.

use consistency::wire::chunk::CHUNK_BYTES_MAX;
use consistency::wire::meta::{self, FILE_BYTES_MAX};
use consistency::{ChunkId, NodeId};
use serde::{Deserialize, Serialize};

/// A range of a file and the bytes of a chunk that it consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes, 1 to [`CHUNK_BYTES_MAX`].
    pub len: u32,
    /// First byte in the chunk.
    pub chunk_offset: u32,
    /// Chunk that holds the bytes.
    pub chunk: ChunkId,
}

/// Why extents from outside are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtentError {
    /// Empty, or reaches beyond the largest chunk or the largest file (E2).
    #[error("extent of {len} bytes at {offset} is empty or too large")]
    OutOfBounds {
        /// First byte in the file.
        offset: u64,
        /// Length in bytes.
        len: u32,
    },
    /// Begins before the end of its predecessor (E1).
    #[error("extent at {offset} begins before its predecessor ends")]
    OutOfOrder {
        /// First byte in the file.
        offset: u64,
    },
}

impl Extent {
    /// Returns the first byte of the file after the extent.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset + self.len as u64
    }

    /// Checks rule E2.
    ///
    /// # Errors
    /// [`ExtentError::OutOfBounds`].
    pub fn check(&self) -> Result<(), ExtentError> {
        let in_chunk =
            (self.chunk_offset.checked_add(self.len)).is_some_and(|end| end <= CHUNK_BYTES_MAX);
        let in_file =
            (self.offset.checked_add(self.len.into())).is_some_and(|end| end <= FILE_BYTES_MAX);
        if self.len > 0 && in_chunk && in_file {
            Ok(())
        } else {
            let (offset, len) = (self.offset, self.len);
            Err(ExtentError::OutOfBounds { offset, len })
        }
    }

    /// Returns the part that lies in `from..to`, if there is one.
    #[must_use]
    fn slice(&self, from: u64, to: u64) -> Option<Self> {
        let (start, end) = (self.offset.max(from), self.end().min(to));
        if start >= end {
            return None;
        }
        let within =
            |bytes: u64| u32::try_from(bytes).expect("a part is not longer than its extent");
        Some(Self {
            offset: start,
            len: within(end - start),
            chunk_offset: self.chunk_offset + within(start - self.offset),
            chunk: self.chunk,
        })
    }
}

/// A piece of a range, as [`ExtentMap::range`] cuts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes of a chunk.
    Data(Extent),
    /// Zeroes.
    Hole {
        /// First byte in the file.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// The extents of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Extent>")]
pub struct ExtentMap(Vec<Extent>);

impl ExtentMap {
    /// Returns a map without extents: one hole.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Puts an extent over what is there and returns the parts that it covers, in order.
    ///
    /// # Panics
    /// If the extent breaks rule E2: [`Extent::check`] what comes from outside.
    pub fn insert(&mut self, extent: Extent) -> Vec<Extent> {
        assert_eq!(
            extent.check(),
            Ok(()),
            "extents are checked where they come in"
        );
        self.replace(extent.offset, extent.end(), Some(extent))
    }

    /// Makes everything from `from` on a hole and returns what was there, in order.
    pub fn cut(&mut self, from: u64) -> Vec<Extent> {
        self.replace(from, u64::MAX, None)
    }

    /// Makes `len` bytes from `offset` on a hole and returns what was there, in order.
    pub fn punch(&mut self, offset: u64, len: u64) -> Vec<Extent> {
        self.replace(offset, offset.saturating_add(len), None)
    }

    /// Returns the pieces of a range in order; together they are exactly the range.
    pub fn range(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> + '_ {
        let end = offset.saturating_add(len);
        let mut at = offset;
        let mut rest = self.0[self.first_ending_after(offset)..].iter().peekable();
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let piece = match rest.peek() {
                Some(extent) if extent.offset <= at => {
                    let part = extent
                        .slice(at, end)
                        .expect("it ends after `at`, which lies before the end");
                    rest.next();
                    Piece::Data(part)
                }
                next => {
                    let hole_end = next.map_or(end, |extent| extent.offset.min(end));
                    Piece::Hole {
                        offset: at,
                        len: hole_end - at,
                    }
                }
            };
            at = match piece {
                Piece::Data(extent) => extent.end(),
                Piece::Hole { offset, len } => offset + len,
            };
            Some(piece)
        })
    }

    /// Returns the extents in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Extent> {
        self.0.iter()
    }

    /// Returns the number of extents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether all of the file is a hole.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns how many bytes are not holes.
    #[must_use]
    pub fn bytes_allocated(&self) -> u64 {
        self.0.iter().map(|extent| u64::from(extent.len)).sum()
    }

    /// Returns the first byte of the file after the last extent, 0 if there is none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, Extent::end)
    }

    /// Returns the first byte at or after `offset` that is no hole (SEEK_DATA).
    #[must_use]
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let next = self.0.get(self.first_ending_after(offset))?;
        Some(next.offset.max(offset))
    }

    /// Returns the first byte at or after `offset` that is a hole, at most `size`, where a hole always begins
    /// (SEEK_HOLE).
    #[must_use]
    pub fn next_hole(&self, offset: u64, size: u64) -> u64 {
        let mut at = offset;
        for extent in &self.0[self.first_ending_after(offset)..] {
            if extent.offset > at || at >= size {
                break;
            }
            at = extent.end();
        }
        at.min(size)
    }

    /// Takes extents as they came over the wire; `learn` hears where each chunk is.
    ///
    /// # Errors
    /// [`ExtentError`] if they break a rule.
    pub fn from_wire(
        extents: Vec<meta::Extent>,
        mut learn: impl FnMut(ChunkId, Vec<NodeId>),
    ) -> Result<Self, ExtentError> {
        let take = |wire: meta::Extent| {
            let extent = Extent::from(&wire);
            learn(wire.chunk, wire.replicas);
            extent
        };
        Self::try_from(extents.into_iter().map(take).collect::<Vec<_>>())
    }

    /// Returns the extents for the wire; `replicas` tells where a chunk is.
    pub fn to_wire(&self, mut replicas: impl FnMut(ChunkId) -> Vec<NodeId>) -> Vec<meta::Extent> {
        let wire = |extent: &Extent| meta::Extent {
            offset: extent.offset,
            len: extent.len,
            chunk: extent.chunk,
            chunk_offset: extent.chunk_offset,
            replicas: replicas(extent.chunk),
        };
        self.0.iter().map(wire).collect()
    }

    /// Returns the index of the first extent that ends after `offset`.
    fn first_ending_after(&self, offset: u64) -> usize {
        self.0.partition_point(|extent| extent.end() <= offset)
    }

    /// Replaces what is in `from..to` and returns it.
    fn replace(&mut self, from: u64, to: u64, new: Option<Extent>) -> Vec<Extent> {
        if from >= to {
            return Vec::new();
        }
        let first = self.first_ending_after(from);
        let covered = self.0[first..].partition_point(|extent| extent.offset < to);
        let touched = &self.0[first..first + covered];
        let freed = touched
            .iter()
            .filter_map(|extent| extent.slice(from, to))
            .collect();
        // Only the outermost two can stick out of the range; one extent may do so on both sides.
        let before = touched.first().and_then(|extent| extent.slice(0, from));
        let after = touched.last().and_then(|extent| extent.slice(to, u64::MAX));
        let stay = [before, new, after].into_iter().flatten();
        self.0.splice(first..first + covered, stay);
        freed
    }
}

impl From<&meta::Extent> for Extent {
    fn from(wire: &meta::Extent) -> Self {
        Self {
            offset: wire.offset,
            len: wire.len,
            chunk_offset: wire.chunk_offset,
            chunk: wire.chunk,
        }
    }
}

impl TryFrom<Vec<Extent>> for ExtentMap {
    type Error = ExtentError;

    fn try_from(extents: Vec<Extent>) -> Result<Self, ExtentError> {
        let mut end = 0;
        for extent in &extents {
            extent.check()?;
            if extent.offset < end {
                return Err(ExtentError::OutOfOrder {
                    offset: extent.offset,
                });
            }
            end = extent.end();
        }
        Ok(Self(extents))
    }
}

impl<'a> IntoIterator for &'a ExtentMap {
    type Item = &'a Extent;
    type IntoIter = std::slice::Iter<'a, Extent>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers are small")]
mod tests {
    use super::*;
    use consistency::wire::{decode, encode};
    use std::collections::BTreeMap;

    fn extent(offset: u64, len: u32, chunk: u64, chunk_offset: u32) -> Extent {
        let chunk = ChunkId(chunk);
        Extent {
            offset,
            len,
            chunk_offset,
            chunk,
        }
    }

    fn map(extents: &[Extent]) -> ExtentMap {
        ExtentMap::try_from(extents.to_vec()).expect("valid")
    }

    /// Inserts chunk 9 at `offset` over `before`.
    #[track_caller]
    fn check_insert(
        before: &[Extent],
        (offset, len): (u64, u32),
        after: &[Extent],
        freed: &[Extent],
    ) {
        let mut map = map(before);
        assert_eq!(map.insert(extent(offset, len, 9, 0)), freed);
        assert_eq!(map.0, after);
    }

    #[test]
    fn insert_covers_and_splits() {
        let old = [extent(10, 10, 1, 100)];
        let new = |offset, len| extent(offset, len, 9, 0);
        check_insert(&[], (0, 5), &[new(0, 5)], &[]);
        check_insert(&old, (0, 10), &[new(0, 10), old[0]], &[]);
        check_insert(&old, (20, 5), &[old[0], new(20, 5)], &[]);
        check_insert(&old, (10, 10), &[new(10, 10)], &old);
        check_insert(&old, (0, 99), &[new(0, 99)], &old);
        check_insert(
            &old,
            (5, 8),
            &[new(5, 8), extent(13, 7, 1, 103)],
            &[extent(10, 3, 1, 100)],
        );
        check_insert(
            &old,
            (17, 8),
            &[extent(10, 7, 1, 100), new(17, 8)],
            &[extent(17, 3, 1, 107)],
        );
        let split = [extent(10, 2, 1, 100), new(12, 3), extent(15, 5, 1, 105)];
        check_insert(&old, (12, 3), &split, &[extent(12, 3, 1, 102)]);
        let two = [extent(0, 10, 1, 0), extent(15, 10, 2, 0)];
        let over = [extent(0, 5, 1, 0), new(5, 15), extent(20, 5, 2, 5)];
        check_insert(
            &two,
            (5, 15),
            &over,
            &[extent(5, 5, 1, 5), extent(15, 5, 2, 0)],
        );
    }

    #[track_caller]
    fn check_range(offset: u64, len: u64, pieces: &[Piece]) {
        let map = map(&[
            extent(10, 10, 1, 100),
            extent(20, 5, 2, 0),
            extent(30, 5, 3, 0),
        ]);
        assert_eq!(map.range(offset, len).collect::<Vec<_>>(), pieces);
    }

    #[test]
    fn range_is_cut_into_data_and_holes() {
        let hole = |offset, len| Piece::Hole { offset, len };
        check_range(0, 0, &[]);
        check_range(12, 0, &[]);
        check_range(0, 10, &[hole(0, 10)]);
        check_range(12, 3, &[Piece::Data(extent(12, 3, 1, 102))]);
        let across = [
            Piece::Data(extent(19, 1, 1, 109)),
            Piece::Data(extent(20, 5, 2, 0)),
            hole(25, 2),
        ];
        check_range(19, 8, &across);
        check_range(34, 10, &[Piece::Data(extent(34, 1, 3, 4)), hole(35, 9)]);
        check_range(u64::MAX, 10, &[]);
    }

    #[test]
    fn seeks() {
        let map = map(&[
            extent(10, 10, 1, 0),
            extent(20, 5, 2, 0),
            extent(30, 5, 3, 0),
        ]);
        let data = |offset| map.next_data(offset);
        assert_eq!(
            (data(0), data(12), data(25), data(35)),
            (Some(10), Some(12), Some(30), None)
        );
        let hole = |offset| map.next_hole(offset, 33);
        assert_eq!((hole(0), hole(10), hole(22), hole(30)), (0, 25, 25, 33));
    }

    #[track_caller]
    fn check_refused(extents: &[Extent], error: ExtentError) {
        assert_eq!(ExtentMap::try_from(extents.to_vec()), Err(error));
        assert!(
            decode::<ExtentMap>(&encode(&extents)).is_err(),
            "serde checks as well"
        );
    }

    #[test]
    fn extents_from_outside_are_checked() {
        let out_of_bounds = |offset, len| ExtentError::OutOfBounds { offset, len };
        check_refused(&[extent(0, 0, 1, 0)], out_of_bounds(0, 0));
        check_refused(
            &[extent(0, CHUNK_BYTES_MAX + 1, 1, 0)],
            out_of_bounds(0, CHUNK_BYTES_MAX + 1),
        );
        check_refused(&[extent(0, 1, 1, CHUNK_BYTES_MAX)], out_of_bounds(0, 1));
        check_refused(&[extent(0, 1, 1, u32::MAX)], out_of_bounds(0, 1));
        check_refused(&[extent(u64::MAX, 1, 1, 0)], out_of_bounds(u64::MAX, 1));
        check_refused(
            &[extent(FILE_BYTES_MAX, 1, 1, 0)],
            out_of_bounds(FILE_BYTES_MAX, 1),
        );
        check_refused(
            &[extent(0, 2, 1, 0), extent(1, 2, 2, 0)],
            ExtentError::OutOfOrder { offset: 1 },
        );
        let map = map(&[extent(0, 2, 1, 0), extent(2, 2, 2, 0)]);
        assert_eq!(decode::<ExtentMap>(&encode(&map)).expect("decodes"), map);
    }

    #[test]
    fn wire_and_back() {
        let map = map(&[extent(0, 2, 1, 7), extent(5, 2, 2, 0)]);
        let nodes =
            |chunk: ChunkId| vec![NodeId(u16::try_from(chunk.0).expect("small")), NodeId(9)];
        let mut learned = BTreeMap::new();
        let back = ExtentMap::from_wire(map.to_wire(nodes), |chunk, replicas| {
            learned.insert(chunk, replicas);
        });
        assert_eq!(back, Ok(map));
        assert_eq!(learned[&ChunkId(2)], [NodeId(2), NodeId(9)]);
    }

    /// splitmix64: enough randomness for a model test, the same everywhere.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % limit
        }
    }

    /// The model: which byte of which chunk each byte of the file is.
    type Model = Vec<Option<(ChunkId, u32)>>;

    const MODEL_BYTES: u64 = 512;

    fn bytes_of(pieces: impl Iterator<Item = Piece>) -> Model {
        let mut bytes = Model::new();
        for piece in pieces {
            match piece {
                Piece::Data(extent) => bytes.extend(
                    (0..extent.len).map(|at| Some((extent.chunk, extent.chunk_offset + at))),
                ),
                Piece::Hole { len, .. } => bytes.extend((0..len).map(|_| None)),
            }
        }
        bytes
    }

    fn replace_in_model(
        model: &mut Model,
        from: u64,
        to: u64,
        new: Option<Extent>,
    ) -> Vec<(ChunkId, u32)> {
        let (from, to) = (from.min(MODEL_BYTES) as usize, to.min(MODEL_BYTES) as usize);
        let byte = |at: usize| new.map(|new| (new.chunk, new.chunk_offset + at as u32));
        (from..to)
            .filter_map(|at| std::mem::replace(&mut model[at], byte(at - from)))
            .collect()
    }

    #[test]
    fn agrees_with_a_byte_array() {
        let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("SEED is a number"));
        println!("SEED={seed} cargo test -p gfs agrees_with_a_byte_array");
        let mut random = Random(seed);
        let (mut map, mut model) = (ExtentMap::new(), vec![None; MODEL_BYTES as usize]);
        for step in 0..20_000 {
            let offset = random.below(MODEL_BYTES);
            let len = 1 + random.below((MODEL_BYTES - offset).min(64));
            let (freed, expected) = match random.below(16) {
                0 => (
                    map.cut(offset),
                    replace_in_model(&mut model, offset, MODEL_BYTES, None),
                ),
                1..4 => (
                    map.punch(offset, len),
                    replace_in_model(&mut model, offset, offset + len, None),
                ),
                _ => {
                    let new = extent(offset, len as u32, step, random.below(100) as u32);
                    (
                        map.insert(new),
                        replace_in_model(&mut model, offset, offset + len, Some(new)),
                    )
                }
            };
            let freed = bytes_of(freed.into_iter().map(Piece::Data))
                .into_iter()
                .flatten()
                .collect::<Vec<_>>();
            assert_eq!(freed, expected, "freed in step {step}");
            assert_eq!(
                ExtentMap::try_from(map.0.clone()).as_ref(),
                Ok(&map),
                "rules E1 and E2 in step {step}"
            );
            let (at, size) = (random.below(MODEL_BYTES), random.below(MODEL_BYTES + 1));
            let part = &model[at as usize..(at + size).min(MODEL_BYTES) as usize];
            assert_eq!(
                bytes_of(map.range(at, part.len() as u64)),
                part,
                "range in step {step}"
            );
            let find = |is: fn(&Option<(ChunkId, u32)>) -> bool| {
                (at..MODEL_BYTES).find(|at| is(&model[*at as usize]))
            };
            assert_eq!(
                map.next_data(at),
                find(Option::is_some),
                "next_data in step {step}"
            );
            let hole = find(Option::is_none).unwrap_or(MODEL_BYTES);
            assert_eq!(
                map.next_hole(at, MODEL_BYTES),
                hole,
                "next_hole in step {step}"
            );
            let allocated = model.iter().flatten().count() as u64;
            assert_eq!(
                map.bytes_allocated(),
                allocated,
                "bytes_allocated in step {step}"
            );
        }
    }

    #[test]
    fn a_hundred_thousand_extents_are_fine() {
        let count = 100_000;
        let mut map = ExtentMap::new();
        for at in 0..count {
            map.insert(extent(at * 10, 5, at, 0));
        }
        let start = std::time::Instant::now();
        for at in 0..1_000 {
            map.insert(extent(at * 10 + 7, 2, count + at, 0));
        }
        println!(
            "an insertion near the front of {} extents: {:?}",
            map.len(),
            start.elapsed() / 1_000
        );
        assert_eq!(map.len(), 101_000);
        assert_eq!(map.bytes_allocated(), 502_000);
    }
}

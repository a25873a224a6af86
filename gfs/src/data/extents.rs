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
mod tests;

//! Bytes written to a file that the leader has not seen yet: an interval map over the content below.
//!
//! A layer says for each byte: these are its new contents, or they lie in that chunk of another file (W4), or it was
//! cut off (zero), or it is as below. Layers stack: while one is being flushed, new writes go to a fresh one above it.

use super::content::ChunkPart;
use bytes::Bytes;
use std::collections::BTreeMap;

/// A small write is appended to the piece before it up to this size: larger pieces gain nothing, and growing
/// them would copy more.
const BUF_BYTES_MAX: usize = 1 << 20;
/// Writes from this size on keep their own buffer instead of being copied.
const OWN_BUFFER_BYTES: usize = 64 << 10;

/// One layer of changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Dirty {
    /// Smallest size the file had since the layer was begun: what is below ends there.
    cut: Option<u64>,
    /// Not overlapping, none of length 0.
    pieces: BTreeMap<u64, Piece>,
    /// In memory.
    bytes: u64,
    /// In chunks of other files.
    shared: u64,
}

#[derive(Clone, Debug)]
enum Piece {
    Bytes(Bytes),
    /// Grows in place.
    Buf(Vec<u8>),
    Zero(u64),
    Chunk(ChunkPart),
}

/// What a layer says about a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Span {
    Bytes(Bytes),
    Zero(u64),
    Chunk(ChunkPart),
    /// As many bytes as in the layer below.
    Below(u64),
}

impl Dirty {
    pub(super) fn is_empty(&self) -> bool {
        self.cut.is_none() && self.pieces.is_empty()
    }

    /// Returns the bytes of memory the layer is charged for.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the bytes that lie in chunks of other files.
    pub(super) const fn shared(&self) -> u64 {
        self.shared
    }

    pub(super) const fn cut(&self) -> Option<u64> {
        self.cut
    }

    pub(super) fn write(&mut self, offset: u64, data: Bytes) {
        if data.is_empty() || self.write_in_place(offset, &data) {
            return;
        }
        self.clear(offset, offset + data.len() as u64);
        let piece = if data.len() < OWN_BUFFER_BYTES {
            Piece::Buf(data.to_vec())
        } else {
            Piece::Bytes(data)
        };
        self.insert(offset, piece);
    }

    /// Overwrites or extends the growing piece that `offset` lies in or just behind.
    fn write_in_place(&mut self, offset: u64, data: &Bytes) -> bool {
        let end = offset + data.len() as u64;
        let next = self.pieces.range(offset + 1..).next();
        let free_until = next.map_or(u64::MAX, |(&at, _)| at);
        let Some((&start, Piece::Buf(buf))) = self.pieces.range_mut(..=offset).next_back() else {
            return false;
        };
        let piece_end = start + buf.len() as u64;
        let Ok(at) = usize::try_from(offset - start) else {
            return false;
        };
        if end <= piece_end {
            buf[at..at + data.len()].copy_from_slice(data);
            return true;
        }
        let fits = data.len() < OWN_BUFFER_BYTES && at + data.len() <= BUF_BYTES_MAX;
        if offset <= piece_end && end <= free_until && fits {
            self.bytes += end - piece_end;
            buf.truncate(at);
            buf.extend_from_slice(data);
            return true;
        }
        false
    }

    /// Makes a range zero.
    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        if len > 0 {
            self.clear(offset, offset + len);
            self.insert(offset, Piece::Zero(len));
        }
    }

    /// Puts a part of a chunk that is committed already.
    pub(super) fn share(&mut self, offset: u64, part: ChunkPart) {
        if part.len > 0 {
            self.clear(offset, offset + u64::from(part.len));
            self.insert(offset, Piece::Chunk(part));
        }
    }

    /// Cuts everything off from `size` on; a later growth reads as zero.
    pub(super) fn truncate(&mut self, size: u64) {
        self.clear(size, u64::MAX);
        self.cut = Some(self.cut.map_or(size, |cut| cut.min(size)));
    }

    /// Returns what the layer says about `len` bytes from `offset`, in order.
    pub(super) fn spans(&self, offset: u64, len: u64) -> Vec<Span> {
        let end = offset.saturating_add(len);
        let mut spans = Vec::new();
        let mut at = offset;
        let first = self.pieces.range(..=offset).next_back().map(|(&at, _)| at);
        for (&start, piece) in self.pieces.range(first.unwrap_or(offset)..end) {
            let piece_end = start + piece.len();
            if piece_end <= at {
                continue;
            }
            self.gap(at, start, &mut spans);
            let from = at.max(start);
            let to = piece_end.min(end);
            spans.push(piece.span(from - start, to - start));
            at = to;
        }
        self.gap(at, end, &mut spans);
        spans
    }

    fn gap(&self, from: u64, to: u64, spans: &mut Vec<Span>) {
        let below_end = self.cut.map_or(to, |cut| cut.clamp(from, to.max(from)));
        if below_end > from {
            spans.push(Span::Below(below_end - from));
        }
        if to > below_end {
            spans.push(Span::Zero(to - below_end));
        }
    }

    /// Returns the changed pieces in order; what was cut off is not among them.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, Span)> + '_ {
        self.pieces
            .iter()
            .map(|(&at, piece)| (at, piece.span(0, piece.len())))
    }

    /// Makes the pieces cheap to clone and slice: nothing grows in place any more.
    pub(super) fn freeze(&mut self) {
        for piece in self.pieces.values_mut() {
            if let Piece::Buf(buf) = piece {
                *piece = Piece::Bytes(std::mem::take(buf).into());
            }
        }
    }

    /// Puts the changes of `above` on top of these.
    pub(super) fn absorb(&mut self, above: Self) {
        if let Some(cut) = above.cut {
            self.truncate(cut);
        }
        for (at, piece) in above.pieces {
            self.clear(at, at + piece.len());
            self.insert(at, piece);
        }
    }

    /// Puts a piece where there is none.
    fn insert(&mut self, at: u64, piece: Piece) {
        self.bytes += piece.memory();
        self.shared += piece.shared();
        self.pieces.insert(at, piece);
    }

    /// Removes the pieces of `[start, end)`.
    fn clear(&mut self, start: u64, end: u64) {
        let first = self.pieces.range(..start).next_back().map(|(&at, _)| at);
        let hit: Vec<u64> = self
            .pieces
            .range(first.unwrap_or(start)..end)
            .map(|(&at, _)| at)
            .collect();
        for at in hit {
            let piece = self.pieces.remove(&at).expect("listed above");
            self.bytes -= piece.memory();
            self.shared -= piece.shared();
            let piece_end = at + piece.len();
            if piece_end <= start {
                self.insert(at, piece);
                continue;
            }
            let mut keep = |from: u64, to: u64| {
                if from < to {
                    self.insert(from, piece.part(from - at, to - at));
                }
            };
            keep(at, start.min(piece_end));
            keep(end.max(at), piece_end);
        }
    }
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Buf(buf) => buf.len() as u64,
            Self::Zero(len) => *len,
            Self::Chunk(part) => u64::from(part.len),
        }
    }

    fn memory(&self) -> u64 {
        match self {
            Self::Bytes(_) | Self::Buf(_) => self.len(),
            Self::Zero(_) | Self::Chunk(_) => 0,
        }
    }

    fn shared(&self) -> u64 {
        match self {
            Self::Chunk(part) => u64::from(part.len),
            Self::Bytes(_) | Self::Buf(_) | Self::Zero(_) => 0,
        }
    }

    fn part(&self, from: u64, to: u64) -> Self {
        match self.span(from, to) {
            Span::Bytes(bytes) => Self::Bytes(bytes),
            Span::Chunk(part) => Self::Chunk(part),
            Span::Zero(len) | Span::Below(len) => Self::Zero(len),
        }
    }

    fn span(&self, from: u64, to: u64) -> Span {
        let index = |at: u64| usize::try_from(at).expect("pieces with bytes are in memory");
        match self {
            Self::Bytes(bytes) => Span::Bytes(bytes.slice(index(from)..index(to))),
            Self::Buf(buf) => Span::Bytes(Bytes::copy_from_slice(&buf[index(from)..index(to)])),
            Self::Zero(_) => Span::Zero(to - from),
            Self::Chunk(part) => Span::Chunk(part.slice(from, to)),
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "numbers of tests are small"
)]
mod tests {
    use super::*;
    use consistency::ChunkId;

    /// A file as an array, and the layer over what it was at first.
    struct Model {
        below: Vec<u8>,
        now: Vec<u8>,
        dirty: Dirty,
    }

    impl Model {
        fn new(below: &[u8]) -> Self {
            Self {
                below: below.to_vec(),
                now: below.to_vec(),
                dirty: Dirty::default(),
            }
        }

        fn write(&mut self, offset: usize, data: &[u8]) {
            if self.now.len() < offset + data.len() {
                self.now.resize(offset + data.len(), 0);
            }
            self.now[offset..offset + data.len()].copy_from_slice(data);
            self.dirty
                .write(offset as u64, Bytes::copy_from_slice(data));
        }

        fn share(&mut self, offset: usize, chunk_offset: usize, len: usize) {
            let end = offset + len;
            self.now.resize(self.now.len().max(end), 0);
            for (at, byte) in self.now[offset..end].iter_mut().enumerate() {
                *byte = in_chunk(chunk_offset + at);
            }
            let part = ChunkPart {
                chunk: ChunkId(1),
                replicas: Vec::new(),
                offset: chunk_offset as u32,
                len: len as u32,
            };
            self.dirty.share(offset as u64, part);
        }

        fn truncate(&mut self, size: usize) {
            self.now.resize(size, 0);
            self.dirty.truncate(size as u64);
        }

        fn zero(&mut self, offset: usize, len: usize) {
            let end = (offset + len).min(self.now.len());
            if offset < end {
                self.now[offset..end].fill(0);
                self.dirty.zero(offset as u64, (end - offset) as u64);
            }
        }

        #[track_caller]
        fn check(&self, context: &str) {
            assert_eq!(
                flatten(&self.dirty, &self.below, self.now.len()),
                self.now,
                "{context}"
            );
            let memory: u64 = self.dirty.pieces.values().map(Piece::memory).sum();
            assert_eq!(self.dirty.bytes, memory, "{context}");
            let shared: u64 = self.dirty.pieces.values().map(Piece::shared).sum();
            assert_eq!(self.dirty.shared, shared, "{context}");
        }
    }

    /// What the chunk holds that is shared.
    fn in_chunk(at: usize) -> u8 {
        100 + (at % 97) as u8
    }

    fn flatten(dirty: &Dirty, below: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for span in dirty.spans(0, size as u64) {
            match span {
                Span::Bytes(bytes) => out.extend_from_slice(&bytes),
                Span::Zero(len) => out.resize(out.len() + len as usize, 0),
                Span::Chunk(part) => {
                    let at = part.offset as usize;
                    out.extend((at..at + part.len as usize).map(in_chunk));
                }
                Span::Below(len) => {
                    for at in out.len()..out.len() + len as usize {
                        out.push(below.get(at).copied().unwrap_or(0));
                    }
                }
            }
        }
        out
    }

    struct Rng(u64);

    impl Rng {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % limit
        }
    }

    fn step(model: &mut Model, rng: &mut Rng, step: usize) {
        let offset = rng.below(300);
        let len = rng.below(60);
        match rng.below(10) {
            0 => model.truncate(rng.below(300)),
            1 => model.zero(offset, len),
            2 => model.dirty.freeze(),
            3 | 4 => model.share(offset, rng.below(1000), len),
            _ => model.write(offset, &vec![step as u8 | 1; len]),
        }
    }

    #[test]
    fn agrees_with_an_array() {
        let only = std::env::var("SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        for seed in only.map_or(0..300, |seed: u64| seed..seed + 1) {
            let mut rng = Rng(seed);
            let mut model = Model::new(&[7; 100]);
            for i in 0..60 {
                step(&mut model, &mut rng, i);
                model.check(&format!(
                    "SEED={seed} cargo test agrees_with_an_array, step {i}"
                ));
            }
        }
    }

    #[test]
    fn layers_absorb() {
        for seed in 0..200 {
            let mut rng = Rng(seed);
            let mut lower = Model::new(&[7; 100]);
            for i in 0..10 {
                step(&mut lower, &mut rng, i);
            }
            let mut upper = Model::new(&lower.now);
            for i in 10..20 {
                step(&mut upper, &mut rng, i);
            }
            lower.dirty.absorb(upper.dirty);
            lower.now = upper.now;
            lower.check(&format!("seed {seed}"));
        }
    }

    #[test]
    fn small_appends_share_a_buffer() {
        let mut dirty = Dirty::default();
        for i in 0..1000 {
            dirty.write(i * 10, Bytes::from_static(b"0123456789"));
        }
        assert_eq!(dirty.pieces.len(), 1);
        assert_eq!(dirty.bytes(), 10_000);
    }
}
